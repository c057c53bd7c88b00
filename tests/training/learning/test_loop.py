"""Training: learns, repeats by seed, continues to the bit, saves on SIGTERM, refuses another run's checkpoint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.full_disk import full_disk
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.evaluation.held_out import build_bank, by_folds
from training.folds import ProtocolError
from training.learning import checkpoint
from training.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.learning.loop import Progress, load_trained, train
from training.learning.trainee import TraineeError, build_trainee
from training.text.labels import TextBank
from training.vocabulary import Statement, select

TINY = TrainConfig(
    epochs=3, finish_epochs=0, crop_s=1.0, batch=32, dim=32, warmup_epochs=0.5, form="decimated", labels="core98"
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data(prepared: Path, vocabulary: tuple[Statement, ...]) -> DataSet:
    return DataSet(prepared, select(vocabulary, "core98"), TINY.train_folds)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out)[0]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture(scope="module")
def whole(prepared: Path, vocabulary: tuple[Statement, ...], text: TextBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY, from start to end."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run") / "whole"
    train(TINY, DataSet(prepared, select(vocabulary, "core98"), TINY.train_folds), text, out, command="ecg-train train")
    return out


def test_it_learns_and_says_so(whole: Path) -> None:
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [0, 1, 2]
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]
    state = load_checkpoint(whole)[1]
    assert (state["epoch"], state["step"], state["command"]) == (3, 3 * state["per_epoch"], "ecg-train train")
    assert len(list(whole.glob("step-*.safetensors"))) == checkpoint.KEEP


def test_continues_to_the_bit_after_an_epoch(whole: Path, data: DataSet, text: TextBank, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = train(TINY, data, text, out, epochs=1)
    assert not stopped.finished
    torch.manual_seed(99)  # whatever happened in between
    assert train(TINY, data, text, out, resume=True).finished
    assert_same(weights(out), weights(whole))


def test_sigterm_saves_in_the_middle_of_an_epoch(whole: Path, data: DataSet, text: TextBank, tmp_path: Path) -> None:
    def interrupt(p: Progress) -> None:
        if p.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopped = train(TINY, data, text, tmp_path / "run", report=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (stopped.finished, stopped.state["step"]) == (False, 5)
    assert stopped.state["step"] % stopped.state["per_epoch"] != 0
    train(TINY, data, text, tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(whole))


def test_another_run_is_not_continued_or_overwritten(whole: Path, data: DataSet, text: TextBank, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a run already; continue it with --resume"):
        train(TINY, data, text, whole)
    with pytest.raises(
        CheckpointError, match=r"started otherwise: .*lr: 0\.001 there, 0\.01 here; give the .*, or a new --out$"
    ):
        train(replace(TINY, lr=0.01), data, text, whole, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint; start a run with"):
        train(TINY, data, text, tmp_path / "nothing", resume=True)
    other = replace(text, digest="0" * 64)
    with pytest.raises(CheckpointError, match=r"belongs to other data or text: text.*; give the --data and --text it was"):
        load_trained(whole, data, other)


def test_other_data_are_noticed(whole: Path, data: DataSet, text: TextBank, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data.directory, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "declared": {}}))  # as many records, the same labels
    other = DataSet(copy, data.labels, TINY.train_folds)
    assert len(other) == len(data)
    with pytest.raises(CheckpointError, match=f"started otherwise: data: '{data.digest}' there, '{other.digest}' here"):
        train(TINY, other, text, whole, resume=True)
    with pytest.raises(CheckpointError, match="belongs to other data or text: data: "):
        load_trained(whole, other, text)


def test_the_average_is_what_is_loaded(whole: Path, data: DataSet, text: TextBank) -> None:
    trained = load_trained(whole, data, text)
    tensors = weights(whole)
    name = "encoder.projection.weight"
    assert torch.equal(trained.model.state_dict()[name], tensors["average." + name])
    assert not torch.equal(tensors["model." + name], tensors["average." + name])
    assert trained.finished
    assert not trained.model.training


def test_start_has_log_priors_and_masks_rare_columns(data: DataSet, text: TextBank) -> None:
    model = build_trainee(TINY, data, text, data.labels)
    positives = torch.from_numpy(data.positives())
    assert torch.equal(model.active, positives >= TINY.min_positives)
    ids = [s.id for s in data.labels]
    sr, vf = ids.index("SR"), ids.index("VF")
    assert float(model.bias[sr].detach()) > 0 > float(model.bias[ids.index("AVB1")].detach())
    assert not model.active[vf]
    x, y = torch.zeros(4, 12, 500), torch.ones(4, len(ids), dtype=torch.bool)
    only_rare = torch.zeros_like(y)
    only_rare[:, vf] = True
    assert model.loss_of(model.embed(x), y, only_rare, {}).item() == 0
    with pytest.raises(TraineeError, match="no label has min_positives = 10000 records"):
        build_trainee(replace(TINY, min_positives=10_000), data, text, data.labels)


def test_infonce_runs_on_captions(data: DataSet, text: TextBank, tmp_path: Path) -> None:
    config = replace(TINY, objective="infonce", warmup_epochs=0.0, schedule="constant", ema=0.0)
    trained = train(config, data, text, tmp_path / "run")
    log = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1] < log[0]
    assert not trained.model.bias.requires_grad
    held_out = DataSet(data.directory, data.labels, config.calibration_folds)
    bank = build_bank(trained.model, data, by_folds(trained.model, data, held_out), text, "ab" * 32)
    assert bank.scale == pytest.approx(1 / 0.07)
    assert {label.bias for label in bank.labels} == {0.0}
    with pytest.raises(ProtocolError, match="patients that are in training and calibration folds, 0 are allowed"):
        by_folds(trained.model, data, data)
    with pytest.raises(TraineeError, match=r"no embedded caption for .*run `ecg-train labels --data"):
        train(config, data, replace(text, captions={}), tmp_path / "other")


def test_a_disk_that_fills_leaves_the_old_checkpoint(whole: Path, data: DataSet, text: TextBank, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TINY, data, text, out, epochs=1)
    before = sorted(p.name for p in out.iterdir())
    with (
        full_disk(1_000_000),
        pytest.raises(CheckpointError, match=r"step-\d+\.safetensors: cannot be written .*make room .*with --resume"),
    ):
        train(TINY, data, text, out, resume=True, epochs=2)
    new = set(p.name for p in out.iterdir()) - set(before)
    assert all(name.startswith("events.") for name in new)
    assert load_checkpoint(out)[1]["epoch"] == 1
    assert train(TINY, data, text, out, resume=True).finished
    assert_same(weights(out), weights(whole))


@pytest.mark.parametrize("call", [1, 2])
def test_no_space_for_either_file_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save_checkpoint(tmp_path, {"w": torch.ones(3)}, {"step": 1})
    flush, calls = os.fsync, 0

    def full(number: int) -> None:  # where a file system that allocates late says so
        nonlocal calls
        calls += 1
        if calls == {1: 1, 2: 3}[call]:  # each file is flushed, then its directory
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(number)

    monkeypatch.setattr(os, "fsync", full)
    name = {1: "step-00000002.safetensors", 2: "checkpoint.json"}[call]
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be written \(.*No space left on device\); make room"):
        save_checkpoint(tmp_path, {"w": torch.zeros(3)}, {"step": 2})
    tensors, state = load_checkpoint(tmp_path)
    assert (tensors["w"].tolist(), state["step"]) == ([1, 1, 1], 1)
    assert not list(tmp_path.glob("*.part"))


def test_altered_checkpoints_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"w": torch.ones(3)}, {"step": 1})
    (tmp_path / "step-00000001.safetensors").write_bytes(b"other")
    with pytest.raises(
        CheckpointError, match=r"step-00000001\.safetensors: sha256 \w+ expected, found \w+; copy the run again"
    ):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"tensors": "t", "sha256": hashlib.sha256(b"other").hexdigest()}))
    (tmp_path / "t").write_bytes(b"other")  # whole, but no tensors
    with pytest.raises(CheckpointError, match=r"t: Error while deserializing header.*; copy the run again"):
        load_checkpoint(tmp_path)
    for text in ('{"step": 1, "tens', "{}", "[1]"):
        (tmp_path / "checkpoint.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"checkpoint\.json: no sidecar of a checkpoint"):
            load_checkpoint(tmp_path)
