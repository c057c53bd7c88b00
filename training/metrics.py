"""How good scores are: per label and averaged. Only known entries count. N record, L label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

__all__ = ["MIN_CASES", "label_metrics", "summary", "top_k"]

MIN_CASES = 10  # positives, and negatives, below which a label is not scored

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def top_k(scores: Floats, y: Bools, label: int) -> NDArray[np.int64]:
    """scores, y: (N, L) -> rank (1 is best) of `label` in each record that states it, its other true labels taken out."""
    rows = y[:, label]
    others = ~y[rows]  # (n, L)
    return np.asarray(1 + ((scores[rows] > scores[rows, label][:, None]) & others).sum(axis=1), dtype=np.int64)


def label_metrics(scores: Floats, y: Bools, known: Bools, ids: Sequence[str], candidates: Bools) -> dict[str, dict[str, Any]]:
    """Per label with at least 10 known positives and negatives: n, auroc, auprc, top1, top5.

    candidates: bool (L,), the labels that compete for a rank: those with evidence.
    """
    ranked = np.where(candidates, scores, -np.inf)
    out: dict[str, dict[str, Any]] = {}
    for j, label in enumerate(ids):
        rows = known[:, j]
        positive, negative = int(y[rows, j].sum()), int((~y[rows, j]).sum())
        if positive < MIN_CASES or negative < MIN_CASES:
            continue
        rank = top_k(ranked[rows], y[rows], j)
        out[label] = {
            "positives": positive,
            "negatives": negative,
            "auroc": float(roc_auc_score(y[rows, j], scores[rows, j])),
            "auprc": float(average_precision_score(y[rows, j], scores[rows, j])),
            "top1": float((rank <= 1).mean()),
            "top5": float((rank <= 5).mean()),
        }
    return out


def summary(labels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Macro means over the labels of `label_metrics`; None where there is none."""
    keys = {"macro_auroc": "auroc", "macro_auprc": "auprc", "top1": "top1", "top5": "top5"}
    means = {name: float(np.mean([m[key] for m in labels.values()])) if labels else None for name, key in keys.items()}
    return {"labels": len(labels), **means}
