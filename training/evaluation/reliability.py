"""How far probabilities can be taken at their word: slope, Brier skill, calibration error and its noise. N record, L label.

p, y, known: (N, L); only known entries of labels with a probability (p not NaN) count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from training.evaluation.bootstrap import interval
from training.evaluation.metrics import enough

__all__ = ["DRAWS", "brier_skills", "calibration_error", "equal_mass", "recalibration", "reliability"]

BINS = 15
DRAWS = 500
EDGE = 1e-6  # probabilities are held this far from 0 and 1 before their log odds are taken

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


def recalibration(p: Floats, y: Bools, weights: Floats | None = None) -> tuple[float, float]:
    """p, y: (n,) -> (slope, intercept) of y ~ sigmoid(slope * logit(p) + intercept), by maximum likelihood (Cox 1958).

    1 and 0 are perfect; a slope below 1 says that the probabilities are too extreme.
    """
    z = logit(np.clip(p, EDGE, 1 - EDGE))
    w = np.ones(len(z)) if weights is None else weights

    def cost(ab: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        score = ab[0] * z + ab[1]
        error = w * (expit(score) - y)
        return float(np.sum(w * (np.logaddexp(0, score) - y * score))), np.array([error @ z, error.sum()])

    found = minimize(cost, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(-50, 50), (-50, 50)]).x
    return float(found[0]), float(found[1])


def brier_skills(p: Floats, y: Bools, known: Bools, weights: Weights) -> Weights:
    """-> (R, L): 1 - Brier score / Brier score of always saying the prevalence of the same records; NaN without both."""
    w = weights @ known  # (R, L)
    error = np.where(known, (np.nan_to_num(p) - y) ** 2, 0)
    base = np.divide(weights @ (known & y), w, out=np.full(w.shape, np.nan), where=w > 0)
    reference = w * base * (1 - base)
    skill = 1 - np.divide(weights @ error, reference, out=np.full(w.shape, np.nan), where=reference > 0)
    return np.where(np.isfinite(p).any(axis=0), skill, np.nan)


def equal_mass(p: Floats, bins: int = BINS) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """p: (n,) -> (records by rising p, where in that order each bin of equally many begins)."""
    return np.argsort(p, kind="stable"), np.unique(np.linspace(0, len(p), min(bins, len(p)) + 1).astype(int)[:-1])


def calibration_error(p: Floats, y: Bools, seed: int = 0, bins: int = BINS) -> tuple[float, float]:
    """p, y: (n,) -> (equal-mass ECE, its noise floor). Bins hold equally many records, by rising p.

    The floor is the mean ECE of labels drawn from p itself: what a perfectly calibrated model would show on as many records.
    """
    order, first = equal_mass(p, bins)
    said = np.add.reduceat(p[order], first)

    def error(truth: NDArray[Any]) -> NDArray[np.float64]:  # (..., n) -> (...)
        return np.asarray(np.abs(np.add.reduceat(truth, first, axis=-1) - said).sum(axis=-1) / len(p))

    rng = np.random.default_rng(seed)
    floor = np.mean([error((rng.random(len(p)) < p[order]).astype(np.float64)) for _ in range(DRAWS)])
    return float(error(y[order].astype(np.float64))), float(floor)


def reliability(
    p: Floats, y: Bools, known: Bools, ids: Sequence[str], weights: Weights, cases: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Pooled slope, intercept, ECE and floor; Brier skill, ECE and floor of each label with 10 positives and 10 negatives.

    weights: (R, N) of `resamples`, for the intervals of the Brier skills and, the first 200, of the slope. cases: (N,) as
    `enough` counts them.
    """
    counted = known & np.isfinite(p)
    if not (counted & y).any() or not (counted & ~y).any():
        return {"entries": int(counted.sum())}
    row, _ = np.nonzero(counted)
    flat, truth = p[counted].astype(np.float64), y[counted]
    slope, intercept = recalibration(flat, truth)
    slopes = np.array([slope, *(recalibration(flat, truth, w[row])[0] for w in weights[1:201])])
    ece, floor = calibration_error(flat, truth)
    use = np.flatnonzero(enough(y, counted, cases))
    skills = brier_skills(p[:, use], y[:, use], counted[:, use], weights)
    labels: dict[str, dict[str, Any]] = {}
    for k, j in enumerate(use.tolist()):
        rows = counted[:, j]
        each = calibration_error(p[rows, j].astype(np.float64), y[rows, j])
        labels[ids[j]] = {"brier_skill": float(skills[0, k]), "brier_skill_interval": interval(skills[:, k])}
        labels[ids[j]] |= {"ece": each[0], "ece_floor": each[1]}
    below = [ids[j] for k, j in enumerate(use.tolist()) if (span := interval(skills[:, k])) is not None and span[1] < 0]
    return {
        "entries": len(flat),
        "slope": slope,
        "slope_interval": interval(slopes),
        "intercept": intercept,
        "ece": ece,
        "ece_floor": floor,
        "median_brier_skill": float(np.median(skills[0])) if len(use) else None,
        "brier_skill_below_0": below,
        "per_label": labels,
    }
