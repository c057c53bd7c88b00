"""A model's scores on a prepared data set, by lead set -> metrics. Works on whatever turns windows into logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from encoders.bank import LabelBank
from encoders.base import Encoder
from training.data.dataset import LEAD_SET_BITS, DataSet
from training.data.targets import assessable_from, cases_of
from training.evaluation.abstention import abstention
from training.evaluation.bootstrap import interval, macro, resamples
from training.evaluation.breakdown import false_positives, subgroups, task_metrics
from training.evaluation.metrics import PREVALENCES, aurocs, decisions, label_metrics, predictive_values, summary
from training.evaluation.ptbxl_groups import group_metrics, missing
from training.evaluation.recordings import by_recording
from training.evaluation.reliability import reliability
from training.learning.trainee import Trainee
from training.sources.relations import RHYTHMS
from training.vocabulary import Statement

__all__ = ["LEAD_SETS", "Evidence", "Predictions", "Scorer", "bank_scorer", "evaluate", "judge", "model_scorer", "predict"]

LEAD_SETS = ("12", "limb6", "I+II", "I")
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Evidence:
    """What training knows of each label. candidates: bool (L,), those with evidence; others have no score and no rank.

    prevalence: (L,) among training records that know the label. platt: (L, 2) slope and offset; thresholds: (L,) on the
    probability; NaN where there is none, and everywhere for a run that was not calibrated.
    """

    candidates: Bools
    prevalence: Weights
    platt: Weights
    thresholds: Weights

    @classmethod
    def uncalibrated(cls, candidates: Bools, prevalence: Weights) -> Evidence:
        """Of a run before export: its logits stand for log odds."""
        nothing = np.full(len(candidates), np.nan)
        return cls(candidates, prevalence, np.stack([nothing, nothing], axis=1), nothing)

    def log_odds(self, logits: Floats) -> Weights:
        """(N, L) -> calibrated log odds, which mean the same for every label; the logit itself without a calibration."""
        a, b = self.platt.T
        return np.where(np.isfinite(a), a * logits + b, logits)

    def probabilities(self, logits: Floats) -> Weights:
        """(N, L) -> probabilities, NaN without a calibration."""
        a, b = self.platt.T
        return np.asarray(expit(a * logits + b))


@dataclass(frozen=True)
class Predictions:
    """logits, y, known: (N, L). index: the data set's N rows. labels: L."""

    logits: Floats
    y: Bools
    known: Bools
    index: Sequence[Mapping[str, Any]]
    labels: tuple[Statement, ...]

    @property
    def ids(self) -> list[str]:
        """L label ids."""
        return [s.id for s in self.labels]


