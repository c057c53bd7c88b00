"""Out-of-fold predictions of the cross-validation models, which one model learns from.

`oof.safetensors`: "logits" float32 (N, L), "fold" int8 (N,), one row for each record of folds 1 to 8 in the order of the data
set's index; metadata "data" (the data set's digest) and "labels" (JSON list of ids). A record's logits come from models that
never saw its patient, so that the targets made of them are not memorised ones. Where `crossval.json` beside the file says
that the model of a fold did not train a label, its logits are no opinion and become NaN.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from training.data.prepare import file_digest

__all__ = ["Teacher", "TeacherError"]


class TeacherError(ValueError):
    """Predictions that do not belong to this data set and label list; the text gives both values."""


@dataclass(frozen=True)
class Teacher:
    """logits: (N, L) of folds 1 to 8, NaN where there is no opinion. fold: (N,). digest: hex sha256 of the file."""

    path: Path
    logits: NDArray[np.float32]
    fold: NDArray[np.int8]
    data: str
    labels: tuple[str, ...]
    digest: str

    @classmethod
    def load(cls, path: Path) -> Teacher:
        """Read and check the file by itself. Raises TeacherError."""
        if not path.is_file():
            raise TeacherError(f"{path}: no such file; it holds the out-of-fold predictions of a cross-validation")
        try:
            with safe_open(path, framework="np") as file:
                meta = file.metadata() or {}
                logits, fold = file.get_tensor("logits"), file.get_tensor("fold")
            labels = tuple(json.loads(meta["labels"]))
            data = meta["data"]
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise TeacherError(f"{path}: tensors 'logits', 'fold' and metadata 'data', 'labels' expected: {error}") from None
        if logits.shape != (len(fold), len(labels)):
            raise TeacherError(f"{path}: logits of shape {(len(fold), len(labels))} expected, found {logits.shape}")
        if bad := int((~np.isfinite(logits)).sum()):
            raise TeacherError(f"{path}: 0 non-finite logits expected, found {bad}")
        logits = logits.astype(np.float32)
        for name, folds in _untrained(path.with_name("crossval.json")):
            if name in labels:
                logits[np.isin(fold, folds), labels.index(name)] = np.nan
        return cls(path, logits, fold, data, labels, file_digest(path))

    def rows_for(self, folds: Sequence[int], wanted: Sequence[int], digest: str, labels: Sequence[str]) -> NDArray[np.float32]:
        """(M, L) for the records of the data set whose fold is in `wanted`, in the order of its index.

        folds: (N,) of all its records in folds 1 to 8. digest, labels: of the data set. Raises TeacherError.
        """
        if self.data != digest:
            raise TeacherError(f"{self.path}: predictions for data set {self.data}, this one is {digest}")
        if self.labels != tuple(labels):
            odd = sorted(set(self.labels) ^ set(labels)) or ["the order differs"]
            raise TeacherError(
                f"{self.path}: predictions for {len(self.labels)} labels, the config names {len(labels)}: {', '.join(odd[:8])}"
            )
        if list(self.fold) != list(folds):
            raise TeacherError(
                f"{self.path}: {len(folds)} records with their folds as in the index expected, found {len(self.fold)}"
            )
        return self.logits[np.isin(self.fold, list(wanted))]


def _untrained(path: Path) -> list[tuple[str, list[int]]]:
    """Labels with the folds whose model did not train them. Raises TeacherError."""
    if not path.is_file():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return [(name, list(run["held_out"])) for run in runs for name in run["not_trained"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherError(f"{path}: runs with held_out and not_trained expected: {error!r}") from None
