"""How good scores are: per label and averaged, with patient-level intervals. Only known entries count.

N record, L label, R resample. Scores may be logits or probabilities: AUROC and AUPRC look at the order within a label only.
Ranks across labels (top-1, top-5) need scores that mean the same for every label: calibrated log odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.targets import count_cases
from training.evaluation.bootstrap import interval, macro

__all__ = [
    "MIN_CASES",
    "PREVALENCES",
    "MetricError",
    "aurocs",
    "average_precisions",
    "beyond_chance",
    "decisions",
    "enough",
    "label_metrics",
    "macro_auroc",
    "predictive_values",
    "summary",
    "top_k",
]

MIN_CASES = 10  # positives, and negatives, below which a label is not scored
CHANCE = 0.5  # AUROC
PREVALENCES = (0.01, 0.05)

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


class MetricError(ValueError):
    """Scores that cannot be measured."""


def enough(y: Bools, known: Bools, cases: NDArray[np.int64] | None = None) -> Bools:
    """(N, L) -> (L,): at least 10 known positives and 10 known negatives.

    cases: (N,) of `targets.cases_of`, where rows may be windows of one recording, which count once; None: each row counts.
    """
    return np.asarray((count_cases(y & known, cases) >= MIN_CASES) & (count_cases(~y & known, cases) >= MIN_CASES))


def beyond_chance(low_high: Sequence[float] | None) -> bool:
    """Whether the interval of an AUROC lies above 0.5; not where it could not be measured."""
    return low_high is not None and low_high[0] > CHANCE


def aurocs(scores: Floats, y: Bools, known: Bools, weights: Weights) -> Weights:
    """scores, y, known: (N, L); weights: (R, N) -> (R, L): P(positive above negative), ties count half; NaN without both."""
    out = np.full((len(weights), scores.shape[1]), np.nan)
    for j in range(scores.shape[1]):
        positive, negative = _grouped(scores[:, j], y[:, j], known[:, j], weights)
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        hits = (positive * below).sum(axis=1)
        out[:, j] = np.divide(hits, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return out


def average_precisions(scores: Floats, y: Bools, known: Bools, weights: Weights) -> Weights:
    """Like `aurocs`: sum over thresholds, falling, of the rise in recall times precision; NaN without a positive."""
    out = np.full((len(weights), scores.shape[1]), np.nan)
    for j in range(scores.shape[1]):
        positive, negative = (part[:, ::-1] for part in _grouped(scores[:, j], y[:, j], known[:, j], weights))
        hits = np.cumsum(positive, axis=1)
        taken = hits + np.cumsum(negative, axis=1)
        precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
        total = positive.sum(axis=1)
        area = (positive * precision).sum(axis=1)
        out[:, j] = np.divide(area, total, out=np.full(len(total), np.nan), where=total > 0)
    return out


def _grouped(score: Floats, y: Bools, known: Bools, weights: Weights) -> tuple[Weights, Weights]:
    """Of one label: weight of positives and of negatives at each distinct score, rising, (R, distinct) each."""
    rows = np.flatnonzero(known)
    if not len(rows):
        nothing = np.zeros((len(weights), 1))
        return nothing, nothing
    if bad := int((~np.isfinite(score[rows])).sum()):
        raise MetricError(
            f"{bad} of {len(rows)} scores of a label are not finite; the model is broken, or its activations overflow"
        )
    order = rows[np.argsort(score[rows], kind="stable")]
    first = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    w, positive = weights[:, order], y[order]
    return np.add.reduceat(w * positive, first, axis=1), np.add.reduceat(w * ~positive, first, axis=1)


def macro_auroc(scores: Floats, y: Bools, known: Bools, weights: Weights) -> Weights:
    """(R,): the mean over labels with enough known cases in the sample itself."""
    use = enough(y, known)
    return macro(aurocs(scores[:, use], y[:, use], known[:, use], weights))


def top_k(scores: Floats, y: Bools, known: Bools, label: int) -> NDArray[np.int64]:
    """scores, y, known: (N, L) -> rank (1 is best) of `label` in each record that states it.

    Only labels known to be absent compete: the record's other true labels are taken out; those nobody annotated may be true.
    """
    rows = y[:, label] & known[:, label]
    others = ~y[rows] & known[rows]  # (n, L)
    return np.asarray(1 + ((scores[rows] > scores[rows, label][:, None]) & others).sum(axis=1), dtype=np.int64)


def label_metrics(
    scores: Floats,
    y: Bools,
    known: Bools,
    ids: Sequence[str],
    candidates: Bools,
    weights: Weights,
    cases: NDArray[np.int64] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Weights]]:
    """-> (per label with at least 10 known positives and negatives: counts, auroc, auprc, top1, top5 and intervals), values.

    scores: comparable across labels. candidates: bool (L,), the labels that compete for a rank: those with evidence. cases:
    (N,) as `enough` counts them.
    values: by metric, (R, labels) in the order of the first. Ranks: of records that know at least half of the candidates that
    any record knows (where two labels were looked for, everything is among the first five); None below 10 such cases.
    """
    use = np.flatnonzero(enough(y, known, cases))
    ranked = np.where(candidates, scores, -np.inf)
    asked = known & candidates
    ranking = 2 * asked.sum(axis=1) >= asked.any(axis=0).sum()  # (N,)
    values = {
        "auroc": aurocs(scores[:, use], y[:, use], known[:, use], weights),
        "auprc": average_precisions(scores[:, use], y[:, use], known[:, use], weights),
    }
    out: dict[str, dict[str, Any]] = {}
    stated = y & known
    counted = count_cases(stated & ranking[:, None], cases) >= MIN_CASES  # (L,)
    for k, j in enumerate(use.tolist()):
        rank = top_k(ranked, y, known, j)[ranking[stated[:, j]]]
        out[ids[j]] = {
            "positives": int(stated[:, j].sum()),
            "negatives": int((~y[:, j] & known[:, j]).sum()),
            **{name: float(each[0, k]) for name, each in values.items()},
            **{f"{name}_interval": interval(each[:, k]) for name, each in values.items()},
            "ranked": len(rank),
            "top1": float((rank <= 1).mean()) if counted[j] else None,
            "top5": float((rank <= 5).mean()) if counted[j] else None,
        }
    return out, values


def summary(labels: dict[str, dict[str, Any]], values: dict[str, Weights] | None = None) -> dict[str, Any]:
    """Macro means over the labels of `label_metrics`, None where there is none; with its values their intervals too."""
    keys = {"macro_auroc": "auroc", "macro_auprc": "auprc", "top1": "top1", "top5": "top5"}
    out: dict[str, Any] = {"labels": len(labels)}
    for name, key in keys.items():
        there = [m[key] for m in labels.values() if m[key] is not None]
        out[name] = float(np.mean(there)) if there else None
    if values is not None:
        out |= {f"macro_{key}_interval": interval(macro(each)) if labels else None for key, each in values.items()}
    return out


def decisions(p: Floats, thresholds: Floats, y: Bools, known: Bools) -> dict[str, float | int | None]:
    """Labels with a threshold together: micro-F1 over known entries, and Jaccard.

    p, y, known: (N, L); thresholds: (L,), NaN without one. jaccard: mean over records of |said and true| / |said or true|,
    records of which nothing is said and nothing true left out.
    """
    use = np.isfinite(thresholds)
    counted = known[:, use]
    said, true = (p[:, use] >= thresholds[use]) & counted, y[:, use] & counted
    both, either = (said & true).sum(axis=1), (said | true).sum(axis=1)
    total = int(said.sum() + true.sum())
    some = either > 0
    return {
        "labels": int(use.sum()),
        "micro_f1": float(2 * both.sum() / total) if total else None,
        "jaccard": float((both[some] / either[some]).mean()) if some.any() else None,
    }


def predictive_values(
    p: Floats, threshold: float, y: Bools, known: Bools, weights: Weights, prevalences: Sequence[float]
) -> dict[str, Any]:
    """One label at its threshold: sensitivity and specificity on these records, PPV and NPV where `prevalences` hold.

    p, y, known: (N,). By Bayes: PPV = se pi / (se pi + (1 - sp)(1 - pi)); a value is None where nothing is said, or all.
    """
    said = p >= threshold
    positive, negative = weights * (y & known), weights * (~y & known)
    found, total = (positive * said).sum(axis=1), positive.sum(axis=1)
    spared, rest = (negative * ~said).sum(axis=1), negative.sum(axis=1)
    se = np.divide(found, total, out=np.full(len(total), np.nan), where=total > 0)
    sp = np.divide(spared, rest, out=np.full(len(rest), np.nan), where=rest > 0)
    out: dict[str, Any] = {"sensitivity": _at(se), "specificity": _at(sp), "at": {}}
    for pi in prevalences:
        out["at"][f"{pi:.4g}"] = {
            "ppv": _at(_ratio(se * pi, (1 - sp) * (1 - pi))),
            "npv": _at(_ratio(sp * (1 - pi), (1 - se) * pi)),
        }
    return out


def _ratio(right: Weights, wrong: Weights) -> Weights:
    total = right + wrong
    out = np.full(len(total), np.nan)
    np.divide(right, total, out=out, where=total > 0)
    return out


def _at(values: Weights) -> dict[str, Any]:
    return {"value": float(values[0]) if np.isfinite(values[0]) else None, "interval": interval(values)}