def model_scorer(model: Trainee) -> Scorer:
    """(B, 12, 5000) -> (B, L) logits by the torch model."""
    model.eval()

    def score(x: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(model.logits(torch.from_numpy(x)).numpy(), dtype=np.float32)

    return score


def bank_scorer(encoder: Encoder, bank: LabelBank) -> Scorer:
    """(B, 12, 5000) -> (B, L) logits by an artifact's encoder and a bank."""
    return lambda x: bank.logits(encoder.encode(x))


def predict(score: Scorer, data: DataSet, lead_set: str = "12", advance: Callable[[int], None] = lambda n: None) -> Predictions:
    """All records, whole windows, with only these leads; a label that they do not allow is unknown.

    So is everything of a record that has none of these leads, and is scored with its own.
    """
    logits, truth, known = [], [], []
    there = (data.mask & LEAD_SET_BITS[lead_set]) != 0
    for batch in data.plain(lead_set):
        logits.append(score(batch.x))
        truth.append(batch.y)
        known.append(batch.known & there[batch.rows, None])
        advance(len(batch.x))
    return Predictions(np.concatenate(logits), np.concatenate(truth), np.concatenate(known), data.index, data.labels)


def judge(p: Predictions, evidence: Evidence, weights: Weights) -> tuple[dict[str, Any], dict[str, Weights]]:
    """Everything that is told of one set of predictions, and the resampled values by metric of `label_metrics`."""
    known, odds, cases = p.known & evidence.candidates, evidence.log_odds(p.logits), cases_of(p.index)
    labels, values = label_metrics(odds, p.y, known, p.ids, evidence.candidates, weights, cases)
    out: dict[str, Any] = {**summary(labels, values)}
    out["groups"] = group_metrics(odds, p.y, known, p.labels, evidence.candidates, weights, cases)
    out["codes_without_label"] = missing(p.labels)
    out["subgroups"] = subgroups(odds, p.y, known, p.index, p.ids, weights)
    out["tasks"] = task_metrics(odds, p.y, known, p.index, p.ids, weights)
    probabilities = evidence.probabilities(p.logits)
    if np.isfinite(probabilities).any():
        out["calibration"] = reliability(probabilities, p.y, known, p.ids, weights, cases)
    if np.isfinite(evidence.thresholds).any():
        out["decisions"] = decisions(probabilities, evidence.thresholds, p.y, known)
        shown = assessable_from(np.array([row["mask"] for row in p.index]), p.labels)
        quality = [row["quality"] for row in p.index]
        withheld = abstention(odds - logit(evidence.thresholds), p.y, known, shown, quality, weights)
        if withheld is not None:
            out["abstention"] = withheld
        wrong = false_positives(probabilities, evidence.thresholds, p.y, known, p.index, p.ids, weights)
        if wrong is not None:
            out["false_positives"] = wrong
        recordings = by_recording(probabilities, evidence.thresholds, p.y, known, p.index, p.ids, weights)
        if recordings is not None:
            out["recordings"] = recordings
        for j, name in enumerate(p.ids):
            if name in labels and np.isfinite(evidence.thresholds[j]):
                labels[name]["predictive"] = predictive_values(
                    probabilities[:, j],
                    float(evidence.thresholds[j]),
                    p.y[:, j],
                    known[:, j],
                    weights,
                    (*PREVALENCES, *([float(evidence.prevalence[j])] if np.isfinite(evidence.prevalence[j]) else [])),
                )
    return {**out, "per_label": labels}, values


def evaluate(
    score: Scorer,
    data: DataSet,
    evidence: Evidence,
    lead_sets: Sequence[str] = LEAD_SETS,
    advance: Callable[[int], None] = lambda n: None,
    full: Predictions | None = None,
) -> dict[str, Any]:
    """Metrics by lead set; of the first, 12 leads, all of `judge`.

    With fewer leads, labels that cannot be assessed from them do not count; `same_labels_12` gives the 12-lead mean over the
    labels that remain, `loss` and `rhythm_loss` what macro AUROC loses on the same records, with the paired interval.
    full: predictions from 12 leads, where they are at hand.
    """
    weights = resamples([row["patient"] for row in data.index])
    out: dict[str, Any] = {"records": len(data), "patients": len({row["patient"] for row in data.index}), "lead_sets": {}}
    full_odds: Weights = np.empty(0)
    for name in lead_sets:
        p = full if name == "12" and full is not None else predict(score, data, name, advance)
        if name == "12":
            out["lead_sets"][name], _ = judge(p, evidence, weights)
            full_odds = evidence.log_odds(p.logits)
            continue
        odds, known = evidence.log_odds(p.logits), p.known & evidence.candidates
        labels, values = label_metrics(odds, p.y, known, p.ids, evidence.candidates, weights, cases_of(p.index))
        entry: dict[str, Any] = {**summary(labels, values), "per_label": labels}
        if len(full_odds):
            columns = [p.ids.index(k) for k in labels]
            before = aurocs(full_odds[:, columns], p.y[:, columns], known[:, columns], weights)
            entry["same_labels_12"] = {"labels": len(labels), "macro_auroc": float(macro(before)[0]) if labels else None}
            entry["loss"] = _loss(before, values["auroc"], np.ones(len(labels), dtype=bool))
            entry["rhythm_loss"] = _loss(before, values["auroc"], np.array([k in RHYTHMS for k in labels], dtype=bool))
        out["lead_sets"][name] = entry
    return out


def _loss(full: Weights, fewer: Weights, use: Bools) -> dict[str, Any] | None:
    """Macro AUROC of `full` (R, labels) less that of `fewer` over the labels in `use`, with the paired interval."""
    if not use.any():
        return None
    difference = macro(full[:, use]) - macro(fewer[:, use])
    return {"labels": int(use.sum()), "value": float(difference[0]), "interval": interval(difference)}
