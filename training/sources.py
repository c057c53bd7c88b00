"""Folders of annotated recordings -> one list of `Annotated`: the door to all layouts.

Not annotated is not negative: each source declares the labels its readers use; all others are unknown there, and so are
general statements beside specific ones (training/relations.py). Signals are not read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from training.annotated import (
    CALIBRATION_FOLD,
    FOLDS,
    TEST_FOLD,
    VALIDATION_FOLD,
    Annotated,
    Source,
    SourceError,
    fold_of,
)
from training.published import GRADES, Likelihood, read_alivecor, read_challenge, read_graded, read_ptbxl
from training.vocabulary import Statement, by_code

__all__ = [
    "CALIBRATION_FOLD",
    "FOLDS",
    "TEST_FOLD",
    "VALIDATION_FOLD",
    "Annotated",
    "Source",
    "SourceError",
    "fold_of",
    "read_source",
]


def read_source(folder: Path, vocabulary: Iterable[Statement], likelihood: Likelihood = "unknown") -> Source:
    """The records of one folder, by the layout found in it. Raises SourceError.

    likelihood: what a None in PTB-XL's scp_codes means: that the label is "unknown", or "stated" without a likelihood.
    """
    codes = by_code(vocabulary)
    if (folder / "ptbxl_database.csv").is_file():
        return read_ptbxl(folder, codes, likelihood)
    if (folder / "REFERENCE-v3.csv").is_file():
        return read_alivecor(folder)
    if any((folder / f"RECORDS-{grade}").is_file() for grade in GRADES):
        return read_graded(folder)
    if any(folder.rglob("*.hea")):
        return read_challenge(folder, codes)
    raise SourceError(
        f"{folder}: neither ptbxl_database.csv, nor REFERENCE-v3.csv, nor WFDB headers; give the folder that holds them"
    )
