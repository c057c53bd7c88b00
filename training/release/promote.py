"""Whether a candidate artifact may take the place of the running one: both on the same records, patients resampled in pairs.

Refused when, of a protected label, the 95 % interval of the AUROC difference lies below 0; or, without having been accepted,
AUROC falls by more than 0.02, or the decisions at the threshold become worse, or the candidate gives it no probability, or no
threshold, where the running artifact does; when the lower end of the macro difference is below -0.005; when nothing could be
compared. A label with too few cases is "not testable"
and listed: it is no reason to refuse, and never counts as passed. N record, L label.

Where the running bank holds a deployment's own prevalence, the candidate's is moved to the same before it is compared and
published. Neither areas nor decisions depend on it, since thresholds move with it: only probabilities do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.artifact import Artifact
from encoders.bank import BankError, LabelBank
from training.data.dataset import DataSet
from training.data.targets import count_cases
from training.evaluation.bootstrap import interval, macro, resamples
from training.evaluation.evaluate import bank_scorer, predict
from training.evaluation.metrics import MIN_CASES, aurocs, enough
from training.learning.checkpoint import write_whole

__all__ = [
    "Compared",
    "PromoteError",
    "Scores",
    "check_folds",
    "check_names",
    "compare",
    "default_protected",
    "keep",
    "running_bank",
    "score",
    "served",
]

MOST_DROP = 0.02  # of a protected label's AUROC, or of sensitivity + specificity at its threshold, without --accept
LEAST_MACRO = -0.005  # lower end of the interval of the macro difference
NO_THRESHOLD = "the candidate has no threshold for it and so never calls it positive, the running artifact has one"
NOTHING = "no option accepts it"
UNPROTECTED = ("routine", "normal")  # urgencies

Bools = NDArray[np.bool_]


class PromoteError(ValueError):
    """Two artifacts that cannot be compared as asked; the text names the label, folds or file and the remedy."""


@dataclass(frozen=True)
class Scores:
    """What one artifact says. logits: (N, L). served: bool (L,), labels to which it gives a probability.

    positive: bool (N, L), probability at or above the threshold; decides: bool (L,), labels that have one.
    """

    logits: NDArray[np.float32]
    served: Bools
    positive: Bools
    decides: Bools


@dataclass(frozen=True)
class Compared:
    """A label. state: better, same, lower, refused, accepted, "not testable", lost, new or "not served"; why: for people.

    same: the interval holds 0. lower: it lies below 0, or the drop is above 0.02, and the label is not protected.
    decisions: sensitivity and specificity at both thresholds, and the difference of their sums with its interval.
    """

    id: str
    protected: bool
    positives: int
    negatives: int
    state: str
    why: str = ""
    candidate: float | None = None
    running: float | None = None
    difference: float | None = None
    interval: list[float] | None = None
    decisions: dict[str, Any] | None = None


def default_protected(bank: LabelBank) -> frozenset[str]:
    """Labels whose urgency is critical, urgent or routine_new_urgent."""
    return frozenset(label.id for label in bank.labels if label.urgency not in UNPROTECTED)


def served(bank: LabelBank) -> frozenset[str]:
    """Labels to which the bank gives a probability."""
    return frozenset(label.id for label in bank.labels if label.tier != "unsupported")


def check_folds(artifact: Artifact, folds: Collection[int], role: str) -> None:
    """Raises PromoteError when the artifact was fitted or calibrated on one of these folds: it would judge itself."""
    told = dict(artifact.manifest.training.data.get("folds", {}))
    if not told.get("train"):
        raise PromoteError(
            f"{artifact.directory}: its manifest does not tell on which folds it was trained, so nothing shows that it has not "
            f"seen these records; export it again ({role})"
        )
    for use, used in told.items():
        if seen := sorted(set(used) & set(folds)):
            raise PromoteError(
                f"{artifact.directory}: fold {', '.join(map(str, seen))} is among its {use} folds; compare on folds that "
                f"neither artifact has seen, usually --fold 9 ({role})"
            )


def score(
    artifacts: Sequence[tuple[Artifact, LabelBank]], data: DataSet, advance: Callable[[int], None] = lambda n: None
) -> tuple[list[Scores], Bools, Bools]:
    """Each artifact with its bank on all records, in the order of data.labels -> scores, y and known (N, L).

    A label that a bank lacks is not served and has logit 0. Raises ArtifactError, PromoteError.
    """
    ids = [s.id for s in data.labels]
    out = []
    for artifact, bank in artifacts:
        have = [label.id for label in bank.labels]
        there = [k for k, id in enumerate(ids) if id in have]
        column = [have.index(ids[k]) for k in there]
        thresholds = np.array([np.nan if x.threshold is None else x.threshold for x in bank.labels])
        with artifact.open() as encoder:
            p = predict(bank_scorer(encoder, bank), data, advance=advance)
        logits = np.zeros((len(data), len(ids)), dtype=np.float32)
        positive = np.zeros(logits.shape, dtype=bool)
        logits[:, there] = p.logits[:, column]
        if not np.isfinite(logits).all():
            raise PromoteError(f"{artifact.directory}: {int((~np.isfinite(logits)).sum())} scores are not finite numbers")
        positive[:, there] = (bank.calibrated(p.logits) >= thresholds)[:, column]  # NaN is not
        served = np.zeros(len(ids), dtype=bool)
        served[there] = [bank.labels[c].tier != "unsupported" for c in column]
        decides = served.copy()
        decides[there] &= np.isfinite(thresholds)[column]
        out.append(Scores(logits, served, positive, decides))
    return out, p.y, p.known


def check_names(ids: Collection[str], protected: Collection[str], accepted: Collection[str]) -> None:
    """Raises PromoteError for a name that no artifact has."""
    for option, names in (("--protected", protected), ("--accept", accepted)):
        if missing := sorted(set(names) - set(ids)):
            raise PromoteError(f"{option} {', '.join(missing)}: no label of these artifacts; they have {', '.join(ids)}")


def compare(
    candidate: Scores,
    running: Scores,
    y: Bools,
    known: Bools,
    patients: Sequence[str],
    ids: Sequence[str],
    protected: Collection[str],
    accepted: Collection[str] = (),
    cases: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """The decision as a document. y, known: (N, L); patients: N; ids: L; cases: (N,) as `enough` counts them.

    Raises PromoteError for names that do not exist.
    """
    check_names(ids, protected, accepted)
    cases = np.arange(len(y)) if cases is None else cases
    positives, negatives = count_cases(y & known, cases), count_cases(~y & known, cases)
    both, testable = candidate.served & running.served, enough(y, known, cases)
    weights = resamples(list(patients))
    ours, theirs = (aurocs(s.logits, y, known & both & testable, weights) for s in (candidate, running))  # (R, L)
    labels = []
    for j, id in enumerate(ids):
        counts = (int(positives[j]), int(negatives[j]))
        state = _unmeasured(candidate.served[j], running.served[j], testable[j], counts)
        if state is None:
            found = _judge(id, id in protected, id in accepted, counts, ours[:, j], theirs[:, j])
            labels.append(_decided(found, j, candidate, running, y, known, weights, id in accepted))
        else:
            if state[0] == "not testable" and running.decides[j] and not candidate.decides[j]:
                state = ("lost", NO_THRESHOLD)
            if state[0] == "lost" and id in protected:
                state = ("accepted" if id in accepted else "refused", state[1])
            labels.append(Compared(id, id in protected, *counts, *state))
    measured = [j for j, label in enumerate(labels) if label.difference is not None]
    values = macro(ours[:, measured]) - macro(theirs[:, measured]) if measured else np.full(1, np.nan)
    low_high = interval(values)
    reasons = [f"{label.id}: {label.why}; {_remedy(label)}" for label in labels if label.state == "refused"]
    if low_high is None:
        reasons.append(
            f"no label could be compared: none is served by both with {MIN_CASES} positives and negatives; compare on more "
            "records"
        )
    elif low_high[0] < LEAST_MACRO:
        reasons.append(
            f"macro AUROC: the interval of the difference begins at {low_high[0]:+.4f}, below {LEAST_MACRO}; {NOTHING}"
        )
    return {
        "promoted": not reasons,
        "reasons": reasons,
        "records": len(y),
        "patients": len(set(patients)),
        "macro": {
            "labels": len(measured),
            "candidate": float(macro(ours[:1, measured])[0]) if measured else None,
            "running": float(macro(theirs[:1, measured])[0]) if measured else None,
            "difference": float(values[0]) if measured else None,
            "interval": low_high,
        },
        "accepted": [label.id for label in labels if label.state == "accepted"],
        "not_testable": [label.id for label in labels if label.state == "not testable"],
        "labels": [vars(label) for label in labels],
    }


def _remedy(label: Compared) -> str:
    """What accepts a refusal of this label."""
    return NOTHING if label.interval is not None and label.interval[1] < 0 else f"--accept {label.id} accepts it"


def _unmeasured(ours: bool, theirs: bool, testable: bool, cases: tuple[int, int]) -> tuple[str, str] | None:
    """State and reason of a label that has no difference, None of one that has."""
    if not ours and not theirs:
        return "not served", "neither gives it a probability"
    if not ours:
        return "lost", "the candidate gives it no probability, the running artifact does"
    if not theirs:
        return "new", "the running artifact gives it no probability"
    if not testable:
        return "not testable", f"{cases[0]} positives and {cases[1]} negatives, {MIN_CASES} of each are needed"
    return None


def _judge(
    id: str,
    protected: bool,
    accepted: bool,
    cases: tuple[int, int],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> Compared:
    """ours, theirs: (R,) AUROC of the sample and its resamples."""
    difference, low_high = float((ours - theirs)[0]), interval(ours - theirs)
    assert low_high is not None  # enough positives and negatives, so that nearly every resample has both
    below, drop = low_high[1] < 0, difference < -MOST_DROP
    why = f"AUROC falls by {-difference:.4f}, more than {MOST_DROP}" if drop else ""
    if below:
        why = f"AUROC is lower, 95 % interval {low_high[0]:+.4f} to {low_high[1]:+.4f}"
    if below or drop:
        state = "lower" if not protected else "accepted" if accepted and not below else "refused"
    else:
        state = "better" if low_high[0] > 0 else "same"
    return Compared(id, protected, *cases, state, why, float(ours[0]), float(theirs[0]), difference, low_high)


def _decided(
    judged: Compared,
    j: int,
    candidate: Scores,
    running: Scores,
    y: Bools,
    known: Bools,
    weights: NDArray[np.float64],
    accepted: bool,
) -> Compared:
    """The same, with what the thresholds make of it: an order as good as before helps nobody who is never told."""
    if not running.decides[j]:
        return judged
    why, told = NO_THRESHOLD, None
    if candidate.decides[j]:
        ours, theirs = (_rates(s.positive[:, j], y[:, j], known[:, j], weights) for s in (candidate, running))  # (2, R)
        change = ours.sum(axis=0) - theirs.sum(axis=0)
        low_high = interval(change)
        assert low_high is not None
        told = {"candidate": ours[:, 0].tolist(), "running": theirs[:, 0].tolist()}
        told |= {"difference": float(change[0]), "interval": low_high}
        rates = " and ".join(f"{before:.3f} to {after:.3f}" for before, after in zip(theirs[:, 0], ours[:, 0], strict=True))
        worse = change[0] < -MOST_DROP and low_high[1] < 0
        why = f"at its threshold, sensitivity and specificity go from {rates}" if worse else ""
    if not why or judged.state in ("refused", "lower"):
        return replace(judged, decisions=told)
    state = "lower" if not judged.protected else "accepted" if accepted else "refused"
    return replace(judged, decisions=told, state=state, why="; ".join(filter(None, (judged.why, why))))


def _rates(positive: Bools, y: Bools, known: Bools, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,), weights (R, N) -> (2, R): sensitivity and specificity; NaN in a resample without both kinds."""
    out = []
    for kind in (y & known, ~y & known):
        total = weights @ kind
        right = weights @ (kind & (positive == y))
        out.append(np.divide(right, total, out=np.full(len(total), np.nan), where=total > 0))
    return np.stack(out)


def running_bank(running: Artifact, active: LabelBank | None) -> LabelBank:
    """The bank that is compared: the active one of Redis, which must be for the running encoder, or the artifact's own."""
    if active is None:
        return running.bank()
    try:
        active.check(running.encoder_digest, running.manifest.model.dim)
    except BankError as error:
        raise PromoteError(f"{running.directory} is not what runs: in Redis, the active {error}; give its artifact") from None
    return active


def keep(
    decision: dict[str, Any],
    candidate: tuple[Artifact, LabelBank],
    running: tuple[Artifact, LabelBank],
    command: str,
    data: str,
    published: str,
) -> Path:
    """Write `<digest>.promotion.json` beside the candidate's directory -> its path.

    candidate, running: with the banks that were compared. data: digest of the data set. published: digest of the bank, "" if
    it was not.
    """
    sides = {"candidate": candidate, "running": running}
    told = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        **{k: {"artifact": a.digest, "encoder": a.encoder_digest, "bank": b.digest} for k, (a, b) in sides.items()},
        "data": data,
        "published": published,
        **decision,
    }
    path = candidate[0].directory.parent / f"{candidate[0].digest[:16]}.promotion.json"
    body = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(body, encoding="utf-8"))
    return path
