"""Long recordings, each with itself: which windows of a recording have a finding, and which are said to have it.

Thirty minutes of forty patients hold thousands of windows and few patients with any one finding: too few for the figures that
ask for ten. These figures say how many there are, and what could be measured within one heart needs no second one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import interval
from training.evaluation.metrics import aurocs

__all__ = ["FEW_PATIENTS", "SILENT", "by_recording"]

FEW_PATIENTS = 3  # with a finding, and as many without, below which windows of several recordings have no common figure
SILENT = {  # keys of what `by_recording` gives -> why nothing is measured there
    "unsupported": "the model has no probability with a threshold",
    "not_shown": "the leads of these windows do not show it",
}

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


def by_recording(
    p: Floats,
    thresholds: Floats,
    y: Bools,
    known: Bools,
    index: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    weights: Weights,
) -> dict[str, Any] | None:
    """What is found and what is said wrongly on each long recording, by label; None where there is no long recording.

    p, y, known: (N, L); thresholds: (L,), NaN without one; index: N; weights: (R, N). per_label: labels with a threshold that
    any window is known to have (of the others `false_positives` tells). unsupported: windows by label that is stated of them
    and that the model has no threshold for. not_shown: by label that it has one for, windows whose leads do not show it.
    """
    rows = np.flatnonzero([row.get("window") is not None for row in index])
    if not len(rows):
        return None
    here = [index[i] for i in rows.tolist()]
    recordings = np.array([row["record"].rpartition("@")[0] for row in here])
    patients = np.array([row["patient"] for row in here])
    stated = Counter(label for row in here for label in row["positive"])
    per_label, not_shown = {}, {}
    supported = np.flatnonzero(np.isfinite(thresholds)).tolist()
    for j in supported:
        there = known[rows, j]
        has = y[rows, j] & there
        if missing := stated[ids[j]] - int(has.sum()):
            not_shown[ids[j]] = missing
        if has.any():
            per_label[ids[j]] = _label(p[rows, j], thresholds[j], has, ~has & there, recordings, patients, weights[:, rows])
    unsupported = {label: n for label, n in stated.most_common() if label not in {ids[j] for j in supported}}
    told = {"recordings": len(set(recordings)), "patients": len(set(patients)), "windows": len(rows)}
    return told | {"per_label": per_label, "unsupported": unsupported, "not_shown": not_shown}


def _label(
    p: Floats, threshold: float, has: Bools, lacks: Bools, recordings: NDArray[np.str_], patients: NDArray[np.str_], w: Weights
) -> dict[str, Any]:
    """One label. p, has, lacks, recordings, patients: (n,) of windows of long recordings; w: (R, n)."""
    said = p >= threshold
    each: dict[str, dict[str, int]] = {}
    within = []
    for name in dict.fromkeys(recordings[has | lacks].tolist()):
        inside = recordings == name
        counts = {"windows": has, "found": has & said, "without": lacks, "wrong": lacks & said}
        each[name] = {key: int((inside & rows).sum()) for key, rows in counts.items()}
        if each[name]["windows"] and each[name]["without"]:
            within.append(float(_auroc(p, has & inside, lacks & inside, np.ones((1, len(p))))[0]))
    windows, without = int(has.sum()), int(lacks.sum())
    with_it, without_it = len(set(patients[has])), len(set(patients[lacks]))
    enough = min(with_it, without_it) >= FEW_PATIENTS
    values = _auroc(p, has, lacks, w) if enough else None
    return {
        "windows": windows,
        "without": without,
        "recordings": sum(counts["windows"] > 0 for counts in each.values()),
        "patients": with_it,
        "patients_without": without_it,
        "few_patients_auroc": None if values is None else float(values[0]),
        "few_patients_auroc_interval": None if values is None else interval(values),
        "within_recordings": len(within),
        "within_auroc_median": float(np.median(within)) if within else None,
        "sensitivity": int((has & said).sum()) / windows,
        "said_wrongly": int((lacks & said).sum()) / without if without else None,
        "per_recording": each,
    }


def _auroc(p: Floats, has: Bools, lacks: Bools, weights: Weights) -> Weights:
    """p, has, lacks: (n,); weights: (R, n) -> (R,)."""
    return aurocs(p[:, None], has[:, None], (has | lacks)[:, None], weights)[:, 0]
