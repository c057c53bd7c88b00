"""The whole job through a real Kafka: a worker process of its own, fed and read as devices and an alerting service do."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from stream_worker.bench.process import BenchFailed, WorkerProcess, worker_process
from stream_worker.bench.stages import CHUNK_MS, Lane
from stream_worker.bench.traffic import Sent, backlog, play, real_time
from stream_worker.kafka import topics
from stream_worker.kafka.admin import delete_topics
from stream_worker.kafka.clients import DeviceProducer, follow
from stream_worker.kafka.security import security_of
from stream_worker.operate import kafka_broker
from stream_worker.pipeline import POLL_MS, POLL_RECORDS
from stream_worker.seam import Record
from stream_worker.settings import Settings

__all__ = ["Latency", "Saturated", "latency", "saturate"]

PARTITIONS = 4
WARM = 0.2  # share of the findings that come before the rate is taken
SILENT_S = 30.0  # a worker that says nothing for so long has failed
SETTLE_S = 2.0  # of real time before latencies count
COUNTED = 5000  # chunks that the client's cost is taken from
LATE_S = 10.0  # waited for the last findings


@dataclass(frozen=True)
class Saturated:
    """As fast as it goes. client_s: CPU time of a chunk in the worker's Kafka client, which only reads. first_s: from the start
    of the worker's process to its first finding. rss_mb: its most memory, where /proc tells.
    """

    windows_per_s: float
    client_s: float
    first_s: float
    rss_mb: float | None


@dataclass(frozen=True)
class Latency:
    """At a steady rate: seconds from the last sample sent to the finding readable. scoring_s, publishing_s: means of one batch
    (exactly once: of one transaction), as the worker's metrics tell. late_s: the most that the sender itself was behind; more
    than a little, and the figure is not the worker's.
    """

    delivery: str
    windows_per_s: float
    p50_s: float
    p99_s: float
    scoring_s: float
    publishing_s: float
    late_s: float
    missing: int

    def waiting_s(self, total_s: float) -> float:
        """What neither scoring nor publishing explains of p50 or p99: the wait for the broker's answer, for the batch to fill
        and its turn to come and, exactly once, for the next commit. A remainder: nobody measures it by itself."""
        return total_s - self.scoring_s - self.publishing_s


async def saturate(settings: Settings, lane: Lane, windows: int) -> Saturated:
    """A log of about `windows` windows, worked off by a worker that starts when it is there."""
    async with _topics(settings) as ours:
        streams = max(16, windows // 5)
        async with DeviceProducer(ours.kafka, security_of(ours)) as producer:
            log = backlog(lane, windows, streams)
            await play(log, producer, ours.chunks_topic, Sent(), paced=False)
        client_s = await _client_cost(ours, min(COUNTED, 10 * streams * max(1, windows // streams)))
        expected, first_s = streams * max(1, windows // streams), 0.0
        times: list[float] = []
        async with worker_process(ours) as worker:
            async for record in _findings(ours, worker):
                first_s = time.time() - worker.started if not times else first_s
                times.append(record.timestamp_ms / 1000)
                if len(times) >= expected:
                    break
            rss = worker.rss_mb()
        from_ = int(WARM * len(times))
        while from_ < len(times) - 1 and times[from_] == times[0]:
            from_ += 1  # a transaction brings many at once
        taken = len(times) - 1 - from_
        return Saturated(taken / max(times[-1] - times[from_], 1e-3), client_s, first_s, rss)


async def _client_cost(settings: Settings, chunks: int) -> float:
    """CPU seconds, in all threads, of a chunk that the client of the settings reads and nobody looks at; `chunks` are there."""
    broker = kafka_broker(settings.model_copy(update={"group": f"{settings.group}.client"}))
    began, heard, seen = 0.0, time.monotonic(), 0

    async def assigned(numbers: frozenset[int]) -> None:
        nonlocal began
        began = time.process_time()  # nothing is fetched before the seek
        for number in numbers:
            broker.seek(number, 0)

    async def revoked(numbers: frozenset[int]) -> None:
        """Nothing is kept."""

    await broker.start(assigned, revoked)
    try:
        while seen < chunks and time.monotonic() - heard < SILENT_S:
            if found := sum(map(len, (await broker.poll(POLL_MS, POLL_RECORDS)).values())):
                seen, heard = seen + found, time.monotonic()
        spent = time.process_time() - began
    finally:
        await broker.stop()
    if seen < chunks:
        raise BenchFailed(f"{seen} of {chunks} chunks came back from {settings.kafka} within {SILENT_S:.0f} s")
    return spent / seen


async def latency(settings: Settings, lane: Lane, windows_per_s: float, seconds: float, delivery: str) -> Latency:
    """Streams in real time at this rate for `seconds`, after the worker is up."""
    async with _topics(settings.model_copy(update={"delivery": delivery})) as ours, worker_process(ours) as worker:
        sent, found = Sent(), list[tuple[float, dict[str, Any]]]()
        reading = asyncio.create_task(_collect(ours, worker, found))
        async with DeviceProducer(ours.kafka, security_of(ours)) as producer:
            await worker.ready()
            before = await worker.metrics()
            late = await play(real_time(lane, windows_per_s, seconds), producer, ours.chunks_topic, sent)
        expected = round(windows_per_s) * int(seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S):
                while len(found) < expected:
                    await asyncio.sleep(0.05)
        after = await worker.metrics()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        waits = list(_waits(lane, sent, found))
        if not waits:
            raise BenchFailed(f"no finding came at {windows_per_s:.0f} windows/s: {worker.last_words()}")
        p50, p99 = np.percentile(waits, [50, 99])
        parts = [_mean(before, after, f"ecg_{stage}_seconds") for stage in ("score", "publish")]
        return Latency(delivery, windows_per_s, float(p50), float(p99), parts[0], parts[1], late, max(0, expected - len(found)))


def _waits(lane: Lane, sent: Sent, found: list[tuple[float, dict[str, Any]]]) -> list[float]:
    """Of the findings whose last chunk was sent after the first moments."""
    chunk = lane.device().layout.samples(CHUNK_MS)
    out = []
    begun = sent.begun()
    for at, body in found:
        if body["kind"] == "closed":
            continue
        last = (body["first_sample"] + body["samples"] - 1) // chunk
        was = sent.at(body["stream"], last)
        if was is not None and was >= begun + SETTLE_S:
            out.append(at - was)
    return out


async def _collect(settings: Settings, worker: WorkerProcess, into: list[tuple[float, dict[str, Any]]]) -> None:
    loop = asyncio.get_running_loop()
    async for record in _findings(settings, worker):
        into.append((loop.time(), orjson.loads(record.value or b"")))


async def _findings(settings: Settings, worker: WorkerProcess) -> AsyncIterator[Record]:
    """Committed findings as they come. Raises BenchFailed when the worker ends or says nothing any more."""
    records = follow(settings.kafka, settings.findings_topic, security_of(settings), True, SILENT_S)
    async for record in records:
        yield record
    raise BenchFailed(f"no finding for {SILENT_S:.0f} s: {worker.last_words()}")


def _mean(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """Of a histogram, between two readings."""
    count = after[f"{name}_count"] - before.get(f"{name}_count", 0.0)
    return (after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / max(count, 1.0)


@contextlib.asynccontextmanager
async def _topics(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with topics and a group of their own, deleted afterwards."""
    mark = f"ecg-bench-{uuid.uuid4().hex[:8]}"
    names = {f"{kind}_topic": f"{mark}.{kind}" for kind in ("chunks", "findings", "dead_letters", "alerts")}
    ours = settings.model_copy(update={**names, "group": mark, "start": "earliest", "redis": None})
    await topics.apply(ours, security_of(ours), PARTITIONS, 1)
    try:
        yield ours
    finally:
        await delete_topics(ours.kafka, list(names.values()), security_of(ours))
