"""Two models on the same records: what one has more of macro AUROC, in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training.data.targets import cases_of
from training.evaluation.bootstrap import interval, macro, resamples
from training.evaluation.evaluate import Evidence, Predictions, predict
from training.evaluation.metrics import aurocs, enough
from training.evaluation.scorers import Opened, ScorerError

__all__ = ["against", "difference"]


def against(ours: Opened, theirs: Opened, advance: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
    """Score the same records with both, from 12 leads. See `difference`."""
    (score, records, evidence), (other, same, theirs_of) = ours, theirs
    p, q = predict(score, records, advance=advance), predict(other, same, advance=advance)
    return difference((p, evidence), (q, theirs_of))


def difference(ours: tuple[Predictions, Evidence], theirs: tuple[Predictions, Evidence]) -> dict[str, Any]:
    """Over the labels that both have learnt and that the records, the same of both, can measure: `difference` is ours less
    theirs, its 95 % interval over patients. Raises ScorerError where no label is left."""
    (p, evidence), (q, theirs_of) = ours, theirs
    shared = [label for label in p.ids if label in q.ids]
    mine, other_s = [p.ids.index(label) for label in shared], [q.ids.index(label) for label in shared]
    y, known = p.y[:, mine], (p.known & evidence.candidates)[:, mine] & (q.known & theirs_of.candidates)[:, other_s]
    use = enough(y, known, cases_of(p.index))
    if not use.any():
        raise ScorerError("the two share no label with enough cases in these folds: there is nothing to compare")
    weights = resamples([row["patient"] for row in p.index])
    odds = evidence.log_odds(p.logits)[:, mine], theirs_of.log_odds(q.logits)[:, other_s]
    a, b = (aurocs(z[:, use], y[:, use], known[:, use], weights) for z in odds)
    names = [label for label, used in zip(shared, use, strict=True) if used]
    means = macro(a), macro(b)
    return {
        "records": len(p.index),
        "labels": names,
        "macro_auroc": [float(value[0]) for value in means],
        "macro_auroc_interval": [interval(value) for value in means],
        "difference": float((means[0] - means[1])[0]),
        "difference_interval": interval(means[0] - means[1]),
        "per_label": {
            name: {"auroc": [float(a[0, j]), float(b[0, j])], "difference_interval": interval(a[:, j] - b[:, j])}
            for j, name in enumerate(names)
        },
    }
