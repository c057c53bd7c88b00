"""Platt calibration and thresholds on held-out predictions. Pure numpy and scipy; N record, L label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["MIN_THRESHOLD_POSITIVES", "apply_platt", "apply_platt_all", "best_threshold", "fit_platt", "fit_platt_all"]

MIN_THRESHOLD_POSITIVES = 5  # fewer held-out positives than this choose no threshold
PULL = 1.0  # strength, in records' worth of log-likelihood, with which a label is held near the pooled fit
SLOPE = (0.05, 20.0)

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def fit_platt(z: Floats, y: Bools, prior: tuple[float, float] = (1.0, 0.0), pull: float = 0.0) -> tuple[float, float]:
    """z: (N,) logits, y: (N,) truth -> (a, b) of sigmoid(a z + b) by maximum likelihood (Platt 1999), a > 0.

    Targets are smoothed as Platt's: (n+ + 1) / (n+ + 2) and 1 / (n- + 2). pull holds (log a, b) near `prior`.
    """
    positive = int(y.sum())
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))
    start = np.array([np.log(prior[0]), prior[1]])

    def cost(p: NDArray[np.float64]) -> float:
        score = np.exp(p[0]) * z + p[1]
        return float(np.sum(np.logaddexp(0, score) - target * score) + pull * np.sum((p - start) ** 2))

    bounds = [(np.log(SLOPE[0]), np.log(SLOPE[1])), (-30.0, 30.0)]
    best = minimize(cost, start, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(best[0])), float(best[1])


def fit_platt_all(logits: Floats, y: Bools, known: Bools, trained: Bools) -> list[tuple[float, float] | None]:
    """logits, y, known: (N, L); trained: (L,) -> (a, b) a label, None where not trained.

    Held-out records hold few positives of most labels, so each fit is held near the one pooled over all of them; a label
    without a held-out positive takes the pooled one.
    """
    use = known & trained
    pooled = fit_platt(logits[use], y[use])
    out: list[tuple[float, float] | None] = []
    for j in range(logits.shape[1]):
        rows = known[:, j]
        if not trained[j]:
            out.append(None)
        elif not (y[:, j] & rows).any():
            out.append(pooled)
        else:
            out.append(fit_platt(logits[rows, j], y[rows, j], pooled, PULL))
    return out


def best_threshold(p: Floats, y: Bools) -> float | None:
    """p: (N,) probabilities, y: (N,) truth -> the threshold of highest F1 (p >= t is positive), or None: too few positives."""
    if y.sum() < MIN_THRESHOLD_POSITIVES:
        return None
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + y.sum())
    ends = np.append(np.diff(p[order]) != 0, True)  # ties fall on one side
    best = int(np.argmax(np.where(ends, f1, -1)))
    above = float(p[order][best])
    below = float(p[order][best + 1]) if best + 1 < len(p) else 0.0
    return (above + below) / 2


def apply_platt(logits: Floats, ab: tuple[float, float]) -> NDArray[np.float64]:
    """(N,) -> probabilities."""
    return np.asarray(expit(ab[0] * logits + ab[1]), dtype=np.float64)


def apply_platt_all(logits: Floats, fits: Sequence[tuple[float, float] | None]) -> NDArray[np.float64]:
    """(N, L), and L of `fit_platt_all` -> (N, L) calibrated log odds; the logit itself where a label has no fit."""
    a, b = np.array([ab or (1.0, 0.0) for ab in fits], dtype=np.float64).T
    return np.asarray(a * logits + b)
