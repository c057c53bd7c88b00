"""The default backend: ONNX Runtime on the CPU. Weights stored as float16 + Cast are folded to float32 at load."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from encoders.base import Floats, check_windows
from encoders.signal import LEADS, WINDOW, SignalError

__all__ = ["OnnxEncoder"]


class OnnxEncoder:
    """encoder.onnx as an `Encoder`. threads: cores of one call (None: all); they never spin, so idle costs nothing.

    The file is read once and its sha256 compared with `digest` before ONNX Runtime sees a byte. Raises ValueError with both
    digests, or with the shapes, when they differ.
    """

    backend = "onnxruntime"

    def __init__(self, path: Path, digest: str, threads: int | None = None) -> None:
        data = Path(path).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ValueError(f"{path.name}: sha256 {digest} expected, the file has {found}")
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own classes have no common base of theirs
            raise ValueError(f"{path.name}: no ONNX graph that ONNX Runtime loads ({str(error)[:200]})") from error
        source, target = self._session.get_inputs(), self._session.get_outputs()
        if (
            len(source) != 1
            or list(source[0].shape[1:]) != [len(LEADS), WINDOW]
            or len(target) != 1
            or len(target[0].shape) != 2
        ):
            raise ValueError(
                f"{path.name}: one input (B, {len(LEADS)}, {WINDOW}) and one output (B, D) expected, "
                f"found {[i.shape for i in source]} and {[o.shape for o in target]}"
            )
        self._input, self._output = source[0].name, target[0].name
        self.dim = int(target[0].shape[1])
        self.digest = digest

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1."""
        check_windows(x)
        if self._session is None:
            raise RuntimeError("the encoder is closed")
        if not len(x):
            return np.zeros((0, self.dim), dtype=np.float32)
        out = self._session.run([self._output], {self._input: np.ascontiguousarray(x)})[0]
        if out.shape != (len(x), self.dim):
            raise SignalError("shape", f"the encoder gave {out.shape}, ({len(x)}, {self.dim}) expected")
        return np.asarray(out, dtype=np.float32)

    def close(self) -> None:
        """Release the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
