"""A model's scores on a prepared data set, by lead set -> metrics. Works on whatever turns windows into logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data import DataSet
from training.metrics import label_metrics, summary
from training.trainee import Trainee

__all__ = ["LEAD_SETS", "Scorer", "evaluate", "model_scorer", "predict"]

LEAD_SETS = ("12", "limb6", "I+II", "I")
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Scorer = Callable[[Floats], Floats]


def model_scorer(model: Trainee) -> Scorer:
    """(B, 12, 5000) -> (B, L) logits by the torch model."""
    model.eval()

    def score(x: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(model.logits(torch.from_numpy(x)).numpy(), dtype=np.float32)

    return score


def predict(
    score: Scorer, data: DataSet, lead_set: str = "12", advance: Callable[[int], None] = lambda n: None
) -> tuple[Floats, Bools, Bools]:
    """-> logits, y, known of all records, (N, L) each."""
    logits, truth, known = [], [], []
    for batch in data.plain(lead_set):
        logits.append(score(batch.x))
        truth.append(batch.y)
        known.append(batch.known)
        advance(len(batch.x))
    return np.concatenate(logits), np.concatenate(truth), np.concatenate(known)


def evaluate(
    score: Scorer,
    data: DataSet,
    candidates: Bools,
    lead_sets: Sequence[str] = LEAD_SETS,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Metrics by lead set. candidates: bool (L,), labels with evidence; others have no score and no rank.

    With fewer leads, labels that cannot be assessed from them do not count; `same_labels_12` gives the 12-lead means over the
    labels that remain, for comparison.
    """
    ids = [s.id for s in data.labels]
    out: dict[str, Any] = {"records": len(data), "lead_sets": {}}
    full: dict[str, dict[str, Any]] = {}
    for name in lead_sets:
        logits, y, known = predict(score, data, name, advance)
        labels = label_metrics(logits, y, known & candidates, ids, candidates)
        entry: dict[str, Any] = {**summary(labels), "per_label": labels}
        if name == "12":
            full = labels
        elif full:
            entry["same_labels_12"] = summary({k: v for k, v in full.items() if k in labels})
        out["lead_sets"][name] = entry
    return out
