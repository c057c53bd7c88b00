"""The torch model itself: in float32 on the CPU as the reference, in float16 on a GPU. Needs torch (extra `train`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import DeviceLost, Floats, check_windows
from encoders.engine.cuda_calls import OutOfMemory
from encoders.engine.lanes import Arrays, Lanes
from encoders.model import EcgEncoder, EncoderConfig, fold
from encoders.signal import LEADS, WINDOW

__all__ = ["HalfEncoder", "TorchEncoder", "TorchGpuEncoder", "from_onnx"]


class TorchEncoder:
    """An `EcgEncoder` in eval mode as an `Encoder`. digest: sha256 of the encoder.onnx that the weights belong to."""

    backend = "torch"

    def __init__(self, model: EcgEncoder, digest: str = "", threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._model: EcgEncoder | None = model.eval()
        self.dim = model.config.dim
        self.digest = digest

    @classmethod
    def from_safetensors(cls, path: Path, digest: str = "", threads: int | None = None) -> Self:
        """A file whose metadata holds the encoder's config under "config". Raises ValueError when it does not fit."""
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {}).get("config", "null"))
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not isinstance(config, dict):
                raise ValueError(f"metadata 'config' expected, found {config!r}")
            model = EcgEncoder(EncoderConfig(**config))
            model.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{Path(path).name}: {error}") from None
        return cls(model, digest, threads)

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1."""
        check_windows(x)
        if self._model is None:
            raise RuntimeError("the encoder is closed")
        with torch.inference_mode():
            return np.asarray(self._model(torch.from_numpy(np.ascontiguousarray(x))).numpy(), dtype=np.float32)

    def close(self) -> None:
        """Release the model."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def from_onnx(data: bytes, config: EncoderConfig) -> EcgEncoder:
    """The network behind an encoder.onnx, batch norms folded. config: its architecture, form and D. Needs onnx.

    Raises ValueError when the weights in the file are not those of `config`.
    """
    import onnx

    stored = {one.name.removesuffix(".f16"): one for one in onnx.load_model_from_string(data).graph.initializer}
    model = fold(EcgEncoder(config))
    tensors = {}
    for name in model.state_dict():
        one = stored.get(re.sub(r"\.short\.\d+\.", ".short.", name))  # an averaged shortcut is a sequence in the model
        if one is None:
            raise ValueError(f"encoder.onnx: weights {name} expected for {config}, not found")
        tensors[name] = torch.from_numpy(onnx.numpy_helper.to_array(one).astype(np.float32))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"encoder.onnx: {error}") from None
    return model


class HalfEncoder(nn.Module):
    """A folded `EcgEncoder` whose convolutions compute in `dtype`, channels last; filter, mean and head stay float32.

    (B, 12, 5000) float32 -> (B, D) float32, unit-norm. The same cut as the TensorRT plan's.
    """

    def __init__(self, folded: EcgEncoder, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.encoder, self.dtype = folded.eval(), dtype
        for body in (*(conv for conv, _ in folded.stem()), folded.layers):
            body.to(dtype).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder.decimate(x.unsqueeze(2)).to(self.dtype, memory_format=torch.channels_last)  # (B, 12, 1, T)
        for conv, _ in self.encoder.stem():
            y = F.relu(conv(y))
        features = self.encoder.layers(self.encoder.pool(y)).float().mean(dim=(2, 3))  # (B, 512)
        return self.encoder.project(features)


@contextmanager
def _cuda_errors() -> Iterator[None]:
    """torch's errors of a GPU as ours: memory that is not there, or a GPU that is lost."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error).partition("\n")[0][:200]) from None
    except RuntimeError as error:
        if "CUDA" not in str(error):
            raise
        raise DeviceLost(str(error).partition("\n")[0][:200]) from None


class _Batch:
    """Buffers of one batch size, and the recorded graph between them."""

    def __init__(self, model: nn.Module, rows: int, dim: int, stream: Any) -> None:
        self.host = torch.empty((rows, len(LEADS), WINDOW), pin_memory=True)
        self.result = torch.empty((rows, dim), pin_memory=True)
        self.x = torch.zeros((rows, len(LEADS), WINDOW), device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            model(self.x)  # kernels are chosen and loaded outside the recording
            stream.synchronize()
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.embedding = model(self.x)


class _TorchLane:
    """A stream with buffers and a recorded graph a batch size. Not run yet: no GPU was at hand."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        self._model, self._dim = model, dim
        self._batches: dict[int, _Batch] = {}
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._last = 0

    def submit(self, feeds: Mapping[str, NDArray[Any]], rows: int, bucket: int) -> None:
        with _cuda_errors(), torch.inference_mode():
            if bucket not in self._batches:
                self._batches[bucket] = _Batch(self._model, bucket, self._dim, self._stream)
            batch, self._last = self._batches[bucket], bucket
            batch.host[:rows] = torch.from_numpy(np.ascontiguousarray(feeds["x"]))
            with torch.cuda.stream(self._stream):
                batch.x.copy_(batch.host, non_blocking=True)
                batch.graph.replay()
                batch.result.copy_(batch.embedding, non_blocking=True)

    def collect(self, rows: int) -> Arrays:
        with _cuda_errors():
            self._stream.synchronize()
        return {"embedding": self._batches[self._last].result[:rows].numpy().copy()}

    def release(self) -> None:
        self._batches.clear()
        torch.cuda.empty_cache()


class TorchGpuEncoder:
    """A `HalfEncoder` on the GPU as an `Encoder`, over two lanes; the second GPU path, where TensorRT is missing."""

    backend = "torch-cuda"

    def __init__(self, folded: EcgEncoder, digest: str = "") -> None:
        self.dim, self.digest = folded.config.dim, digest
        with _cuda_errors():
            model = HalfEncoder(folded).cuda()
            self._lanes: Lanes | None = Lanes([_TorchLane(model, self.dim) for _ in range(2)])

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1. Raises DeviceLost."""
        check_windows(x)
        if self._lanes is None:
            raise RuntimeError("the encoder is closed")
        if not len(x):
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.asarray(self._lanes.run({"x": x})["embedding"], dtype=np.float32)

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._lanes is not None:
            self._lanes.close()
        self._lanes = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
