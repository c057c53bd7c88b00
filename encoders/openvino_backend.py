"""OpenVINO on the CPU (extra `openvino`): the same files as ONNX Runtime, with its own kernels."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import BackendUnavailable
from encoders.cpu import CpuEncoder, Plan, Port, cores_of
from encoders.onnx_backend import checked

__all__ = ["OpenVinoEncoder", "OvGraph"]


class OvGraph:
    """A graph in OpenVINO, float32 throughout where it is not 8-bit. Raises ValueError where it cannot be loaded."""

    def __init__(self, graph: bytes, plan: Plan) -> None:
        core = _core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": plan.threads * plan.calls,
            "NUM_STREAMS": plan.calls,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model: Any = core.compile_model(core.read_model(graph), "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"no ONNX graph that OpenVINO loads ({str(error).splitlines()[-1][:200]})") from error
        self.inputs, self.outputs = _ports(model.inputs), _ports(model.outputs)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(plan.calls):
            self._free.put(model.create_infer_request())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays by input name -> all outputs in order. Waits while all its requests are in use."""
        request = self._free.get()
        try:
            request.infer({name: np.ascontiguousarray(x) for name, x in feeds.items()}, share_inputs=True)
            return [np.array(request.get_output_tensor(i).data) for i in range(len(self.outputs))]
        finally:
            self._free.put(request)


@cache
def _core() -> Any:
    """One for the whole process. Where the last of them goes in another thread than the first came in, the CPU plugin frees the
    alternate signal stack that it gave to that other thread: the next signal, a SIGTERM, kills the process (seen in 2026.4)."""
    import openvino as ov

    return ov.Core()


def _ports(some: Any) -> list[Port]:
    return [(one.any_name, tuple(n.get_length() if n.is_static else None for n in one.partial_shape)) for one in some]


class OpenVinoEncoder(CpuEncoder):
    """As `OnnxEncoder`, by OpenVINO. Raises BackendUnavailable where it is not installed."""

    def __init__(
        self, path: Path, digest: str, threads: int | None = None, plan: Plan | None = None, serves_for: str = ""
    ) -> None:
        if find_spec("openvino") is None:
            raise BackendUnavailable('openvino is not installed: pip install "ecg-stream-worker[openvino]"')
        data = checked(path, digest)
        backend = "openvino-int8" if serves_for else "openvino"
        try:
            super().__init__(
                data, serves_for or digest, backend, OvGraph, plan or Plan(threads=cores_of(threads)), name=path.name
            )
        except ValueError as error:
            raise ValueError(f"{path.name}: {str(error).removeprefix(path.name + ': ')}") from error
