"""What a prepared data set contains, counted in one pass over its index: the numbers behind `statistics_page`.

A label is true, false or unknown of a record as in training (`DataSet.targets`), and unknown too where the
leads of the record do not show it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from encoders.bank import assessable, tier_of
from encoders.signal import LEADS, WINDOW, lead_names
from training.data.prepare import INDEX
from training.sources.annotated import VALIDATION_FOLD
from training.vocabulary import Statement

__all__ = ["AGE_BANDS", "SEXES", "SPLITS", "Counts", "count"]

SPLITS = ("train", "calibration", "val", "test")
COLUMNS = ("source", "patient", "split", "fold", "unit", "mask", "derived", "positive", "unknown", "n_valid")
LATER = ("sex", "age", "quality", "signal_grade", "fs", "window")  # columns that older data sets lack
LOST = "NU"
SEXES = {"F": "women", "M": "men", "": "not given"}
AGE_BANDS = tuple(range(0, 100, 10))  # years; the last is 90 and over


@dataclass
class _Label:
    """Records by split that state it, deny it, or say nothing."""

    true: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


@dataclass
class Counts:
    """Everything the page shows, from one pass over the index. tables: name -> (source or value, split) -> records."""

    labels: dict[str, _Label] = field(default_factory=lambda: defaultdict(_Label))
    records: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, split)
    patients: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by source
    tables: dict[str, Counter[tuple[str, str]]] = field(default_factory=lambda: defaultdict(Counter))
    ages: Counter[tuple[int, str]] = field(default_factory=Counter)  # (band, sex)
    development: Counter[str] = field(default_factory=Counter)  # positives of folds 1 to 8, as `count_evidence` counts them
    long: set[tuple[str, str]] = field(default_factory=set)  # (patient, label) of windows of long recordings among them
    folds: Counter[int] = field(default_factory=Counter)

    @property
    def splits(self) -> list[str]:
        """Splits that have records."""
        return [s for s in SPLITS if any(split == s for _, split in self.records)]

    def tier(self, label: str) -> str:
        """The best that the development folds allow: each of their positives is held out once."""
        return tier_of(self.development[label], self.development[label])


def count(directory: Path, manifest: Mapping[str, Any], vocabulary: Iterable[Statement]) -> Counts:
    """One pass over the index, a row group at a time."""
    statements = {s.id: s for s in vocabulary}
    declared = {source: frozenset(labels) for source, labels in manifest["declared"].items()}
    out = Counts()
    with pq.ParquetFile(directory / INDEX) as file:
        columns = [name for name in (*COLUMNS, *LATER) if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns).to_pylist():
                _row(out, row, declared.get(row["source"], frozenset()), statements)
    return out


def _row(out: Counts, row: Mapping[str, Any], declared: frozenset[str], statements: Mapping[str, Statement]) -> None:
    split, source = row["split"], row["source"]
    out.records[source, split] += 1
    out.patients[source].add(row["patient"])
    out.folds[row["fold"]] += 1
    for label in declared.union(row["positive"], row["unknown"]):
        s = statements.get(label)
        silent = s is not None and (
            (row["unit"] == LOST and s.rests_on_amplitude) or not assessable(s.leads_needed, row["mask"])
        )
        if silent or (label in row["unknown"] and label not in row["positive"]):
            out.labels[label].unknown[split] += 1
        elif label in row["positive"]:
            out.labels[label].true[split] += 1
            _evidence(out, row, label)
        else:
            out.labels[label].false[split] += 1
    sex = row.get("sex") or ""
    if row.get("age") is not None:
        out.ages[min(int(row["age"]) // 10 * 10, AGE_BANDS[-1]), sex] += 1
    fs = row.get("fs")
    for name, value in (
        ("leads", _leads(row["mask"], row["derived"])),
        ("rate", f"{fs:g} Hz" if fs else ""),
        ("amplitude", "lost (NU)" if row["unit"] == LOST else str(row["unit"])),
        ("length", "10 s" if row["n_valid"] >= WINDOW else "5 to 10 s" if row["n_valid"] >= WINDOW // 2 else "under 5 s"),
        ("sex", SEXES[sex]),
        ("quality grade", row.get("quality") or ""),
        ("signal, as graded here", row.get("signal_grade") or ""),
    ):
        out.tables[name][value, split] += 1


def _evidence(out: Counts, row: Mapping[str, Any], label: str) -> None:
    """One positive more, unless it is another window of a patient whose long recordings count already."""
    if row["fold"] >= VALIDATION_FOLD:
        return
    case = (row["patient"], label)
    out.development[label] += row.get("window") is None or case not in out.long
    if row.get("window") is not None:
        out.long.add(case)


def _leads(mask: int, derived: int) -> str:
    names = lead_names(mask & ~derived)
    shown = "12 leads" if len(names) == len(LEADS) else ", ".join(names) if len(names) < 4 else f"{len(names)} leads"
    return shown + (", other limb leads derived" if derived else "")
