"""Predictions that no weight was fitted on, from which calibration, thresholds, tiers and the 8-bit gate are taken.

Either one model's on its calibration folds, or, of far more records, the out-of-fold ones of a cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoders.bank import MIN_POSITIVES, Label, LabelBank, tier_of
from training.config import TrainConfig
from training.data.dataset import DataSet, Floats
from training.data.targets import Bools, cases_of, count_evidence
from training.evaluation.bootstrap import interval, resamples
from training.evaluation.calibration import MIN_THRESHOLD_POSITIVES, apply_platt, best_threshold, fit_platt_all
from training.evaluation.evaluate import Predictions, model_scorer, predict
from training.evaluation.metrics import aurocs, beyond_chance, enough
from training.folds import DEVELOPMENT, GROUPS, ProtocolError, check_development, check_disjoint
from training.learning.crossval import CrossValidated, fold_config, read_crossval, run_name
from training.learning.loop import load_trained
from training.learning.trainee import Trainee
from training.release.quantize import Form, check_auroc, int8_graph, int8_logits
from training.text.labels import TextBank
from training.text.rows import BankRows

__all__ = ["HeldOut", "build_bank", "by_crossval", "by_folds", "check_trained", "int8_encoder"]

# keys in which the exported run may differ from the cross-validated recipe: what it is fitted on and with, and its teacher
MAY_DIFFER = frozenset(("train_folds", "calibration_folds", "distill", "device", "accumulate", "amp"))


@dataclass(frozen=True)
class HeldOut:
    """predictions: of `records`, the folds `folds`. crossval: where they came from, None for the exported model's own."""

    predictions: Predictions
    records: DataSet
    folds: tuple[int, ...]
    crossval: CrossValidated | None = None


def by_folds(model: Trainee, train: DataSet, records: DataSet, advance: Callable[[int], None] = lambda n: None) -> HeldOut:
    """The model's own predictions of its calibration folds. Raises ProtocolError: a patient in both, or fold 9 or 10."""
    _check(train, records)
    folds = tuple(sorted({row["fold"] for row in records.index}))
    return HeldOut(predict(model_scorer(model), records, advance=advance), records, folds)


def _check(train: DataSet, records: DataSet | None = None) -> None:
    check_development(train, "training")
    if records is not None:
        check_development(records, "calibration")
        check_disjoint(train, records, "calibration")


def by_crossval(directory: Path, config: TrainConfig, train: DataSet) -> HeldOut:
    """The out-of-fold predictions in `directory` for a run of the same recipe on folds 1 to 8. Raises ProtocolError."""
    _check(train)
    if set(config.train_folds) != set(DEVELOPMENT):
        raise ProtocolError(
            f"the run was fitted on folds {', '.join(map(str, config.train_folds))}; with --crossval it must be on 1 to 8: "
            "`ecg-train crossval --refit` makes it"
        )
    found = read_crossval(directory, train.directory, train.labels)
    recipe = {**found.told["config"], **{k: v for k, v in config.as_dict().items() if k in MAY_DIFFER}}
    if different := config.differences(recipe):
        raise ProtocolError(f"{directory} cross-validated another recipe: {'; '.join(different)[:600]}")
    return HeldOut(found.predictions, DataSet(train.directory, train.labels, DEVELOPMENT), DEVELOPMENT, found)


def check_trained(model: Trainee, train: DataSet) -> None:
    """Raises ProtocolError, with their names, where labels with evidence were not trained."""
    each = zip(train.labels, train.positives(), model.active.numpy(), strict=True)
    if untrained := [s.id for s, n, active in each if n >= MIN_POSITIVES and not active]:
        raise ProtocolError(
            f"{', '.join(untrained)}: {MIN_POSITIVES} or more training positives, but not trained (leave_out, or "
            f"min_positives = {model.config.min_positives}); such a run is not exported"
        )


