"""Folders of annotated recordings as their publishers lay them out -> one list of `Annotated`.

PTB-XL: ptbxl_database.csv beside the records.   PhysioNet/CinC Challenge: `# Dx:` comments in the headers.
AliveCor (CinC 2017): REFERENCE-v3.csv, one lead.

Not annotated is not negative: each source declares the labels its readers use; all others are unknown there, and so are
general statements beside specific ones (training/relations.py). Signals are not read here.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.relations import complete
from training.vocabulary import SCP, SNOMED, Statement, by_code

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

FOLDS = 10
CALIBRATION_FOLD, VALIDATION_FOLD, TEST_FOLD = 8, 9, 10
Likelihood = Literal["unknown", "stated"]

AXIS = {
    "LAD": "LAD",
    "ALAD": "LAD",
    "RAD": "RAD",
    "ARAD": "RAD",
    "MID": None,
}  # PTB-XL's heart_axis; AXL, AXR, SAG are borderline
ALIVECOR: dict[str, tuple[str | None, tuple[str, ...]]] = {
    # reference -> (label stated, labels unknown)
    "N": ("SR", ()),
    "A": ("AFIB", ()),
    "O": (None, ("SR",)),  # some other rhythm, sinus rhythm with ectopy among them
}


class SourceError(ValueError):
    """A folder that cannot be used; names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Annotated:
    """One recording before its signal is read. fold: 1 to 10. positive, unknown: label ids; the rest of `declared` is negative.

    leads: names for channels the reader does not know.
    """

    path: Path
    record: str
    patient: str
    fold: int
    positive: tuple[str, ...]
    unknown: tuple[str, ...]
    source: str
    leads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A folder: its layout, its records, what each sub-source declares, and records that were left out with the reason."""

    name: str
    layout: str
    records: tuple[Annotated, ...]
    declared: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[str, str], ...]


def fold_of(key: str) -> int:
    """1 to 8 or, for a fifth, 9, where no folds are published: sha256 of the patient or record id modulo 5."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return VALIDATION_FOLD if number % 5 == 4 else 1 + number // 5 % 8


def read_source(folder: Path, vocabulary: Iterable[Statement], likelihood: Likelihood = "unknown") -> Source:
    """The records of one folder, by the layout found in it. Raises SourceError.

    likelihood: what a None in PTB-XL's scp_codes means: that the label is "unknown", or "stated" without a likelihood.
    """
    codes = by_code(vocabulary)
    if (folder / "ptbxl_database.csv").is_file():
        return _read_ptbxl(folder, codes, likelihood)
    if (folder / "REFERENCE-v3.csv").is_file():
        return _read_alivecor(folder)
    if any(folder.rglob("*.hea")):
        return _read_challenge(folder, codes)
    raise SourceError(
        f"{folder}: neither ptbxl_database.csv, nor REFERENCE-v3.csv, nor WFDB headers; give the folder that holds them"
    )


def _rows(path: Path, need: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in need if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceError(f"{path}: no column {', '.join(missing)}; PTB-XL's own ptbxl_database.csv has it")
        return list(reader)


def _read_ptbxl(folder: Path, codes: Mapping[tuple[str, str], str], likelihood: Likelihood) -> Source:
    table = folder / "ptbxl_database.csv"
    records, skipped = [], []
    for row in _rows(table, ("ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_hr")):
        name = f"{folder.name}/{row['ecg_id']}"
        try:
            stated = ast.literal_eval(row["scp_codes"])
            fold = int(float(row["strat_fold"]))
            if not isinstance(stated, dict) or not 1 <= fold <= FOLDS:
                raise ValueError(f"scp_codes {row['scp_codes'][:40]!r}, strat_fold {fold}")
        except (ValueError, SyntaxError) as error:
            skipped.append((name, f"unreadable annotation: {error}"))
            continue
        positive, unknown = _scp(stated, codes, likelihood)
        axis = row.get("heart_axis") or ""
        if AXIS.get(axis):
            positive.add(str(AXIS[axis]))
        elif axis not in AXIS:
            unknown |= {"LAD", "RAD"}
        patient = "ptbxl:" + (row["patient_id"] or row["ecg_id"])
        path = folder / row["filename_hr"]
        records.append(
            Annotated(path, name, patient, fold, tuple(sorted(positive)), tuple(sorted(unknown - positive)), folder.name)
        )
    declared = tuple(sorted({label for (scheme, _), label in codes.items() if scheme == SCP} | {"LAD", "RAD"}))
    return Source(folder.name, "ptbxl", tuple(records), {folder.name: declared}, tuple(skipped))


def _scp(
    stated: Mapping[str, float | None], codes: Mapping[tuple[str, str], str], likelihood: Likelihood
) -> tuple[set[str], set[str]]:
    """A likelihood of 0 is "not given" (form and rhythm statements always carry it): the code is stated."""
    positive: set[str] = set()
    unknown: set[str] = set()
    for code, value in stated.items():
        label = codes.get((SCP, str(code)), f"{SCP}:{code}")
        (unknown if value is None and likelihood == "unknown" else positive).add(label)
    return complete(positive, unknown)


def _read_challenge(folder: Path, codes: Mapping[tuple[str, str], str]) -> Source:
    """A label is declared by a source (the letters before the number: A, Q, E, JS, ...) if any of its records states it."""
    records, skipped = [], []
    declared: dict[str, set[str]] = {}
    for header in sorted(folder.rglob("*.hea")):
        name = f"{folder.name}/{header.stem}"
        text = header.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^#\s*Dx:\s*(.*)$", text, re.MULTILINE)
        if found is None:
            skipped.append((name, "no `# Dx:` comment in its header"))
            continue
        given = [code.strip() for code in found[1].split(",") if code.strip()]
        stated = {codes[SNOMED, code] for code in given if (SNOMED, code) in codes}
        positive, unknown = complete(stated)
        letters = re.match(r"[A-Za-z]*", header.stem)
        source = f"{folder.name}/{letters[0] if letters else ''}"
        declared.setdefault(source, set()).update(stated)
        patient = f"{source}:{header.stem}"
        records.append(
            Annotated(
                header.with_suffix(""),
                name,
                patient,
                fold_of(header.stem),
                tuple(sorted(positive)),
                tuple(sorted(unknown)),
                source,
            )
        )
    labels = {source: tuple(sorted(ids)) for source, ids in declared.items()}
    return Source(folder.name, "challenge", tuple(records), labels, tuple(skipped))


def _read_alivecor(folder: Path) -> Source:
    records, skipped = [], []
    with (folder / "REFERENCE-v3.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.reader(file):
            if len(line) < 2 or line[1] not in ALIVECOR:
                skipped.append((f"{folder.name}/{line[0] if line else '?'}", "annotated as too noisy, or not N, A, O"))
                continue
            name, (positive, unknown) = line[0], ALIVECOR[line[1]]
            stated = (positive,) if positive else ()
            records.append(
                Annotated(
                    folder / name,
                    f"{folder.name}/{name}",
                    f"{folder.name}:{name}",
                    fold_of(name),
                    stated,
                    unknown,
                    folder.name,
                    {"ECG": "I"},
                )
            )
    return Source(folder.name, "alivecor", tuple(records), {folder.name: ("AFIB", "SR")}, tuple(skipped))
