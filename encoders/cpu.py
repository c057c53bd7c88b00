"""Encoders on the CPU, whichever library runs them: the plain graph on prepared windows, and fused graphs on counts.

How many calls run at once, with how many threads each and how many windows a call, is a plan; `calibrated` finds it by trying.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from encoders.base import Floats, Scored, check_windows
from encoders.graph.front import FrontError
from encoders.graph.whole import FUSED_COSINE, check_whole
from encoders.signal import LEADS, WINDOW, SignalError

__all__ = ["CpuEncoder", "Loaded", "Plan", "calibrated", "cores_of"]

log = logging.getLogger(__name__)
RATES = 8  # fused graphs kept; a ninth rate is served step by step
BATCHES = (4, 8, 16, 32)
TRIED, BUDGET_S = 32, 0.8  # windows of one trial; for all trials together
_plans: dict[tuple[str, str, int], Plan] = {}


@dataclass(frozen=True)
class Plan:
    """calls: at once. threads: of each. batch: windows a call, at most."""

    calls: int = 1
    threads: int = 1
    batch: int = 32


Port = tuple[str, tuple[int | None, ...]]


class Loaded(Protocol):
    """A graph in a library; several threads may run it. inputs, outputs: (name, shape), None where it varies."""

    @property
    def inputs(self) -> Sequence[Port]: ...

    @property
    def outputs(self) -> Sequence[Port]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays by input name -> all outputs in order."""
        ...


Load = Callable[[bytes, Plan], Loaded]


def cores_of(threads: int | None) -> int:
    """Cores to use: as many as told, or those that this process may run on."""
    return threads or len(os.sched_getaffinity(0))


