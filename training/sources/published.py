"""Folders of annotated recordings as their publishers lay them out.

PTB-XL: ptbxl_database.csv beside the records.   PhysioNet/CinC Challenge: `# Dx:` comments in the headers.
AliveCor (CinC 2017): REFERENCE-v3.csv, one lead.   CinC 2011: lists of acceptable and unacceptable records, no labels.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from training.sources.annotated import FOLDS, Annotated, Source, SourceError, age_of, fold_of, inside, sex_of
from training.sources.relations import complete
from training.vocabulary import SCP, SNOMED

__all__ = ["GRADES", "NOISY", "Likelihood", "read_alivecor", "read_challenge", "read_graded", "read_ptbxl"]

Likelihood = Literal["unknown", "stated"]

AXIS = {
    "LAD": "LAD",
    "ALAD": "LAD",
    "RAD": "RAD",
    "ARAD": "RAD",
    "MID": None,
}  # PTB-XL's heart_axis; AXL, AXR, SAG are borderline
PTBXL_SEX = {"0": "M", "0.0": "M", "1": "F", "1.0": "F"}
NOISY = "noisy"  # quality of a recording annotated as too noisy to read
ALIVECOR: dict[str, tuple[str | None, tuple[str, ...]]] = {
    # reference -> (label stated, labels unknown)
    "N": ("SR", ()),
    "A": ("AFIB", ()),
    "AF": ("AFIB", ()),  # as redistributed with the words written out
    "O": (None, ("SR",)),  # some other rhythm, sinus rhythm with ectopy among them
    "~": (None, ("AFIB", "SR")),  # too noisy: nothing is known of its rhythm
    "NOISY": (None, ("AFIB", "SR")),
}
GRADES = ("acceptable", "unacceptable")  # CinC 2011: RECORDS-acceptable, RECORDS-unacceptable


def _rows(path: Path, need: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in need if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceError(f"{path}: no column {', '.join(missing)}; PTB-XL's own ptbxl_database.csv has it")
        return list(reader)


def read_ptbxl(folder: Path, codes: Mapping[tuple[str, str], str], likelihood: Likelihood) -> Source:
    table = folder / "ptbxl_database.csv"
    records, skipped = [], []
    for row in _rows(table, ("ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_hr")):
        name = f"{folder.name}/{row['ecg_id']}"
        try:
            stated = ast.literal_eval(row["scp_codes"])
            path = inside(folder, row["filename_hr"])
            fold = int(float(row["strat_fold"]))
            if not isinstance(stated, dict) or not 1 <= fold <= FOLDS:
                raise ValueError(f"scp_codes {row['scp_codes'][:40]!r}, strat_fold {fold}")
        except (ValueError, SyntaxError) as error:
            skipped.append((name, str(error) if isinstance(error, SourceError) else f"unreadable annotation: {error}"))
            continue
        positive, unknown = _scp(stated, codes, likelihood)
        axis = row.get("heart_axis") or ""
        if AXIS.get(axis):
            positive.add(str(AXIS[axis]))
        elif axis not in AXIS:
            unknown |= {"LAD", "RAD"}
        patient = "ptbxl:" + (row["patient_id"] or row["ecg_id"])
        records.append(
            Annotated(
                path,
                name,
                patient,
                fold,
                tuple(sorted(positive)),
                tuple(sorted(unknown - positive)),
                folder.name,
                sex=sex_of(row.get("sex"), PTBXL_SEX),
                age=age_of(row.get("age")),
                unmapped=_unmapped(SCP, map(str, stated), codes),
            )
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


def _unmapped(scheme: str, stated: Iterable[str], codes: Mapping[tuple[str, str], str]) -> tuple[str, ...]:
    """Codes without a label, which `complete` takes out, some of them after they said something of other labels."""
    return tuple(sorted({f"{scheme}:{code}" for code in stated if (scheme, code) not in codes}))


def read_challenge(folder: Path, codes: Mapping[tuple[str, str], str]) -> Source:
    """A label is declared by a source (the letters before the number: A, Q, E, JS, ...) if any of its records states it."""
    records, skipped = [], []
    declared: dict[str, set[str]] = {}
    for header in sorted(folder.rglob("*.hea")):
        name = f"{folder.name}/{header.stem}"
        text = header.read_text(encoding="utf-8", errors="replace")
        diagnoses = _comment(text, "Dx")
        if diagnoses is None:
            skipped.append((name, "no `# Dx:` comment in its header"))
            continue
        given = [code.strip() for code in diagnoses.split(",") if code.strip()]
        if not any(code.isdigit() for code in given):  # hidden or withheld: nobody denied anything
            skipped.append((name, f"no SNOMED CT code in its `# Dx:` comment, {diagnoses.strip()[:40]!r}"))
            continue
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
                sex=sex_of(_comment(text, "Sex")),
                age=age_of(_comment(text, "Age")),
                unmapped=_unmapped(SNOMED, given, codes),
            )
        )
    labels = {source: tuple(sorted(ids)) for source, ids in declared.items()}
    return Source(folder.name, "challenge", tuple(records), labels, tuple(skipped))


def _comment(header: str, key: str) -> str | None:
    """The value of a comment line `# key: value`."""
    found = re.search(rf"^#\s*{key}:[ \t]*(.*)$", header, re.MULTILINE)
    return found[1] if found else None


def read_alivecor(folder: Path) -> Source:
    records, skipped = [], []
    with (folder / "REFERENCE-v3.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.reader(file):
            if len(line) < 2 or line[1] not in ALIVECOR:
                skipped.append(
                    (
                        f"{folder.name}/{line[0] if line else '?'}",
                        f"annotated as {line[1]!r}, not {', '.join(ALIVECOR)}" if len(line) > 1 else "no annotation",
                    )
                )
                continue
            name, (positive, unknown) = line[0], ALIVECOR[line[1]]
            stated = (positive,) if positive else ()
            records.append(
                Annotated(
                    inside(folder, name),
                    f"{folder.name}/{name}",
                    f"{folder.name}:{name}",
                    fold_of(name),
                    stated,
                    unknown,
                    folder.name,
                    {"ECG": "I"},
                    quality=NOISY if line[1] in ("~", "NOISY") else None,
                )
            )
    return Source(folder.name, "alivecor", tuple(records), {folder.name: ("AFIB", "SR")}, tuple(skipped))


def read_graded(folder: Path) -> Source:
    """Quality grades and no label: nothing is declared, so that the records neither train nor count, but can be scored."""
    records = []
    for grade in GRADES:
        listed = folder / f"RECORDS-{grade}"
        if not listed.is_file():
            raise SourceError(
                f"{listed}: no such file; CinC 2011 lists its records in RECORDS-{GRADES[0]} and RECORDS-{GRADES[1]}"
            )
        for name in listed.read_text(encoding="utf-8").split():
            key = f"{folder.name}/{name}"
            records.append(Annotated(inside(folder, name), key, key, fold_of(name), (), (), folder.name, quality=grade))
    return Source(folder.name, "cinc2011", tuple(records), {folder.name: ()}, ())
