"""ecg-worker engine: plans built ahead into the cache, checked against this machine, and any backend's speed."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from encoders.artifact import Artifact, ArtifactError
from encoders.base import BackendUnavailable, Encoder
from encoders.engine import PlanRefused, Precision, Recipe
from encoders.engine_build import BuildError, library_of
from encoders.signal import LEADS, WINDOW
from encoders.tensorrt_backend import Planner, graph_of
from stream_worker.backend import opened
from stream_worker.errors import ConfigError
from stream_worker.operate import load_model, print_json
from stream_worker.settings import Settings, load_settings

__all__ = ["bench", "build", "check"]

err = Console(stderr=True)
LEAST_CALLS = 5


def build(artifact: Path | None, cache: Path | None, precision: str | None, chip: str | None, again: bool, json: bool) -> None:
    """See `ecg-worker engine build --help`."""
    settings, model, planner = _at_hand(artifact, cache, precision, chip)
    graph, recipe = _work(model, settings.engine_precision)
    parts = planner.parts(graph, recipe)
    told: dict[str, Any] = {"plan": str(planner.cache.path(parts)), "library": library_of(planner.trt), "chip": planner.sm}
    told |= {"precision": recipe.precision, "profiles": [list(p) for p in recipe.profiles]}
    began = time.monotonic()
    try:
        planner.cache.try_to_write()
        kept = None if again else _kept(planner, parts)
        plan = kept or _build(planner, graph, recipe)
    except OSError as error:
        raise ConfigError(f"engine cache {planner.cache.directory}: cannot be written ({error.strerror or error})") from None
    except BuildError as error:
        raise ConfigError(f"no engine for {planner.sm}: {error}") from None
    told |= {"built": kept is None, "seconds": round(time.monotonic() - began, 1), "bytes": len(plan)}
    if json:
        return print_json(told)
    how = f"built in {told['seconds']} s" if kept is None else "was built before"
    Console().print(f"{told['plan']}: {len(plan) / 1e6:.1f} MB, {how}, {told['library']}, for {planner.sm}", soft_wrap=True)


def check(artifact: Path | None, cache: Path | None, precision: str | None, chip: str | None, json: bool) -> int:
    """See `ecg-worker engine check --help`. -> exit code: 0 the plan would be loaded, 1 it would be built first."""
    settings, model, planner = _at_hand(artifact, cache, precision, chip)
    graph, recipe = _work(model, settings.engine_precision)
    parts = planner.parts(graph, recipe)
    path, remedy = planner.cache.path(parts), "a worker would build it at its start; build it now: ecg-worker engine build"
    try:
        plan = planner.cache.load(parts)
        problem = "" if plan is not None else f"none is kept for these ingredients; {remedy}"
    except PlanRefused as error:
        problem = f"{error}; {remedy}"
    if json:
        print_json({"plan": str(path), "ok": not problem, "problem": problem, "ingredients": parts})
    else:
        Console().print(f"{path}: {problem or 'as it was built, for this model, library, chip and driver'}", soft_wrap=True)
    return 1 if problem else 0


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


def _work(model: Artifact, precision: Precision) -> tuple[bytes, Recipe]:
    try:
        return graph_of(model, precision), Recipe(precision=precision)
    except (BackendUnavailable, ArtifactError) as error:
        raise ConfigError(str(error)) from None


def _kept(planner: Planner, parts: dict[str, Any]) -> bytes | None:
    try:
        return planner.cache.load(parts)
    except PlanRefused as error:
        err.print(f"[dim]built again: {error}[/dim]", soft_wrap=True)
        return None


def _build(planner: Planner, graph: bytes, recipe: Recipe) -> bytes:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        tasks = {"": progress.add_task("building", total=None)}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done, total=total, visible=done < total)

        return planner.build(graph, recipe, advance)


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
