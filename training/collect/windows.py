"""Windows of the running system for retraining: chosen findings from Kafka, their samples cut from the chunk log, to Parquet.

    findings (read_committed) --rule--> chosen --input.first..last--> chunks --cut, compared--> DIR/collected-00000.parquet

Both topics are read up to where they end when it starts. A window is written only if its digest is the one in the finding, so
what is reviewed is what was scored. `prepare` reads the result with a table of labels by finding id (sources/labelled.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from encoders.signal import ABSENT, Layout
from training.collect.choose import Chosen, Rule
from training.collect.chunk_wire import ChunkError, decode
from training.sources.collected import NAME, SCHEMA

__all__ = ["CollectError", "Collected", "collect"]

CONNECT_S = 15.0
QUIET_S = 5.0  # without a record before the end is believed to be reached
GROUP = 64  # windows in a row group; 8 MB
SUMMARY = "collect.json"


class CollectError(ValueError):
    """Kafka cannot be read as asked; the text names the remedy."""


@dataclass(frozen=True)
class Collected:
    """findings: read. matched: chosen by the rule. written: windows. missing: (finding id, reason) of the others chosen."""

    findings: int
    matched: int
    written: int
    missing: tuple[tuple[str, str], ...]


class _Cut:
    """One window while its chunks come by."""

    def __init__(self, finding: dict[str, Any], why: str) -> None:
        self.finding, self.why = finding, why
        spelled = finding["layout"]
        self.layout = Layout.of(spelled["fs_mhz"], spelled["leads"], spelled["gain"], spelled["baseline"], spelled["unit"])
        self.key = finding["stream"].encode()
        self.run = (finding["stream"], finding["session"], finding["session_start_ns"], self.layout.digest)
        self.first, self.last = finding["input"]["first"], finding["input"]["last"]  # offsets

    def open(self) -> None:
        """Make room; not before its first chunk may come, since many windows wait."""
        n = self.finding["samples"]
        self.samples = np.full((len(self.layout.leads), n), ABSENT, dtype=np.int16)  # (C, T)
        self.have = np.zeros(n, dtype=bool)

    def add(self, value: bytes) -> None:
        """The log's first copy of a sample wins, as in the worker. Other runs and bytes that are no chunk are passed over."""
        try:
            chunk = decode(value)
        except ChunkError:
            return  # the worker refused it too
        if chunk.run != self.run:
            return
        at = chunk.first - self.finding["first_sample"]
        a, b = max(at, 0), min(at + chunk.samples.shape[1], len(self.have))
        if a < b:
            new = ~self.have[a:b]
            self.samples[:, a:b][:, new] = chunk.samples[:, a - at : b - at][:, new]
            self.have[a:b] = True

    def problem(self) -> str:
        """ "" or why what was rebuilt is not what was scored."""
        h = hashlib.sha256(np.ascontiguousarray(self.samples, dtype="<i2").data)
        h.update(struct.pack("<H", self.finding["lead_mask"]))
        if h.hexdigest() == self.finding["window_digest"]:
            return ""
        return "its samples differ from those that were scored: chunks of it are no longer in the topic"

    def row(self) -> dict[str, Any]:
        f, layout = self.finding, self.layout
        return {
            **{name: f[name] for name in ("id", "stream", "session", "model", "bank", "first_sample")},
            "why": self.why,
            "finding": json.dumps(f, ensure_ascii=False),
            "unit": layout.unit,
            "fs_mhz": layout.fs_mhz,
            "samples": self.samples.astype("<i2").tobytes(),
            "leads": list(layout.leads),
            "gain": list(layout.gain),
            "baseline": list(layout.baseline),
        }


