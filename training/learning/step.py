"""One optimiser step and all that it changes: weights, moments, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from training.config import TrainConfig
from training.data.dataset import Batch
from training.learning.checkpoint import optimizer_tensors, restore_optimizer
from training.learning.parallel import World
from training.learning.trainee import Trainee

__all__ = ["Stepper", "learning_rate", "part"]

CLIP = 5.0  # norm of the gradient


def learning_rate(config: TrainConfig, step: int, per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to 0 or a constant. step counts from 0."""
    warm = int(config.warmup_epochs * per_epoch)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    total = max(1, config.epochs * per_epoch - warm)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / total))


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics do not move: a part that passes twice counts once."""
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum


class _WholeLoss(nn.Module):
    """The loss of the whole batch from this process's share of it, embedded in `accumulate` parts."""

    def __init__(self, model: Trainee, world: World) -> None:
        super().__init__()
        self.model, self.world = model, world

    def forward(self, x: Tensor, y: Tensor, known: Tensor, extra: dict[str, Tensor]) -> Tensor:
        """x: (B / n, 12, T); y, known: bool (B / n, L); extra: (B / n, ...)."""
        gather, parts = self.world.gather, self.model.config.accumulate
        e = self.model.embed(x) if parts == 1 else torch.cat([self._light(part) for part in x.chunk(parts)])
        return self.model.loss_of(gather(e), gather(y), gather(known), {k: gather(v) for k, v in extra.items()})

    def _light(self, part: Tensor) -> Tensor:
        """`embed`, which keeps nothing for the backward pass but computes it again there, with the same dropout."""
        again = lambda: (nullcontext(), _still(self.model))  # noqa: E731
        e: Tensor = checkpoint(self.model.embed, part, use_reentrant=False, context_fn=again)
        return e


@dataclass
class Stepper:
    """The parts of a run that move. model is trained, average follows it; both on world.device. step: optimiser steps done.

    extra: (N, ...) tensors by name, what the objective needs of each record beside its targets.
    """

    config: TrainConfig
    model: Trainee
    average: Trainee
    per_epoch: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    world: World = field(default_factory=World)
    step: int = 0

    def __post_init__(self) -> None:
        device = self.world.device
        self.model.to(device)
        self.average.to(device).requires_grad_(False)
        if self.world.size > 1 and device.type == "cuda":  # between CPUs the statistics are each process's own
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True)
        self.loss = self.world.wrap(_WholeLoss(self.model, self.world))
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        both = [(mean, now) for mean, now in pairs]
        self._followed = [(m, n) for m, n in both if m.dtype.is_floating_point]
        self._copied = [(m, n) for m, n in both if not m.dtype.is_floating_point]

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.config, self.step, self.per_epoch)

    def __call__(self, batch: Batch) -> float:
        """This process's share of a batch -> the loss of the whole batch. Raises FloatingPointError."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        # dropout is a function of (seed, step, process) alone: nothing of it need be kept to continue
        seeds = np.random.SeedSequence([self.config.seed, self.step, self.world.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        rows = torch.from_numpy(batch.rows)
        arrays = [torch.from_numpy(a).to(self.world.device) for a in (batch.x, batch.y, batch.known)]
        loss = self.loss(*arrays, {k: v[rows].to(self.world.device) for k, v in self.extra.items()})
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP, foreach=True)
        self.optimizer.step()
        self.step += 1
        self._follow()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {self.step}; lower lr (now {self.config.lr})")
        return value

    @torch.no_grad()
    def _follow(self) -> None:
        """Weights and BatchNorm statistics; early on a plain mean, so that the random start is soon forgotten."""
        decay = min(self.config.ema, self.step / (self.step + 10))
        means, now = [m for m, _ in self._followed], [n for _, n in self._followed]
        torch._foreach_lerp_(means, now, 1 - decay)
        for mean, value in self._copied:
            mean.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """All that `restore` needs."""
        return {
            **{"model." + k: v for k, v in self.model.state_dict().items()},
            **{"average." + k: v for k, v in self.average.state_dict().items()},
            **optimizer_tensors(self.optimizer),
        }

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue after `step` steps."""
        self.model.load_state_dict(part(tensors, "model."))
        self.average.load_state_dict(part(tensors, "average."))
        restore_optimizer(self.optimizer, tensors)
        self.step = step


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
