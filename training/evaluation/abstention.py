"""What is gained by leaving the closest decisions to a person: error against the share that is still decided by itself.

A decision is one label of one record, said where its log odds reach those of the label's threshold. Its distance from the
threshold is its confidence: calibrated log odds mean the same for every label. Coverage is the share of decisions that are
kept, the most confident first; risk is the share of wrong ones among them (Geifman & El-Yaniv 2017, "Selective classification
for deep neural networks"). Most decisions are easy denials, so it is told too what becomes of the findings that are present,
each said, missed or withheld, and how much of what is still said is wrong.

N record, L label, R resample, G group of equal confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import interval

__all__ = ["COVERAGES", "UNGRADED", "abstention"]

COVERAGES = (1.0, 0.95, 0.9, 0.8)
UNGRADED = "not graded"

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


def abstention(
    margin: Floats, y: Bools, known: Bools, shown: Bools, quality: Sequence[str | None], weights: Weights
) -> dict[str, Any] | None:
    """All labels together, at 100, 95, 90 and 80 % of the decisions; None where no decision can be judged.

    margin: (N, L) log odds less those of the threshold, NaN where a label has none. y, known: (N, L), whose truth is known.
    shown: (N, L), what the record's leads show, known or not. quality: N grades of the source, None without. weights: of
    `resamples`. error: wrong among the kept. area: under the curve, the mean over decisions of the error among those at least
    as confident; without skill it is the error at 100 %. quality: which share of a grade's decisions, known or not, is withheld
    where so many of all are kept.
    """
    counted = known & ~np.isnan(margin)
    if not counted.any():
        return None
    row, _ = np.nonzero(counted)
    distance = np.abs(margin[counted])
    order = np.argsort(-distance, kind="stable")
    falling = distance[order]
    first = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
    said, true = (margin[counted] >= 0)[order], y[counted][order]
    drawn = [_curve(w[row[order]], (said != true)[None], first) for w in weights]
    errors = np.array([[_kept(curve, c)[0] / (c * curve[0, -1]) for c in COVERAGES] for curve in drawn if curve[0, -1]])
    areas = np.array([_area(curve) for curve in drawn if curve[0, -1]])
    whole = _curve(np.ones(len(order)), np.stack([said & true, said & ~true, ~said & true]), first)
    at = {}
    for k, coverage in enumerate(COVERAGES):
        hit, false, missed = _kept(whole, coverage)
        at[f"{coverage:g}"] = {"error": float(errors[0, k]), "error_interval": interval(errors[:, k])}
        at[f"{coverage:g}"] |= {
            "wrong_of_said": _share(false, hit + false),
            "findings_said": _share(hit, true.sum()),
            "findings_missed": _share(missed, true.sum()),
            "findings_withheld": _share(true.sum() - hit - missed, true.sum()),
        }
    return {
        "decisions": len(order),
        "findings": int(true.sum()),
        "coverage": at,
        "area": float(areas[0]),
        "area_interval": interval(areas),
        "quality": _by_quality(margin, shown, quality, falling),
    }


def _curve(weight: Floats, kinds: Bools, first: NDArray[np.intp]) -> Weights:
    """weight: (n,), kinds: (K, n), the most confident first; first: (G,), where each group begins -> (1 + K, G + 1).

    Cumulative weight of all decisions, then of each kind, from none to all.
    """
    groups = np.add.reduceat(np.concatenate([weight[None], weight * kinds]), first, axis=1)
    return np.pad(np.cumsum(groups, axis=1, dtype=np.float64), ((0, 0), (1, 0)))


def _kept(curve: Weights, coverage: float) -> list[float]:
    """The weight of each kind among this share of the decisions; of a group kept in part, that part of each kind."""
    return [float(np.interp(coverage * curve[0, -1], curve[0], kind)) for kind in curve[1:]]


def _area(curve: Weights) -> float:
    total, wrong = curve[:, 1:]
    risk = np.divide(wrong, total, out=np.zeros(len(total)), where=total > 0)
    return float(np.diff(curve[0]) @ risk / total[-1])


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _by_quality(margin: Floats, shown: Bools, quality: Sequence[str | None], falling: Floats) -> dict[str, Any]:
    """falling: the distances of all judged decisions. Nothing where no record has a grade."""
    grades = np.array([q or UNGRADED for q in quality])
    if (grades == UNGRADED).all():
        return {}
    cuts = {f"{c:g}": falling[int(np.ceil(c * len(falling))) - 1] for c in COVERAGES[1:]}  # the last that is kept
    out: dict[str, Any] = {}
    for grade in np.unique(grades).tolist():
        rows = (grades == grade)[:, None] & shown & ~np.isnan(margin)
        far = np.abs(margin[rows])
        out[grade] = {"records": int((grades == grade).sum()), "decisions": len(far)}
        out[grade]["withheld"] = {name: _share(float((far < cut).sum()), len(far)) for name, cut in cuts.items()}
    return out
