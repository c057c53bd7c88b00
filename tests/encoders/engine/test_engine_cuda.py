"""What is missing for a GPU is said; and every call of the CUDA runtime has the signature that the binding takes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from encoders.base import BackendUnavailable, DeviceLost
from encoders.engine import cuda_calls as engine_cuda
from encoders.engine.cuda_calls import CaptureRefused, Cuda, Gpu, OutOfMemory, probe


def driver(init: int = 0, devices: int = 1, attribute: int = 0) -> Any:
    """A libcuda with one GPU of compute capability 9.0."""

    def put(value: int) -> Callable[..., int]:
        def call(target: Any, *rest: Any) -> int:
            target._obj.value = value
            return 0

        return call

    def attributes(target: Any, which: int, device: Any) -> int:
        target._obj.value = {75: 9, 76: 0}[which]
        return attribute

    def name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"NVIDIA TEST"
        return 0

    def meaning(code: int, target: Any) -> int:
        target._obj.value = b"unknown error"
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDeviceGetCount=put(devices),
        cuDeviceGet=put(0),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=attributes,
        cuDriverGetVersion=put(13020),
        cuGetErrorString=meaning,
    )


def with_libraries(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    def load(name: str) -> Any:
        if name.split(".")[0] in found:
            return found[name.split(".")[0]]
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(engine_cuda.ctypes, "CDLL", load)


def version(buffer: Any, size: int) -> int:
    buffer.value = b"580.159.03"
    return 0


def test_a_gpu_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, libcuda=driver())
    assert probe() == Gpu("NVIDIA TEST", "9.0", "CUDA 13.2")
    nvml = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=version)
    with_libraries(monkeypatch, **{"libcuda": driver(), "libnvidia-ml": nvml})
    assert probe().driver == "580.159.03"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver: libcuda\.so\.1 is not found .*--gpus all"):
        probe()
    with_libraries(monkeypatch, libcuda=driver(init=999))
    with pytest.raises(BackendUnavailable, match=r"cuInit gives 999 \(unknown error\)"):
        probe()
    with_libraries(monkeypatch, libcuda=driver(devices=0))
    with pytest.raises(BackendUnavailable, match=r"shows no GPU .* CUDA_VISIBLE_DEVICES"):
        probe()
    with_libraries(monkeypatch, libcuda=driver(attribute=101))
    with pytest.raises(BackendUnavailable, match="does not say what it is: the driver gives 101"):
        probe()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailable, match=r"no CUDA bindings .*pip install cuda-bindings"):
        Cuda()


def no_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


@pytest.mark.skipif(not no_gpu(), reason="the calls below would reach a GPU")
def test_every_call_has_the_bindings_signature() -> None:
    """Without a driver each call answers with an error code: a wrong number or type of arguments would be a TypeError."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings, which comes with torch on Linux")
    cuda, host = Cuda(), np.zeros(8, dtype=np.uint8)
    stream = cuda._rt.cudaStream_t(0)
    calls: list[Callable[[], object]] = [
        lambda: cuda.pinned(8), lambda: cuda.unpin(host), lambda: cuda.memory(8), lambda: cuda.free(0), cuda.stream,
        lambda: cuda.to_device(4096, host, stream), lambda: cuda.to_host(host, 4096, stream), lambda: cuda.wait(stream),
        lambda: cuda.failure("it"), lambda: cuda.record(lambda: None, stream),
        lambda: cuda.play(cuda._rt.cudaGraphExec_t(0), stream), lambda: cuda.forget(cuda._rt.cudaGraphExec_t(0)),
        lambda: cuda._call("cudaStreamEndCapture", stream),
        lambda: cuda._call("cudaGraphInstantiate", cuda._rt.cudaGraph_t(0), 0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(DeviceLost, match=r"^cuda[A-Za-z]+: cudaErrorInsufficientDriver"):
            call()


def runtime(**results: Any) -> Any:
    """A binding whose calls give these results; each call is noted in `.called`."""
    module: Any = ModuleType("runtime")
    module.called = []

    def make(name: str, result: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            module.called.append(name)
            return result

        return call

    results = {"cudaGetLastError": (0,), "cudaStreamBeginCapture": (0,)} | results
    for name, result in results.items():
        setattr(module, name, make(name, result))
    module.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    return module


def bound(binding: Any) -> Cuda:
    cuda = Cuda.__new__(Cuda)
    cuda._rt = binding
    return cuda


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, OutOfMemory), (901, CaptureRefused), (906, CaptureRefused), (700, DeviceLost), (719, DeviceLost), (999, DeviceLost)],
)
def test_errors_are_of_three_kinds(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"cudaMalloc: {code} \({code}\)"):
        bound(runtime(cudaMalloc=(code, None))).memory(8)


def test_a_recording_that_fails_is_ended() -> None:
    binding = runtime(cudaStreamEndCapture=(901, None), cudaMemcpyAsync=(900,))
    cuda = bound(binding)

    def work() -> None:
        raise CaptureRefused("in the middle")

    with pytest.raises(CaptureRefused, match="in the middle"):
        cuda.record(work, 1)
    assert binding.called == ["cudaStreamBeginCapture", "cudaStreamEndCapture"]
    with pytest.raises(CaptureRefused, match="cudaStreamEndCapture"):
        cuda.record(lambda: None, 1)


def test_a_call_that_only_says_no_is_explained() -> None:
    with pytest.raises(DeviceLost, match="cudaGetLastError: 700"):
        bound(runtime(cudaGetLastError=(700,))).failure("the batch was not enqueued")
    with pytest.raises(DeviceLost, match="the batch was not enqueued, and the CUDA runtime knows no reason"):
        bound(runtime()).failure("the batch was not enqueued")
