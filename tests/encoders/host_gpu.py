"""A stand-in for GPU and TensorRT in host memory: what is enqueued runs at `wait`, plans are ONNX files for ONNX Runtime.

It keeps the rules that a GPU punishes: work runs in the order of its stream and only when waited for, a recorded graph sees
addresses and not values, memory ends at a limit, memory that was given back is poisoned, every allocation is counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from encoders.base import DeviceLost
from encoders.engine.cuda_calls import CaptureRefused, OutOfMemory
from encoders.engine.plans import Recipe

POISON = 0xFF  # float32 of it is not a number


class HostCuda:
    """As `encoders.engine.cuda_calls.Cuda`. limit: bytes of "device" memory. events: what was asked for, in order."""

    def __init__(self, limit: int = 1 << 40, records: bool = True) -> None:
        self.limit, self.records = limit, records
        self.live: dict[int, NDArray[np.uint8]] = {}
        self.pins: dict[int, NDArray[np.uint8]] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.events: list[tuple[str, int]] = []
        self.graphs: set[int] = set()
        self._recording: tuple[int, list[Callable[[], None]]] | None = None
        self.broken = False

    def pinned(self, size: int) -> NDArray[np.uint8]:
        memory = np.full(size, POISON, dtype=np.uint8)
        self.pins[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        self.pins.pop(memory.ctypes.data)[:] = POISON

    def memory(self, size: int) -> int:
        if sum(m.nbytes for m in self.live.values()) + size > self.limit:
            raise OutOfMemory("cudaMalloc: cudaErrorMemoryAllocation (2)")
        memory = np.full(size, POISON, dtype=np.uint8)
        self.live[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        self.live.pop(address)[:] = POISON

    def stream(self) -> int:
        self.queues[n := len(self.queues) + 1] = []
        return n

    def enqueue(self, stream: int, what: str, work: Callable[[], None]) -> None:
        if self._recording is not None and self._recording[0] == stream:
            self._recording[1].append(work)
            return
        self.events.append((what, stream))
        self.queues[stream].append(work)

    def to_device(self, address: int, host: NDArray[np.uint8], stream: int) -> None:
        assert host.base is None or any(host.base is p for p in self.pins.values())
        self.enqueue(stream, "in", lambda: ctypes.memmove(address, host.ctypes.data, host.nbytes) and None)

    def to_host(self, host: NDArray[np.uint8], address: int, stream: int) -> None:
        self.enqueue(stream, "out", lambda: ctypes.memmove(host.ctypes.data, address, host.nbytes) and None)

    def wait(self, stream: int) -> None:
        self.events.append(("wait", stream))
        if self.broken:
            raise DeviceLost("cudaStreamSynchronize: cudaErrorIllegalAddress (700)")
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()

    def failure(self, what: str) -> None:
        raise DeviceLost(what)

    def record(self, work: Callable[[], None], stream: int) -> tuple[int, list[Callable[[], None]]]:
        if not self.records:
            raise CaptureRefused("cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated (901)")
        self._recording = (stream, [])
        work()
        (_, steps), self._recording = self._recording, None
        self.graphs.add(id(steps))
        return id(steps), steps

    def play(self, graph: tuple[int, list[Callable[[], None]]], stream: int) -> None:
        assert graph[0] in self.graphs
        self.events.append(("play", stream))
        self.queues[stream] += graph[1]

    def forget(self, graph: tuple[int, list[Callable[[], None]]]) -> None:
        self.graphs.remove(graph[0])


class Mode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class _Logger:
    def __init__(self) -> None:
        pass


def host_tensorrt(cuda: HostCuda, recipe: Recipe, name: str = "tensorrt") -> Any:
    """A module like tensorrt whose plans are ONNX files. `.contexts` lists those made, `.refuse` makes execution fail."""
    trt: Any = SimpleNamespace(
        __name__=name, __version__="0.test", TensorIOMode=Mode, ILogger=_Logger, contexts=[], refuse=False
    )
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    trt.nptype = lambda dtype: dtype
    trt.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: _engine(trt, cuda, recipe, plan, log))
    return trt


def _engine(trt: Any, cuda: HostCuda, recipe: Recipe, plan: bytes, log: Any) -> Any:
    try:
        return HostEngine(trt, cuda, recipe, plan)
    except Exception as error:
        log.log(1, f"not a plan: {type(error).__name__}")
        return None


class HostEngine:
    """An ICudaEngine: tensors of the ONNX file, 1000 bytes of scratch a row of the highest batch."""

    def __init__(self, trt: Any, cuda: HostCuda, recipe: Recipe, plan: bytes) -> None:
        self.session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.trt, self.cuda, self.recipe = trt, cuda, recipe
        kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
        ins, outs = self.session.get_inputs(), self.session.get_outputs()
        self.modes = {t.name: Mode.INPUT for t in ins} | {t.name: Mode.OUTPUT for t in outs}
        self.symbols = {t.name: tuple(t.shape) for t in [*ins, *outs]}
        self.shapes = {name: tuple(n if isinstance(n, int) else -1 for n in shape) for name, shape in self.symbols.items()}
        self.kinds = {t.name: kinds[t.type] for t in [*ins, *outs]}
        self.num_io_tensors = len(self.shapes)

    def get_tensor_name(self, i: int) -> str:
        return list(self.shapes)[i]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_mode(self, name: str) -> Mode:
        return self.modes[name]

    def get_tensor_dtype(self, name: str) -> type:
        return self.kinds[name]

    def get_device_memory_size_for_profile_v2(self, i: int) -> int:
        return 1000 * self.recipe.profiles[i][1]

    def create_execution_context(self, strategy: object) -> HostContext:
        assert strategy == "user managed"
        context = HostContext(self)
        self.trt.contexts.append(context)
        return context


class HostContext:
    """An IExecutionContext: refuses batches outside its profile and scratch memory that is too small."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()
        self.profile = self.scratch = -1

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.engine.cuda.live[address].nbytes >= size
        self.scratch = size

    def set_optimization_profile_async(self, i: int, stream: int) -> bool:
        self.profile = i
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = {n: (low, high) for n, low, _, high in self.engine.recipe.ranges}
        ranges["B"] = self.engine.recipe.profiles[self.profile]
        for symbol, n in zip(self.engine.symbols[name], shape, strict=True):
            low, high = ranges[symbol] if isinstance(symbol, str) else (symbol, symbol)
            if not low <= n <= high:
                return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = {s: n for t, shape in self.shapes.items() for s, n in zip(self.engine.symbols[t], shape, strict=True)}
        return tuple(known[s] if isinstance(s, str) else s for s in self.engine.symbols[name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.cuda.live

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.trt.refuse:
            return False
        self.engine.cuda.enqueue(stream, "run", self._run)
        return True

    def _run(self) -> None:
        assert self.scratch >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        feeds = {name: self._array(name, shape) for name, shape in self.shapes.items()}
        for name, value in zip(
            [o.name for o in self.engine.session.get_outputs()], self.engine.session.run(None, feeds), strict=True
        ):
            self.engine.cuda.live[self.addresses[name]][: value.nbytes] = value.reshape(-1).view(np.uint8)

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        memory, kind = self.engine.cuda.live[self.addresses[name]], np.dtype(self.engine.kinds[name])
        return memory[: int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
