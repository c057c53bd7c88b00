"""TensorRT as an `Encoder`: a plan from the cache or built here, run on two lanes of the GPU, a recorded graph a batch size.

The order that keeps a process alive: ask the driver for a GPU, then load the library, then compare the plan's sha256, then
deserialise, then compare the golden window. What fails on a kept plan is tried once more on a fresh one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from encoders import preprocess
from encoders.base import BackendUnavailable, Encoder, Floats, Scored, check_windows
from encoders.engine.build import BuildError, build, library_of, load_library
from encoders.engine.cuda_calls import Cuda, Gpu, OutOfMemory, probe
from encoders.engine.plans import EngineOptions, PlanCache, PlanRefused, Precision, Recipe, Source, default_cache, ingredients
from encoders.engine.run import Engine
from encoders.graph.whole import FUSED_COSINE, check_whole

if TYPE_CHECKING:
    from encoders.artifact import Artifact

__all__ = ["CONSTANTS", "FUSED", "Planner", "TensorRtEncoder", "open_tensorrt", "recipe_of", "source_of"]

FUSED = (("C", 1, 12, 12), ("L", 1, 98, 512))  # open dimensions of a graph from counts: recorded leads, labels of a bank
CONSTANTS = frozenset(["labels", "bias"])  # its inputs that are no window's own
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

    def parts(self, source: Source, recipe: Recipe) -> dict[str, Any]:
        """The ingredients of a plan."""
        return ingredients(source.name, recipe, library_of(self.trt), self.sm, self.driver)

    def build(self, source: Source, recipe: Recipe, advance: Callable[[str, int, int], None] = lambda *a: None) -> bytes:
        """Build and keep. A cache that cannot be written is a warning: the plan serves this process. Raises BuildError."""
        timing = {"timings": library_of(self.trt), "sm": self.sm, "driver": self.driver}
        plan, timings = build(
            self.trt, source.graph(), recipe, None if self.at_hand else self.sm, self.kept(timing) or b"", advance=advance
        )
        try:
            self.cache.store(self.parts(source, recipe), plan)
            if timings:
                self.cache.store(timing, timings)
        except OSError as error:
            log.warning("the engine plan is not kept, so the next start builds it again: %s", error)
        return plan

    def kept(self, parts: Mapping[str, Any]) -> bytes | None:
        """From the cache, or None: what is damaged there is dropped, and said."""
        try:
            return self.cache.load(parts)
        except PlanRefused as error:
            log.warning("dropped from the engine cache: %s", error)
            self.cache.drop(parts)
            return None

    def plan(self, source: Source, recipe: Recipe) -> tuple[bytes, bool]:
        """-> the plan, and whether it was kept. Raises BuildError."""
        kept = self.kept(self.parts(source, recipe))
        return (kept, True) if kept is not None else (self.build(source, recipe), False)


def _driver_part(trt: Any, driver: str) -> str:
    """A plan of TensorRT-RTX holds no driver's code: its runtime compiles for the chip where it runs."""
    return "any" if trt.__name__ == "tensorrt_rtx" else driver