def build_bank(model: Trainee, train: DataSet, held_out: HeldOut, text: TextBank, encoder_digest: str) -> LabelBank:
    """Rows and biases of a run, with tiers, calibration and thresholds from `held_out`. Raises ProtocolError, RowsError."""
    check_trained(model, train)
    p, positives, active = held_out.predictions, train.positives(), model.active.numpy()
    platt = fit_platt_all(p.logits, p.y, p.known, (positives >= MIN_POSITIVES) & active)
    bias, seen = model.bias.detach().numpy(), count_evidence(p.y & p.known, p.index)
    better, labels = _beyond_chance(held_out), []
    for j, s in enumerate(train.labels):
        ab, rows = platt[j], p.known[:, j]
        decides = ab is not None and seen[j] >= MIN_THRESHOLD_POSITIVES  # cases, not windows of one recording
        labels.append(
            Label(
                id=s.id,
                name_en=s.name_en,
                name_ja=s.name_ja,
                codes=s.codes(),
                urgency=s.urgency,  # type: ignore[arg-type]
                leads_needed=s.leads_needed,  # type: ignore[arg-type]
                tier=tier_of(int(positives[j]), int(seen[j]), bool(better[j])),
                positives=int(positives[j]),
                held_out=int(seen[j]),
                bias=float(bias[j]),
                calibration=ab,
                threshold=best_threshold(apply_platt(p.logits[rows, j], ab), p.y[rows, j]) if ab and decides else None,
            )
        )
    assert isinstance(model.rows, BankRows)  # a supervised run has none, and is refused before
    made = model.rows.made(text.rows_of(train.labels), [s.id for s in train.labels])
    return LabelBank(tuple(labels), model.rows().detach().numpy(), float(model.scale), encoder_digest, text.text, made)


def _beyond_chance(held_out: HeldOut) -> Bools:
    """(L,) whether a label's order of the held-out records is better than chance, as far as their number can tell."""
    p = held_out.predictions
    if held_out.crossval is not None:  # measured there, each group calibrated by the others
        told = held_out.crossval.told["metrics"]["per_label"]
        return np.array([label in told and beyond_chance(told[label]["auroc_interval"]) for label in p.ids])
    known = p.known & enough(p.y, p.known, cases_of(p.index))
    values = aurocs(p.logits, p.y, known, resamples([row["patient"] for row in p.index]))  # (R, L), NaN without cases
    return np.array([beyond_chance(interval(values[:, j])) for j in range(len(p.ids))])


def int8_encoder(
    model: Trainee,
    train: DataSet,
    held_out: HeldOut,
    text: TextBank,
    form: Form,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[bytes, dict[str, Any]]:
    """The 8-bit graph and what was measured: ranges, cosines, the AUROC that 8 bits cost on records no weight was fitted on.

    The cross-validated models are quantized as the exported one is, since that one has seen all of folds 1 to 8. Raises
    QuantizeError.
    """
    seed = model.config.seed
    graph, measured = int8_graph(model.encoder, train, held_out.records, form, seed)
    if held_out.crossval is None:
        rough = int8_logits(model, graph, held_out.records, advance)
    else:
        rough = _out_of_fold_in_8_bits(held_out, text, form, seed, advance)
    measured["held_out_auroc"] = check_auroc(held_out.predictions, rough, train.positives() >= MIN_POSITIVES, form)
    return graph, measured


def _out_of_fold_in_8_bits(held_out: HeldOut, text: TextBank, form: Form, seed: int, advance: Callable[[int], None]) -> Floats:
    assert held_out.crossval is not None
    whole = held_out.records
    fold = np.array([row["fold"] for row in whole.index])
    rough = np.empty_like(held_out.predictions.logits)
    config = TrainConfig.of(held_out.crossval.told["config"])
    for group in GROUPS:
        settings = fold_config(config, group)
        training = DataSet(whole.directory, whole.labels, settings.train_folds)
        records = DataSet(whole.directory, whole.labels, group)
        model = load_trained(held_out.crossval.directory / run_name(group), training, text).model
        graph, _ = int8_graph(model.encoder, training, records, form, seed)
        rough[np.isin(fold, group)] = int8_logits(model, graph, records, advance)
    return rough
