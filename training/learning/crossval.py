"""Cross-validation: four models, each judged on two folds that it never saw; together they predict all records of folds 1 to 8.

DIR/fold-12 ... fold-78   the runs, named by the folds held out       DIR/final   folds 1 to 8, by `refit`
DIR/oof.safetensors       "logits": float32 (N, L), "fold": int8 (N,), records in the data set's order
DIR/crossval.json         config, digests, the runs, metrics of these predictions with patient-level intervals

Knows no fold beyond 8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from encoders.bank import MIN_POSITIVES, tier_of
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.targets import cases_of, count_evidence
from training.evaluation.bootstrap import interval, resamples
from training.evaluation.calibration import apply_platt_all, fit_platt_all
from training.evaluation.evaluate import Evidence, Predictions, judge, model_scorer, predict
from training.evaluation.metrics import aurocs, beyond_chance, enough
from training.evaluation.scorers import prevalence_of
from training.folds import DEVELOPMENT, GROUPS, ProtocolError, check_development, check_disjoint
from training.learning.checkpoint import write_whole
from training.learning.loop import Progress, Trained, train
from training.text.labels import TextBank
from training.vocabulary import Statement, read_vocabulary, select

__all__ = [
    "OOF",
    "REPORT",
    "CrossValidated",
    "Stopped",
    "crossval",
    "fold_config",
    "out_of_fold",
    "read_crossval",
    "refit",
    "run_name",
]

OOF, REPORT = "oof.safetensors", "crossval.json"
Report = Callable[[str, Progress], None]  # which run, how far


class Stopped(Exception):
    """SIGTERM ended it; what was done is kept, and the text says how to go on. No error: the command exits as a signal does."""


@dataclass(frozen=True)
class CrossValidated:
    """A finished cross-validation. predictions: out of fold, of all records of folds 1 to 8; where the model of a record's
    group did not train a label, it is unknown. told: crossval.json.
    """

    directory: Path
    predictions: Predictions
    told: dict[str, Any]


def run_name(group: Sequence[int]) -> str:
    """The directory of the run that never saw these folds."""
    return "fold-" + "".join(map(str, group))


def fold_config(config: TrainConfig, group: Sequence[int]) -> TrainConfig:
    """The same recipe on the other folds."""
    return replace(config, train_folds=tuple(f for f in DEVELOPMENT if f not in group), calibration_folds=tuple(group))


def crossval(
    config: TrainConfig,
    directory: Path,
    labels: Sequence[Statement],
    text: TextBank,
    out: Path,
    resume: bool = False,
    report: Report = lambda name, p: None,
    scored: Callable[[int], None] = lambda n: None,
    command: str = "",
) -> dict[str, Any]:
    """Train the four models of `config` (its train_folds are replaced) on the data set in `directory` -> crossval.json.

    With resume, runs in `out` are continued and finished ones used as they are. Raises Stopped, ProtocolError and as `train`.
    """
    if config.train_share < 1:
        raise ProtocolError(f"train_share = {config.train_share}: a learning curve is made by `compare`; cross-validate with 1")
    whole = DataSet(directory, labels, DEVELOPMENT)
    check_development(whole, "cross-validation")
    fold = np.array([row["fold"] for row in whole.index], dtype=np.int8)
    logits = np.full((len(whole), len(labels)), np.nan, dtype=np.float32)
    runs = []
    for group in GROUPS:
        held_out = DataSet(directory, labels, group)
        training = DataSet(directory, labels, [f for f in DEVELOPMENT if f not in group])
        trained = _train(fold_config(config, group), training, held_out, text, out / run_name(group), resume, report, command)
        logits[np.isin(fold, group)] = predict(model_scorer(trained.model), held_out, advance=scored).logits
        active = trained.model.active.numpy()
        runs.append(
            {
                "run": run_name(group),
                "held_out": list(group),
                "records": len(training.for_training(config)),
                "held_out_records": len(held_out),
                "epochs": trained.state["epoch"],
                "steps": trained.state["step"],
                "not_trained": [s.id for s, a in zip(labels, active, strict=True) if not a],
            }
        )
    meta = {"data": whole.digest, "labels": json.dumps([s.id for s in labels])}
    write_whole(out / OOF, lambda part: save_file({"logits": logits, "fold": fold}, part, metadata=meta))
    told: dict[str, Any] = {
        "command": command,
        "config": config.as_dict(),
        "data": whole.digest,
        "text": text.digest,
        "labels": [s.id for s in labels],
        "runs": runs,
    }
    told |= _judged(whole, _predictions(whole, logits, fold, runs), fold, config)
    body = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(out / REPORT, lambda part: part.write_text(body, encoding="utf-8"))
    return told


def refit(
    config: TrainConfig,
    directory: Path,
    labels: Sequence[Statement],
    text: TextBank,
    out: Path,
    resume: bool = False,
    report: Report = lambda name, p: None,
    command: str = "",
) -> Trained:
    """The same recipe on all of folds 1 to 8, in out/final. Raises as `crossval`."""
    whole = DataSet(directory, labels, DEVELOPMENT)
    final = replace(config, train_folds=DEVELOPMENT, calibration_folds=())
    return _train(final, whole, None, text, out / "final", resume, report, command)


def _train(
    config: TrainConfig,
    data: DataSet,
    held_out: DataSet | None,
    text: TextBank,
    out: Path,
    resume: bool,
    report: Report,
    command: str,
) -> Trained:
    check_development(data, "training")
    if held_out is not None:
        check_development(held_out, "calibration")
        check_disjoint(data, held_out, "held-out")
    again = resume and (out / "checkpoint.json").exists()
    run = train(config, data, text, out, again, lambda p: report(out.name, p), command=command)
    if run.signalled or not run.finished:  # also after the last step of one run: the others are not begun
        raise Stopped(f"{out}: stopped at epoch {run.state['epoch']} of {config.epochs}; continue with --resume")
    return run


def _predictions(
    whole: DataSet, logits: NDArray[np.float32], fold: NDArray[np.int8], runs: Sequence[dict[str, Any]]
) -> Predictions:
    y, known = whole.shown
    for run in runs:
        rows = np.isin(fold, run["held_out"])
        known[np.ix_(rows, np.array([s.id in run["not_trained"] for s in whole.labels]))] = False
    return Predictions(logits, y, known, whole.index, whole.labels)


def _judged(whole: DataSet, p: Predictions, fold: NDArray[np.int8], config: TrainConfig) -> dict[str, Any]:
    """Metrics of the out-of-fold predictions, calibrated by those of the other three groups, and each label's support."""
    positives, held_out = whole.for_training(config).positives(), count_evidence(p.y & p.known, p.index)
    weights = resamples([row["patient"] for row in whole.index])
    metrics, _ = judge(*_calibrated(whole, p, fold, config), weights)
    ever = np.asarray(p.known.any(axis=0))  # trained by any of the models
    better = {label for label, m in metrics["per_label"].items() if beyond_chance(m["auroc_interval"])}
    support = {
        s.id: {"training": int(a), "out_of_fold": int(b), "tier": tier_of(int(a) if some else 0, int(b), s.id in better)}
        for s, a, b, some in zip(p.labels, positives, held_out, ever, strict=True)
    }
    out: dict[str, Any] = {"records": len(whole), "support": support, "metrics": metrics}
    if config.leave_out:
        out["left_out"] = _left_out(whole, p.logits, config.leave_out, weights)
    return out


