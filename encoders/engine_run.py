"""A plan at work: deserialised, on two lanes of the GPU, with a recorded graph for each batch size.

Not run yet: no GPU was at hand. What the lanes do in which order is tested on a stand-in for the GPU in host memory
(`tests/encoders/host_gpu.py`), the signatures of the CUDA calls against the binding itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import BackendUnavailable, DeviceLost
from encoders.engine import Recipe
from encoders.engine_build import logger
from encoders.engine_cuda import CaptureRefused, OutOfMemory
from encoders.engine_lanes import PIECE, Arrays, Lanes

__all__ = ["Engine"]

log = logging.getLogger(__name__)
LANES = 2


class Engine:
    """A deserialised plan with its lanes. Call it only where `probe` found a GPU. Raises BackendUnavailable."""

    def __init__(self, trt: Any, plan: bytes, recipe: Recipe, cuda: Any, piece: int = PIECE) -> None:
        self._log = logger(trt)
        engine = trt.Runtime(self._log).deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendUnavailable(f"the plan does not load: {'; '.join(self._log.errors)[:300] or 'no reason given'}")
        tensors = _tensors(trt, engine)
        self.inputs = [name for name, _, is_input in tensors if is_input]
        self.outputs = {name: shape for name, shape, is_input in tensors if not is_input}
        piece = min(piece, recipe.profiles[-1][1])
        lanes = [_Lane(trt, engine, recipe, cuda) for _ in range(LANES)]
        self._lanes = Lanes(lanes, piece, frozenset(name for name, *_ in recipe.rows))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Inputs by name -> outputs by name. Raises DeviceLost."""
        return self._lanes.run(feeds)

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._lanes.close()


def _tensors(trt: Any, engine: Any) -> list[tuple[str, tuple[int, ...], bool]]:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [(n, tuple(engine.get_tensor_shape(n)), engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT) for n in names]


@dataclass
class _Buffer:
    """One tensor: pinned host memory and its place on the GPU, for `rows` rows of `row` bytes."""

    host: NDArray[np.uint8]
    address: int
    row: int


class _Lane:
    """One stream; buffers and scratch memory for the largest batch so far; a context and a recorded graph a batch size."""

    def __init__(self, trt: Any, engine: Any, recipe: Recipe, cuda: Any) -> None:
        self._trt, self._engine, self._recipe, self._cuda = trt, engine, recipe, cuda
        self._tensors = _tensors(trt, engine)
        self._constants = {name for name, *_ in recipe.rows}
        self._stream = cuda.stream()
        self._rows = 0
        self._buffers: dict[str, _Buffer] = {}
        self._scratch = self._scratch_bytes = 0
        self._contexts: dict[int, tuple[Any, Any]] = {}  # batch -> context, recorded graph or None
        self._held: dict[str, NDArray[Any]] = {}  # constants as they were last handed over

    def submit(self, feeds: Mapping[str, NDArray[Any]], rows: int, bucket: int) -> None:
        changed = [name for name in self._constants if self._held.get(name) is not feeds[name]]
        if bucket > self._rows or any(self._held.get(n) is None or self._held[n].shape != feeds[n].shape for n in changed):
            self.release()
            self._reserve(bucket, feeds)
            changed = list(self._constants)
        for name, value in feeds.items():
            if name not in self._constants or name in changed:
                buffer, data = self._buffers[name], np.ascontiguousarray(value)
                buffer.host[: data.nbytes] = data.reshape(-1).view(np.uint8)
        for name in changed:
            self._cuda.to_device(self._buffers[name].address, self._buffers[name].host, self._stream)
            self._held[name] = feeds[name]
        if bucket not in self._contexts:
            self._contexts[bucket] = self._prepare(bucket)
        context, graph = self._contexts[bucket]
        if graph is None:
            self._enqueue(context, bucket)
        else:
            self._cuda.play(graph, self._stream)

    def collect(self, rows: int) -> Arrays:
        self._cuda.wait(self._stream)
        out = {}
        for name, shape, is_input in self._tensors:
            if not is_input:
                buffer = self._buffers[name]
                kind = self._trt.nptype(self._engine.get_tensor_dtype(name))
                out[name] = buffer.host[: rows * buffer.row].view(kind).reshape(rows, *shape[1:]).copy()
        return out

    def release(self) -> None:
        for _, graph in self._contexts.values():
            if graph is not None:
                self._cuda.forget(graph)
        self._contexts.clear()
        for buffer in self._buffers.values():
            self._cuda.unpin(buffer.host)
            self._cuda.free(buffer.address)
        if self._scratch:
            self._cuda.free(self._scratch)
        self._buffers, self._held, self._scratch, self._rows = {}, {}, 0, 0

    def _reserve(self, bucket: int, feeds: Mapping[str, NDArray[Any]]) -> None:
        try:
            for name, shape, _ in self._tensors:
                kind = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
                whole = feeds[name].shape if name in self._constants else (bucket, *self._row(name, shape, feeds))
                row = int(np.prod(whole[1:])) * kind.itemsize
                host = self._cuda.pinned(whole[0] * row)
                try:
                    self._buffers[name] = _Buffer(host, self._cuda.memory(whole[0] * row), row)
                except BaseException:
                    self._cuda.unpin(host)
                    raise
            sizes = [self._engine.get_device_memory_size_for_profile_v2(i) for i in range(self._profile(bucket) + 1)]
            self._scratch_bytes = max(sizes)
            self._scratch = self._cuda.memory(max(1, self._scratch_bytes))
        except OutOfMemory:
            self.release()
            raise
        self._rows = bucket

    def _row(self, name: str, shape: tuple[int, ...], feeds: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
        """The shape of one row; where the plan leaves a dimension open it is the number of constants' rows (scores a label)."""
        open_rows = [len(feeds[n]) for n in self._constants]
        return tuple(n if n >= 0 else open_rows[0] for n in shape[1:])

    def _profile(self, bucket: int) -> int:
        return next(i for i, (_, high) in enumerate(self._recipe.profiles) if bucket <= high)

    def _prepare(self, bucket: int) -> tuple[Any, Any]:
        """A context of its own a batch size: a recorded graph stays true only while its context keeps its shapes."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise OutOfMemory("no execution context")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        if not context.set_optimization_profile_async(self._profile(bucket), self._stream):
            raise DeviceLost(f"profile {self._profile(bucket)} of the plan cannot be used")
        for name, shape, is_input in self._tensors:
            if is_input:
                rows = self._held[name].shape[0] if name in self._constants else bucket
                context.set_input_shape(name, (rows, *shape[1:]))
            context.set_tensor_address(name, self._buffers[name].address)
        self._enqueue(context, bucket)  # kernels are loaded, and compiled where that happens late, outside the recording
        self._cuda.wait(self._stream)
        try:
            return context, self._cuda.record(lambda: self._enqueue(context, bucket), self._stream)
        except CaptureRefused as error:
            log.warning("batches of %d run without a recorded graph: %s", bucket, error)
            return context, None

    def _enqueue(self, context: Any, bucket: int) -> None:
        for name, _, is_input in self._tensors:
            if is_input and name not in self._constants:
                buffer = self._buffers[name]
                self._cuda.to_device(buffer.address, buffer.host[: bucket * buffer.row], self._stream)
        if not context.execute_async_v3(int(self._stream)):
            self._cuda.failure("TensorRT did not enqueue the batch")
        for name, _, is_input in self._tensors:
            if not is_input:
                buffer = self._buffers[name]
                self._cuda.to_host(buffer.host[: bucket * buffer.row], buffer.address, self._stream)
