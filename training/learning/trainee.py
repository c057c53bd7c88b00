"""What is trained together: the ECG encoder, the projection of the text rows and a bias a label."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.model import FEATURES, EcgEncoder
from training.config import BANK, TrainConfig
from training.data.dataset import DataSet
from training.data.superclasses import NAMES, mean_of_members
from training.learning.loss import (
    bank_sigmoid,
    bank_softmax,
    distilled,
    infonce,
    jaccard,
    jaccard_sigmoid,
    log_prior,
    same_set,
    unicl,
)
from training.text.labels import TextBank
from training.text.rows import BankRows, centring, whiten, whitening
from training.vocabulary import Statement

__all__ = ["Trainee", "TraineeError", "build_trainee", "record_tensors", "zero_shot_rows"]

PAIR_SCALE = 10.0  # at the start, as SigLIP
CEILING = 2000  # records from which the mean similarity of two label sets is taken


class TraineeError(ValueError):
    """Config, text bank and data do not go together; the text says what is missing."""


class NoRows(nn.Module):
    """Stands where a supervised head has no label bank."""

    def forward(self, text: Tensor | None = None) -> Tensor:
        raise TraineeError(
            'objective = "supervised" has no label bank: it is a reference to compare with and cannot be exported'
        )


class Columns(nn.Module):
    """The superclasses' part. mean: (S, L) weights over the bank's rows. bias: (S,). active: bool (S,).

    The row of a superclass is the mean of its members' text rows through the bank's projection: no further sentence need be
    embedded, and a superclass lies among what it holds. Under a supervised head it has a row of its own.
    """

    bias: nn.Parameter
    active: Tensor
    mean: Tensor

    def __init__(self, mean: Tensor, bias: Tensor, active: Tensor, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.bias = nn.Parameter(bias.clone())
        self.register_buffer("active", active)
        self.head = nn.Linear(features, len(bias), bias=False) if features else None

    def logits(self, e: Tensor, rows: nn.Module, scale: float) -> Tensor:
        """e: (B, D) -> (B, S)."""
        if self.head is not None:
            return torch.as_tensor(self.head(e)) + self.bias
        assert isinstance(rows, BankRows)
        own: Tensor = rows(F.normalize(self.mean @ rows.text, dim=-1))  # (S, D)
        return scale * (e @ own.T) + self.bias


class Trainee(nn.Module):
    """encoder: (B, 12, T) -> (B, D). rows: (L, D) of the labels. bias: (L,). active: bool (L,), columns with evidence.

    supervised: rows is `NoRows`, `embed` gives features and head takes the place of rows. pair: log of the scale and the bias
    of jaccard_sigmoid, both learned; the bias is one number for all pairs and left to the calibration.
    """

    bias: nn.Parameter
    active: Tensor

    def __init__(
        self, config: TrainConfig, rows: BankRows | None, bias: Tensor, active: Tensor, columns: Columns | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = EcgEncoder(config.encoder)
        self.rows: nn.Module = rows if rows is not None else NoRows()
        self.columns = columns
        learned = not config.needs_captions
        self.bias = nn.Parameter(bias.clone() if learned else torch.zeros_like(bias), requires_grad=learned)
        self.register_buffer("active", active)
        self.head = nn.Linear(FEATURES, len(bias), bias=False) if config.objective == "supervised" else None
        self.pair = nn.Parameter(torch.tensor([math.log(PAIR_SCALE), 0.0])) if config.objective == "jaccard_sigmoid" else None
        if config.frozen:
            self.encoder.requires_grad_(False)
        self.encoder.projection.requires_grad_(self.head is None)

    @property
    def scale(self) -> float:
        """Factor on the cosine."""
        if self.pair is not None:
            return math.exp(float(self.pair[0].detach()))
        return self.config.scale if self.config.objective in BANK else 1.0 if self.head is not None else 1 / self.config.tau

    def logits(self, x: Tensor) -> Tensor:
        """x: (B, 12, T) -> (B, L) = scale * cosine + bias, all in float32."""
        return self.logits_of(self._project(self.encoder.features(x)))

    def logits_of(self, e: Tensor) -> Tensor:
        """e: (B, D) of `embed` -> (B, L)."""
        if self.head is not None:
            return torch.as_tensor(self.head(e)) + self.bias
        rows: Tensor = self.rows()  # (L, D)
        return self.scale * (e @ rows.T) + self.bias

    def embed(self, x: Tensor) -> Tensor:
        """x: (B, 12, T) -> (B, D) float32, also where the convolutions run in bfloat16; records pass it in any parts.

        supervised: (B, 512) features, some dropped in training.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            features = self.encoder.features(x)
        return self._project(features)

    def _project(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            given = features.float()
            return torch.as_tensor(self.encoder.dropout(given)) if self.head is not None else self.encoder.project(given)

    def loss_of(self, e: Tensor, y: Tensor, known: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """The loss of a whole step. e: (B, D) of `embed`; y, known: bool (B, L), or (B, L + 5) with superclasses.

        extra: (B, ...) rows of `record_tensors`.

        Knows neither processes nor parts: B is the batch of the config, wherever its records were embedded.
        """
        with torch.autocast(e.device.type, enabled=False):
            if self.config.needs_captions:
                return self._caption_loss(e, extra)
            n = len(self.active)
            loss = self._bank_loss(self.logits_of(e), y[:, :n], known[:, :n] & self.active, extra)
            if self.columns is not None:
                more = self.columns.logits(e, self.rows, self.scale)
                loss = loss + self.config.superclass_weight * bank_sigmoid(more, y[:, n:], known[:, n:] & self.columns.active)
            return loss

    def _bank_loss(self, logits: Tensor, y: Tensor, known: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        if self.config.objective == "bank_softmax":
            return bank_softmax(logits, y, known)
        if not self.config.distill:
            return bank_sigmoid(logits, y, known)
        return bank_sigmoid(logits, distilled(y, extra["teacher"], self.config.distill), known)

    def _caption_loss(self, e: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        objective, tau = self.config.objective, self.config.tau
        text: Tensor = self.rows(extra["captions"])  # (B, D)
        if objective == "infonce":
            return infonce(e, text, tau)
        if objective == "unicl":
            return unicl(e, text, same_set(extra["stated"]), tau)
        assert self.pair is not None
        return jaccard_sigmoid(e, text, jaccard(extra["stated"]), self.pair[0].exp(), self.pair[1])


def build_trainee(config: TrainConfig, data: DataSet, text: TextBank, statements: tuple[Statement, ...]) -> Trainee:
    """A trainee at its start, weights by config.seed. Raises TraineeError when no label has enough positives."""
    torch.manual_seed(config.seed)
    y, known = (torch.from_numpy(a) for a in data.shown)
    active = (y & known).sum(dim=0) >= config.min_positives
    if not active.any():
        most = int(data.positives().max())
        raise TraineeError(
            f"no label has min_positives = {config.min_positives} records in the training folds; the most is {most}"
        )
    left_out = _left_out(config, statements)
    active &= ~left_out
    if not active.any():
        raise TraineeError("leave_out: no label with enough positives is left")
    if len(statements) < 2:
        raise TraineeError(f"labels: a bank needs at least 2 labels, got {statements[0].id}")
    rows = None if config.objective == "supervised" else _rows(config, text.rows_of(statements))
    bias = log_prior(y, known).masked_fill(left_out, 0.0)
    columns = _columns(config, data, statements) if config.superclass_weight else None
    model = Trainee(config, rows, bias, active, columns)
    if model.pair is not None:  # two unrelated records start at the mean similarity
        stated = torch.from_numpy(data.stated)
        mean = jaccard(stated[:: max(1, len(stated) // CEILING)]).mean()
        model.pair.data[1] = torch.logit(mean, eps=1e-6)
    return model


def _left_out(config: TrainConfig, statements: tuple[Statement, ...]) -> Tensor:
    """bool (L,). Raises TraineeError for a name that is not in the bank."""
    ids = [s.id for s in statements]
    if missing := [name for name in config.leave_out if name not in ids]:
        raise TraineeError(f"leave_out: {', '.join(missing)} is not among the {len(ids)} labels of this bank")
    return torch.tensor([name in config.leave_out for name in ids])


def _rows(config: TrainConfig, raw: NDArray[np.float32]) -> BankRows:
    """raw: (L, E)."""
    if config.needs_captions:
        return BankRows(raw, config.dim, True, "random")
    if not config.whiten:
        centred = centring(raw)
        return BankRows(centred(raw), config.dim, config.learned_projection, "random", centred)
    white, of_sentence = whiten(raw, config.dim, config.shrinkage), whitening(raw, config.dim, config.shrinkage)
    return BankRows(white, config.dim, config.learned_projection, "identity", of_sentence)


def _columns(config: TrainConfig, data: DataSet, statements: tuple[Statement, ...]) -> Columns:
    """A superclass without a member in the bank, or with too few positives, is masked."""
    rows = np.arange(len(data))
    y, known = (torch.from_numpy(a) for a in data.superclasses.targets(rows, data.mask))
    mean = torch.from_numpy(mean_of_members(statements))  # (S, L)
    active = ((y & known).sum(dim=0) >= config.min_positives) & (mean.sum(dim=1) > 0)
    if not active.any():
        raise TraineeError(f"superclass_weight: none of {', '.join('S:' + n for n in NAMES)} has enough positives and a member")
    state = torch.get_rng_state()  # the encoder starts as it does without superclasses
    features = FEATURES if config.objective == "supervised" else 0
    out = Columns(mean, log_prior(y, known), active, features)
    torch.set_rng_state(state)
    return out


def record_tensors(data: DataSet, text: TextBank, config: TrainConfig) -> dict[str, Tensor]:
    """What the objective needs of each record beside its targets, by name: (N, ...) in the order of `data`.

    captions: (N, E); stated: bool (N, L), the label sets behind the captions, whatever leads are drawn; teacher: logits (N, L).
    """
    out: dict[str, Tensor] = {}
    if config.needs_captions:
        out["captions"] = caption_rows(data, text, data.labels)
    if config.objective in ("unicl", "jaccard_sigmoid"):
        out["stated"] = torch.from_numpy(data.stated)
    if data.taught_logits is not None:
        if not config.distill:
            raise TraineeError("a teacher is given but distill = 0; set distill above 0, say --set distill=0.5")
        out["teacher"] = torch.from_numpy(data.taught_logits)
    elif config.distill:
        raise TraineeError(f"distill = {config.distill} needs a teacher: ecg-train train --teacher oof.safetensors")
    return out


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


def zero_shot_rows(model: Trainee, text: NDArray[np.float32]) -> Tensor:
    """text: (K, E) embeddings of any sentences by the bank's own language model -> (K, D) unit rows to take cosines with.

    With captions, or a bank of `whiten = false`, a new sentence is treated as the labels' were: that is zero-shot. Through
    `whiten = true` only what a sentence shares with the labels' sentences comes out, the small directions enlarged
    (`text/rows.py`): defined, but not to be reported as zero-shot. Raises TraineeError for a supervised head, which has
    no text.
    """
    if not isinstance(model.rows, BankRows):
        raise TraineeError('objective = "supervised" has no text: there is no zero-shot row')
    with torch.inference_mode():
        return model.rows.sentences(text)