def _calibrated(whole: DataSet, p: Predictions, fold: NDArray[np.int8], config: TrainConfig) -> tuple[Predictions, Evidence]:
    """Log odds, and the labels that may be judged by them."""
    trained = whole.for_training(config)
    candidates = (trained.positives() >= MIN_POSITIVES) & (count_evidence(p.y & p.known, p.index) > 0)
    identity = np.where(candidates[:, None], np.array([1.0, 0.0]), np.nan)
    evidence = replace(Evidence.uncalibrated(candidates, prevalence_of(trained)), platt=identity)
    return replace(p, logits=_cross_fitted(p, fold, candidates)), evidence


def out_of_fold(out: Path, directory: Path) -> tuple[Predictions, Evidence]:
    """What `crossval` left in `out`, each group calibrated by the other three, as it judged it. Raises ProtocolError."""
    if not (out / REPORT).is_file():
        raise ProtocolError(f"{out}: no cross-validation; make it with `ecg-train crossval --out {out}`")
    found = read_crossval(out, directory)
    p, config = found.predictions, TrainConfig.of(found.told["config"])
    fold = np.array([row["fold"] for row in p.index], dtype=np.int8)
    return _calibrated(DataSet(directory, p.labels, DEVELOPMENT), p, fold, config)


def _cross_fitted(p: Predictions, fold: NDArray[np.int8], candidates: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, L) log odds, each group by the Platt fit of the other three: the fit is judged on records that it never saw."""
    out = p.logits.copy()
    for group in GROUPS:
        here = np.isin(fold, group)
        fits = fit_platt_all(p.logits[~here], p.y[~here], p.known[~here], candidates)
        out[here] = apply_platt_all(p.logits[here], fits)
    return out


def _left_out(
    whole: DataSet, logits: NDArray[np.float32], left_out: Sequence[str], weights: NDArray[np.float64]
) -> dict[str, Any]:
    """Labels whose targets no model saw, found by their sentence alone: AUROC and interval of those with enough cases."""
    y, known = whole.shown
    use = enough(y, known, cases_of(whole.index)) & np.array([s.id in left_out for s in whole.labels])
    values = aurocs(logits[:, use], y[:, use], known[:, use], weights)
    return {
        whole.labels[j].id: {"auroc": float(values[0, k]), "auroc_interval": interval(values[:, k])}
        for k, j in enumerate(np.flatnonzero(use))
    }


def read_crossval(out: Path, directory: Path, labels: Sequence[Statement] | None = None) -> CrossValidated:
    """What `crossval` left in `out`, on the data set in `directory`. labels: those expected; None: its own.

    Raises ProtocolError where it belongs to another."""
    if not (out / REPORT).is_file():
        raise ProtocolError(f"{out / REPORT}: no such file; make it with `ecg-train crossval --out {out}`")
    told, meta, logits, fold = _read(out / REPORT, out / OOF)
    labels = select(read_vocabulary(), TrainConfig.of(told["config"]).labels) if labels is None else labels
    whole = DataSet(directory, labels, DEVELOPMENT)
    if (meta.get("data"), told["data"]) != (whole.digest, whole.digest):
        raise ProtocolError(f"{out}: made from data set {meta.get('data')}, {directory} is {whole.digest}")
    if meta.get("labels") != json.dumps([s.id for s in labels]) or logits.shape != (len(whole), len(labels)):
        raise ProtocolError(f"{out / OOF}: {logits.shape} predictions of other labels than the run's {len(labels)}")
    if not set(fold.tolist()) <= set(DEVELOPMENT):
        raise ProtocolError(f"{out / OOF}: folds {sorted(set(fold.tolist()) - set(DEVELOPMENT))} must not be in it")
    return CrossValidated(out, _predictions(whole, logits, fold, told["runs"]), told)


def _read(report: Path, oof: Path) -> tuple[dict[str, Any], dict[str, str], NDArray[np.float32], NDArray[np.int8]]:
    """-> crossval.json, and of the predictions metadata, logits, fold. Raises ProtocolError where a file is damaged."""
    remedy = f"copy it again, or make both again with `ecg-train crossval --out {report.parent} --resume`, which keeps the runs"
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        if missing := {"config", "data", "metrics", "records", "runs"} - set(told):
            raise KeyError(*sorted(missing))
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"{report}: no report of a cross-validation ({error!r}); {remedy}") from None
    try:
        with safe_open(oof, framework="np") as file:
            return told, file.metadata() or {}, file.get_tensor("logits"), file.get_tensor("fold")
    except (SafetensorError, OSError) as error:
        raise ProtocolError(f"{oof}: no out-of-fold predictions ({error}); {remedy}") from None
