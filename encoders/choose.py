"""Which backend runs the encoder: the one that was asked for, or the first of the order that this machine can run.

Each candidate is asked in the cheapest way first (the driver before any library is imported) and passes the golden recording
before it is taken. What was refused, and why, is part of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from encoders.base import BackendUnavailable, DeviceLost, Encoder
from encoders.cpu import calibrated, cores_of
from encoders.engine.cuda_calls import OutOfMemory, probe
from encoders.engine.plans import EngineOptions
from encoders.onnx_backend import OnnxEncoder

if TYPE_CHECKING:
    from encoders.artifact import Artifact
    from encoders.model import EncoderConfig
    from encoders.openvino_backend import OpenVinoEncoder

__all__ = ["BACKENDS", "ORDER", "Choice", "choose", "open_backend"]

ORDER = ("tensorrt", "torch", "onnxruntime")  # of "auto": the fastest first; the last runs everywhere
BACKENDS = (*ORDER, "openvino")  # by name
CPU = ("onnxruntime", "openvino")
INT8 = "encoder.u8s8.onnx"  # of an artifact that was exported with it


@dataclass(frozen=True)
class Choice:
    """encoder: open, golden recording passed. refused: (backend, why not) of those that would have been better."""

    encoder: Encoder
    refused: tuple[tuple[str, str], ...] = ()


def choose(
    artifact: Artifact, backend: str = "auto", threads: int | None = None, engine: EngineOptions | None = None
) -> Choice:
    """auto: the first of ORDER that opens. Another name: that one, or the error why not: BackendUnavailable, ArtifactError,
    DeviceLost. threads, engine: as for `Artifact.open`.
    """
    if backend != "auto":
        return Choice(artifact.open(backend, threads, engine))
    refused: list[tuple[str, str]] = []
    for name in ORDER[:-1]:
        try:
            if name == "torch":
                _torch_gpu()  # on a CPU it is the slowest of all
            return Choice(artifact.open(name, threads, engine), tuple(refused))
        except (ValueError, DeviceLost, OutOfMemory) as error:
            refused.append((name, str(error)))
    return Choice(artifact.open(ORDER[-1], threads, engine), tuple(refused))


def open_backend(name: str, artifact: Artifact, threads: int | None, engine: EngineOptions) -> Encoder:
    """By name, without the golden recording. Raises ValueError, BackendUnavailable among them."""
    if name in CPU:
        return _cpu(name, artifact, threads, engine)
    if name == "torch":
        return _torch(artifact, threads)
    if name == "tensorrt":
        from encoders.tensorrt_backend import open_tensorrt

        return open_tensorrt(artifact, engine)
    raise ValueError(f"backend {', '.join(BACKENDS)} expected, got {name!r}")


def _cpu(name: str, artifact: Artifact, threads: int | None, engine: EngineOptions) -> Encoder:
    """With `threads` cores, all of them in one call unless it is to be found by trying what is faster."""
    library: type[OnnxEncoder] | type[OpenVinoEncoder] = OnnxEncoder
    if name == "openvino":
        from encoders.openvino_backend import OpenVinoEncoder

        library = OpenVinoEncoder
    path, digest, serves_for = artifact.directory / "encoder.onnx", artifact.encoder_digest, ""
    if engine.cpu_precision == "int8":
        artifact.read(INT8)
        path, serves_for = artifact.directory / INT8, digest
        digest = artifact.manifest.files[INT8].sha256
    if engine.calibrate:
        encoder = calibrated(lambda plan: library(path, digest, plan=plan, serves_for=serves_for), cores_of(threads))
    else:
        encoder = library(path, digest, threads, serves_for=serves_for)
    encoder.fused_cosine = artifact.manifest.tolerances.fused_cosine
    return encoder


def _torch_gpu() -> None:
    """Raises BackendUnavailable where torch has no GPU; torch is imported only where the driver shows one."""
    probe()
    if find_spec("torch") is None:
        raise BackendUnavailable('torch is not installed: pip install "ecg-stream-worker[train]"')
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} sees no GPU where the driver shows one: it is built for another CUDA"
        )


def _torch(artifact: Artifact, threads: int | None) -> Encoder:
    """On the GPU where there is one, else on the CPU, there with float32 weights if the artifact holds them."""
    if find_spec("torch") is None:
        raise BackendUnavailable('torch is not installed: pip install "ecg-stream-worker[train]"')
    from encoders.torch_backend import TorchEncoder, TorchGpuEncoder, from_onnx

    weights, digest = "encoder.safetensors", artifact.encoder_digest
    try:
        _torch_gpu()
    except BackendUnavailable:
        if weights in artifact.manifest.files:
            artifact.read(weights)
            return TorchEncoder.from_safetensors(artifact.directory / weights, digest, threads)
        return TorchEncoder(from_onnx(artifact.read("encoder.onnx"), _config(artifact)), digest, threads)
    return TorchGpuEncoder(from_onnx(artifact.read("encoder.onnx"), _config(artifact)), digest)


def _config(artifact: Artifact) -> EncoderConfig:
    from encoders.model import ARCHITECTURES, EncoderConfig

    info = artifact.manifest.model
    known = {made_as.name: key for key, made_as in ARCHITECTURES.items()}
    if info.architecture not in known:
        raise ValueError(f"manifest.json: architecture {', '.join(known)} expected, found {info.architecture!r}")
    return EncoderConfig(form=info.form, dim=info.dim, architecture=known[info.architecture])  # type: ignore[arg-type]
