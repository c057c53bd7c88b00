"""One of two training processes: `python -m tests.training.one_of_two TASK DATA TEXT OUT`, with torchrun's environment."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from safetensors.torch import save_file

from training.config import TrainConfig
from training.data.dataset import Batch, DataSet, batches
from training.learning.loop import Progress, train
from training.learning.parallel import World, joined
from training.learning.step import Stepper
from training.learning.trainee import build_trainee, record_tensors
from training.text.labels import TextBank
from training.vocabulary import read_vocabulary, select

BASE = TrainConfig(
    epochs=2, finish_epochs=0, crop_s=1.0, batch=16, dim=32, dropout=0.0, warmup_epochs=0.5, ema=0.9, labels="core98"
)
OBJECTIVES = get_args(get_type_hints(TrainConfig)["objective"])


def opened(data: Path, text: Path) -> tuple[DataSet, TextBank]:
    return DataSet(data, select(read_vocabulary(), BASE.labels), BASE.train_folds), TextBank.load(text)


def share(batch: Batch, world: World) -> Batch:
    """Every n-th record of a batch."""
    own = slice(world.rank, None, world.size)
    return Batch(batch.x[own], batch.y[own], batch.known[own], batch.rows[own])


def gradients(config: TrainConfig, data: DataSet, text: TextBank, world: World) -> dict[str, torch.Tensor]:
    """Loss and mean gradients of the first batch; BatchNorm with its running statistics, whose own are of a process."""
    data = data.stating()
    stepper = Stepper(config, *(build_trainee(config, data, text, data.labels) for _ in range(2)), 1)
    stepper = replace(stepper, extra=record_tensors(data, text, config), world=world)
    stepper.model.eval()
    batch = share(next(batches(data, config, 0)), world)
    x, y, known = (torch.from_numpy(a) for a in (batch.x, batch.y, batch.known))
    loss = stepper.loss(x, y, known, {k: v[torch.from_numpy(batch.rows)] for k, v in stepper.extra.items()})
    loss.backward()
    found = {name: p.grad for name, p in stepper.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def losses(data: Path, text: Path, out: Path, world: World) -> None:
    records, bank = opened(data, text)
    for objective in OBJECTIVES:
        for parts in (1, 2):
            found = gradients(replace(BASE, objective=objective, accumulate=parts), records, bank, world)
            save_file(found, out / f"{objective}-{parts}-{world.rank}.safetensors")


def runs(data: Path, text: Path, out: Path, world: World) -> None:
    """A whole run, and one that process 1 is told to stop in the middle of an epoch and that then goes on."""
    records, bank = opened(data, text)
    config = replace(BASE, epochs=1, dropout=0.2)

    def interrupt(p: Progress) -> None:
        if p.step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, records, bank, out / "whole", world=world)
    stopped = train(config, records, bank, out / "cut", report=interrupt, world=world)
    train(config, records, bank, out / "cut", resume=True, world=world)
    said = {"signalled": stopped.signalled, "step": stopped.state["step"], "finished": stopped.finished}
    (out / f"said-{world.rank}.json").write_text(json.dumps(said))


def main() -> None:
    torch.set_num_threads(1)
    task, data, text, out = sys.argv[1], *map(Path, sys.argv[2:])
    with joined(torch.device("cpu"), 60.0) as world:
        {"losses": losses, "runs": runs}[task](data, text, out, world)


if __name__ == "__main__":
    main()
