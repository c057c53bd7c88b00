"""The training loop: plain torch, deterministic by seed, resumable in the middle of an epoch, alone or in several processes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from training.config import TrainConfig
from training.data.dataset import DataSet, batches
from training.folds import check_development
from training.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, writing
from training.learning.parallel import ParallelError, World, pick_device
from training.learning.run_directory import EventFile, describe
from training.learning.step import Stepper, part
from training.learning.trainee import Trainee, build_trainee, record_tensors
from training.text.labels import TextBank

__all__ = ["Progress", "Trained", "load_trained", "train"]

SAVE_S = 900.0  # a long epoch is also saved in its middle, this often
POINTS = 50  # of loss and learning rate, an epoch, in the event file


@dataclass(frozen=True)
class Progress:
    """What the loop tells while it runs. loss: mean of the epoch so far. rate: records/s, all processes together."""

    epoch: int
    step: int
    steps: int
    loss: float
    rate: float


@dataclass(frozen=True)
class Trained:
    """A finished or stopped run. model: the moving average where the config keeps one, on the CPU. finished: all epochs were
    done. signalled: SIGTERM ended it.
    """

    model: Trainee
    state: dict[str, Any]
    finished: bool
    signalled: bool = False


@dataclass
class _Mean:
    """The losses of an epoch so far; since when, and from how many on, this process has added to them."""

    total: float = 0.0
    count: int = 0
    since: float = field(default_factory=time.perf_counter)
    before: int = 0

    @property
    def value(self) -> float:
        return self.total / max(1, self.count)

    def add(self, loss: float) -> None:
        self.total, self.count = self.total + loss, self.count + 1

    def rate(self, batch: int) -> float:
        """Records/s."""
        return (self.count - self.before) * batch / max(1e-9, time.perf_counter() - self.since)


@dataclass
class _Run:
    """What is trained, where it is kept, how far it is. asked: this process had a signal; stop: one of them had, all know."""

    stepper: Stepper
    out: Path
    identity: dict[str, Any]
    command: str
    events: EventFile | None = None
    mean: _Mean = field(default_factory=_Mean)
    asked: bool = False
    stop: bool = False
    saved: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> dict[str, Any]:
        step, per_epoch = self.stepper.step, self.stepper.per_epoch
        return {
            **self.identity,
            "processes": self.stepper.world.size,
            "step": step,
            "epoch": step // per_epoch,
            "per_epoch": per_epoch,
            "loss": [self.mean.total, self.mean.count],
            "command": self.command,
        }

    def save(self) -> None:
        if self.stepper.world.first:
            save_checkpoint(self.out, self.stepper.tensors(), self.state)
        self.saved = time.monotonic()

    def log(self, epoch: int) -> None:
        """A line of log.jsonl and the scalars of an epoch."""
        if self.events is None:
            return
        loss, rate = self.mean.value, round(self.mean.rate(self.stepper.config.batch), 1)
        entry = {"epoch": epoch, "step": self.stepper.step, "loss": loss, "records_per_s": rate, "time": round(time.time())}
        if self.stepper.world.device.type == "cuda":
            entry["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.stepper.world.device) // 1_000_000
        with writing(self.out / "log.jsonl"), (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.events.scalars(self.stepper.step, {"epoch/loss": loss, "epoch/records_per_s": rate, "epoch/number": epoch + 1})


def train(
    config: TrainConfig,
    data: DataSet,
    text: TextBank,
    out: Path,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda p: None,
    epochs: int | None = None,
    command: str = "",
    world: World | None = None,
) -> Trained:
    """Train on `data` (the training folds) and keep checkpoints in `out`. epochs: stop after so many, resumable.

    world: the processes that call this together, each with the same arguments. SIGTERM (in the main thread, to any of them)
    saves and returns with finished = False. Raises CheckpointError when `out` holds another run or cannot be written,
    ParallelError, TraineeError, FloatingPointError, ProtocolError where a record of fold 9 or 10 is among them.
    """
    check_development(data, "training")
    data = data.for_training(config)
    world = world or World(device=pick_device(config.device, config.amp))
    if config.needs_captions:
        data = data.stating()  # a record without a label has no caption
    identity = {**_identity(config, data, text), "teacher": data.teacher}
    run = _Run(_start(config, data, text, world), out, identity, command)
    if resume:
        _restore(run)
    elif (out / "checkpoint.json").exists():
        raise CheckpointError(f"{out} holds a run already; continue it with --resume or give a new --out")
    world.wait()  # until all have looked, before one writes
    last = min(config.epochs, epochs if epochs is not None else config.epochs)
    with _open(run, data, text), _stopped_by_sigterm(run):
        for epoch in range(run.stepper.step // run.stepper.per_epoch, last):
            _epoch(run, data, epoch, report)
            run.save()
            if run.stepper.step % run.stepper.per_epoch == 0:
                run.log(epoch)
                run.mean = _Mean()
            if run.stop:
                break
    world.wait()  # for the one that writes
    finished = run.stepper.step >= config.epochs * run.stepper.per_epoch
    return Trained(run.stepper.average.cpu().eval(), run.state, finished, run.stop)


def _identity(config: TrainConfig, data: DataSet, text: TextBank) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued or evaluated."""
    return {
        "config": config.as_dict(),
        "text": text.digest,
        "data": data.digest,
        "records": data.manifest["records"],
        "labels": [s.id for s in data.labels],
    }


