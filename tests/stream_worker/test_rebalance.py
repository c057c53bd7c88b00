"""Partitions that a rebalance takes away and gives straight back: what is kept of them, and when it is not to be believed."""

from __future__ import annotations

import asyncio

import pytest

from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.seam import partition_for
from tests.stream_worker.test_pipeline import TOPICS, committed, pipeline, published, running, send, until

STREAM = next(s for s in ("a", "b", "c") if partition_for(s.encode(), 2) == 0)


def chunks(p: Pipeline) -> float:
    return p.metrics.registry.get_sample_value("ecg_chunks_total") or 0.0


def firsts(log: MemoryLog) -> list[int]:
    return [x["first_sample"] for x in published(log)]


async def half_a_window(p: Pipeline, log: MemoryLog) -> MemoryBroker:
    assert isinstance(p.broker, MemoryBroker)
    await until(lambda: len(committed(log)) == 2)
    send(log, 0, 3000, STREAM)
    await until(lambda: chunks(p) == 1)
    return p.broker


@pytest.mark.parametrize(("delivery", "read"), [("exactly_once", 2), ("at_least_once", 3)])
async def test_what_comes_straight_back_is_read_again_only_where_nobody_would_be_fenced(delivery: str, read: int) -> None:
    log = MemoryLog(TOPICS)
    async with running(pipeline(log, delivery=delivery)) as p:
        broker = await half_a_window(p, log)
        await broker.rebalance({0, 1})
        await until(lambda: p.ready() == [])
        send(log, 3000, 5000, STREAM)
        await until(lambda: len(published(log)) == 1)
        assert chunks(p) == read
    [finding] = published(log)
    assert (finding["first_sample"], finding["kind"], finding["input"]["first"]) == (0, "scored", 0)


async def test_what_was_elsewhere_for_one_assignment_is_recovered() -> None:
    log = MemoryLog(TOPICS)
    async with running(pipeline(log)) as p:
        broker = await half_a_window(p, log)
        await broker.rebalance({1})
        await broker.rebalance({0, 1})
        send(log, 3000, 5000, STREAM)
        await until(lambda: len(published(log)) == 1)
        assert chunks(p) == 3


async def test_what_was_polled_and_not_cut_before_a_rebalance_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog(TOPICS)
    async with running(pipeline(log)) as p:
        broker = await half_a_window(p, log)
        monkeypatch.setattr(p, "_cut", lambda: asyncio.sleep(0.01))
        send(log, 3000, 5000, STREAM)
        log.append_to("ecg.chunks", 0, STREAM.encode(), b"no chunk")
        await until(lambda: len(p._uncut) == 1)
        await broker.rebalance({0, 1})
        monkeypatch.undo()
        await until(lambda: len(published(log)) == 1 and len(published(log, "ecg.dead-letters")) == 1)
        send(log, 5000, 10_000, STREAM)
        await until(lambda: len(published(log)) == 2)
    assert firsts(log) == [0, 5000]
    assert len(published(log, "ecg.dead-letters")) == 1


async def test_what_another_owned_in_between_is_recovered_and_nothing_doubled() -> None:
    """This worker did not hear of it: the group gave the partitions away and back while it slept."""
    log = MemoryLog(TOPICS)
    async with running(pipeline(log)) as p:
        broker = await half_a_window(p, log)
        await broker._revoke()
        async with running(pipeline(log)) as other:
            send(log, 3000, 5000, STREAM)
            await until(lambda: firsts(log) == [0])
            assert other.ready() == []
        broker._fenced.clear()  # as the other's fences have done
        await broker._assign(frozenset({0, 1}))
        send(log, 5000, 10_000, STREAM)
        await until(lambda: firsts(log) == [0, 5000])
        await until(lambda: p.ready() == [])
    assert firsts(log) == [0, 5000]
