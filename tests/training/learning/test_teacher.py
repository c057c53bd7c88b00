"""Out-of-fold predictions reach the records they are of, mix into the targets, and are refused where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from training.config import TrainConfig
from training.data.dataset import DataSet, batches
from training.data.prepare import file_digest
from training.folds import DEVELOPMENT
from training.learning.checkpoint import CheckpointError, load_checkpoint
from training.learning.loop import train
from training.learning.loss import bank_sigmoid
from training.learning.teacher import Teacher, TeacherError
from training.learning.trainee import TraineeError, build_trainee, record_tensors
from training.text.labels import TextBank
from training.vocabulary import Statement, select

CONFIG = TrainConfig(epochs=1, finish_epochs=0, crop_s=1.0, dim=32, warmup_epochs=0.0, train_folds=(3, 4, 7), distill=0.4)


@pytest.fixture(scope="module")
def core(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return select(vocabulary, "core98")


@pytest.fixture
def write(prepared: Path, core: tuple[Statement, ...], tmp_path: Path) -> Callable[..., Path]:
    """oof.safetensors whose logits are row number + column / 1000 - 90, with changes."""
    whole = DataSet(prepared, core, DEVELOPMENT)

    def make(**changes: Any) -> Path:
        n = len(whole)
        tensors = {
            "logits": (np.arange(n)[:, None] + np.arange(98)[None] / 1000 - 90).astype(np.float32),
            "fold": np.array([row["fold"] for row in whole.index], dtype=np.int8),
        }
        meta = {"data": whole.digest, "labels": json.dumps([s.id for s in core])}
        tensors |= {k: v for k, v in changes.items() if k in ("logits", "fold")}
        meta |= {k: v for k, v in changes.items() if k in ("data", "labels")}
        save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "oof.safetensors", metadata=meta)
        return tmp_path / "oof.safetensors"

    return make


@pytest.fixture
def data(prepared: Path, core: tuple[Statement, ...]) -> DataSet:
    return DataSet(prepared, core, CONFIG.train_folds)


def test_each_record_gets_its_own_row(write: Callable[..., Path], data: DataSet, core: tuple[Statement, ...]) -> None:
    path = write()
    taught = data.taught(Teacher.load(path))
    whole = DataSet(data.directory, core, DEVELOPMENT)
    place = {row["record"]: i for i, row in enumerate(whole.index)}
    assert taught.taught_logits is not None
    assert taught.taught_logits.shape == (len(data), 98)
    for row, logits in zip(taught.index, taught.taught_logits, strict=True):
        np.testing.assert_allclose(logits, place[row["record"]] + np.arange(98) / 1000 - 90, atol=1e-4)
    assert (taught.teacher, data.teacher) == (file_digest(path), None)
    kept = taught.stating()
    assert kept.taught_logits is not None
    assert len(kept.taught_logits) == len(kept)


def test_a_label_that_the_folds_model_did_not_train_is_no_opinion(write: Callable[..., Path], data: DataSet) -> None:
    path = write()
    told = {"runs": [{"held_out": [3], "not_trained": ["AFIB", "NOT_HERE"]}, {"held_out": [1, 4], "not_trained": ["SR"]}]}
    path.with_name("crossval.json").write_text(json.dumps(told))
    logits = data.taught(Teacher.load(path)).taught_logits
    assert logits is not None
    ids, fold = [s.id for s in data.labels], np.array([row["fold"] for row in data.index])
    expected = np.zeros_like(logits, dtype=bool)
    expected[fold == 3, ids.index("AFIB")] = True
    expected[fold == 4, ids.index("SR")] = True
    np.testing.assert_array_equal(np.isnan(logits), expected)
    path.with_name("crossval.json").write_text('{"runs": [{}]}')
    with pytest.raises(TeacherError, match="runs with held_out and not_trained expected"):
        Teacher.load(path)


def test_the_loss_mixes_the_targets(write: Callable[..., Path], data: DataSet, text: TextBank) -> None:
    taught = data.taught(Teacher.load(write()))
    extra = {k: v[:8] for k, v in record_tensors(taught, text, CONFIG).items()}
    model = build_trainee(CONFIG, taught, text, taught.labels)
    e = torch.nn.functional.normalize(torch.randn(8, 32), dim=1)
    y, known = torch.rand(8, 98) < 0.3, torch.rand(8, 98) < 0.7
    target = 0.6 * y.float() + 0.4 * torch.sigmoid(torch.from_numpy(taught.taught_logits[:8]))  # type: ignore[index]
    expected = bank_sigmoid(model.logits_of(e), target, known & model.active)
    torch.testing.assert_close(model.loss_of(e, y, known, extra), expected)


def test_the_teacher_is_part_of_the_run(write: Callable[..., Path], data: DataSet, text: TextBank, tmp_path: Path) -> None:
    first = data.taught(Teacher.load(write()))
    out = tmp_path / "run"
    train(CONFIG, first, text, out)
    assert load_checkpoint(out)[1]["teacher"] == first.teacher
    path = write(logits=np.zeros((len(DataSet(data.directory, data.labels, DEVELOPMENT)), 98), dtype=np.float32))
    second = data.taught(Teacher.load(path))
    with pytest.raises(CheckpointError, match=f"started otherwise: teacher: '{first.teacher}' there, '{second.teacher}' here"):
        train(CONFIG, second, text, out, resume=True)


def test_teacher_and_distill_belong_together(write: Callable[..., Path], data: DataSet, text: TextBank, tmp_path: Path) -> None:
    with pytest.raises(TraineeError, match=r"distill = 0\.4 needs a teacher: ecg-train train --teacher"):
        train(CONFIG, data, text, tmp_path / "a")
    taught = data.taught(Teacher.load(write()))
    for config in (replace(CONFIG, distill=0.0), replace(CONFIG, distill=0.0, objective="infonce")):
        with pytest.raises(TraineeError, match="a teacher is given but distill = 0"):
            train(config, taught, text, tmp_path / "b")
    batch = next(iter(batches(taught, CONFIG, 0)))
    assert batch.y.shape == (32, 98)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "0" * 64}, f"predictions for data set {'0' * 64}, this one is [0-9a-f]{{64}}"),
        ({"labels": json.dumps(["SR"] * 98)}, "predictions for 98 labels, the config names 98: "),
        ({"labels": json.dumps(["SR"])}, r"logits of shape \(\d+, 1\) expected, found \(\d+, 98\)"),
        ({"labels": "no json"}, "tensors 'logits', 'fold' and metadata 'data', 'labels' expected"),
        ({"logits": None}, "tensors 'logits', 'fold' and metadata"),
        ({"fold": np.ones(3, dtype=np.int8)}, r"logits of shape \(3, 98\) expected"),
    ],
)
def test_other_predictions_are_refused(
    changes: dict[str, Any], message: str, write: Callable[..., Path], data: DataSet
) -> None:
    path = write(**changes)
    with pytest.raises(TeacherError, match=f"{path.name}: {message}"):
        data.taught(Teacher.load(path))


def test_other_files_and_folds_are_refused(
    write: Callable[..., Path], data: DataSet, core: tuple[Statement, ...], tmp_path: Path
) -> None:
    n = len(DataSet(data.directory, core, DEVELOPMENT))
    with pytest.raises(TeacherError, match="0 non-finite logits expected, found 98"):
        Teacher.load(write(logits=np.concatenate([np.full((1, 98), np.nan), np.zeros((n - 1, 98))]).astype(np.float32)))
    with pytest.raises(TeacherError, match=f"{n} records with their folds as in the index expected, found {n}"):
        data.taught(Teacher.load(write(fold=np.ones(n, dtype=np.int8))))
    with pytest.raises(TeacherError, match=r"predictions for folds 1 to 8, these records are of folds \[9\]"):
        DataSet(data.directory, core, (9,)).taught(Teacher.load(write()))
    with pytest.raises(TeacherError, match=r"none\.safetensors: no such file"):
        Teacher.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(TeacherError, match=r"bad\.safetensors: tensors"):
        Teacher.load(tmp_path / "bad.safetensors")
