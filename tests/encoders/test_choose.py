"""Which backend is taken, and what is said of those that were not: each can fail in its own way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from encoders import choose as chooser
from encoders.artifact import Artifact, ArtifactError
from encoders.base import BackendUnavailable, DeviceLost
from encoders.choose import ORDER, choose
from encoders.cpu import CpuEncoder
from encoders.engine.cuda_calls import Gpu, OutOfMemory
from encoders.engine.plans import EngineOptions

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "model"


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.load(SHIPPED)


class Shelf:
    """An artifact whose backends open or fail as told."""

    def __init__(self, **fails: Exception) -> None:
        self.fails, self.tried = fails, list[str]()

    def open(self, backend: str, threads: int | None = None, engine: object = None) -> Any:
        self.tried.append(backend)
        if backend in self.fails:
            raise self.fails[backend]
        return SimpleNamespace(backend=backend)


def gpu(monkeypatch: pytest.MonkeyPatch, there: bool = True, torch_sees: bool = True) -> None:
    def probe() -> Gpu:
        if not there:
            raise BackendUnavailable("no NVIDIA driver")
        return Gpu("a GPU", "9.0", "580.1")

    monkeypatch.setattr(chooser, "probe", probe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees)


FAILURES = [
    BackendUnavailable("no TensorRT: tensorrt is not installed"),
    ArtifactError("golden.npz: cosine of at least 0.999 expected, backend tensorrt gives 0.91"),
    DeviceLost("cudaStreamSynchronize: cudaErrorNoKernelImageForDevice (209)"),
    OutOfMemory("cudaMalloc: cudaErrorMemoryAllocation (2)"),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_the_next_is_taken_and_the_reason_told(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch)
    shelf: Any = Shelf(tensorrt=failure)
    choice = choose(shelf)
    assert choice.encoder.backend == "torch"
    assert choice.refused == (("tensorrt", str(failure)),)


def test_the_first_that_opens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch)
    shelf: Any = Shelf()
    choice = choose(shelf)
    assert (choice.encoder.backend, choice.refused, shelf.tried) == ("tensorrt", (), ["tensorrt"])


def test_torch_is_no_choice_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf: Any = Shelf(tensorrt=FAILURES[0])
    gpu(monkeypatch, torch_sees=False)
    choice = choose(shelf)
    assert choice.encoder.backend not in ("tensorrt", "torch")
    assert "torch" not in shelf.tried
    assert dict(choice.refused)["torch"].endswith("sees no GPU where the driver shows one: it is built for another CUDA")
    monkeypatch.setattr(chooser, "find_spec", lambda name: None)
    assert dict(choose(shelf).refused)["torch"].startswith("torch is not installed")
    gpu(monkeypatch, there=False)
    assert dict(choose(shelf).refused)["torch"] == "no NVIDIA driver"


def test_the_last_fails_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, there=False)
    shelf: Any = Shelf(**{name: ArtifactError(f"{name} broken") for name in ORDER})
    with pytest.raises(ArtifactError, match="onnxruntime broken"):
        choose(shelf)
    assert [name for name in shelf.tried if name != "torch"] == [name for name in ORDER if name != "torch"]


def test_a_name_is_an_order_not_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch)
    shelf: Any = Shelf(tensorrt=FAILURES[0])
    with pytest.raises(BackendUnavailable, match="no TensorRT"):
        choose(shelf, "tensorrt")
    assert shelf.tried == ["tensorrt"]
    assert choose(shelf, "onnxruntime").encoder.backend == "onnxruntime"


def test_on_this_machine_by_the_real_probes(artifact: Artifact, tmp_path: Path) -> None:
    """Wherever tests run: the choice opens, passes the golden recording, and those before it say why not."""
    choice = choose(artifact, threads=1, engine=EngineOptions(tmp_path))
    with choice.encoder as encoder:
        artifact.check_golden(encoder)
        assert encoder.digest == artifact.encoder_digest
    assert [name for name, _ in choice.refused] == list(ORDER)[: len(choice.refused)]
    assert all(reason for _, reason in choice.refused)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_rate_is_held_to_the_tolerance_that_the_manifest_states(backend: str, artifact: Artifact) -> None:
    with choose(artifact, backend, threads=1, engine=EngineOptions(calibrate=False)).encoder as encoder:
        assert isinstance(encoder, CpuEncoder)
        assert encoder.serves(250_000)
    strict = artifact.manifest.tolerances.model_copy(update={"fused_cosine": 1.01})  # of no two embeddings
    held = dataclasses.replace(artifact, manifest=artifact.manifest.model_copy(update={"tolerances": strict}))
    with choose(held, backend, threads=1, engine=EngineOptions(calibrate=False)).encoder as encoder:
        assert isinstance(encoder, CpuEncoder)
        assert not encoder.serves(250_000)
        assert "cosine of 1.01 with the step-by-step path expected" in encoder.refused[250_000]


def test_torch_serves_an_artifact_that_has_only_the_graph(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, there=False)
    assert "encoder.safetensors" not in artifact.manifest.files
    with choose(artifact, "torch", threads=1).encoder as encoder:
        assert encoder.backend == "torch"
    monkeypatch.setattr(chooser, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="torch is not installed"):
        artifact.open("torch")
