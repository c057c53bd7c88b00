"""TensorRT as an `Encoder`: a plan from the cache or built here, run on two lanes of the GPU, a recorded graph a batch size.

The order that keeps a process alive: ask the driver for a GPU, then load the library, then compare the plan's sha256, then
deserialise, then compare the golden window. What fails on a kept plan is tried once more on a fresh one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from encoders.base import BackendUnavailable, Encoder, Floats, check_windows
from encoders.engine import EngineOptions, PlanCache, PlanRefused, Precision, Recipe, default_cache, ingredients
from encoders.engine_build import BuildError, build, library_of, load_library
from encoders.engine_cuda import Cuda, Gpu, OutOfMemory, probe
from encoders.engine_run import Engine

if TYPE_CHECKING:
    from encoders.artifact import Artifact

__all__ = ["FUSED", "Planner", "TensorRtEncoder", "graph_of", "open_engine", "open_tensorrt"]

FUSED = Recipe(ranges=(("C", 1, 12, 12), ("L", 1, 98, 512)))  # recorded leads, labels of a bank
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planner:
    """Plans of one machine: its library, its GPU, its cache. `here` asks the machine; `sm` alone is for building elsewhere."""

    trt: Any
    sm: str
    driver: str
    cache: PlanCache
    at_hand: bool = True  # the GPU of `sm` is in this machine

    @classmethod
    def here(cls, cache: Path | None = None) -> Planner:
        """Raises BackendUnavailable: no GPU, or no TensorRT."""
        gpu: Gpu = probe()
        trt = load_library()
        return cls(trt, gpu.sm, _driver_part(trt, gpu.driver), PlanCache(cache or default_cache()))

    @classmethod
    def elsewhere(cls, sm: str, cache: Path | None = None) -> Planner:
        """For a GPU of another machine; only TensorRT-RTX builds such plans. Raises BackendUnavailable."""
        trt = load_library()
        return cls(trt, sm, _driver_part(trt, "another machine's"), PlanCache(cache or default_cache()), at_hand=False)

    def parts(self, onnx: bytes, recipe: Recipe) -> dict[str, Any]:
        """The ingredients of a plan."""
        return ingredients(onnx, recipe, library_of(self.trt), self.sm, self.driver)

    def build(self, onnx: bytes, recipe: Recipe, advance: Callable[[str, int, int], None] = lambda *a: None) -> bytes:
        """Build and keep. A cache that cannot be written is a warning: the plan serves this process. Raises BuildError."""
        timing = {"timings": library_of(self.trt), "sm": self.sm, "driver": self.driver}
        plan, timings = build(
            self.trt, onnx, recipe, None if self.at_hand else self.sm, self._kept(timing) or b"", advance=advance
        )
        try:
            self.cache.store(self.parts(onnx, recipe), plan)
            if timings:
                self.cache.store(timing, timings)
        except OSError as error:
            log.warning("the engine plan is not kept, so the next start builds it again: %s", error)
        return plan

    def _kept(self, parts: Mapping[str, Any]) -> bytes | None:
        try:
            return self.cache.load(parts)
        except PlanRefused as error:
            log.warning("built again: %s", error)
            self.cache.drop(parts)
            return None

    def plan(self, onnx: bytes, recipe: Recipe) -> tuple[bytes, bool]:
        """-> the plan, and whether it was kept. Raises BuildError."""
        kept = self._kept(self.parts(onnx, recipe))
        return (kept, True) if kept is not None else (self.build(onnx, recipe), False)


def _driver_part(trt: Any, driver: str) -> str:
    """A plan of TensorRT-RTX holds no driver's code: its runtime compiles for the chip where it runs."""
    return "any" if trt.__name__ == "tensorrt_rtx" else driver


class TensorRtEncoder:
    """An `Engine` from (B, 12, 5000) to (B, D) as an `Encoder`. digest: of the artifact's encoder.onnx."""

    def __init__(self, engine: Engine, digest: str, backend: str = "tensorrt") -> None:
        if len(engine.inputs) != 1 or len(engine.outputs) != 1:
            raise ValueError(f"one input and one output expected, the plan has {engine.inputs} and {list(engine.outputs)}")
        self._input, (self._output, shape), self._engine = engine.inputs[0], next(iter(engine.outputs.items())), engine
        self.dim, self.digest, self.backend = int(shape[-1]), digest, backend
        self._open = True

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1. Raises DeviceLost."""
        check_windows(x)
        if not self._open:
            raise RuntimeError("the encoder is closed")
        if not len(x):
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.asarray(self._engine.run({self._input: np.ascontiguousarray(x)})[self._output], dtype=np.float32)

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._open:
            self._open = False
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def graph_of(artifact: Artifact, precision: Precision) -> bytes:
    """The file that a precision is built from. Raises BackendUnavailable, ArtifactError."""
    name = "encoder.s8s8.onnx" if precision == "int8" else "encoder.onnx"
    if name not in artifact.manifest.files:
        raise BackendUnavailable(f"the artifact holds no {name}: export it with --s8s8, or use precision fp16")
    return artifact.read(name)


def open_tensorrt(artifact: Artifact, options: EngineOptions, planner: Planner | None = None, cuda: Any = None) -> Encoder:
    """The artifact's encoder, its golden recording passed. Raises BackendUnavailable, ArtifactError, DeviceLost."""
    planner = planner or Planner.here(options.cache)

    def encoder(engine: Engine) -> TensorRtEncoder:
        return TensorRtEncoder(engine, artifact.encoder_digest, planner.trt.__name__.replace("_", "-"))

    def check(engine: Engine) -> None:
        artifact.check_golden(encoder(engine))

    recipe = Recipe(precision=options.precision)
    return encoder(open_engine(graph_of(artifact, options.precision), recipe, check, planner, cuda))


def open_engine(
    onnx: bytes,
    recipe: Recipe,
    check: Callable[[Engine], None],
    planner: Planner,
    cuda: Any = None,
    constants: frozenset[str] = frozenset(),
) -> Engine:
    """A plan that passes `check`: the kept one, else a fresh one, once. Raises BackendUnavailable, or what `check` raises.

    Any graph will do: with `FUSED` and the constants labels and bias, that of `encoders.fused` with byte planes.
    """
    cuda = cuda or Cuda()

    def checked(plan: bytes) -> Engine:
        engine = Engine(planner.trt, plan, recipe, cuda, constants=constants)
        try:
            check(engine)
        except BaseException:
            engine.close()
            raise
        return engine

    try:
        plan, kept = planner.plan(onnx, recipe)
        if kept:
            try:
                return checked(plan)
            except ValueError as error:
                log.warning("the kept engine plan is built again: %s", error)
                planner.cache.drop(planner.parts(onnx, recipe))
                plan = planner.build(onnx, recipe)
        return checked(plan)
    except BuildError as error:
        raise BackendUnavailable(f"{library_of(planner.trt)} builds no engine here: {error}") from None
    except OutOfMemory as error:
        raise BackendUnavailable(f"no memory on the GPU ({error})") from None
