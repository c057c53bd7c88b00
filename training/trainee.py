"""What is trained together: the ECG encoder, the projection of the text rows and a bias a label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from encoders.model import EcgEncoder
from training.config import TrainConfig
from training.data import DataSet
from training.labels import TextBank
from training.loss import bank_sigmoid, infonce, log_prior
from training.rows import BankRows, whiten
from training.vocabulary import Statement

__all__ = ["Trainee", "TraineeError", "build_trainee"]


class TraineeError(ValueError):
    """Config, text bank and data do not go together; the text says what is missing."""


class Trainee(nn.Module):
    """encoder: (B, 12, T) -> (B, D). rows: (L, D) of the labels. bias: (L,). active: bool (L,), columns with evidence."""

    bias: nn.Parameter
    active: Tensor

    def __init__(self, config: TrainConfig, rows: BankRows, bias: Tensor, active: Tensor) -> None:
        super().__init__()
        self.config = config
        self.encoder = EcgEncoder(config.encoder)
        self.rows = rows
        learned = config.objective == "bank_sigmoid"
        self.bias = nn.Parameter(bias.clone() if learned else torch.zeros_like(bias), requires_grad=learned)
        self.register_buffer("active", active)

    @property
    def scale(self) -> float:
        """Factor on the cosine."""
        return self.config.scale if self.config.objective == "bank_sigmoid" else 1 / self.config.tau

    def logits(self, x: Tensor) -> Tensor:
        """x: (B, 12, T) -> (B, L) = scale * cosine + bias."""
        e: Tensor = self.encoder(x)  # (B, D)
        rows: Tensor = self.rows()  # (L, D)
        return self.scale * (e @ rows.T) + self.bias

    def loss(self, x: Tensor, y: Tensor, known: Tensor, captions: Tensor | None) -> Tensor:
        """x: (B, 12, T); y, known: bool (B, L); captions: (B, E), for infonce."""
        if self.config.objective == "infonce":
            if captions is None:
                raise TraineeError("infonce needs the captions' embeddings")
            return infonce(self.encoder(x), self.rows(captions), self.config.tau)
        return bank_sigmoid(self.logits(x), y, known & self.active)


def build_trainee(config: TrainConfig, data: DataSet, text: TextBank, statements: tuple[Statement, ...]) -> Trainee:
    """A trainee at its start, weights by config.seed. Raises TraineeError when no label has enough positives."""
    torch.manual_seed(config.seed)
    y, known = (torch.from_numpy(a) for a in data.targets)
    active = (y & known).sum(dim=0) >= config.min_positives
    if not active.any():
        most = int(data.positives().max())
        raise TraineeError(
            f"no label has min_positives = {config.min_positives} records in the training folds; the most is {most}"
        )
    raw = text.rows_of(statements)
    if config.objective == "bank_sigmoid":
        rows = BankRows(whiten(raw, config.dim, config.shrinkage), config.dim, config.learned_projection, "identity")
    else:
        rows = BankRows(raw, config.dim, True, "random")
    return Trainee(config, rows, log_prior(y, known), active)


def caption_rows(data: DataSet, text: TextBank, labels: tuple[Statement, ...]) -> Tensor:
    """(N, E): the embedded caption of each record; records that state no label have none (zeros). Raises TraineeError."""
    y = data.stated
    ids = [s.id for s in labels]
    out = np.zeros((len(data), text.rows.shape[1]), dtype=np.float32)
    for i in range(len(data)):
        key = tuple(ids[j] for j in np.flatnonzero(y[i]))
        if key:
            if key not in text.captions:
                raise TraineeError(f"no embedded caption for {', '.join(key)}; run `ecg-train labels --data {data.directory}`")
            out[i] = text.captions[key]
    return torch.from_numpy(out)