class TensorRtEncoder:
    """An `Engine` from (B, 12, 5000) to (B, D) as an `Encoder`, and engines from counts as a `WholeEncoder`.

    digest: of the artifact's encoder.onnx. at_rate: opens the engine from counts at a rate in mHz, or raises ValueError.
    """

    def __init__(
        self, engine: Engine, digest: str, backend: str = "tensorrt", at_rate: Callable[[int], Engine] | None = None
    ) -> None:
        if len(engine.inputs) != 1 or len(engine.outputs) != 1:
            raise ValueError(f"one input and one output expected, the plan has {engine.inputs} and {list(engine.outputs)}")
        self._input, (self._output, shape), self._engine = engine.inputs[0], next(iter(engine.outputs.items())), engine
        self.dim, self.digest, self.backend = int(shape[-1]), digest, backend
        self.fused_cosine = FUSED_COSINE
        self.refused: dict[int, str] = {}  # rates that no engine serves, and why
        self._at_rate, self._rates, self._opening = at_rate, dict[int, Engine](), Lock()
        self._open = True

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1. Raises DeviceLost."""
        check_windows(x)
        if not self._open:
            raise RuntimeError("the encoder is closed")
        if not len(x):
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.asarray(self._engine.run({self._input: np.ascontiguousarray(x)})[self._output], dtype=np.float32)

    def serves(self, fs_mhz: int) -> bool:
        """Whether `score` takes counts at this rate: a plan is kept, and gives what the step-by-step path gives."""
        with self._opening:
            if self._at_rate is not None and fs_mhz not in self._rates and fs_mhz not in self.refused:
                try:
                    self._rates[fs_mhz] = self._at_rate(fs_mhz)
                    check_whole(self, fs_mhz, self.fused_cosine)
                except ValueError as error:
                    if (engine := self._rates.pop(fs_mhz, None)) is not None:
                        engine.close()
                    self.refused[fs_mhz] = str(error)
                    log.warning("counts at %g Hz are preprocessed on the CPU: %s", fs_mhz / 1000, error)
            return fs_mhz in self._rates

    def score(self, fs_mhz: int, counts: NDArray[np.int16], mix: Floats, least: Floats, labels: Floats, bias: Floats) -> Scored:
        """See `fused` for shapes; `serves` must have said yes. As bytes, for want of an int16. Raises DeviceLost."""
        planes = np.ascontiguousarray(counts, dtype="<i2").view(np.uint8).reshape(*counts.shape, 2)
        feeds: dict[str, NDArray[Any]] = {"counts": planes, "mix": mix, "least": least, "labels": labels, "bias": bias}
        out = self._rates[fs_mhz].run(feeds)
        return Scored(out["embedding"], out["logits"], out["band"])

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._open:
            self._open = False
            for engine in (self._engine, *self._rates.values()):
                engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def source_of(artifact: Artifact, precision: Precision, fs_mhz: int | None = None) -> Source:
    """The encoder's graph on prepared windows, or from counts at a rate. Raises BackendUnavailable.

    The matrices of a graph from counts differ in their last bits with the number of threads: its name is what it is made from.
    """
    name = "encoder.s8s8.onnx" if precision == "int8" else "encoder.onnx"
    if name not in artifact.manifest.files:
        raise BackendUnavailable(f"the artifact holds no {name}: export it with --s8s8, or use precision fp16")
    digest = artifact.manifest.files[name].sha256
    if fs_mhz is None:
        return Source(digest, lambda: artifact.read(name))

    def graph() -> bytes:
        from encoders.graph.fused import fused_graph

        return bytes(fused_graph(artifact.read(name), fs_mhz, planes=True).SerializeToString())

    return Source(f"{digest} from counts at {fs_mhz} mHz, preprocessing {preprocess.VERSION}", graph)


def recipe_of(precision: Precision, fs_mhz: int | None = None) -> Recipe:
    """How the plans of an artifact are made."""
    return Recipe(precision=precision, ranges=() if fs_mhz is None else FUSED)


def open_tensorrt(artifact: Artifact, options: EngineOptions, planner: Planner | None = None, cuda: Any = None) -> Encoder:
    """The artifact's encoder, its golden recording passed. Raises BackendUnavailable, ArtifactError, DeviceLost.

    Its plan is built where none is kept. Those from counts are not: that would hold scoring up for as long as it takes.
    """
    planner = planner or Planner.here(options.cache)
    source, recipe, cuda = source_of(artifact, options.precision), recipe_of(options.precision), cuda or Cuda()

    def at_rate(fs_mhz: int) -> Engine:
        of, made_as = source_of(artifact, options.precision, fs_mhz), recipe_of(options.precision, fs_mhz)
        if (plan := planner.kept(planner.parts(of, made_as))) is None:
            raise BackendUnavailable(f"no engine plan is kept for them: ecg-worker engine build --rate {fs_mhz / 1000:g}")
        return Engine(planner.trt, plan, made_as, cuda, constants=CONSTANTS)

    def checked(plan: bytes) -> TensorRtEncoder:
        backend = planner.trt.__name__.replace("_", "-") + ("-int8" if options.precision == "int8" else "")
        encoder = TensorRtEncoder(Engine(planner.trt, plan, recipe, cuda), artifact.encoder_digest, backend, at_rate)
        encoder.fused_cosine = artifact.manifest.tolerances.fused_cosine
        try:
            artifact.check_golden(encoder)
        except BaseException:
            encoder.close()
            raise
        return encoder

    try:
        plan, kept = planner.plan(source, recipe)
        if kept:
            try:
                return checked(plan)
            except ValueError as error:
                log.warning("the kept engine plan is built again: %s", error)
                planner.cache.drop(planner.parts(source, recipe))
                plan = planner.build(source, recipe)
        return checked(plan)
    except BuildError as error:
        raise BackendUnavailable(f"{library_of(planner.trt)} builds no engine here: {error}") from None
    except OutOfMemory as error:
        raise BackendUnavailable(f"no memory on the GPU ({error})") from None
