"""Folders of annotated recordings -> one list of `Annotated`: the door to all layouts.

Not annotated is not negative: each source declares the labels its readers use; all others are unknown there, and so are
general statements beside specific ones (training/sources/relations.py). Signals are not read here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from training.sources.annotated import Source, SourceError
from training.sources.code_hdf5 import TABLE as EXAMS
from training.sources.code_hdf5 import read_code
from training.sources.labelled import TABLE, read_labelled
from training.sources.long_recordings import read_long
from training.sources.published import GRADES, Likelihood, read_alivecor, read_challenge, read_graded, read_ptbxl
from training.vocabulary import Statement, by_code

__all__ = ["read_source"]


def read_source(
    folder: Path,
    vocabulary: Iterable[Statement],
    likelihood: Likelihood = "unknown",
    labels: Path | None = None,
    declares: str = "",
    hdf5_unit: str = "mV",
    window_step_s: float = 10.0,
) -> Source:
    """The records of one folder, by the layout found in it. Raises SourceError.

    likelihood: what a None in PTB-XL's scp_codes means: that the label is "unknown", or "stated" without a likelihood.
    labels, declares: a table of labels for the recordings in `folder` (training/sources/labelled.py), and what it annotates.
    hdf5_unit: of the tracings of a CODE-like set (training/sources/code_hdf5.py). window_step_s: of annotated long
    recordings (training/sources/long_recordings.py).
    """
    folder = folder if folder.name.strip(".") else folder.resolve()  # "." and ".." are no names
    try:
        return _by_layout(folder, tuple(vocabulary), likelihood, labels, declares, hdf5_unit, window_step_s)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{labels or folder}: a table is no CSV in UTF-8 ({error}); save it as CSV in UTF-8") from None


def _by_layout(
    folder: Path,
    vocabulary: tuple[Statement, ...],
    likelihood: Likelihood,
    labels: Path | None,
    declares: str,
    hdf5_unit: str,
    window_step_s: float,
) -> Source:
    codes = by_code(vocabulary)
    if labels is not None or (folder / TABLE).is_file():
        return read_labelled(folder, labels or folder / TABLE, vocabulary, declares)
    if (folder / "ptbxl_database.csv").is_file():
        return read_ptbxl(folder, codes, likelihood)
    if (folder / "REFERENCE-v3.csv").is_file():
        return read_alivecor(folder)
    if (folder / EXAMS).is_file():
        return read_code(folder, codes, hdf5_unit)
    if any((folder / f"RECORDS-{grade}").is_file() for grade in GRADES):
        return read_graded(folder)
    if any(folder.rglob("*.atr")):
        return read_long(folder, window_step_s)
    if any(folder.rglob("*.hea")):
        source = read_challenge(folder, codes)
        if source.records:
            return source
    raise SourceError(
        f"{folder}: neither ptbxl_database.csv, nor REFERENCE-v3.csv, nor WFDB headers with `# Dx:`; give the folder that "
        f"holds them, or a table of labels for recordings of your own: --labels {TABLE}, with the columns record and labels"
    )
