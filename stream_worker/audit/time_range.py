"""An audit of a range of the logs: what to read, in which order, partition by partition.

The order lets an audit run beside the worker without false alarms: (1) the group's commit, (2) findings and dead letters up to
where they end, (3) chunks up to where they end, (4) what was published meanwhile. So whatever the commit says is published has
been read, and every finding of (2) has its chunks in (3).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from stream_worker.audit.judge import PartitionAudit
from stream_worker.audit.report import PartReport, Report
from stream_worker.audit.source import Source
from stream_worker.errors import ConfigError
from stream_worker.run import Rules
from stream_worker.seam import Position, Record
from stream_worker.settings import Settings
from stream_worker.wire import Decoder

__all__ = ["Span", "examine", "moment"]

SETTLE_S = 1.0  # a commit can be seen this long before the findings of its transaction
SKEW_MS = 60_000  # by which the worker's clock, which stamps findings, may differ from the log's
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Tick = Callable[[str, int, int], None]  # what is read, records read of it, records in all


@dataclass(frozen=True)
class Span:
    """What to judge: chunk records from `since` to `until` (log time, ms; None: all that is held), or of one partition
    `offsets`, [first, end). partitions: those to look at; none named: all."""

    since: int | None = None
    until: int | None = None
    offsets: tuple[int, int | None] | None = None
    partitions: Sequence[int] = ()


def moment(text: str, now_ms: int) -> int:
    """Epoch ms of "90s", "15m", "2h", "1d" (ago) or of an ISO time, UTC where it names no zone. Raises ConfigError."""
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    if ago:
        return now_ms - int(ago[1]) * UNITS_MS[ago[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no time: 2h, 30m (ago) or 2024-05-01T12:00:00 (UTC) expected") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


async def examine(
    source: Source,
    settings: Settings,
    span: Span = Span(),
    tick: Tick = lambda what, done, total: None,
) -> Report:
    """Audit by the settings' topics, group, hop and delivery. Raises ConfigError where there is nothing to judge by."""
    count = await source.partitions(settings.chunks_topic)
    if count == 0:
        raise ConfigError(f"topic {settings.chunks_topic} does not exist: check ECG_CHUNKS_TOPIC and ECG_KAFKA")
    for topic in (settings.findings_topic, settings.dead_letters_topic):
        if (there := await source.partitions(topic)) < count:
            raise ConfigError(
                f"topic {topic} has {there} partitions and {settings.chunks_topic} has {count}: see ecg-worker check"
            )
    wanted = sorted(set(span.partitions)) or range(count)
    if not all(0 <= number < count for number in wanted):
        raise ConfigError(f"topic {settings.chunks_topic} has the partitions 0 to {count - 1}")
    commits = [await source.committed(settings.group, settings.chunks_topic, number) for number in wanted]
    if not any(commits):
        raise ConfigError(
            f"group {settings.group} has committed nothing on {settings.chunks_topic}: name the worker's with --group"
        )
    report = Report(settings.delivery)
    for number in wanted:
        report.add(await _Partition(source, settings, number, tick).examine(span))
    return report


class _Range(NamedTuple):
    """Offsets of chunks: read from `begin`, judge [start, end). findings, letters: where to begin with those."""

    begin: int
    start: int
    end: int | None
    findings: int
    letters: int


class _Partition:
    """The audit of one partition."""

    def __init__(self, source: Source, settings: Settings, number: int, tick: Tick) -> None:
        self.source, self.settings, self.number, self.tick = source, settings, number, tick
        self.rules = Rules(hop_ms=settings.hop_ms)

    async def examine(self, span: Span) -> PartReport:
        s = self.settings
        commit: Position | None = await self.source.committed(s.group, s.chunks_topic, self.number)
        of = await self._range(span)
        decode = Decoder(s.max_chunk_bytes)
        audit = PartitionAudit(self.number, self.rules, commit, of.start, of.end, of.begin == 0, s.chunks_topic, decode)
        findings = await self._read(s.findings_topic, of.findings, audit.finding)
        letters = await self._read(s.dead_letters_topic, of.letters, audit.letter)
        end, ended = await self._chunks(of.begin, audit)
        if audit.waits:
            await asyncio.sleep(SETTLE_S)
        findings = await self._read(s.findings_topic, findings, lambda record: audit.finding(record, late=True))
        await self._read(s.dead_letters_topic, letters, audit.letter)
        return audit.finish(findings, end, ended)

    async def _range(self, span: Span) -> _Range:
        chunks, source, s = self.settings.chunks_topic, self.source, self.settings
        first, log_end = await source.bounds(chunks, self.number)
        start, end = span.offsets or (first, None)
        if span.since is not None:
            start = await self._at(chunks, span.since)
        if span.until is not None:
            end = await self._at(chunks, span.until)
        start = min(max(start, first), log_end)
        if start == first:
            whole = [(await source.bounds(topic, self.number))[0] for topic in (s.findings_topic, s.dead_letters_topic)]
            return _Range(first, start, end, whole[0], whole[1])
        warm_up = self.rules.idle_ms + self.rules.memory_ms + 1000
        begin = max(first, await self._at(chunks, await self._time(start) - warm_up))
        since = await self._time(begin) - SKEW_MS
        return _Range(begin, start, end, await self._at(s.findings_topic, since), await self._at(s.dead_letters_topic, since))

    async def _at(self, topic: str, timestamp_ms: int) -> int:
        """The first offset at or after a time; the end where there is none."""
        found = await self.source.at_time(topic, self.number, max(0, timestamp_ms))
        return (await self.source.bounds(topic, self.number))[1] if found is None else found

    async def _time(self, offset: int) -> int:
        """Log time of the first chunk at or after `offset`, or of the last one."""
        first, end = await self.source.bounds(self.settings.chunks_topic, self.number)
        at = max(first, min(offset, end - 1))
        async for record in self.source.read(self.settings.chunks_topic, self.number, at, end):
            return record.timestamp_ms
        return 0

    async def _read(self, topic: str, start: int, take: Callable[[Record], None]) -> int:
        """All from `start` up to the end as it is now, which is returned."""
        _, end = await self.source.bounds(topic, self.number)
        async for record in self.source.read(topic, self.number, start, end):
            take(record)
            self.tick(f"{topic}[{self.number}]", record.offset - start + 1, end - start)
        return end

    async def _chunks(self, begin: int, audit: PartitionAudit) -> tuple[int, bool]:
        """(where the chunks end, whether they were read up to there)."""
        topic = self.settings.chunks_topic
        _, end = await self.source.bounds(topic, self.number)
        async for record in self.source.read(topic, self.number, begin, end):
            if not audit.chunk(record):
                return end, False
            self.tick(f"{topic}[{self.number}]", record.offset - begin + 1, end - begin)
        return end, True
