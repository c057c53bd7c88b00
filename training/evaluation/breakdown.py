"""The same predictions by parts of the data: sex, age, unit, source, quality, signal; and questions put to one source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.signal import FS
from training.data.targets import cases_of
from training.evaluation.bootstrap import interval, macro
from training.evaluation.metrics import aurocs, enough
from training.sources.published import NOISY

__all__ = ["TASKS", "Task", "false_positives", "subgroups", "task_metrics"]

AGES = (40, 65, 80)  # years, where bands begin

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]
Row = Mapping[str, Any]


def _age(row: Row) -> str | None:
    age = row.get("age")
    if age is None:
        return None
    edges = (0, *AGES)
    k = int(np.searchsorted(edges, age, side="right")) - 1
    return f"{edges[k]}-{edges[k + 1] - 1}" if k + 1 < len(edges) else f"{edges[k]}+"


def _text(key: str) -> Callable[[Row], str | None]:
    return lambda row: None if row.get(key) is None else str(row[key])


PARTS: dict[str, Callable[[Row], str | None]] = {
    "sex": _text("sex"),
    "age": _age,
    "unit": _text("unit"),
    "source": lambda row: str(row["source"]).split("/")[0],
    "quality": _text("quality"),
    "signal": _text("signal_grade"),
}


def subgroups(
    scores: Floats, y: Bools, known: Bools, index: Sequence[Row], ids: Sequence[str], weights: Weights
) -> dict[str, dict[str, Any]]:
    """By part and value: records, patients, macro AUROC, its interval, that of the same labels on all records, and each label.

    A label counts in a part where it has 10 positives and 10 negatives there. Parts that the index does not tell are left out.
    """
    out: dict[str, dict[str, Any]] = {}
    for part, of in PARTS.items():
        values = [of(row) for row in index]
        for value in sorted({v for v in values if v is not None}):
            rows = np.array([v == value for v in values])
            out.setdefault(part, {})[value] = _part(scores, y, known, index, ids, weights, rows)
    return out


def _part(
    scores: Floats, y: Bools, known: Bools, index: Sequence[Row], ids: Sequence[str], weights: Weights, rows: Bools
) -> dict[str, Any]:
    use = enough(y[rows], known[rows], cases_of(index)[rows])
    here = aurocs(scores[rows][:, use], y[rows][:, use], known[rows][:, use], weights[:, rows])
    everywhere = aurocs(scores[:, use], y[:, use], known[:, use], weights[:1])
    patients = np.array([row["patient"] for row in index])
    labels: dict[str, dict[str, Any]] = {}
    for k, j in enumerate(np.flatnonzero(use).tolist()):
        stated = rows & y[:, j] & known[:, j]
        labels[ids[j]] = {"positives": int(stated.sum()), "patients_stating": len(set(patients[stated]))}
        labels[ids[j]] |= {"auroc": float(here[0, k]), "auroc_interval": interval(here[:, k])}
    return {
        "records": int(rows.sum()),
        "patients": len(set(patients[rows])),
        "labels": len(labels),
        "macro_auroc": float(macro(here)[0]) if labels else None,
        "macro_auroc_interval": interval(macro(here)) if labels else None,
        "same_labels_all_records": float(macro(everywhere)[0]) if labels else None,
        "per_label": labels,
    }


def false_positives(
    p: Floats, thresholds: Floats, y: Bools, known: Bools, index: Sequence[Row], ids: Sequence[str], weights: Weights
) -> dict[str, Any] | None:
    """How often each label with a threshold is said wrongly of windows of long recordings; None where there are none.

    per_hour: windows at or above the threshold that are known not to have the finding, an hour of such signal, with the
    patient-level interval. p, y, known: (N, L); thresholds: (L,), NaN without one. Windows count by their valid length.
    """
    hours = np.array([row["n_valid"] / FS / 3600 if row.get("window") is not None else 0.0 for row in index])
    if not hours.any():
        return None
    out: dict[str, dict[str, Any]] = {}
    for j in np.flatnonzero(np.isfinite(thresholds)).tolist():
        absent = (known[:, j] & ~y[:, j]) & (hours > 0)
        wrong = absent & (p[:, j] >= thresholds[j])
        if not absent.any():
            continue
        signal = weights @ np.where(absent, hours, 0.0)
        rate = np.divide(weights @ wrong, signal, out=np.full(len(signal), np.nan), where=signal > 0)
        patients = len({row["patient"] for row, there in zip(index, absent, strict=True) if there})
        out[ids[j]] = {"windows": int(wrong.sum()), "hours": float(signal[0]), "patients": patients}
        out[ids[j]] |= {"per_hour": float(rate[0]), "per_hour_interval": interval(rate)}
    return {"hours": float(hours.sum()), "patients": len({r["patient"] for r, h in zip(index, hours, strict=True) if h})} | {
        "per_label": out
    }


@dataclass(frozen=True)
class Task:
    """A question with two answers: records of `source` that state `label` against those that state `against`.

    against: a label id, or "noisy": records annotated as too noisy to read.
    """

    name: str
    source: str
    label: str
    against: str


TASKS = (
    Task("AliveCor: atrial fibrillation against normal", "cinc2017", "AFIB", "SR"),
    Task("AliveCor: atrial fibrillation against noisy", "cinc2017", "AFIB", NOISY),
)


def task_metrics(
    scores: Floats,
    y: Bools,
    known: Bools,
    index: Sequence[Row],
    ids: Sequence[str],
    weights: Weights,
    tasks: Sequence[Task] = TASKS,
) -> dict[str, Any]:
    """AUROC and interval by task; one whose source or labels are not among the records is left out."""
    place = {name: j for j, name in enumerate(ids)}
    out: dict[str, Any] = {}
    for task in tasks:
        if task.label not in place:
            continue
        inside = np.array([row["source"].split("/")[0] == task.source for row in index])
        if task.against == NOISY:
            negative = inside & np.array([row.get("quality") == NOISY for row in index])
        elif task.against in place:
            negative = inside & (y & known)[:, place[task.against]]
        else:
            continue
        column = [place[task.label]]
        positive = inside & (y & known)[:, column[0]]
        counted = (positive | negative)[:, None]
        if not enough(positive[:, None], counted, cases_of(index)).all():
            continue
        values = aurocs(scores[:, column], positive[:, None], counted, weights)[:, 0]
        out[task.name] = {"positives": int(positive.sum()), "negatives": int((negative & ~positive).sum())}
        out[task.name] |= {"auroc": float(values[0]), "auroc_interval": interval(values)}
    return out
