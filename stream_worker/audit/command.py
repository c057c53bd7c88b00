"""The command `ecg-worker audit`: options -> an audit -> a table or JSON, and an exit code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stream_worker.audit.report import KINDS, Report
from stream_worker.audit.source import KafkaSource
from stream_worker.audit.time_range import Span, Tick, examine, moment
from stream_worker.errors import ConfigError, WorkerError
from stream_worker.kafka.security import security_of
from stream_worker.operate import print_json
from stream_worker.settings import Settings, load_settings

__all__ = ["CannotCheck", "audit"]

SHOWN = 20  # items that people are shown; --json has them all


class CannotCheck(WorkerError):
    """Nothing can be said: neither that all is well nor that it is not."""

    exit_code: ClassVar[int] = 2


def audit(
    since: str | None, until: str | None, offsets: str | None, partitions: Sequence[int], json: bool, **options: Any
) -> int:
    """See `ecg-worker audit --help`. Returns the exit code 0 or 1; raises CannotCheck."""
    try:
        settings = load_settings(**options)
        report = asyncio.run(_examine(settings, _span(since, until, offsets, partitions)))
    except WorkerError as error:
        raise CannotCheck(f"could not be checked: {error}") from None
    if json:
        print_json(report.body())
    else:
        _show(report)
    if report.consistent and not report.judged:
        raise CannotCheck(
            "could not be checked: no window and no refusal of this range can be judged; take a longer one, or wait until "
            f"group {settings.group} has come so far"
        )
    return 0 if report.consistent else 1


def _span(since: str | None, until: str | None, offsets: str | None, partitions: Sequence[int]) -> Span:
    now = time.time_ns() // 1_000_000
    times = [None if text is None else moment(text, now) for text in (since, until)]
    if offsets is None:
        return Span(times[0], times[1], None, tuple(partitions))
    if since or until or len(partitions) != 1:
        raise ConfigError("--offsets needs one --partition, and neither --since nor --until")
    first, _, end = offsets.partition(":")
    if not first.isdecimal() or not (end.isdecimal() or not end):
        raise ConfigError(f"--offsets {offsets!r}: FIRST:END expected, for instance 1000:2000, or 1000: up to the end")
    return Span(None, None, (int(first), int(end) if end else None), tuple(partitions))


async def _examine(settings: Settings, span: Span) -> Report:
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        async with KafkaSource(settings.kafka, security_of(settings)) as source:
            return await examine(source, settings, span, _ticker(progress))


def _ticker(progress: Progress) -> Tick:
    task = progress.add_task("connecting", total=None)

    def tick(what: str, done: int, total: int) -> None:
        if done % 256 == 0 or done == total:
            progress.update(task, description=what, completed=done, total=total)

    return tick


def _show(report: Report) -> None:
    out = Console()
    out.print(report.table())
    for kind, count in report.counts.items():
        if count:
            out.print(f"{kind.replace('_', ' ')}: {count}  ({KINDS[kind]})", soft_wrap=True, highlight=False)
    items = list(report.items())
    for item in items[:SHOWN]:
        spelled = "  ".join(f"{name}={value}" for name, value in item.items() if name not in ("kind", "session_start_ns"))
        out.print(f"  {item['kind']}  {spelled}", soft_wrap=True, markup=False, highlight=False)
    if len(items) > SHOWN:
        out.print(f"  and {sum(report.counts.values()) - SHOWN} more: --json", highlight=False)
    for part in report.parts:
        for first, end in part.lost:
            out.print(
                f"partition {part.number}: retention took the records {first} to {end} before they were read", soft_wrap=True
            )
    if report.judged:
        out.print("consistent" if report.consistent else "inconsistent", style="green" if report.consistent else "red")
