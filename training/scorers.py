"""A run or an artifact as something that scores: windows -> logits, with the labels and records that go with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.artifact import Artifact
from encoders.bank import MIN_POSITIVES
from training.data import DataSet
from training.evaluate import Scorer, model_scorer
from training.labels import TextBank
from training.vocabulary import read_vocabulary, select

__all__ = ["ScorerError", "open_scorer"]

Opened = tuple[Scorer, DataSet, NDArray[np.bool_]]


class ScorerError(ValueError):
    """Neither a run nor an artifact."""


def open_scorer(
    target: Path,
    data: Path,
    text: Path | None,
    folds: tuple[int, ...],
    load_run: Callable[[Path, Path, Path], tuple[Any, DataSet, TextBank]],
) -> Opened:
    """target: a run directory (needs text) or an artifact -> scorer, records of `folds`, labels with evidence (L,)."""
    if (target / "checkpoint.json").is_file():
        if text is None:
            raise ScorerError(f"{target} is a run: give --text too, the embeddings it was trained with")
        trained, records, _ = load_run(target, data, text)
        candidates = (records.positives() >= MIN_POSITIVES) & trained.model.active.numpy()
        return model_scorer(trained.model), DataSet(data, records.labels, folds), candidates
    artifact = Artifact.load(target)
    bank = artifact.bank()
    statements = select(read_vocabulary(), ",".join(label.id for label in bank.labels))
    if [s.id for s in statements] != [label.id for label in bank.labels]:
        raise ScorerError(f"{target}: its labels stand in another order than in labels.csv")
    encoder = artifact.open()
    candidates = np.array([label.tier == "trained" for label in bank.labels])
    return lambda x: bank.logits(encoder.encode(x)), DataSet(data, statements, folds), candidates
