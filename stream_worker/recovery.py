"""Where a partition goes on: what was published is read back as fact, what was not is cut again from the log.

Numbered as in docs/semantics.md: (0) with exactly-once delivery, fence the former owner: what it has not committed is void, and
only then is what we read the last word; (1) read the commit W with P and F, (2) read findings from F to the end and take each
run's frontier, (3) seek to W. Windows below a run's frontier are never cut again; dead letters below P are never written again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from encoders.signal import Layout, SignalError
from stream_worker.errors import BadInput
from stream_worker.ledger import Ledger, Track, decode_metadata
from stream_worker.records import RunKey
from stream_worker.run import Rules, Run, first_at_or_after
from stream_worker.seam import Broker, Position, Record
from stream_worker.settings import Settings
from stream_worker.window import Remembered, Windower
from stream_worker.wire import parse_finding

__all__ = ["Recovered", "recover"]

log = structlog.get_logger(__name__)
STALE_S, AGAIN_S = 15.0, 0.5  # how long an old commit is asked for anew, and how often


@dataclass(frozen=True)
class Recovered:
    """windower and ledger as the former owner left them; start: offset to read next; lost: offsets that retention took; old:
    the commit is from before the findings."""

    windower: Windower
    ledger: Ledger
    start: int
    findings_end: int
    lost: tuple[int, int] | None
    old: bool = False


async def recover(broker: Broker, partition: int, settings: Settings, rules: Rules) -> Recovered:
    """Raises BrokerUnavailable, or ConfigError when another program commits under our group."""
    if settings.delivery == "exactly_once":
        await broker.fence(partition)
    until = time.monotonic() + STALE_S
    while True:
        position = await broker.committed(partition)
        if position is None:
            return await _fresh(broker, partition, settings, rules)
        state = await _read_back(broker, partition, position, settings, rules)
        if not state.old or time.monotonic() > until:
            return state
        await asyncio.sleep(AGAIN_S)


async def _read_back(broker: Broker, partition: int, position: Position, settings: Settings, rules: Rules) -> Recovered:
    """The state that follows from a commit and from what the findings from F on say."""
    processed, findings, count = decode_metadata(position.metadata, position.offset)
    count = count or broker.partitions(settings.chunks_topic)
    first, end = await broker.beginning_offset(partition), await broker.end_offset(partition)
    if position.offset > end:
        log.error("the log is shorter than what was read: it was made anew", partition=partition, W=position.offset, end=end)
        return Recovered(Windower(partition, rules), Ledger(first, first, 0, count), first, 0, None)
    processed = min(processed, end)
    latest: dict[RunKey, _Latest] = {}
    findings_end = findings
    async for record, _ in broker.read_back(settings.findings_topic, partition, findings):
        findings_end = record.offset + 1
        try:
            found = _latest(record)
        except (BadInput, SignalError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            where = f"{settings.findings_topic}[{partition}]@{record.offset}"
            log.warning("not a finding of ours", where=where, error=str(error))
            continue
        if found.key not in latest or found.next >= latest[found.key].next:  # a late write of a former owner moves nothing back
            latest[found.key] = found
    seen = max((found.last_offset + 1 for found in latest.values()), default=0)
    old = settings.delivery == "exactly_once" and processed < seen <= end
    if old:  # findings and commit appear together: what a finding has seen is processed, and its dead letters are out
        log.warning("the coordinator tells a commit older than the findings", partition=partition, P=processed, seen=seen)
        processed = seen
    windower = _windower(partition, rules, latest.values())
    lost = (position.offset, first) if first > position.offset else None
    if lost:
        log.error("records lost to retention before they were read", partition=partition, first=lost[0], until=lost[1])
    log.info("partition recovered", partition=partition, W=position.offset, P=processed, F=findings, runs=len(windower.runs))
    start = max(position.offset, first)
    return Recovered(windower, Ledger(start, processed, findings, count), start, findings_end, lost, old)


async def _fresh(broker: Broker, partition: int, settings: Settings, rules: Rules) -> Recovered:
    """No commit yet: start where the settings say, but a partition that the topic did not have when the group began is read
    from its beginning: what stands there was sent to this group."""
    end, begin = await broker.end_offset(partition), settings.start
    if begin != "earliest" and await _added(broker, partition):
        begin = "earliest"
    if begin == "latest":
        start = end
    elif begin == "earliest":
        start = await broker.beginning_offset(partition)
    else:
        assert settings.start_ms is not None
        found = await broker.offset_at(partition, settings.start_ms)
        start = end if found is None else found
    log.info("no committed offset", partition=partition, start=begin, offset=start)
    return Recovered(
        Windower(partition, rules), Ledger(start, start, 0, broker.partitions(settings.chunks_topic)), start, 0, None
    )


async def _added(broker: Broker, partition: int) -> bool:
    """The first partition, which is as old as the group, tells how many there were."""
    first = await broker.committed(0) if partition else None
    return first is not None and 0 < decode_metadata(first.metadata, first.offset).partitions <= partition


class _Latest(NamedTuple):
    """What a run's latest finding says of it."""

    key: RunKey
    layout: Layout
    next: int
    closed: bool
    last_offset: int
    last_ms: int
    position: int


def _latest(record: Record) -> _Latest:
    body = parse_finding(record.value or b"")
    fields, source = body["layout"], body["input"]
    layout = Layout(
        int(fields["fs_mhz"]), tuple(fields["leads"]), tuple(fields["gain"]), tuple(fields["baseline"]), str(fields["unit"])
    )
    key = (str(body["stream"]), str(body["session"]), int(body["session_start_ns"]), layout.digest)
    frontier, last_offset, last_ms = int(body["next"]), int(source["last"]), int(source["last_timestamp"])
    if not all(0 <= number < 1 << 63 for number in (frontier, last_offset, last_ms, key[2])):
        raise ValueError("a number that no chunk can bring")
    return _Latest(key, layout, frontier, body["closed"] is not None, last_offset, last_ms, record.offset)


def _windower(partition: int, rules: Rules, latest: Iterable[_Latest]) -> Windower:
    """Open runs with empty rings at their frontiers; closed ones as memory."""
    runs, memory = [], {}
    for found in sorted(latest, key=lambda x: x.last_ms):
        track = Track(found.next, quantum=found.layout.samples(1000), position=found.position)
        if found.closed:
            memory[found.key] = Remembered(found.next, found.last_ms, track)
            continue
        run = Run(found.key, found.layout, rules, first_at_or_after(found.next, rules.hop_ms * found.layout.fs_mhz), track)
        run.last_ms, run.last_offset, run.seen = found.last_ms, found.last_offset, found.last_offset
        runs.append(run)
    return Windower(partition, rules, runs, memory)