def _start(config: TrainConfig, data: DataSet, text: TextBank, world: World) -> Stepper:
    shares = world.size * config.accumulate
    if config.batch % shares or config.batch < 2 * shares:
        raise ParallelError(
            f"batch = {config.batch}: {world.size} processes times accumulate = {config.accumulate} need equal shares of at "
            f"least 2 records; give a multiple of {shares} from {2 * shares} on"
        )
    per_epoch = len(data) // config.batch
    if per_epoch == 0:
        raise CheckpointError(f"batch {config.batch} is larger than the {len(data)} training records; lower batch")
    model, average = (build_trainee(config, data, text, data.labels) for _ in range(2))
    return Stepper(config, model, average, per_epoch, record_tensors(data, text, config), world)


@contextmanager
def _open(run: _Run, data: DataSet, text: TextBank) -> Iterator[None]:
    """Makes the run directory, its description and its event file; the first process only."""
    if not run.stepper.world.first:
        yield
        return
    run.out.mkdir(parents=True, exist_ok=True)
    describe(run.out, run.state, data, text, run.stepper.world)
    if run.stepper.world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.stepper.world.device)  # a row of `compare` is not the first of its process
    with EventFile(run.out, run.stepper.step) as run.events:
        yield


@contextmanager
def _stopped_by_sigterm(run: _Run) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        run.asked = True

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: nobody signals it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _epoch(run: _Run, data: DataSet, epoch: int, report: Callable[[Progress], None]) -> None:
    """The rest of an epoch, or until a signal."""
    stepper, world = run.stepper, run.stepper.world
    config, per_epoch = stepper.config, stepper.per_epoch
    stepper.model.train()
    run.mean.since, run.mean.before = time.perf_counter(), run.mean.count
    for batch in batches(data, config, epoch, stepper.step % per_epoch, (world.rank, world.size)):
        lr = stepper.lr
        loss = stepper(batch)
        run.mean.add(loss)
        report(Progress(epoch, stepper.step, config.epochs * per_epoch, run.mean.value, run.mean.rate(config.batch)))
        if run.events is not None and stepper.step % max(1, per_epoch // POINTS) == 0:
            run.events.scalars(stepper.step, {"step/loss": loss, "step/lr": lr})
        run.stop = world.any(run.asked)
        if run.stop:
            return
        if time.monotonic() - run.saved > SAVE_S and stepper.step % per_epoch:
            run.save()


def _differences(found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    ours = {k: v for k, v in identity.items() if k != "config"}
    more = [f"{k}: {found.get(k)!r} there, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    return more + TrainConfig.of(identity["config"]).differences(found.get("config", {}))


def _restore(run: _Run) -> None:
    tensors, state = load_checkpoint(run.out)
    wanted = {**run.identity, "processes": run.stepper.world.size}
    if different := _differences({"processes": 1, **state}, wanted):
        raise CheckpointError(
            f"{run.out} was started otherwise: {'; '.join(different)[:600]}; give the --data, --text and --config it was "
            "trained with, as its README.md has them, or a new --out"
        )
    run.stepper.restore(tensors, int(state["step"]))
    if run.stepper.step % run.stepper.per_epoch:
        total, count = state["loss"]
        run.mean = _Mean(float(total), int(count))


def load_trained(out: Path, data: DataSet, text: TextBank) -> Trained:
    """The averaged model of a run, for evaluation and export. data: its training folds. Raises CheckpointError."""
    tensors, state = load_checkpoint(out)
    config = TrainConfig.of(state["config"])
    if different := _differences(state, _identity(config, data, text)):
        raise CheckpointError(
            f"{out} belongs to other data or text: {'; '.join(different)[:600]}; give the --data and --text it was "
            "trained with, or train anew with these"
        )
    model = build_trainee(config, data, text, data.labels)
    model.load_state_dict(part(tensors, "average."))
    return Trained(model.eval(), state, state["step"] >= config.epochs * state["per_epoch"])
