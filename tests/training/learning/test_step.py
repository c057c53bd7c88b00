"""One step: embedding in parts changes memory, not results; the average follows; the learning rate by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.one_of_two import BASE, opened
from training.config import TrainConfig
from training.data.dataset import Batch, DataSet, batches
from training.learning.step import Stepper, learning_rate
from training.learning.trainee import build_trainee
from training.text.labels import TextBank


@pytest.fixture
def opened_data(prepared: Path, text_directory: Path) -> tuple[DataSet, TextBank]:
    torch.set_num_threads(1)
    return opened(prepared, text_directory)


def stepper(config: TrainConfig, opened_data: tuple[DataSet, TextBank]) -> tuple[Stepper, Batch]:
    data, text = opened_data
    made = Stepper(config, *(build_trainee(config, data, text, data.labels) for _ in range(2)), 10)
    made.model.train()
    return made, next(batches(data, config, 0))


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


def test_parts_give_the_gradient_of_the_whole_batch(opened_data: tuple[DataSet, TextBank]) -> None:
    config = replace(BASE, accumulate=4, dropout=0.5, objective="infonce")  # a loss that looks across the parts
    ours, batch = stepper(config, opened_data)
    plain, _ = stepper(config, opened_data)
    captions = torch.from_numpy(np.random.default_rng(1).standard_normal((16, 384)).astype(np.float32))
    x, y, known = (torch.from_numpy(a) for a in (batch.x, batch.y, batch.known))
    torch.manual_seed(5)
    light = ours.loss(x, y, known, {"captions": captions})
    light.backward()
    torch.manual_seed(5)  # the same dropout, everything kept
    kept = plain.model.loss_of(torch.cat([plain.model.embed(part) for part in x.split(4)]), y, known, {"captions": captions})
    kept.backward()
    assert torch.equal(light, kept)
    for (name, p), q in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    for name, value in statistics(plain.model).items():
        assert torch.equal(statistics(ours.model)[name], value), name
    assert {m.momentum for m in ours.model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_parts_keep_less_for_the_backward_pass(opened_data: tuple[DataSet, TextBank]) -> None:
    def kept(parts: int) -> int:
        made, batch = stepper(replace(BASE, accumulate=parts), opened_data)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            made.loss(*(torch.from_numpy(a) for a in (batch.x, batch.y, batch.known)), {})
        return sum(sizes)

    assert kept(4) < 0.2 * kept(1)


def test_the_average_follows_by_hand(opened_data: tuple[DataSet, TextBank]) -> None:
    made, batch = stepper(replace(BASE, ema=0.5), opened_data)
    name = "encoder.conv1.weight"
    average = made.average.state_dict()[name].clone()
    for step in (1, 2):
        made(batch)
        decay = min(0.5, step / (step + 10))
        average = decay * average + (1 - decay) * made.model.state_dict()[name]
        torch.testing.assert_close(made.average.state_dict()[name], average)
    assert made.average.state_dict()["encoder.bn1.num_batches_tracked"] == 2
    off, _ = stepper(replace(BASE, ema=0.0), opened_data)
    off(batch)
    assert torch.equal(off.average.state_dict()[name], off.model.state_dict()[name])


def test_a_loss_that_is_not_finite_names_the_remedy(opened_data: tuple[DataSet, TextBank]) -> None:
    made, batch = stepper(BASE, opened_data)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 1; lower lr"):
        made(replace(batch, x=np.full_like(batch.x, np.nan)))


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(epochs=10, finish_epochs=0, warmup_epochs=1.0, lr=0.1)
    assert learning_rate(config, 0, 10) == pytest.approx(0.01)
    assert learning_rate(config, 9, 10) == pytest.approx(0.1)
    assert learning_rate(config, 10, 10) == pytest.approx(0.1)
    assert learning_rate(config, 55, 10) == pytest.approx(0.05)
    assert learning_rate(config, 99, 10) < 0.001
    flat = replace(config, schedule="constant", warmup_epochs=0.0)
    assert {learning_rate(flat, s, 10) for s in range(100)} == {0.1}
