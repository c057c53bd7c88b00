"""The default backend: ONNX Runtime on the CPU. Weights stored as float16 + Cast are folded to float32 at load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.cpu import CpuEncoder, Plan, Port, cores_of

__all__ = ["OnnxEncoder", "OrtGraph", "checked"]


def checked(path: Path, digest: str) -> bytes:
    """The file's bytes, read once. Raises ValueError with both digests unless its sha256 is `digest`."""
    data = Path(path).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise ValueError(f"{path.name}: sha256 {digest} expected, the file has {found}")
    return data


class OrtGraph:
    """A graph in ONNX Runtime. Its threads never spin, so idle costs nothing. Raises ValueError where it cannot be loaded."""

    def __init__(self, graph: bytes, plan: Plan) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = plan.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self.session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own classes have no common base of theirs
            raise ValueError(f"no ONNX graph that ONNX Runtime loads ({str(error)[:200]})") from error
        self.inputs, self.outputs = _ports(self.session.get_inputs()), _ports(self.session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays by input name -> all outputs in order."""
        return [np.asarray(x) for x in self.session.run(None, dict(feeds))]


def _ports(some: Any) -> list[Port]:
    return [(one.name, tuple(n if isinstance(n, int) else None for n in one.shape)) for one in some]


class OnnxEncoder(CpuEncoder):
    """encoder.onnx as an `Encoder`. threads: cores of one call (None: all). plan: instead of them.

    The file is read once and its sha256 compared with `digest` before ONNX Runtime sees a byte. Raises ValueError with both
    digests, or with the shapes, when they differ. serves_for: the digest of encoder.onnx where this is another form of it.
    """

    def __init__(
        self, path: Path, digest: str, threads: int | None = None, plan: Plan | None = None, serves_for: str = ""
    ) -> None:
        data = checked(path, digest)
        backend = "onnxruntime-int8" if serves_for else "onnxruntime"
        try:
            super().__init__(
                data, serves_for or digest, backend, OrtGraph, plan or Plan(threads=cores_of(threads)), name=path.name
            )
        except ValueError as error:
            raise ValueError(f"{path.name}: {str(error).removeprefix(path.name + ': ')}") from error
