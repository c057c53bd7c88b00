"""The objectives. Pure functions of tensors; B batch, D embedding, L label. Everything is computed in float32.

Against the captions of a batch: `infonce`, `unicl`, `jaccard_sigmoid`. Against the whole bank: `bank_softmax`, `bank_sigmoid`,
which is the supervised head's loss too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "bank_sigmoid",
    "bank_softmax",
    "distilled",
    "infonce",
    "jaccard",
    "jaccard_sigmoid",
    "log_prior",
    "same_set",
    "unicl",
]


def infonce(ecg: Tensor, text: Tensor, tau: float) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020). ecg, text: (B, D) unit rows, row i of one belongs to row i of the other.

    Records with the same caption count as each other's negatives, as in the paper.
    """
    logits = ecg.float() @ text.float().T / tau  # (B, B)
    target = torch.arange(len(ecg), device=ecg.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def same_set(sets: Tensor) -> Tensor:
    """sets: bool (B, L) -> bool (B, B), whether two records state the same labels."""
    s = sets.float()
    both, size = s @ s.T, s.sum(dim=1)
    return (both == size[:, None]) & (both == size[None, :])


def jaccard(sets: Tensor) -> Tensor:
    """sets: bool (B, L) -> (B, B), labels in common over labels in either; 1 for two empty sets."""
    s = sets.float()
    both, size = s @ s.T, s.sum(dim=1)
    either = size[:, None] + size[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def unicl(ecg: Tensor, text: Tensor, same: Tensor, tau: float) -> Tensor:
    """Symmetric soft cross-entropy (UniCL, arXiv 2204.03610). same: bool (B, B), symmetric, true on the diagonal.

    All records with the same label set are each other's positives and share the target mass. ecg, text: (B, D) unit rows.
    """
    logits = ecg.float() @ text.float().T / tau  # (B, B)
    target = same.float()
    target = target / target.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def jaccard_sigmoid(ecg: Tensor, text: Tensor, similarity: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343) with the Jaccard similarity of the label sets as target (2602.10553).

    similarity: (B, B) in 0 to 1. The mean over all pairs, so that it does not grow with the batch.
    """
    logits = scale.float() * (ecg.float() @ text.float().T) + bias.float()  # (B, B)
    return F.binary_cross_entropy_with_logits(logits, similarity.float())


def bank_sigmoid(logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy over known entries. logits: (B, L); y: bool or 0 to 1 (B, L); known: bool (B, L).

    0 where nothing is known.
    """
    logits = logits.float()
    each = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
    weight = known.to(logits.dtype)
    return (each * weight).sum() / weight.sum().clamp(min=1)


def bank_softmax(logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy of the softmax over the known labels of each record; its true labels share the target mass.

    logits: (B, L); y, known: bool (B, L). Records without a known true label do not count; 0 where none has one.
    """
    true = y & known
    counts = true.any(dim=1)
    logits, true, known = logits.float()[counts], true[counts], known[counts]
    share = F.log_softmax(logits.masked_fill(~known, -torch.inf), dim=1)  # (B', L)
    each = torch.where(true, share, torch.zeros_like(share)).sum(dim=1) / true.sum(dim=1)  # 0 * -inf is no number
    return -each.sum() / max(1, len(each))


def distilled(y: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """Targets (1 - weight) y + weight sigmoid(teacher). y: bool (B, L); teacher: logits (B, L), NaN: no opinion, y stands."""
    own = y.float()
    return torch.where(teacher.isnan(), own, (1 - weight) * own + weight * torch.sigmoid(teacher.float()))


def log_prior(y: Tensor, known: Tensor) -> Tensor:
    """(L,) log odds of each label among its known records, with half a count added on both sides."""
    positive = (y & known).sum(dim=0).float()
    total = known.sum(dim=0).float()
    return torch.log((positive + 0.5) / (total - positive + 0.5))
