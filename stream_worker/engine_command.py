"""ecg-worker engine: plans built ahead into the cache, checked against this machine, and any backend's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from encoders.artifact import Artifact
from encoders.base import BackendUnavailable, Encoder
from encoders.engine.build import BuildError, library_of
from encoders.engine.plans import PlanRefused, Recipe, Source
from encoders.graph.front import FrontError
from encoders.signal import LEADS, WINDOW
from encoders.tensorrt_backend import Planner, recipe_of, source_of
from stream_worker.backend import opened
from stream_worker.errors import ConfigError
from stream_worker.operate import load_model, print_json
from stream_worker.settings import Settings, load_settings

__all__ = ["bench", "build", "check"]

err = Console(stderr=True)
LEAST_CALLS = 5


def build(
    artifact: Path | None,
    cache: Path | None,
    precision: str | None,
    chip: str | None,
    rates: Sequence[float],
    again: bool,
    json: bool,
) -> None:
    """See `ecg-worker engine build --help`."""
    settings, model, planner = _at_hand(artifact, cache, precision, chip)
    for what, source, recipe in _work(model, settings, rates):
        parts, began = planner.parts(source, recipe), time.monotonic()
        try:
            planner.cache.try_to_write()
            kept = None if again else _kept(planner, parts)
            plan = kept or _build(planner, what, source, recipe)
        except OSError as error:
            raise ConfigError(
                f"engine cache {planner.cache.directory}: cannot be written ({error.strerror or error})"
            ) from None
        except (BuildError, FrontError) as error:
            raise ConfigError(f"no engine for {planner.sm}, {what}: {error}") from None
        told = {"plan": str(planner.cache.path(parts)), "takes": what, "built": kept is None, "bytes": len(plan)}
        told |= {"seconds": round(time.monotonic() - began, 1), "ingredients": parts}
        if json:
            print_json(told)
            continue
        how = f"built in {told['seconds']} s by {library_of(planner.trt)} for {planner.sm}" if kept is None else "built before"
        Console().print(f"{what}: {told['plan']}, {len(plan) / 1e6:.1f} MB, {how}", soft_wrap=True)


def check(
    artifact: Path | None, cache: Path | None, precision: str | None, chip: str | None, rates: Sequence[float], json: bool
) -> int:
    """See `ecg-worker engine check --help`. -> exit code: 0 the plans would be loaded, 1 one is missing or damaged."""
    settings, model, planner = _at_hand(artifact, cache, precision, chip)
    worst = 0
    for what, source, recipe in _work(model, settings, rates):
        parts = planner.parts(source, recipe)
        try:
            problem = "" if planner.cache.load(parts) is not None else "none is kept for these ingredients"
        except PlanRefused as error:
            problem = str(error)
        worst = max(worst, int(bool(problem)))
        if json:
            plan = str(planner.cache.path(parts))
            print_json({"plan": plan, "takes": what, "ok": not problem, "problem": problem, "ingredients": parts})
            continue
        verdict = f"{problem}; build it: ecg-worker engine build" if problem else "as it was built"
        Console().print(f"{what}: {planner.cache.path(parts)}: {verdict}", soft_wrap=True)
    return worst


def bench(
    artifact: Path | None,
    cache: Path | None,
    precision: str | None,
    backend: str | None,
    batch: list[int],
    seconds: float,
    json: bool,
) -> None:
    """See `ecg-worker engine bench --help`."""
    settings = _settings(artifact, cache, precision, backend)
    with opened(load_model(settings), settings) as encoder:
        table = Table("batch", "windows/s", "median ms", "p99 ms", "calls")
        for n in batch:
            told: dict[str, Any] = {"backend": encoder.backend, "batch": n, **_measure(encoder, n, seconds)}
            if json:
                print_json(told)
            table.add_row(str(n), *(f"{told[key]:.4g}" for key in ("windows_per_s", "median_ms", "p99_ms")), str(told["calls"]))
        if not json:
            Console().print(f"{encoder.backend}: prepared windows in host memory -> embeddings in host memory")
            Console().print(table)


def _settings(artifact: Path | None, cache: Path | None, precision: str | None, backend: str | None = None) -> Settings:
    return load_settings(artifact=artifact, engine_cache=cache, engine_precision=precision, backend=backend)


def _at_hand(
    artifact: Path | None, cache: Path | None, precision: str | None, chip: str | None
) -> tuple[Settings, Artifact, Planner]:
    """Raises ConfigError where there is no GPU (and no --for) or no TensorRT, ArtifactRefused."""
    settings = _settings(artifact, cache, precision)
    model = load_model(settings)
    try:
        planner = Planner.elsewhere(chip, settings.engine_cache) if chip else Planner.here(settings.engine_cache)
    except BackendUnavailable as error:
        raise ConfigError(f"no engine here: {error}") from None
    return settings, model, planner


def _work(model: Artifact, settings: Settings, rates: Sequence[float]) -> list[tuple[str, Source, Recipe]]:
    """What each plan takes, its graph and its recipe: prepared windows first, then counts at each rate."""
    precision = settings.engine_precision
    asked = {"prepared windows": None} | {f"counts at {rate:g} Hz": round(rate * 1000) for rate in rates}
    try:
        return [(what, source_of(model, precision, at), recipe_of(precision, at)) for what, at in asked.items()]
    except BackendUnavailable as error:
        raise ConfigError(str(error)) from None


def _kept(planner: Planner, parts: dict[str, Any]) -> bytes | None:
    try:
        return planner.cache.load(parts)
    except PlanRefused as error:
        err.print(f"[dim]built again: {error}[/dim]", soft_wrap=True)
        return None


def _build(planner: Planner, what: str, source: Source, recipe: Recipe) -> bytes:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        tasks = {"": progress.add_task(what, total=None)}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done, total=total, visible=done < total)

        return planner.build(source, recipe, advance)


def _measure(encoder: Encoder, n: int, seconds: float) -> dict[str, Any]:
    """Calls of n windows for so long, after two that are not counted; their arrays differ, so that none is in a cache."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((n, len(LEADS), WINDOW), dtype=np.float32) for _ in range(2)]
    for x in inputs:
        encoder.encode(x)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_CALLS or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        encoder.encode(inputs[len(times) % 2])
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return {
        "windows_per_s": round(n / median, 1),
        "median_ms": round(median * 1e3, 3),
        "p99_ms": round(float(np.quantile(times, 0.99)) * 1e3, 3),
        "calls": len(times),
    }
