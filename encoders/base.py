"""What every ECG encoder is, whatever runs it. Knows no file and no framework."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from encoders.signal import LEADS, WINDOW, SignalError

__all__ = ["BackendUnavailable", "DeviceLost", "Encoder", "Floats", "Scored", "WholeEncoder", "check_windows"]

Floats = NDArray[np.float32]


class BackendUnavailable(ValueError):
    """This machine cannot run this backend; the text says what is missing."""


class DeviceLost(RuntimeError):
    """The accelerator failed, and every further call of this process would: end it and start another."""


@runtime_checkable
class Encoder(Protocol):
    """Prepared windows -> unit-norm embeddings. Close it, or use it as a context manager.

    dim: length D of an embedding. digest: hex sha256 of its encoder.onnx. backend: a short word, e.g. "onnxruntime".
    """

    dim: int
    digest: str
    backend: str

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) as `preprocess` makes it -> float32 (B, D), rows of norm 1. Raises SignalError("shape")."""
        ...

    def close(self) -> None:
        """Release what the backend holds; encoding afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Scored(NamedTuple):
    """embedding: (B, D), rows of norm 1. logits: (B, L). band: (B, C, 1000), recorded leads in counts, 0.5-40 Hz, at 100 Hz."""

    embedding: Floats
    logits: Floats
    band: Floats


@runtime_checkable
class WholeEncoder(Encoder, Protocol):
    """An encoder that takes whole windows as they were recorded: preprocessing and labels are part of its graph (`fused`)."""

    def serves(self, fs_mhz: int) -> bool:
        """Whether windows at this rate can be given to `score`; the first time this takes up to a second."""
        ...

    def score(self, fs_mhz: int, counts: NDArray[np.int16], mix: Floats, least: Floats, labels: Floats, bias: Floats) -> Scored:
        """counts: int16 (B, C, T), one window a row, none of its samples filled in. mix: (B, 12, C) of `preprocess.mixing`.
        least: (B, 1, 1) of `preprocess.FLOOR`. labels: (L, D) times the scale, bias: (L,), of `LabelBank.weights`."""
        ...


def check_windows(x: Floats) -> None:
    """Raises SignalError("shape") unless x is float32 (B, 12, 5000)."""
    if x.ndim != 3 or x.shape[1:] != (len(LEADS), WINDOW) or x.dtype != np.float32:
        raise SignalError("shape", f"an encoder takes float32 (B, {len(LEADS)}, {WINDOW}), got {x.dtype} {x.shape}")
