"""What is written is read back and compared with the model, and a disk that fills leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from encoders.artifact import Artifact
from encoders.model import EcgEncoder
from tests.training.full_disk import full_disk
from tests.training.one_of_two import BASE
from training.data.dataset import DataSet
from training.evaluation.held_out import HeldOut, by_folds
from training.learning.checkpoint import CheckpointError
from training.learning.trainee import Trainee, build_trainee
from training.release import export as work
from training.release.export import ExportError, export
from training.release.onnx_graph import encoder_graph
from training.text.labels import TextBank
from training.vocabulary import Statement, select

Ready = tuple[Trainee, DataSet, HeldOut, None, TextBank]


@pytest.fixture(scope="module")
def ready(prepared: Path, text: TextBank, vocabulary: tuple[Statement, ...]) -> Ready:
    """A model that nobody trained is as good as any here; without folds for reporting."""
    torch.set_num_threads(1)
    labels = select(vocabulary, "core98")
    data = DataSet(prepared, labels, BASE.train_folds)
    model = build_trainee(BASE, data, text, labels).eval()
    return model, data, by_folds(model, data, DataSet(prepared, labels, BASE.calibration_folds)), None, text


@pytest.fixture(scope="module")
def other(ready: Ready) -> EcgEncoder:
    """Another encoder."""
    _, data, _, _, text = ready
    return build_trainee(replace(BASE, seed=2), data, text, data.labels).eval().encoder


def test_every_float_encoder_that_agrees_is_kept(ready: Ready, tmp_path: Path) -> None:
    made = export(*ready, tmp_path, fp32=True, safetensors=True)
    assert {"encoder.onnx", "encoder.fp32.onnx", "encoder.safetensors"} <= set(Artifact.load(made).manifest.files)
    assert list(tmp_path.iterdir()) == [made]


def test_a_graph_below_the_least_cosine_is_refused(ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PARITY_COSINE", 1.1)
    with pytest.raises(ExportError, match=r"encoder\.onnx: cosine with the torch model of at least 1\.1 expected, found 1\."):
        export(*ready, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_float32_graph_of_another_model_is_refused(
    ready: Ready, other: EcgEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed_up(model: EcgEncoder, half: bool = True) -> bytes:
        return encoder_graph(model if half else other, half)

    monkeypatch.setattr(work, "encoder_graph", mixed_up)
    with pytest.raises(ExportError, match=r"encoder\.fp32\.onnx: cosine with the torch model of at least 0\.9999 expected"):
        export(*ready, tmp_path, fp32=True)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_model_are_refused(
    ready: Ready, other: EcgEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed_up(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, Any]) -> None:
        save_file(other.state_dict(), path, metadata=metadata)

    monkeypatch.setattr(work, "save_file", mixed_up)
    with pytest.raises(ExportError, match=r"encoder\.safetensors: cosine with the torch model of at least 0\.9999 expected"):
        export(*ready, tmp_path, safetensors=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "name"), [(1_000_000, "encoder.onnx"), (12_000_000, "encoder.safetensors")])
def test_a_full_disk_names_the_file_and_leaves_nothing(ready: Ready, tmp_path: Path, size: int, name: str) -> None:
    with full_disk(size), pytest.raises(CheckpointError, match=rf"{name}: cannot be written \(.*File too large.*make room"):
        export(*ready, tmp_path, safetensors=True)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_made_is_named(ready: Ready, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/model: cannot be written \(.*Not a directory.*give rights"):
        export(*ready, tmp_path / "file" / "model")
