"""Each objective at work on real records: what it compares with, what learns, what it leaves to others, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import OBJECTIVES, TrainConfig
from training.data.dataset import DataSet, batches
from training.data.superclasses import NAMES
from training.learning.loss import jaccard
from training.learning.step import Stepper
from training.learning.trainee import Trainee, TraineeError, build_trainee, record_tensors, zero_shot_rows
from training.release.export import ExportError, export
from training.text.labels import TextBank
from training.vocabulary import Statement, select

TINY = TrainConfig(epochs=2, finish_epochs=0, crop_s=1.0, batch=32, dim=32, warmup_epochs=0.0, dropout=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(prepared: Path, vocabulary: tuple[Statement, ...]) -> DataSet:
    return DataSet(prepared, select(vocabulary, "core98"), TINY.train_folds)


def build(config: TrainConfig, data: DataSet, text: TextBank) -> Trainee:
    return build_trainee(config, data, text, data.labels)


def stepper(config: TrainConfig, data: DataSet, text: TextBank) -> tuple[Stepper, DataSet]:
    data = data.stating() if config.needs_captions else data
    models = (build(config, data, text) for _ in range(2))
    made = Stepper(config, *models, len(data) // config.batch, record_tensors(data, text, config))
    made.model.train()
    return made, data


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_a_batch_by_heart(objective: str, data: DataSet, text: TextBank) -> None:
    config = replace(TINY, objective=objective)  # type: ignore[arg-type]
    step, data = stepper(config, data, text)
    batch = next(iter(batches(data, config, 0)))
    losses = [step(batch) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    with torch.inference_mode():
        logits = step.model.eval().logits(torch.from_numpy(batch.x))
    assert logits.shape == (32, len(data.labels))
    assert logits.dtype == torch.float32


def test_scale_and_bias_of_each(data: DataSet, text: TextBank) -> None:
    scales = {o: build(replace(TINY, objective=o), data, text).scale for o in OBJECTIVES}  # type: ignore[arg-type]
    assert scales == {
        "bank_sigmoid": 30.0,
        "bank_softmax": 30.0,
        "infonce": pytest.approx(1 / 0.07),
        "unicl": pytest.approx(1 / 0.07),
        "jaccard_sigmoid": pytest.approx(10.0),
        "supervised": 1.0,
    }
    pair = build(replace(TINY, objective="jaccard_sigmoid"), data.stating(), text).pair
    assert pair is not None
    assert pair.requires_grad
    mean = float(jaccard(torch.from_numpy(data.stating().stated)).mean())
    assert torch.sigmoid(pair[1]).item() == pytest.approx(mean, abs=1e-5)


def test_pairs_learn_their_scale(data: DataSet, text: TextBank) -> None:
    config = replace(TINY, objective="jaccard_sigmoid")
    step, data = stepper(config, data, text)
    before = step.model.scale
    for batch in islice(batches(data, config, 0), 2):
        step(batch)
    assert step.model.scale != before
    assert step.model.pair is not None
    assert step.model.scale == pytest.approx(math.exp(float(step.model.pair[0].detach())))


def test_supervised_needs_no_text_and_gives_no_bank(data: DataSet, text: TextBank, tmp_path: Path) -> None:
    config = replace(TINY, objective="supervised", superclass_weight=0.5)
    other = replace(text, rows=text.rows[::-1].copy())
    one, two = build(config, data, text), build(config, data, other)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not one.encoder.projection.weight.requires_grad
    x = torch.randn(4, 12, 500)
    assert one.embed(x).shape == (4, 512)
    with pytest.raises(TraineeError, match="no label bank: it is a reference"):
        one.rows()
    with pytest.raises(TraineeError, match="no zero-shot row"):
        zero_shot_rows(one, text.rows)
    with pytest.raises((TraineeError, ExportError), match="supervised"):
        export(one, data, data, None, text, tmp_path)


def test_a_frozen_encoder_only_adapts_its_statistics(data: DataSet, text: TextBank) -> None:
    config = replace(TINY, frozen=True)
    step, data = stepper(config, data, text)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    for batch in islice(batches(data, config, 0), 2):
        step(batch)
    changed = {k for k, v in step.model.state_dict().items() if not torch.equal(v, before[k])}
    kinds = {k.rsplit(".", 1)[-1] for k in changed if k.startswith("encoder.") and "projection" not in k}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}
    assert {"encoder.projection.weight", "encoder.projection.bias", "rows.project.weight", "bias"} <= changed


def test_the_other_architecture_is_trained_too(data: DataSet, text: TextBank) -> None:
    config = replace(TINY, architecture="xresnet1d18")
    step, data = stepper(config, data, text)
    batch = next(iter(batches(data, config, 0)))
    assert step(batch) > step(batch)
    assert step.model.encoder.config.architecture == "xresnet1d18"


def test_left_out_labels_are_not_trained_but_can_be_asked_for(data: DataSet, text: TextBank) -> None:
    config = replace(TINY, leave_out=("LVH", "SR"))
    full, model = build(TINY, data, text), build(config, data, text)
    out = [i for i, s in enumerate(data.labels) if s.id in config.leave_out]
    assert full.active[out].all()
    assert not model.active[out].any()
    assert model.bias[out].tolist() == [0, 0]
    e = torch.randn(8, 32)
    y, known = torch.rand(8, 98) < 0.3, torch.ones(8, 98, dtype=torch.bool)
    flipped = y.clone()
    flipped[:, out] = ~y[:, out]
    assert torch.equal(model.loss_of(e, y, known, {}), model.loss_of(e, flipped, known, {}))
    assert not torch.equal(full.loss_of(e, y, known, {}), full.loss_of(e, flipped, known, {}))
    with pytest.raises(TraineeError, match="leave_out: XYZ is not among the 98 labels"):
        build(replace(TINY, leave_out=("XYZ",)), data, text)


def test_superclasses_weigh_in_but_are_no_rows_of_the_bank(data: DataSet, text: TextBank) -> None:
    off, on = build(TINY, data, text), build(replace(TINY, superclass_weight=0.5), data, text)
    assert on.columns is not None
    assert on.rows().shape == off.rows().shape == (98, 32)
    assert torch.equal(on.encoder.conv1.weight, off.encoder.conv1.weight)  # type: ignore[arg-type]
    mi = [i for i, s in enumerate(data.labels) if s.superclass == "MI"]
    e = torch.nn.functional.normalize(torch.randn(8, 32), dim=1)
    row = torch.nn.functional.normalize(on.rows.text[mi].mean(dim=0), dim=0)  # type: ignore[index]
    k = NAMES.index("MI")
    expected = 30 * e @ row + on.columns.bias[k]
    got = on.columns.logits(e, on.rows, on.scale)
    torch.testing.assert_close(got[:, k], expected)
    y, known = torch.rand(8, 103) < 0.3, torch.ones(8, 103, dtype=torch.bool)
    more = torch.nn.functional.binary_cross_entropy_with_logits(
        got[:, on.columns.active], y[:, 98:][:, on.columns.active].float()
    )
    torch.testing.assert_close(
        on.loss_of(e, y, known, {}), off.loss_of(e, y[:, :98], known[:, :98], {}) + 0.5 * more, rtol=1e-5, atol=1e-6
    )
    rhythms = some(data, "SR", "SBRAD")
    few = DataSet(data.directory, rhythms, TINY.train_folds)
    with pytest.raises(TraineeError, match="superclass_weight: none of S:NORM, S:MI"):
        build_trainee(replace(TINY, superclass_weight=1.0), few, text, rhythms)


def test_a_bank_of_one_label_is_refused(data: DataSet, text: TextBank) -> None:
    one = some(data, "SR")
    with pytest.raises(TraineeError, match="labels: a bank needs at least 2 labels, got SR"):
        build_trainee(TINY, DataSet(data.directory, one, TINY.train_folds), text, one)


def some(data: DataSet, *ids: str) -> tuple[Statement, ...]:
    return tuple(s for s in data.labels if s.id in ids)


@pytest.mark.parametrize("changes", [{}, {"whiten": False}, {"objective": "infonce"}])
def test_zero_shot_rows_treat_a_sentence_as_the_labels_were(changes: dict[str, object], data: DataSet, text: TextBank) -> None:
    model = build(replace(TINY, **changes), data, text)  # type: ignore[arg-type]
    raw = text.rows_of(data.labels)
    torch.testing.assert_close(zero_shot_rows(model, raw), model.rows().detach(), atol=1e-4, rtol=0)
    mixed = raw[:2].mean(axis=0, keepdims=True)
    row = zero_shot_rows(model, mixed / np.linalg.norm(mixed))
    assert row.shape == (1, 32)
    assert row.norm().item() == pytest.approx(1, abs=1e-5)


def test_an_unwhitened_bank_is_centred_and_learns_its_way_to_d(data: DataSet, text: TextBank) -> None:
    model = build(replace(TINY, whiten=False), data, text)
    assert model.rows.text.shape == (98, text.rows.shape[1])  # type: ignore[union-attr]
    assert model.rows.project.weight.requires_grad  # type: ignore[union-attr]
    assert abs((text.rows @ text.rows.T).mean() - 0.5) < 0.3  # the prompt that all share
    centred = model.rows.text @ model.rows.text.T  # type: ignore[operator,union-attr]
    assert abs(centred.mean().item()) < 0.05


def test_logits_and_loss_stay_float32_under_autocast(data: DataSet, text: TextBank) -> None:
    exact, rough = build(TINY, data, text).eval(), build(replace(TINY, amp="bf16"), data, text).eval()
    x = torch.randn(4, 12, 500)
    y, known = torch.rand(4, 98) < 0.3, torch.ones(4, 98, dtype=torch.bool)
    with torch.inference_mode():
        e, low = exact.embed(x), rough.embed(x)
        assert low.dtype == torch.float32
        assert not torch.equal(e, low)  # the convolutions were in bfloat16
        assert (e * low).sum(dim=1).min() > 0.99
        assert torch.equal(low.norm(dim=1).bfloat16(), torch.ones(4).bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            inside = exact.loss_of(e, y, known, {})
        assert inside.dtype == torch.float32
        assert torch.equal(inside, exact.loss_of(e, y, known, {}))
        assert torch.equal(rough.logits(x), exact.logits(x))  # scoring is not training
