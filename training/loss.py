"""The two objectives. Pure functions of tensors; B batch, D embedding, L label. All in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bank_sigmoid", "infonce", "log_prior"]


def infonce(ecg: Tensor, text: Tensor, tau: float) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020). ecg, text: (B, D) unit rows, row i of one belongs to row i of the other.

    Records with the same caption count as each other's negatives, as in the paper.
    """
    logits = ecg @ text.T / tau  # (B, B)
    target = torch.arange(len(ecg), device=ecg.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def bank_sigmoid(logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy over known entries. logits: (B, L); y, known: bool (B, L). 0 where nothing is known."""
    each = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
    weight = known.to(logits.dtype)
    return (each * weight).sum() / weight.sum().clamp(min=1)


def log_prior(y: Tensor, known: Tensor) -> Tensor:
    """(L,) log odds of each label among its known records, with half a count added on both sides."""
    positive = (y & known).sum(dim=0).float()
    total = known.sum(dim=0).float()
    return torch.log((positive + 0.5) / (total - positive + 0.5))
