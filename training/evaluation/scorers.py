"""A run or an artifact as something that scores: windows -> logits, with the labels and records that go with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.artifact import Artifact
from encoders.bank import MIN_POSITIVES, LabelBank
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.evaluation.evaluate import Evidence, Scorer, bank_scorer, model_scorer
from training.learning.checkpoint import load_checkpoint
from training.learning.loop import Trained, load_trained
from training.text.labels import TextBank
from training.vocabulary import Statement, read_vocabulary, select

__all__ = [
    "Opened",
    "ScorerError",
    "evidence_of_bank",
    "evidence_of_run",
    "open_artifact",
    "open_run",
    "open_scorer",
    "prevalence_of",
    "trained_on",
]

Opened = tuple[Scorer, DataSet, Evidence]


class ScorerError(ValueError):
    """Neither a run nor an artifact."""


def trained_on(config: TrainConfig, data: Path) -> DataSet:
    """The records in `data` that a run of this config is fitted on."""
    return DataSet(data, select(read_vocabulary(), config.labels), config.train_folds).for_training(config)


def open_run(run: Path, data: Path, text: Path) -> tuple[Trained, DataSet, TextBank]:
    """A run directory -> its averaged model, what it was trained on, its text. Raises CheckpointError."""
    _, state = load_checkpoint(run)
    records = trained_on(TrainConfig.of(state["config"]), data)
    bank = TextBank.load(text)
    return load_trained(run, records, bank), records, bank


def open_scorer(
    target: Path,
    data: Path,
    text: Path | None,
    folds: tuple[int, ...],
) -> Opened:
    """target: a run directory (needs text) or an artifact -> scorer, records of `folds`, what training knows of each label."""
    if (target / "checkpoint.json").is_file():
        if text is None:
            raise ScorerError(f"{target} is a run: give --text too, the embeddings it was trained with")
        trained, records, _ = open_run(target, data, text)
        return model_scorer(trained.model), DataSet(data, records.labels, folds), evidence_of_run(trained, records)
    score, statements, evidence = open_artifact(target)
    return score, DataSet(data, statements, folds), evidence


def open_artifact(target: Path) -> tuple[Scorer, tuple[Statement, ...], Evidence]:
    """-> scorer, its labels, what training knew of each. Raises ArtifactError, ScorerError."""
    artifact = Artifact.load(target)
    bank = artifact.bank()
    statements = select(read_vocabulary(), ",".join(label.id for label in bank.labels))
    if [s.id for s in statements] != [label.id for label in bank.labels]:
        raise ScorerError(f"{target}: its labels stand in another order than in labels.csv")
    stored = artifact.manifest.training.data.get("prevalence", {})
    prevalence = np.array([stored.get(label.id, np.nan) for label in bank.labels], dtype=np.float64)
    return bank_scorer(artifact.open(), bank), statements, evidence_of_bank(bank, prevalence)


def evidence_of_run(trained: Trained, records: DataSet) -> Evidence:
    """Before export. records: what the run was fitted on."""
    candidates = (records.positives() >= MIN_POSITIVES) & trained.model.active.numpy()
    return Evidence.uncalibrated(candidates, prevalence_of(records))


def prevalence_of(train: DataSet) -> NDArray[np.float64]:
    """(L,) share of the records that know a label, and whose leads show it, which state it; NaN where none does."""
    y, known = train.shown
    total = known.sum(axis=0)
    out = np.full(len(total), np.nan)
    np.divide((y & known).sum(axis=0), total, out=out, where=total > 0)
    return out


def evidence_of_bank(bank: LabelBank, prevalence: NDArray[np.float64]) -> Evidence:
    """What a bank holds of each label. prevalence: (L,) in training, NaN where it was not kept."""
    nothing = (np.nan, np.nan)
    return Evidence(
        np.array([label.tier != "unsupported" for label in bank.labels]),
        prevalence,
        np.array([label.calibration or nothing for label in bank.labels], dtype=np.float64),
        np.array([np.nan if label.threshold is None else label.threshold for label in bank.labels], dtype=np.float64),
    )
