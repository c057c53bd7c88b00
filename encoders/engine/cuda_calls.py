"""The GPU: whether there is one that answers, and the few calls of the CUDA runtime that an engine needs.

`probe` asks the driver itself, before anything else is loaded: a TensorRT runtime ends the process where there is no GPU.
`Cuda` is NVIDIA's own binding (cuda-bindings, 31 MB, no compiler and no kernels of its own); torch could do the same and is
4.7 GB. Errors are of three kinds: memory that is not there, a capture that is refused, and all others, after which no call of
this process can be trusted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import BackendUnavailable, DeviceLost

__all__ = ["CaptureRefused", "Cuda", "Gpu", "OutOfMemory", "probe"]

Bytes = NDArray[np.uint8]
OUT_OF_MEMORY = 2
CAPTURE = range(900, 911)  # cudaErrorStreamCaptureUnsupported and its neighbours: they end the capture, not the context
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class OutOfMemory(RuntimeError):
    """The accelerator has no room for this batch."""


class CaptureRefused(RuntimeError):
    """What was to be recorded cannot be."""


@dataclass(frozen=True)
class Gpu:
    """name: as sold. sm: compute capability, "9.0". driver: its version, "580.159.03"."""

    name: str
    sm: str
    driver: str


def probe() -> Gpu:
    """The first GPU (CUDA_VISIBLE_DEVICES says which that is). Raises BackendUnavailable, saying what is missing."""
    cuda = _library("libcuda.so.1")
    if cuda is None:
        raise BackendUnavailable(
            "no NVIDIA driver: libcuda.so.1 is not found (in a container: start it with the NVIDIA runtime, e.g. --gpus all)"
        )
    if code := cuda.cuInit(0):
        raise BackendUnavailable(f"the NVIDIA driver does not start: cuInit gives {code} ({_meaning(cuda, code)})")
    count = ctypes.c_int()
    if (code := cuda.cuDeviceGetCount(ctypes.byref(count))) or not count.value:
        raise BackendUnavailable(f"the NVIDIA driver shows no GPU (cuDeviceGetCount gives {code}): see CUDA_VISIBLE_DEVICES")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    major, minor = ctypes.c_int(), ctypes.c_int()
    codes = [
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
    ]
    if any(codes):
        raise BackendUnavailable(f"the GPU does not say what it is: the driver gives {max(codes)}")
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", _driver(cuda))


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _meaning(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return (text.value or b"unknown").decode(errors="replace")


def _driver(cuda: Any) -> str:
    """The driver's version by its management library, else the CUDA version that it offers."""
    nvml = _library("libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(80)
    if nvml is not None and not nvml.nvmlInit_v2() and not nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return text.value.decode(errors="replace")
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


class Cuda:
    """Memory, one-way copies, streams and recorded graphs of the first GPU. Raises OutOfMemory, CaptureRefused, DeviceLost."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendUnavailable(f"no CUDA bindings ({error}): pip install cuda-bindings") from None
        self._rt: Any = runtime

    def _call(self, name: str, *args: Any) -> Any:
        """One call of the runtime -> what it gives besides its error code."""
        code, *out = getattr(self._rt, name)(*args)
        if int(code):
            told = f"{name}: {getattr(code, 'name', code)} ({int(code)})"
            self._rt.cudaGetLastError()  # an error that does not stick is forgotten here
            if int(code) == OUT_OF_MEMORY:
                raise OutOfMemory(told)
            if int(code) in CAPTURE:
                raise CaptureRefused(told)
            raise DeviceLost(told)
        return out[0] if out else None

    def pinned(self, size: int) -> Bytes:
        """uint8 (size,) in memory that the GPU copies from and to by itself. Give it back with `unpin`."""
        address = int(self._call("cudaHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: Bytes) -> None:
        """The array must not be used afterwards."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def memory(self, size: int) -> int:
        """Address on the GPU."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give `memory` back."""
        self._call("cudaFree", address)

    def stream(self) -> Any:
        """A queue that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def to_device(self, address: int, host: Bytes, stream: Any) -> None:
        """Enqueue a copy of all of `host`, which must be pinned."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: Bytes, address: int, stream: Any) -> None:
        """Enqueue a copy that fills `host`, which must be pinned."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def wait(self, stream: Any) -> None:
        """Until all that was enqueued is done; errors of it come out here."""
        self._call("cudaStreamSynchronize", stream)

    def failure(self, what: str) -> None:
        """Raise what the runtime knows of a call that only said "no"."""
        self._call("cudaGetLastError")
        raise DeviceLost(f"{what}, and the CUDA runtime knows no reason")

    def record(self, work: Callable[[], None], stream: Any) -> Any:
        """What `work` enqueues on `stream`, as a graph for `play`; it does not run yet. Raises CaptureRefused."""
        self._call("cudaStreamBeginCapture", stream, self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            self._rt.cudaStreamEndCapture(stream)  # or the stream stays in capture mode
            raise
        return self._call("cudaGraphInstantiate", self._call("cudaStreamEndCapture", stream), 0)

    def play(self, graph: Any, stream: Any) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def forget(self, graph: Any) -> None:
        """Give a recorded graph back."""
        self._call("cudaGraphExecDestroy", graph)
