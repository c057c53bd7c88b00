"""Patient-level bootstrap: whole patients are drawn with replacement, so that records of one patient stay together.

A resample is a weight a record, how often its patient was drawn; metrics take all resamples at once. R resamples, N record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "bootstrap", "interval", "macro", "paired", "resamples"]

RESAMPLES = 1000
SEED = 20250429
PERCENTILES = (2.5, 97.5)

Weights = NDArray[np.float64]
Metric = Callable[[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_], Weights], NDArray[np.float64]]
"""scores, y, known: (N, L); weights: (R, N) -> (R,); NaN where a resample cannot be measured."""


def resamples(patients: Sequence[str], count: int = RESAMPLES, seed: int = SEED) -> Weights:
    """patients: N, whose each record is -> (count + 1, N) weights. Row 0 is the sample itself, all ones."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)  # (count, patients)
    return np.concatenate([np.ones((1, len(member))), drawn[:, member]]).astype(np.float64)


def interval(values: NDArray[np.float64]) -> list[float] | None:
    """values: (1 + R,), the sample's first -> the percentile 95 % interval; None where no resample could be measured."""
    seen = values[1:][np.isfinite(values[1:])]
    return [float(v) for v in np.percentile(seen, PERCENTILES)] if len(seen) else None


def macro(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """values: (R, L) -> (R,): mean over the labels that the resample could measure, NaN where it could none."""
    there = np.isfinite(values)
    count = there.sum(axis=1)
    total = np.where(there, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bootstrap(
    metric: Metric, scores: NDArray[np.floating], y: NDArray[np.bool_], known: NDArray[np.bool_], weights: Weights
) -> tuple[float, list[float] | None]:
    """The metric of the sample and its interval. weights: of `resamples`."""
    values = metric(scores, y, known, weights)
    return float(values[0]), interval(values)


def paired(
    metric: Metric,
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    y: NDArray[np.bool_],
    known: NDArray[np.bool_],
    weights: Weights,
) -> tuple[float, list[float] | None]:
    """metric(a) - metric(b) on the same records and its interval: both are measured in each resample."""
    values = metric(a, y, known, weights) - metric(b, y, known, weights)
    return float(values[0]), interval(values)
