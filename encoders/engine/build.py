"""An ONNX graph -> a plan, by TensorRT or by TensorRT-RTX: the same code, one import.

The network is strongly typed: a layer computes in the type of its inputs. Which type that is stands in the file, but for one
change that `_lower` makes: a convolution whose weights the file stores as float16 gets them as they are, with its input and
bias in the same type, instead of cast to float32. What follows inherits the type up to the mean over time, which is cast back,
so that mean, projection and norm are float32, and so are the filters, whose taps the file stores as float32.

Needs no GPU with TensorRT-RTX, where the compute capability is named; TensorRT times kernels on the GPU it builds for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from encoders.base import BackendUnavailable
from encoders.engine.plans import Recipe

__all__ = ["BuildError", "build", "configure", "library_of", "load_library", "parse"]

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # TensorRT-RTX is for GeForce and RTX chips, TensorRT for all of the vendor's
Say = Callable[[int, str], None]  # severity (0 internal error, 1 error, 2 warning, 3 information, 4 verbose), text


class BuildError(ValueError):
    """The graph cannot become a plan; the text is the library's own."""


def load_library() -> Any:
    """The module `tensorrt`, or `tensorrt_rtx` where only that is installed. Raises BackendUnavailable."""
    why = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            why.append(f"{name} is not installed")
        except Exception as error:  # an installed package whose libraries are missing or too old raises what it likes
            why.append(f"{name} does not load ({str(error)[:200]})")
    raise BackendUnavailable(f'no TensorRT: {", ".join(why)}; pip install "ecg-stream-worker[tensorrt]" or tensorrt-rtx')


def library_of(trt: Any) -> str:
    """Name and version, e.g. "tensorrt_rtx 1.7.1.116"."""
    return f"{trt.__name__} {trt.__version__}"


def logger(trt: Any, say: Say = lambda severity, text: None) -> Any:
    """A logger that keeps errors in `.errors` and hands every message to `say`; nothing is printed."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= 1:
                self.errors.append(text)
            say(int(severity), text)

    return Logger()


def parse(trt: Any, onnx: bytes, recipe: Recipe, log: Any) -> tuple[Any, Any, list[Any]]:
    """-> builder, strongly typed network, and what must live until it is built. Raises BuildError."""
    builder = trt.Builder(log)
    if builder is None:
        raise BuildError(_first(log, "no builder"))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise BuildError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or _first(log, "not parsed"))
    held: list[Any] = [parser]
    if recipe.precision in ("fp16", "bf16"):
        held += _lower(trt, network, trt.DataType.HALF if recipe.precision == "fp16" else trt.DataType.BF16)
    return builder, network, held


def _lower(trt: Any, network: Any, to: Any) -> list[Any]:
    """Convolutions with float16 weights compute in `to`, reductions in float32 -> arrays that the network refers to."""
    kind, held = trt.LayerType, []
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}

    def cast(tensor: Any, dtype: Any) -> Any:
        return tensor if tensor.dtype == dtype else network.add_cast(tensor, dtype).get_output(0)

    for layer in layers:
        if layer.type == kind.REDUCE:
            layer.set_input(0, cast(layer.get_input(0), trt.DataType.FLOAT))
        if layer.type != kind.CONVOLUTION or layer.num_inputs < 2:
            continue
        stored = maker[layer.get_input(1).name]
        if stored.type != kind.CAST or stored.get_input(0).dtype != trt.DataType.HALF:
            continue
        layer.set_input(0, cast(layer.get_input(0), to))
        layer.set_input(1, cast(stored.get_input(0), to))
        layer.__class__ = trt.IConvolutionLayer  # the bindings give the base class; the bias belongs to this one
        bias = _rounded(np.asarray(layer.bias, dtype=np.float32), half=to == trt.DataType.HALF)
        layer.bias = trt.Weights(to, bias.ctypes.data, bias.size)
        held.append(bias)
    if not held:
        raise BuildError("no convolution has weights stored as float16, so none can compute in it; use precision fp32")
    return held


def _rounded(values: Any, half: bool) -> Any:
    """float32 -> float16, or the bits of bfloat16 (numpy has no such type), to the nearest, ties to even."""
    if half:
        return np.ascontiguousarray(values, dtype=np.float16)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def build(
    trt: Any,
    onnx: bytes,
    recipe: Recipe,
    sm: str | None = None,
    timings: bytes = b"",
    advance: Callable[[str, int, int], None] = lambda phase, done, total: None,
    say: Say = lambda severity, text: None,
) -> tuple[bytes, bytes]:
    """-> plan, timing cache (empty with TensorRT-RTX, which has none). Raises BuildError.

    sm: compute capability to build for, e.g. "8.9", with TensorRT-RTX alone; None: this machine's GPU. timings: an earlier
    timing cache. advance is told the phase, its steps done and their number.
    """
    log = logger(trt, say)
    builder, network, held = parse(trt, onnx, recipe, log)
    config = configure(trt, builder, network, recipe, sm)
    config.progress_monitor = _monitor(trt, advance)
    cache = None
    if trt.__name__ == "tensorrt":
        cache = config.create_timing_cache(timings)
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    del held
    if plan is None:
        raise BuildError(_first(log, "no plan came out"))
    return bytes(plan), bytes(cache.serialize()) if cache is not None else b""


def configure(trt: Any, builder: Any, network: Any, recipe: Recipe, sm: str | None) -> Any:
    """The builder's settings for a recipe. Raises BuildError."""
    config = builder.create_builder_config()
    config.builder_optimization_level = recipe.level
    if not recipe.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _target(trt, config, sm)
    for low, high in recipe.profiles:
        config.add_optimization_profile(_profile(builder, network, recipe, low, high))
    return config


def _first(log: Any, otherwise: str) -> str:
    """The first error that the library logged: those that follow are its consequences."""
    return str(log.errors[0])[:500] if log.errors else otherwise


def _target(trt: Any, config: Any, sm: str | None) -> None:
    if not hasattr(config, "set_compute_capability"):
        if sm is not None:
            raise BuildError(f"{trt.__name__} builds for the GPU at hand; only TensorRT-RTX builds for another (asked: {sm})")
        return
    name = "CURRENT" if sm is None else "SM" + sm.replace(".", "")
    known = trt.ComputeCapability.__members__
    if name not in known:
        told = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
        raise BuildError(f"{library_of(trt)} knows no compute capability {sm}; it knows {told}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[name], 0)


def _profile(builder: Any, network: Any, recipe: Recipe, low: int, high: int) -> Any:
    """Open dimensions by name; the first of an input is the batch unless it is named otherwise."""
    profile = builder.create_optimization_profile()
    ranges = {name: sizes for name, *sizes in recipe.ranges}
    for i in range(network.num_inputs):
        tensor, sizes = network.get_input(i), []
        for k, n in enumerate(tuple(tensor.shape)):
            name = tensor.get_dimension_name(k)
            if n >= 0:
                sizes.append([n] * 3)
            elif name in ranges:
                sizes.append(ranges[name])
            elif k == 0:
                sizes.append([low, high, high])
            else:
                raise BuildError(f"input {tensor.name}: dimension {k} ({name}) is open, and no range is given for it")
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *zip(*sizes, strict=True))
    return profile


def _monitor(trt: Any, advance: Callable[[str, int, int], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            advance(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            advance(phase, step + 1, self.steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            advance(phase, self.steps.get(phase, 0), self.steps.get(phase, 0))

    return Monitor()