async def collect(
    bootstrap: str,
    findings: str,
    chunks: str,
    out: Path,
    rule: Rule,
    limit: int = 1000,
    security: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Collected:
    """Read both topics and write the chosen windows into the new or empty directory `out`. advance: windows done.

    Raises CollectError.
    """
    if out.exists() and any(out.iterdir()):
        raise CollectError(f"{out} is not empty; give a new directory")
    chosen = Chosen(rule, limit)
    try:
        async with _consumer(bootstrap, security, findings) as (consumer, partitions):
            async for value in _all(consumer, partitions):
                finding = _parsed(value)
                if finding is not None:
                    chosen.offer(finding)
        if not chosen.matched:
            raise CollectError(f"none of {chosen.seen} findings in {findings} is chosen by the rule; widen it")
        out.mkdir(parents=True, exist_ok=True)
        async with _consumer(bootstrap, security, chunks) as (consumer, partitions):
            written, missing = await _write(consumer, partitions, out, chosen.findings(), advance)
    except KafkaError as error:
        raise CollectError(f"kafka at {bootstrap}: reading failed ({type(error).__name__}); run it again") from None
    made = Collected(chosen.seen, chosen.matched, written, tuple(missing))
    (out / SUMMARY).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
    return made


def _parsed(value: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(value)
    except ValueError:
        return None
    return body if isinstance(body, dict) and body.get("v") == 1 else None


@asynccontextmanager
async def _consumer(
    bootstrap: str, security: Mapping[str, Any] | None, topic: str
) -> AsyncIterator[tuple[Any, list[TopicPartition]]]:
    """A reader without a group, and the partitions of `topic`. An admin client tells them: a subscription would set
    positions of its own, now and then after a seek."""
    common = {"bootstrap_servers": bootstrap, **(security or {})}
    admin = AIOKafkaAdminClient(**common)
    consumer = AIOKafkaConsumer(isolation_level="read_committed", enable_auto_commit=False, **common)
    try:
        async with asyncio.timeout(CONNECT_S):
            await admin.start()
            await consumer.start()
    except (KafkaError, TimeoutError) as error:
        await asyncio.gather(consumer.stop(), admin.close(), return_exceptions=True)
        raise CollectError(f"kafka at {bootstrap} does not answer ({type(error).__name__}): check the address") from None
    try:
        (described,) = await admin.describe_topics([topic])
        if described["error_code"]:
            raise CollectError(f"topic {topic} does not exist at {bootstrap}; check its name")
        yield consumer, [TopicPartition(topic, number) for number in range(len(described["partitions"]))]
    finally:
        await consumer.stop()
        await admin.close()


async def _all(consumer: Any, partitions: Sequence[TopicPartition]) -> AsyncIterator[bytes]:
    """Values of all committed records up to where the topic ends now."""
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    end = await consumer.end_offsets(partitions)
    left, heard = {tp for tp in partitions if end[tp] > 0}, time.monotonic()
    while left and time.monotonic() - heard < QUIET_S:
        for tp, records in (await consumer.getmany(timeout_ms=200)).items():
            heard = time.monotonic()
            for record in records:
                if record.offset < end[tp] and record.value:
                    yield record.value
        for tp in tuple(left):
            if await consumer.position(tp) >= end[tp]:
                left.discard(tp)


async def _write(
    consumer: Any,
    topic: Sequence[TopicPartition],
    out: Path,
    chosen: Sequence[tuple[dict[str, Any], str]],
    advance: Callable[[int], None],
) -> tuple[int, list[tuple[str, str]]]:
    """Cut and write -> (windows written, (id, reason) of those that could not be)."""
    partitions = {tp.partition: tp for tp in topic}
    cuts: dict[int, list[_Cut]] = {}
    for finding, why in chosen:
        cuts.setdefault(finding["input"]["partition"], []).append(_Cut(finding, why))
    missing: list[tuple[str, str]] = []
    written = 0
    held: list[dict[str, Any]] = []
    with pq.ParquetWriter(out / NAME.format(0), SCHEMA, compression="zstd") as file:
        for partition, wanted in sorted(cuts.items()):
            if partition not in partitions:
                missing += [(cut.finding["id"], f"{topic[0].topic} has no partition {partition}") for cut in wanted]
                continue
            async for cut, reason in _sweep(consumer, partitions[partition], wanted):
                advance(1)
                problem = reason or cut.problem()
                if problem:
                    missing.append((cut.finding["id"], problem))
                    continue
                held.append(cut.row())
                written += 1
                if len(held) == GROUP:
                    file.write_table(pa.Table.from_pylist(held, schema=SCHEMA))
                    held = []
        if held:
            file.write_table(pa.Table.from_pylist(held, schema=SCHEMA))
    return written, missing


async def _sweep(consumer: Any, tp: TopicPartition, wanted: Sequence[_Cut]) -> AsyncIterator[tuple[_Cut, str]]:
    """Each window once its chunks have been read, with "" or why they could not be. The log is passed once, stretches between
    windows are jumped over."""
    consumer.assign([tp])
    begin = (await consumer.beginning_offsets([tp]))[tp]
    waiting = deque(sorted(wanted, key=lambda cut: (cut.first, cut.last)))
    active: dict[bytes, list[_Cut]] = {}  # by key
    heard, sought = time.monotonic(), -1
    while waiting or active:
        if not active:
            if waiting[0].first < begin:
                yield waiting.popleft(), f"its chunks are no longer in {tp.topic}: kept from offset {begin} on"
                continue
            if waiting[0].first != sought:  # once: a seek throws away what is being fetched
                sought = waiting[0].first
                consumer.seek(tp, sought)
        records = (await consumer.getmany(tp, timeout_ms=200, max_records=500)).get(tp, [])
        for record in records:
            while waiting and waiting[0].first <= record.offset:
                cut = waiting.popleft()
                cut.open()
                active.setdefault(cut.key, []).append(cut)
            for cut in active.get(record.key, ()):
                if cut.first <= record.offset <= cut.last and record.value:
                    cut.add(record.value)
        if records:
            heard = time.monotonic()
            for cut in [cut for cuts in active.values() for cut in cuts if cut.last <= records[-1].offset]:
                active[cut.key].remove(cut)
                yield cut, ""
            active = {key: cuts for key, cuts in active.items() if cuts}
        elif time.monotonic() - heard > QUIET_S:
            for cut in (*(cut for cuts in active.values() for cut in cuts), *waiting):
                yield cut, f"{tp.topic} [{tp.partition}] gave no record up to offset {cut.last} within {QUIET_S:g} s"
            return
