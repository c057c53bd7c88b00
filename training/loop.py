"""The training loop: plain torch on whatever CPU there is; deterministic by seed, resumable in the middle of an epoch."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import CheckpointError, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from training.config import TrainConfig
from training.data import Batch, DataSet, batches
from training.labels import TextBank
from training.trainee import Trainee, build_trainee, record_tensors

__all__ = ["Progress", "Trained", "learning_rate", "load_trained", "train"]


@dataclass(frozen=True)
class Progress:
    """What the loop tells while it runs. loss: mean of the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Trained:
    """A finished or stopped run. model: the moving average where the config keeps one. finished: all epochs were done."""

    model: Trainee
    state: dict[str, Any]
    finished: bool


def learning_rate(config: TrainConfig, step: int, per_epoch: int) -> float:
    """Linear warm-up, then a half cosine to 0 or a constant. step counts from 0."""
    warm = int(config.warmup_epochs * per_epoch)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    total = max(1, config.epochs * per_epoch - warm)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / total))


@dataclass
class _Run:
    """One run's moving parts; `step` counts optimiser steps since the start."""

    config: TrainConfig
    model: Trainee
    average: Trainee
    optimizer: torch.optim.Optimizer
    per_epoch: int
    extra: dict[str, Tensor]
    step: int = 0
    stop: bool = False
    command: str = ""
    losses: list[float] = field(default_factory=list)

    def train_step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.per_epoch)
        extra = {name: rows[torch.from_numpy(batch.rows)] for name, rows in self.extra.items()}
        e = self.model.embed(torch.from_numpy(batch.x))
        loss = self.model.loss_of(e, torch.from_numpy(batch.y), torch.from_numpy(batch.known), extra)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {self.step}; lower lr (now {self.config.lr})")
        return value

    @torch.no_grad()
    def _update_average(self) -> None:
        """Weights and BatchNorm statistics; early on a plain mean, so that the random start is soon forgotten."""
        decay = min(self.config.ema, self.step / (self.step + 10))
        for mean, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point and decay:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def tensors(self) -> dict[str, Tensor]:
        return {
            **{"model." + k: v for k, v in self.model.state_dict().items()},
            **{"average." + k: v for k, v in self.average.state_dict().items()},
            **optimizer_tensors(self.optimizer),
            "rng": torch.get_rng_state(),
        }


def _identity(config: TrainConfig, data: DataSet, text: TextBank) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued or evaluated."""
    return {
        "config": config.as_dict(),
        "text": text.digest,
        "data": data.digest,
        "records": data.manifest["records"],
        "labels": [s.id for s in data.labels],
    }


def train(
    config: TrainConfig,
    data: DataSet,
    text: TextBank,
    out: Path,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda p: None,
    epochs: int | None = None,
    command: str = "",
) -> Trained:
    """Train on `data` (the training folds) and keep checkpoints in `out`. epochs: stop after so many, resumable.

    SIGTERM (in the main thread) saves and returns with finished = False. Raises CheckpointError when `out` holds another run,
    TraineeError, FloatingPointError.
    """
    if config.objective == "infonce":
        data = data.stating()  # a record without a label has no caption
    run = _start(config, data, text)
    run.command = command
    identity = _identity(config, data, text)
    if resume:
        _restore(run, identity, out)
    elif (out / "checkpoint.json").exists():
        raise CheckpointError(f"{out} holds a run already; continue it with --resume or give a new --out")
    out.mkdir(parents=True, exist_ok=True)
    last = min(config.epochs, epochs if epochs is not None else config.epochs)
    previous = _on_sigterm(run)
    try:
        for epoch in range(run.step // run.per_epoch, last):
            _epoch(run, data, epoch, report)
            save_checkpoint(out, run.tensors(), _state(run, identity))
            if run.stop:
                break
            _log(out, epoch, run)
            run.losses = []
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    return Trained(run.average.eval(), _state(run, identity), run.step >= config.epochs * run.per_epoch)


def _start(config: TrainConfig, data: DataSet, text: TextBank) -> _Run:
    model = build_trainee(config, data, text, data.labels)
    average = build_trainee(config, data, text, data.labels)
    average.requires_grad_(False)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=config.lr, weight_decay=config.weight_decay)
    extra = record_tensors(data, text, config)
    per_epoch = len(data) // config.batch
    if per_epoch == 0:
        raise CheckpointError(f"batch {config.batch} is larger than the {len(data)} training records; lower batch")
    return _Run(config, model, average, optimizer, per_epoch, extra)


def _epoch(run: _Run, data: DataSet, epoch: int, report: Callable[[Progress], None]) -> None:
    run.model.train()
    for batch in batches(data, run.config, epoch, run.step % run.per_epoch):
        run.losses.append(run.train_step(batch))
        report(Progress(epoch, run.step, run.config.epochs * run.per_epoch, sum(run.losses) / len(run.losses)))
        if run.stop:
            return


def _on_sigterm(run: _Run) -> Any:
    def stop(number: int, frame: FrameType | None) -> None:
        run.stop = True

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: nobody signals it
        return None


def _state(run: _Run, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        **identity,
        "step": run.step,
        "epoch": run.step // run.per_epoch,
        "per_epoch": run.per_epoch,
        "losses": run.losses,
        "command": run.command,
    }


def _log(out: Path, epoch: int, run: _Run) -> None:
    entry = {"epoch": epoch, "step": run.step, "loss": sum(run.losses) / max(1, len(run.losses)), "time": round(time.time())}
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _differences(found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    ours, theirs = {**identity, **identity["config"]}, {**found, **found.get("config", {})}
    return [f"{k}: {theirs.get(k)!r} there, {v!r} here" for k, v in ours.items() if k != "config" and theirs.get(k) != v]


def _restore(run: _Run, identity: dict[str, Any], out: Path) -> None:
    tensors, state = load_checkpoint(out)
    if different := _differences(state, identity):
        raise CheckpointError(f"{out} was started otherwise: {'; '.join(different)[:600]}")
    run.model.load_state_dict(_part(tensors, "model."))
    run.average.load_state_dict(_part(tensors, "average."))
    restore_optimizer(run.optimizer, tensors)
    torch.set_rng_state(tensors["rng"])
    run.step = int(state["step"])
    middle = bool(run.step % run.per_epoch)
    run.losses = [float(x) for x in state["losses"]] if middle else []


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_trained(out: Path, data: DataSet, text: TextBank) -> Trained:
    """The averaged model of a run, for evaluation and export. data: its training folds. Raises CheckpointError."""
    tensors, state = load_checkpoint(out)
    config = TrainConfig.of(state["config"])
    if different := _differences(state, _identity(config, data, text)):
        raise CheckpointError(f"{out} belongs to other data or text: {'; '.join(different)[:600]}")
    model = build_trainee(config, data, text, data.labels)
    model.load_state_dict(_part(tensors, "average."))
    return Trained(model.eval(), state, state["step"] >= config.epochs * state["per_epoch"])
