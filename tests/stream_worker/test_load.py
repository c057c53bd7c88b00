"""Much at once: an engine that stands still, 20,000 streams in one second, records in hand when a partition begins anew."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_worker.devices.simulator import fleet
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.seam import Record
from tests.stream_worker.kafka.test_transactions import exactly_once
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import TOPICS, committed, pipeline, published, running, send, until
from tests.support import ProjectionEncoder, layout, message, signal

MANY = 20_000
TINY = layout(fs_mhz=100_000, leads=("I",))
SAMPLES = signal(TINY, 1000)


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Counting(MemoryBroker):
    polls = 0

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[int, Sequence[Record]]:
        self.polls += 1
        return await super().poll(timeout_ms, max_records)


class Standing(ProjectionEncoder):
    """Waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self.go.wait(60)
        return super().encode(x)


async def test_while_the_engine_stands_still_polling_goes_on_idle_timers_stop_and_order_is_kept() -> None:
    log, encoder = MemoryLog(TOPICS), Standing()
    p = pipeline(log, encoder, queue_windows=8, batch_size=4)
    p.broker = broker = p.holdings._broker = p._ends._broker = p._outage._broker = p.publisher._broker = Counting(log)
    async with running(p):
        try:
            await until(lambda: p.ready() == [])
            for at in range(0, 60_000, 5000):
                for n in range(8):
                    send(log, at, at + 5000, f"s{n}")
            await until(lambda: p._crowded and p.holdings.held_back == {0, 1})
            before, began = broker.polls, time.monotonic()
            await asyncio.sleep(1.5)
            assert broker.polls - before >= 3  # the group keeps a worker that polls
            assert p.scoring.waiting <= 2 * 8 + 64
            assert all(part.at_end_since is None for part in p.holdings.parts.values())
            assert p.live() == [], time.monotonic() - began
        finally:
            encoder.go.set()  # or who fails above waits for it
        await until(lambda: len(published(log)) == 96)
    for n in range(8):
        assert [x["first_sample"] for x in published(log) if x["stream"] == f"s{n}"] == list(range(0, 60_000, 5000))


async def test_20000_streams_that_start_in_the_same_second() -> None:
    log = MemoryLog(TOPICS)
    p = pipeline(log)
    async with running(p):
        await until(lambda: p.ready() == [])
        before, longest = rss_mb(), 0.0
        for n in range(MANY):
            log.append("ecg.chunks", *message(TINY, 0, SAMPLES[:, :100], f"s{n}"), timestamp_ms=1000)
        turned = time.monotonic()
        while sum(position.offset for position in committed_p(log).values()) < MANY:
            assert p.ready() == []
            longest, turned = max(longest, time.monotonic() - turned), time.monotonic()
            await asyncio.sleep(0.01)
        assert sum(len(part.windower.runs) for part in p.holdings.parts.values() if part.windower) == MANY
        assert longest < 2.0  # the loop went on turning: polls, heartbeats, probes
        assert rss_mb() - before < 300
        for n in range(500):  # and they go on
            log.append("ecg.chunks", *message(TINY, 100, SAMPLES[:, 100:1000], f"s{n}"), timestamp_ms=2000)
        await until(lambda: len(published(log)) == 500)
    assert {x["kind"] for x in published(log)} == {"scored"}


def committed_p(log: MemoryLog) -> dict[int, Any]:
    from stream_worker.ledger import decode_metadata

    return {p: at._replace(offset=decode_metadata(at.metadata, at.offset).processed) for (_, _, p), at in log.commits.items()}


async def test_20000_streams_that_start_in_the_same_second_on_a_cluster(kafka: str) -> None:
    cluster = await Cluster(kafka).create(2)
    async with running(cluster.pipeline()) as p:
        await until(lambda: p.ready() == [], 60)
        parts = dict(p.holdings.parts)
        before = rss_mb()
        await cluster.send((message(TINY, 0, SAMPLES[:, :100], f"s{n}") for n in range(MANY)), 2)
        await until(lambda: sum(len(part.windower.runs) for part in p.holdings.parts.values() if part.windower) == MANY, 60)
        assert p.ready() == []
        assert p.holdings.parts == parts  # no rebalance, no recovery
        assert rss_mb() - before < 300


async def test_records_in_hand_when_their_partition_begins_anew_are_not_taken_from_there() -> None:
    messages = list(fleet(12, 60, chunk_ms=500, seed=3))
    truth, log = MemoryLog(TOPICS), MemoryLog(TOPICS)

    def feed(one: MemoryLog, first: int, end: int) -> None:
        for key, value, second in messages[first:end]:
            one.append("ecg.chunks", key, value, timestamp_ms=int(1000 * second))

    feed(truth, 0, len(messages))
    await _through(exactly_once(truth), truth)
    p = exactly_once(log, queue_windows=400)
    task = asyncio.create_task(p.run())
    feed(log, 0, len(messages) // 2)
    await until(lambda: p.publisher.published > 0)
    p.scoring.waiting += 100_000  # nothing is cut: what is polled stays in hand
    feed(log, len(messages) // 2, len(messages))
    await until(lambda: bool(p._uncut))
    held = {part.number for part, _ in p._uncut}
    for number in held:
        p.holdings.start_over(p.holdings.parts[number])
    await until(lambda: all(part.ready for part in p.holdings.parts.values()))
    p.scoring.waiting -= 100_000
    await until(lambda: sum(committed(log).values()) == len(messages))
    p.stop()
    await task
    assert held
    assert sorted(x["id"] for x in published(log)) == sorted(x["id"] for x in published(truth))
    assert published(log, "ecg.dead-letters") == []


async def _through(p: Pipeline, log: MemoryLog) -> None:
    async with running(p):
        await until(lambda: sum(committed(log).values()) == sum(log.bounds("ecg.chunks", n)[1] for n in range(2)))


async def test_a_log_that_is_made_anew_under_a_worker_is_read_from_its_beginning() -> None:
    log = MemoryLog(TOPICS)
    for at in range(0, 10_000, 500):
        send(log, at, at + 500)
    async with running(exactly_once(log)) as p:
        await until(lambda: len(published(log)) == 2)
        for held in log._topics["ecg.chunks"]:
            held.entries.clear()
        await until(lambda: any(part.voids for part in p.holdings.parts.values()))
        send(log, 0, 5000, "new")
        await until(lambda: len(published(log)) == 3)
        assert p.ready() == []
    assert [x["stream"] for x in published(log) if x["stream"] != "s"] == ["new"]
