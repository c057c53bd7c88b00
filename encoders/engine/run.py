"""A plan at work: deserialised, on two lanes of the GPU, with a recorded graph for each batch size.

Not run yet: no GPU was at hand. What the lanes do in which order is tested on a stand-in for the GPU in host memory
(`tests/encoders/host_gpu.py`), the signatures of the CUDA calls against the binding itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import BackendUnavailable, DeviceLost
from encoders.engine.build import logger
from encoders.engine.cuda_calls import CaptureRefused, OutOfMemory
from encoders.engine.lanes import PIECE, Arrays, Lanes
from encoders.engine.plans import Recipe

__all__ = ["Engine"]

log = logging.getLogger(__name__)
LANES = 2


class Engine:
    """A deserialised plan with its lanes. Call it only where `probe` found a GPU. Raises BackendUnavailable.

    constants: inputs that have no row a window (label embeddings, biases); they are copied when another array is handed over.
    """

    def __init__(
        self, trt: Any, plan: bytes, recipe: Recipe, cuda: Any, piece: int = PIECE, constants: frozenset[str] = frozenset()
    ) -> None:
        self._log = logger(trt)
        self._runtime = trt.Runtime(self._log)  # the library wants it to outlive the engine
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendUnavailable(f"the plan does not load: {'; '.join(self._log.errors)[:300] or 'no reason given'}")
        tensors = [_Tensor.of(trt, engine, i) for i in range(engine.num_io_tensors)]
        self.inputs = [t.name for t in tensors if t.is_input]
        self.outputs = {t.name: t.shape for t in tensors if not t.is_input}
        piece = min(piece, recipe.profiles[-1][1])
        lanes = [_Lane(trt, engine, tensors, recipe, cuda, constants) for _ in range(LANES)]
        self._lanes = Lanes(lanes, piece, constants)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Inputs by name -> outputs by name, one row a window each. Raises DeviceLost."""
        return self._lanes.run(feeds)

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._lanes.close()