class CpuEncoder:
    """An `Encoder`, and a `WholeEncoder`, by `load`. Raises ValueError when the graph is none of an encoder.

    graph: of encoder.onnx or its 8-bit form. digest: of encoder.onnx. name: what messages call the file.
    """

    def __init__(self, graph: bytes, digest: str, backend: str, load: Load, plan: Plan, name: str = "encoder.onnx") -> None:
        self.digest, self.backend, self.plan = digest, backend, plan
        self._graph, self._load = graph, load
        self._plain: Loaded | None = load(graph, plan)
        inputs, outputs = self._plain.inputs, self._plain.outputs
        if len(inputs) != 1 or inputs[0][1][1:] != (len(LEADS), WINDOW) or len(outputs) != 1 or len(outputs[0][1]) != 2:
            raise ValueError(
                f"{name}: one input (B, {len(LEADS)}, {WINDOW}) and one output (B, D) expected, "
                f"found {[list(shape) for _, shape in inputs]} and {[list(shape) for _, shape in outputs]}"
            )
        self.dim = int(outputs[0][1][1] or 0)
        self.fused_cosine = FUSED_COSINE
        self.refused: dict[int, str] = {}  # rates that no graph serves, and why
        self._fused: dict[int, Loaded] = {}
        self._building = threading.Lock()
        self._pool = ThreadPoolExecutor(plan.calls, thread_name_prefix="encode")  # however many threads ask

    def encode(self, x: Floats) -> Floats:
        """x: float32 (B, 12, 5000) -> float32 (B, D), rows of norm 1."""
        check_windows(x)
        if self._plain is None:
            raise RuntimeError("the encoder is closed")
        if not len(x):
            return np.zeros((0, self.dim), dtype=np.float32)
        out = self._in_parts(self._plain, {self._plain.inputs[0][0]: np.ascontiguousarray(x)}, {}, len(x))[0]
        if out.shape != (len(x), self.dim):
            raise SignalError("shape", f"the encoder gave {out.shape}, ({len(x)}, {self.dim}) expected")
        return np.asarray(out, dtype=np.float32)

    def serves(self, fs_mhz: int) -> bool:
        """Whether whole windows at this rate can be given as counts. The first time the graph is built, and checked against
        the step-by-step path."""
        if fs_mhz in self._fused or fs_mhz in self.refused:
            return fs_mhz in self._fused
        with self._building:
            if fs_mhz not in self._fused and fs_mhz not in self.refused:
                self._build(fs_mhz)
        return fs_mhz in self._fused

    def _build(self, fs_mhz: int) -> None:
        if len(self._fused) >= RATES:
            self._refuse(fs_mhz, f"{RATES} rates have a graph already")
            return
        from encoders.graph.fused import fused_graph

        try:
            loaded = self._load(fused_graph(self._graph, fs_mhz).SerializeToString(), self.plan)
            self._fused[fs_mhz] = loaded
            check_whole(self, fs_mhz, self.fused_cosine)
        except (FrontError, ValueError) as error:
            self._fused.pop(fs_mhz, None)
            self._refuse(fs_mhz, str(error))

    def _refuse(self, fs_mhz: int, why: str) -> None:
        self.refused[fs_mhz] = why
        log.warning("windows at %g Hz are prepared step by step: %s", fs_mhz / 1000, why)

    def score(self, fs_mhz: int, counts: NDArray[np.int16], mix: Floats, least: Floats, labels: Floats, bias: Floats) -> Scored:
        """See `fused` for shapes; `serves` must have said yes."""
        if self._plain is None:
            raise RuntimeError("the encoder is closed")
        batch: dict[str, NDArray[Any]] = {"counts": counts, "mix": mix, "least": least}
        return Scored(*self._in_parts(self._fused[fs_mhz], batch, {"labels": labels, "bias": bias}, len(counts)))

    def _in_parts(
        self, loaded: Loaded, batch: Mapping[str, NDArray[Any]], rest: Mapping[str, NDArray[Any]], n: int
    ) -> list[NDArray[Any]]:
        """In calls of at most the plan's batch, as many at once as it says."""
        parts = max(-(-n // self.plan.batch), min(self.plan.calls, n))
        if parts == 1:
            return self._pool.submit(loaded.run, {**batch, **rest}).result()
        ends = [n * (i + 1) // parts for i in range(parts)]
        feeds = [{**{k: v[first:end] for k, v in batch.items()}, **rest} for first, end in zip([0, *ends], ends, strict=False)]
        return [np.concatenate(some) for some in zip(*self._pool.map(loaded.run, feeds), strict=True)]

    def close(self) -> None:
        """Release what the library holds."""
        self._plain = None
        self._fused.clear()
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def calibrated(open_with: Callable[[Plan], CpuEncoder], cores: int) -> CpuEncoder:
    """The encoder with the plan that is fastest on prepared windows, by trying; found once in a process for a graph."""
    x = np.random.default_rng(0).standard_normal((TRIED, len(LEADS), WINDOW), dtype=np.float32)
    until = time.perf_counter() + BUDGET_S
    best: tuple[float, CpuEncoder, Plan] | None = None
    shapes = dict.fromkeys([(cores, 1), (1, cores)])
    for calls, threads in shapes:
        encoder = open_with(Plan(calls, threads))
        if (known := _plans.get((encoder.backend, encoder.digest, cores))) is not None:
            if (known.calls, known.threads) == (calls, threads):
                encoder.plan = known
                return encoder
            encoder.close()
            continue
        encoder.encode(x[: 2 * calls])
        mine: tuple[float, CpuEncoder, Plan] | None = None
        for batch in BATCHES:
            if mine is not None and time.perf_counter() > until:
                break
            encoder.plan = replace(encoder.plan, batch=batch)
            seconds = min(_seconds(encoder, x[: max(batch * calls, TRIED // 2)]) for _ in range(2))
            if mine is None or seconds < mine[0]:
                mine = seconds, encoder, encoder.plan
        assert mine is not None
        if best is not None:
            (best if mine[0] < best[0] else mine)[1].close()
        best = mine if best is None or mine[0] < best[0] else best
    assert best is not None
    _, encoder, encoder.plan = best
    _plans[encoder.backend, encoder.digest, cores] = encoder.plan
    return encoder


def _seconds(encoder: CpuEncoder, x: Floats) -> float:
    """Of a window."""
    began = time.perf_counter()
    encoder.encode(x)
    return (time.perf_counter() - began) / len(x)
