"""The worst errors of a set of predictions: what to look at first. N record, L label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST", "Mistake", "worst_mistakes"]

MOST = 12
CUT = 0.5  # where a label has no threshold

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Mistake:
    """Record `row` and label `label` (positions). stated: the annotator's word, so that True is a false negative."""

    row: int
    label: int
    stated: bool
    probability: float
    threshold: float | None

    @property
    def error(self) -> float:
        """How far the probability is from the truth."""
        return 1 - self.probability if self.stated else self.probability


def worst_mistakes(
    p: Floats, y: Bools, known: Bools, thresholds: Floats, labels: Sequence[int], most: int = MOST
) -> list[Mistake]:
    """p, y, known: (N, L); thresholds: (L,), NaN without one -> at most `most`, the largest error first.

    False positives of the highest and false negatives of the lowest probability, on the wrong side of the label's threshold
    (0.5 without one); known entries of `labels` only. One a label and one a record; neither kind takes more than half of the
    places while the other can fill its own. Equal errors: the earlier record, then the earlier label.
    """
    columns = np.asarray(labels, dtype=np.intp)
    cut = np.where(np.isfinite(thresholds), thresholds, CUT)
    wrong = ((p >= cut) != y) & known
    rows, at = np.nonzero(wrong[:, columns])
    error = np.abs(p - y)[rows, columns[at]]
    order = np.argsort(-error, kind="stable")
    pairs = [(int(rows[k]), int(columns[at[k]])) for k in order]
    chosen: list[tuple[int, int]] = []
    for limit in ((most + 1) // 2, most):
        for i, j in pairs:
            used = any(i == a or j == b for a, b in chosen)
            kind = sum(y[a, b] == y[i, j] for a, b in chosen)
            if len(chosen) < most and not used and kind < limit:
                chosen.append((i, j))
    found = [
        Mistake(i, j, bool(y[i, j]), float(p[i, j]), float(thresholds[j]) if np.isfinite(thresholds[j]) else None)
        for i, j in chosen
    ]
    return sorted(found, key=lambda m: (-m.error, m.row, m.label))