@dataclass(frozen=True)
class _Tensor:
    """An input or output of the plan. shape: -1 where a dimension is open."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    is_input: bool

    @classmethod
    def of(cls, trt: Any, engine: Any, i: int) -> _Tensor:
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return cls(name, tuple(engine.get_tensor_shape(name)), np.dtype(trt.nptype(engine.get_tensor_dtype(name))), is_input)


@dataclass
class _Buffer:
    """Pinned host memory and its place on the GPU."""

    host: NDArray[np.uint8]
    address: int


@dataclass
class _Job:
    """One set of shapes: its context, the bytes of each tensor, and the recorded graph or None."""

    context: Any
    shapes: dict[str, tuple[int, ...]]
    bytes: dict[str, int]
    graph: Any = None


class _Lane:
    """One stream; buffers and scratch memory for the largest shapes so far; a context and a recorded graph a set of shapes.

    A graph stays true only while its context keeps its shapes and the buffers their places: contexts are not shared, and when
    a buffer has to grow all of them are made again.
    """

    def __init__(
        self, trt: Any, engine: Any, tensors: Sequence[_Tensor], recipe: Recipe, cuda: Any, constants: frozenset[str]
    ) -> None:
        self._trt, self._engine, self._tensors, self._recipe = trt, engine, tensors, recipe
        self._cuda, self._constants = cuda, constants
        self._stream = cuda.stream()
        self._buffers: dict[str, _Buffer] = {}
        self._scratch = self._scratch_bytes = 0
        self._jobs: dict[tuple[tuple[int, ...], ...], _Job] = {}
        self._held: dict[str, NDArray[Any]] = {}  # constants as they were last handed over
        self._job: _Job | None = None

    def submit(self, feeds: Mapping[str, NDArray[Any]], rows: int, bucket: int) -> None:
        shapes = {n: v.shape if n in self._constants else (bucket, *v.shape[1:]) for n, v in feeds.items()}
        key = tuple(shapes[t.name] for t in self._tensors if t.is_input)
        job = self._jobs.get(key) or self._prepare(shapes, bucket)
        for name, value in feeds.items():
            if name in self._constants and self._held.get(name) is value:
                continue
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            self._buffers[name].host[: data.nbytes] = data
            if name in self._constants:
                self._copy_in(name, data.nbytes)
                self._held[name] = value
        if key not in self._jobs:
            self._jobs[key] = self._record(job)
        if job.graph is None:
            self._enqueue(job)
        else:
            self._cuda.play(job.graph, self._stream)
        self._job = job

    def collect(self, rows: int) -> Arrays:
        self._cuda.wait(self._stream)
        assert self._job is not None
        out = {}
        for t in self._tensors:
            if not t.is_input:
                shape = self._job.shapes[t.name]
                whole = self._buffers[t.name].host[: self._job.bytes[t.name]].view(t.kind).reshape(shape)
                out[t.name] = whole[:rows].copy()
        return out

    def release(self) -> None:
        for job in self._jobs.values():
            if job.graph is not None:
                self._cuda.forget(job.graph)
        self._jobs.clear()
        for buffer in self._buffers.values():
            self._cuda.unpin(buffer.host)
            self._cuda.free(buffer.address)
        if self._scratch_bytes:
            self._cuda.free(self._scratch)
        self._buffers, self._held, self._scratch_bytes = {}, {}, 0

    def _prepare(self, shapes: dict[str, tuple[int, ...]], bucket: int) -> _Job:
        """A context for these shapes, and room for them."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise OutOfMemory("no execution context")
        profile = next(i for i, (_, high) in enumerate(self._recipe.profiles) if bucket <= high)
        if not context.set_optimization_profile_async(profile, self._stream):
            raise DeviceLost(f"profile {profile} of the plan cannot be used")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ValueError(f"the plan takes no {name} of shape {shape}")
        whole = {t.name: tuple(context.get_tensor_shape(t.name)) for t in self._tensors}
        sizes = {t.name: int(np.prod(whole[t.name])) * t.kind.itemsize for t in self._tensors}
        self._reserve(sizes, max(1, self._engine.get_device_memory_size_for_profile_v2(profile)))
        context.set_device_memory(self._scratch, self._scratch_bytes)
        for name in sizes:
            if not context.set_tensor_address(name, self._buffers[name].address):
                raise DeviceLost(f"the plan takes no address for {name}")
        return _Job(context, whole, sizes)

    def _reserve(self, sizes: Mapping[str, int], scratch: int) -> None:
        """Buffers of at least these sizes. Where one has to grow, all are given back first, and what was recorded on them."""
        have = {name: buffer.host.nbytes for name, buffer in self._buffers.items()}
        if all(have.get(name, -1) >= size for name, size in sizes.items()) and self._scratch_bytes >= scratch:
            return
        scratch = max(scratch, self._scratch_bytes)
        self.release()
        try:
            for name, size in sizes.items():
                host = self._cuda.pinned(max(1, size, have.get(name, 0)))
                try:
                    self._buffers[name] = _Buffer(host, self._cuda.memory(host.nbytes))
                except BaseException:
                    self._cuda.unpin(host)
                    raise
            self._scratch, self._scratch_bytes = self._cuda.memory(scratch), scratch
        except OutOfMemory:
            self.release()
            raise

    def _record(self, job: _Job) -> _Job:
        """Run it once, so that kernels are loaded (and compiled, where that happens late) outside the recording."""
        self._enqueue(job)
        self._cuda.wait(self._stream)
        try:
            job.graph = self._cuda.record(lambda: self._enqueue(job), self._stream)
        except CaptureRefused as error:
            log.warning("shapes %s run without a recorded graph: %s", job.shapes, error)
        return job

    def _enqueue(self, job: _Job) -> None:
        for t in self._tensors:
            if t.is_input and t.name not in self._constants:
                self._copy_in(t.name, job.bytes[t.name])
        if not job.context.execute_async_v3(int(self._stream)):
            self._cuda.failure("TensorRT did not enqueue the batch")
        for t in self._tensors:
            if not t.is_input:
                buffer = self._buffers[t.name]
                self._cuda.to_host(buffer.host[: job.bytes[t.name]], buffer.address, self._stream)

    def _copy_in(self, name: str, size: int) -> None:
        buffer = self._buffers[name]
        self._cuda.to_device(buffer.address, buffer.host[:size], self._stream)
