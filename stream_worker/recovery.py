"""Where a partition goes on: what was published is read back as fact, what was not is cut again from the log.

Numbered as in docs/semantics.md: (1) read the commit W with P and F, (2) read findings from F to the end and take each run's
frontier, (3) seek to W. Windows below a run's frontier are never cut again; dead letters below P are never written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog

from encoders.signal import Layout, SignalError
from stream_worker.errors import BadInput
from stream_worker.ledger import Ledger, Track, decode_metadata
from stream_worker.records import RunKey
from stream_worker.run import Rules, Run, first_at_or_after
from stream_worker.seam import Broker
from stream_worker.settings import Settings
from stream_worker.window import Remembered, Windower
from stream_worker.wire import parse_finding

__all__ = ["Recovered", "recover"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Recovered:
    """windower and ledger as the former owner left them; start: offset to read next; lost: offsets that retention took."""

    windower: Windower
    ledger: Ledger
    start: int
    findings_end: int
    lost: tuple[int, int] | None


async def recover(broker: Broker, partition: int, settings: Settings, rules: Rules) -> Recovered:
    """Raises BrokerUnavailable, or ConfigError when another program commits under our group."""
    position = await broker.committed(partition)
    if position is None:
        return await _fresh(broker, partition, settings, rules)
    processed, findings = decode_metadata(position.metadata, position.offset)
    latest: dict[RunKey, tuple[dict[str, Any], int]] = {}
    findings_end = findings
    async for record, _ in broker.read_back(settings.findings_topic, partition, findings):
        findings_end = record.offset + 1
        try:
            body = parse_finding(record.value or b"")
            key, _layout = _run(body)
        except (BadInput, SignalError, KeyError, TypeError) as error:
            log.warning(
                "not a finding of ours",
                topic=settings.findings_topic,
                partition=partition,
                offset=record.offset,
                error=str(error),
            )
            continue
        latest[key] = (body, record.offset)
    windower = _windower(partition, rules, latest)
    ledger = Ledger(processed, findings)
    first = await broker.beginning_offset(partition)
    lost = (position.offset, first) if first > position.offset else None
    if lost:
        log.error("records lost to retention before they were read", partition=partition, first=lost[0], until=lost[1])
    log.info("partition recovered", partition=partition, W=position.offset, P=processed, F=findings, runs=len(windower.runs))
    return Recovered(windower, ledger, max(position.offset, first), findings_end, lost)


async def _fresh(broker: Broker, partition: int, settings: Settings, rules: Rules) -> Recovered:
    """No commit yet: start where the settings say."""
    end = await broker.end_offset(partition)
    if settings.start == "latest":
        start = end
    elif settings.start_ms is None:
        start = await broker.beginning_offset(partition)
    else:
        found = await broker.offset_at(partition, settings.start_ms)
        start = end if found is None else found
    log.info("no committed offset", partition=partition, start=settings.start, offset=start)
    return Recovered(Windower(partition, rules), Ledger(start), start, 0, None)


def _run(body: dict[str, Any]) -> tuple[RunKey, Layout]:
    fields = body["layout"]
    layout = Layout(
        int(fields["fs_mhz"]), tuple(fields["leads"]), tuple(fields["gain"]), tuple(fields["baseline"]), str(fields["unit"])
    )
    return (str(body["stream"]), str(body["session"]), int(body["session_start_ns"]), layout.digest), layout


def _windower(partition: int, rules: Rules, latest: dict[RunKey, tuple[dict[str, Any], int]]) -> Windower:
    """Open runs with empty rings at their frontiers; closed ones as memory."""
    runs, memory = [], {}
    for key, (body, offset) in sorted(latest.items(), key=lambda item: item[1][0]["input"]["last_timestamp"]):
        layout, frontier = _run(body)[1], int(body["next"])
        track = Track(frontier, quantum=layout.samples(1000), position=offset)
        if body["closed"] is not None:
            memory[key] = Remembered(frontier, int(body["input"]["last_timestamp"]), track)
            continue
        run = Run(key, layout, rules, first_at_or_after(frontier, rules.hop_ms * layout.fs_mhz), track)
        run.last_ms, run.last_offset = int(body["input"]["last_timestamp"]), int(body["input"]["last"])
        runs.append(run)
    return Windower(partition, rules, runs, memory)
