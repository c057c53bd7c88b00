"""What is trained together: the ECG encoder, the projection of the text rows and a bias a label."""

from __future__ import annotations

from collections.abc import Mapping

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

__all__ = ["Trainee", "TraineeError", "build_trainee", "record_tensors"]


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

    def embed(self, x: Tensor) -> Tensor:
        """x: (B, 12, T) -> (B, D) float32, also where the convolutions run in bfloat16; records pass it in any parts."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            features = self.encoder.features(x)
        return self.encoder.project(features.float())

    def loss_of(self, e: Tensor, y: Tensor, known: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """The loss of a whole step. e: (B, D) of `embed`; y, known: bool (B, L); extra: (B, ...) rows of `record_tensors`.

        Knows neither processes nor parts: B is the batch of the config, wherever its records were embedded.
        """
        if self.config.objective == "infonce":
            if "captions" not in extra:
                raise TraineeError("infonce needs the captions' embeddings")
            return infonce(e, self.rows(extra["captions"]), self.config.tau)
        rows: Tensor = self.rows()  # (L, D)
        return bank_sigmoid(self.scale * (e @ rows.T) + self.bias, y, known & self.active)


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


def record_tensors(data: DataSet, text: TextBank, config: TrainConfig) -> dict[str, Tensor]:
    """What the objective needs of each record beside its targets, by name: (N, ...) in the order of `data`."""
    return {"captions": caption_rows(data, text, data.labels)} if config.objective == "infonce" else {}


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
