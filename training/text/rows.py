"""Text embeddings -> the rows an ECG is compared with: centred, shrinkage-whitened, brought to D, projected.

Raw sentence embeddings share most of their direction (the prompt). With X the (L, E) rows less their mean and X = U S V' its
singular value decomposition, direction k has variance s_k^2 / L. Each is shrunk towards their mean,
v_k = (1 - shrinkage) s_k^2 / L + shrinkage * mean, and the whitened rows are U S / sqrt(v): at shrinkage 0 all directions weigh
the same (and every two labels are equally far apart), at 1 only centring is left. The rank is at most L - 1; the first D
directions are kept, or zeros appended up to D.

A sentence that is none of the labels passes the same map, V / sqrt(v) after the mean is taken off. What it says beside the
labels' span is lost there, and directions in which the labels hardly differ are enlarged: whitening and zero-shot do not go
together. Centring alone keeps all E numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.bank import RowsMade

__all__ = ["BankRows", "RowsError", "TextMap", "centring", "whiten", "whitening"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
TINY = 1e-12
SAME_ROW = 0.9999  # cosine of a row with what its sentence gives when the map is made again, on another machine too


class RowsError(ValueError):
    """Rows that do not come from the sentences they are said to come from; the text names the label."""


@dataclass(frozen=True)
class TextMap:
    """Sentence embeddings (N, E) -> unit((x - mean) basis). mean: (E,). basis: (E, D), None for the identity."""

    mean: Doubles
    basis: Doubles | None

    def __call__(self, rows: Floats) -> Floats:
        """(N, E) -> (N, D), or (N, E) without a basis; unit rows."""
        out = rows.astype(np.float64) - self.mean
        if self.basis is not None:
            out = out @ self.basis
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), TINY), dtype=np.float32)


def _spectrum(rows: Floats, dim: int, shrinkage: float) -> tuple[Doubles, Doubles, Doubles, Doubles, Doubles]:
    """-> mean (E,), U (L, K), s (K,), V (E, K), shrunk variances (K,); K = min(rank, D), variances averaged over the rank."""
    mean = rows.mean(axis=0, dtype=np.float64)
    u, s, vt = np.linalg.svd(rows.astype(np.float64) - mean, full_matrices=False)
    rank = int((s > s[0] * 1e-6).sum())
    variance = s[:rank] ** 2 / len(rows)
    shrunk = (1 - shrinkage) * variance + shrinkage * variance.mean()
    k = min(rank, dim)
    return mean, u[:, :k], s[:k], vt[:k].T, shrunk[:k]


def whiten(rows: Floats, dim: int, shrinkage: float) -> Floats:
    """rows: (L, E) -> (L, D) unit rows, see above."""
    _, u, s, _, shrunk = _spectrum(rows, dim, shrinkage)
    white = u * s / np.sqrt(shrunk)
    out = np.zeros((len(rows), dim), dtype=np.float32)
    out[:, : white.shape[1]] = white / np.linalg.norm(white, axis=1, keepdims=True)
    return out


def whitening(rows: Floats, dim: int, shrinkage: float) -> TextMap:
    """The map that takes `rows` (L, E) to `whiten(rows, dim, shrinkage)`, for other sentences."""
    mean, _, _, v, shrunk = _spectrum(rows, dim, shrinkage)
    basis = np.zeros((rows.shape[1], dim))
    basis[:, : v.shape[1]] = v / np.sqrt(shrunk)
    return TextMap(mean, basis)


def centring(rows: Floats) -> TextMap:
    """The map that takes the mean of `rows` (L, E) off and brings every row to norm 1."""
    return TextMap(rows.mean(axis=0, dtype=np.float64), None)


class BankRows(nn.Module):
    """Fixed text rows behind a projection: (L, E) -> (L, D) unit. start: "identity" (E = D) or "random".

    of_sentence: what was done to the raw sentence embeddings to get `text`; None: nothing.
    """

    text: Tensor

    def __init__(self, text: Floats, dim: int, learned: bool, start: str, of_sentence: TextMap | None = None) -> None:
        super().__init__()
        self.register_buffer("text", torch.from_numpy(np.array(text, dtype=np.float32)))
        self.of_sentence = of_sentence
        self.project = nn.Linear(text.shape[1], dim, bias=False)
        if start == "identity":
            nn.init.eye_(self.project.weight)
        self.project.weight.requires_grad_(learned)

    def forward(self, text: Tensor | None = None) -> Tensor:
        """The bank's rows, or other text (K, E) through the same projection."""
        return F.normalize(self.project(self.text if text is None else text), dim=-1)

    def sentences(self, raw: Floats) -> Tensor:
        """raw: (K, E0) embeddings by the same language model -> (K, D) unit rows."""
        rows = raw if self.of_sentence is None else self.of_sentence(raw)
        return torch.as_tensor(self(torch.from_numpy(np.array(rows, dtype=np.float32)).to(self.text.device)))

    def made(self, raw: Floats, ids: Sequence[str]) -> RowsMade:
        """raw: (L, E0), the labels' sentences -> how the rows came from them. Raises RowsError when they do not.

        The map of the sentences is not stored with a run but made again from its text: this shows that it is the same.
        """
        with torch.inference_mode():
            cosine = (self() * self.sentences(raw)).sum(dim=1)
        if not (least := float(cosine.min())) >= SAME_ROW:
            raise RowsError(
                f"{ids[int(cosine.argmin())]}: cosine {least:.4f} between its row and what its sentence gives, {SAME_ROW} "
                "expected; give the --text that the run was trained with, and export on a machine like the one that trained it"
            )
        weight = self.project.weight.detach().cpu().numpy()
        identity = weight.shape[0] == weight.shape[1] and np.array_equal(weight, np.eye(len(weight)))
        mean, basis = (self.of_sentence.mean, self.of_sentence.basis) if self.of_sentence else (None, None)
        return RowsMade(
            sentences=_digest(raw, "<f4"),
            mean=None if mean is None else _digest(mean, "<f8"),
            whitening=None if basis is None else _digest(basis, "<f8"),
            projection=None if identity else _digest(weight, "<f4"),
        )


def _digest(numbers: NDArray[np.floating], kind: str) -> str:
    return hashlib.sha256(numbers.astype(kind).tobytes()).hexdigest()
