"""`ecg-worker bench`: the command line. Heavy imports happen inside."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from encoders.base import Encoder
from stream_worker.backend import opened
from stream_worker.bench.report import Capacity, Carried, draw, latency_table, streams_table
from stream_worker.bench.stages import LANES, measure_stages
from stream_worker.bench.through_kafka import Latency, latency, saturate
from stream_worker.errors import BadInput, BrokerUnavailable
from stream_worker.operate import load_model, print_json
from stream_worker.score import Scorer
from stream_worker.settings import Settings, load_settings
from stream_worker.telemetry import Metrics

__all__ = ["bench"]

SHARES = (0.25, 0.5, 0.75, 0.9)  # of the most that it reached
SATURATED_S, STEADY_S = 6.0, 12.0


def bench(kafka: str | None, artifact: Path | None, json: bool, plot: Path | None) -> None:
    """See `ecg-worker bench --help`."""
    if plot is not None:
        _can_draw(plot)
    settings = load_settings(kafka=kafka, artifact=artifact)
    err = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with (
        opened(load_model(settings), settings, Metrics()) as encoder,
        Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        task = progress.add_task("", total=2 * len(LANES) + len(SHARES) + 1)
        found = asyncio.run(_measure(settings, encoder, lambda what: progress.update(task, description=what, advance=1), err))
    if json:
        print_json(found.as_json())
    else:
        out = Console() if sys.stdout.isatty() else Console(width=120)
        out.print(streams_table(found))
        if found.latencies:
            out.print(latency_table(found))
    if plot is not None:
        draw(found, plot)
        err.print(f"drawn: {plot}")


def _can_draw(plot: Path) -> None:
    """Before three minutes of work. Raises BadInput."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise BadInput('--plot needs the extra `view`: pip install "ecg-stream-worker[view]"') from None
    if not plot.parent.is_dir():
        raise BadInput(f"--plot {plot}: there is no folder {plot.parent}")


async def _measure(settings: Settings, encoder: Encoder, tell: Callable[[str], None], err: Console) -> Capacity:
    began = time.monotonic()
    scorer = Scorer(encoder, load_model(settings).bank())
    carried = []
    for lane in LANES:
        tell(f"{lane.name}: each stage alone")
        carried.append(Carried(lane, measure_stages(lane, scorer, settings.batch_size)))
    latencies: list[Latency] = []
    try:
        for i, one in enumerate(carried):
            tell(f"{one.lane.name}: through Kafka, as fast as it goes")
            windows = int(SATURATED_S / one.stages.score.wall_s)
            carried[i] = Carried(one.lane, one.stages, await saturate(settings, one.lane, windows))
        most = carried[0].windows_per_s
        other = "at_least_once" if settings.delivery == "exactly_once" else "exactly_once"
        for share, delivery in [*((share, settings.delivery) for share in SHARES), (0.5, other)]:
            tell(f"{carried[0].lane.name}: {share:.0%} of that in real time, {delivery.replace('_', ' ')}")
            latencies.append(await latency(settings, carried[0].lane, share * most, STEADY_S, delivery))
    except BrokerUnavailable as error:
        err.print(f"not measured through Kafka: {error}", markup=False)
    err.print(f"took {time.monotonic() - began:.0f} s")
    return Capacity(
        os.cpu_count() or 1,
        encoder.backend,
        encoder.digest[:16],
        settings.hop_ms,
        settings.batch_size,
        settings.batch_deadline_ms,
        settings.commit_interval_ms,
        carried,
        latencies,
    )
