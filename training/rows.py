"""Text embeddings -> the rows an ECG is compared with: centred, shrinkage-whitened, brought to D, projected.

Raw sentence embeddings share most of their direction (the prompt). With X the (L, E) rows less their mean and X = U S V' its
singular value decomposition, direction k has variance s_k^2 / L. Each is shrunk towards their mean,
v_k = (1 - shrinkage) s_k^2 / L + shrinkage * mean, and the whitened rows are U S / sqrt(v): at shrinkage 0 all directions weigh
the same (and every two labels are equally far apart), at 1 only centring is left. The rank is at most L - 1; the first D
directions are kept, or zeros appended up to D.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BankRows", "whiten"]


def whiten(rows: NDArray[np.float32], dim: int, shrinkage: float) -> NDArray[np.float32]:
    """rows: (L, E) -> (L, D) unit rows, see above."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int((s > s[0] * 1e-6).sum())
    u, s = u[:, :rank], s[:rank]
    variance = s**2 / len(rows)
    shrunk = (1 - shrinkage) * variance + shrinkage * variance.mean()
    white = (u * s / np.sqrt(shrunk))[:, :dim]
    out = np.zeros((len(rows), dim), dtype=np.float32)
    out[:, : white.shape[1]] = white / np.linalg.norm(white, axis=1, keepdims=True)
    return out


class BankRows(nn.Module):
    """Fixed text rows behind a projection: (L, E) -> (L, D) unit. start: "identity" (E = D) or "random"."""

    text: Tensor

    def __init__(self, text: NDArray[np.float32], dim: int, learned: bool, start: str) -> None:
        super().__init__()
        self.register_buffer("text", torch.from_numpy(np.array(text, dtype=np.float32)))
        self.project = nn.Linear(text.shape[1], dim, bias=False)
        if start == "identity":
            nn.init.eye_(self.project.weight)
        self.project.weight.requires_grad_(learned)

    def forward(self, text: Tensor | None = None) -> Tensor:
        """The bank's rows, or other text (K, E) through the same projection."""
        return F.normalize(self.project(self.text if text is None else text), dim=-1)
