"""One partition whose transaction hangs, beside others: whose commits go on, what is paused, and how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition

from stream_worker.kafka.confluent_broker import ConfluentBroker
from stream_worker.kafka.topic_watch import TopicWatch
from stream_worker.kafka.writer import KafkaWriter
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.seam import Fenced, Outgoing, Position, partition_for
from tests.stream_worker.kafka.test_transactions import exactly_once
from tests.stream_worker.test_pipeline import TOPICS, committed, published, running, send, until

HUNG = next(s for s in ("a", "b", "c", "d") if partition_for(s.encode(), 2) == 0)
FREE = next(s for s in ("a", "b", "c", "d") if partition_for(s.encode(), 2) == 1)


class Hanging(MemoryBroker):
    """Transactions of partition 0 wait for `go`, once it is closed."""

    go: asyncio.Event

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        if partition == 0:
            await self.go.wait()
        await super().transact(partition, messages, position)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_worker.publisher.HUNG_S", 0.3)


def hanging(log: MemoryLog, **changes: Any) -> Pipeline:
    p = exactly_once(log, Hanging, **changes)
    p.broker.go = asyncio.Event()  # type: ignore[attr-defined]
    p.broker.go.set()  # type: ignore[attr-defined]
    return p


async def test_a_hung_transaction_holds_up_its_partition_alone(quick: None) -> None:
    log = MemoryLog(TOPICS)
    p = hanging(log, queue_windows=16)
    async with running(p):
        await until(lambda: len(committed(log)) == 2)
        p.broker.go.clear()  # type: ignore[attr-defined]
        send(log, 0, 5000, HUNG)
        await until(lambda: any("partitions [0] do not end" in why for why in p.ready()))
        await until(lambda: p.broker._paused == {0})  # type: ignore[attr-defined]
        for at in range(0, 60_000, 5000):  # much for the hung one, and far more than may wait
            send(log, 5000, 10_000, HUNG)
            send(log, at, at + 5000, FREE)
        await until(lambda: len([x for x in published(log) if x["stream"] == FREE]) == 12)
        assert [x for x in published(log) if x["stream"] == HUNG] == []
        assert p.live() == []
        p.broker.go.set()  # type: ignore[attr-defined]
        await until(lambda: p.ready() == [] and committed(log)[0] == log.bounds("ecg.chunks", 0)[1])
        assert p.broker._paused == set()  # type: ignore[attr-defined]
    assert [x["first_sample"] for x in published(log) if x["stream"] == HUNG] == [0, 5000]
    assert [x["first_sample"] for x in published(log) if x["stream"] == FREE] == list(range(0, 60_000, 5000))


async def test_a_partition_that_hangs_when_it_is_taken_away_is_given_up_in_time(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_worker.holding.REVOKE_S", 0.5)
    log = MemoryLog(TOPICS)
    p = hanging(log)
    async with running(p):
        await until(lambda: len(committed(log)) == 2)
        p.broker.go.clear()  # type: ignore[attr-defined]
        send(log, 0, 5000, HUNG)
        await until(lambda: bool(p.publisher.hung()))
        began = time.monotonic()
        await p.broker.rebalance({0, 1})  # type: ignore[attr-defined]
        assert time.monotonic() - began < 8
        p.broker.go.set()  # type: ignore[attr-defined]
        await until(lambda: len(published(log)) == 1)  # by whoever has it now: here the same worker, from the log
    assert [x["first_sample"] for x in published(log)] == [0]


class Slow:
    """A producer of either client whose start takes as long as the test wants."""

    def __init__(self) -> None:
        self.go, self.ended = threading.Event(), False

    async def start(self, **more: Any) -> Slow:
        await asyncio.to_thread(self.go.wait, 10)
        return self

    def __call__(self, *args: Any) -> Slow:
        assert self.go.wait(10)
        return self

    def close(self) -> None:
        self.ended = True


async def test_a_fence_that_ends_after_its_partition_was_taken_away_keeps_no_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    watch = TopicWatch("nowhere", (), None, None)  # type: ignore[arg-type]
    writer = KafkaWriter({"bootstrap_servers": "nowhere"}, watch, 5.0, 5.0, lambda work: work.close())
    monkeypatch.setattr(writer, "_start", slow.start)
    fencing = asyncio.create_task(writer.fence("g", TopicPartition("t", 0)))
    await asyncio.sleep(0.05)
    writer.interrupt([0])
    slow.go.set()
    with pytest.raises(Fenced, match="let go while"):
        await fencing
    assert writer._transactional == {}
    await writer.fence("g", TopicPartition("t", 0))
    assert list(writer._transactional.values()) == [slow]


async def test_so_does_one_of_the_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("stream_worker.kafka.confluent_broker.Transaction", slow)
    broker = ConfluentBroker(bootstrap="nowhere")
    fencing = asyncio.create_task(broker.fence(0))
    await asyncio.sleep(0.05)
    await broker._on_taken(lost=False)
    slow.go.set()
    with pytest.raises(Fenced, match="taken away while"):
        await fencing
    assert broker._transactions == {}
    await until(lambda: slow.ended)
    for pool in broker._threads.values():
        pool.end()
