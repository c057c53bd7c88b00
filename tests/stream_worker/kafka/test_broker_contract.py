"""What every broker behind the seam does, in process and on a real cluster alike, by either client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stream_worker.errors import ConfigError
from stream_worker.seam import Broker, OffsetLost, Outgoing, Position, partition_for
from tests.stream_worker.kafka_world import CLIENTS, KafkaWorld, MemoryWorld, Rebalances, World, gather


@pytest.fixture(params=["memory", *CLIENTS])
async def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return MemoryWorld(2)
    return await KafkaWorld(request.getfixturevalue("kafka"), request.param).create(2)


@pytest_asyncio.fixture
async def rebalances() -> Rebalances:
    return Rebalances()


@pytest_asyncio.fixture
async def broker(world: World, rebalances: Rebalances) -> AsyncIterator[Broker]:
    started = await rebalances.start(world.broker())
    yield started
    await started.stop()


def values(count: int, mark: str = "v") -> list[bytes]:
    return [f"{mark}{n}".encode() for n in range(count)]


async def test_records_come_in_order_with_offset_key_value_and_time(world: World, broker: Broker) -> None:
    before = time.time() * 1000 - 1000
    await world.append(0, values(50, "a"))
    await world.append(1, values(30, "b"))
    found = await gather(broker, 80)
    assert [record.offset for record in found[0]] == list(range(50))
    assert [record.value for record in found[0]] == values(50, "a")
    assert [record.value for record in found[1]] == values(30, "b")
    assert all(record.key == record.value and record.partition == 1 for record in found[1])
    assert all(before <= record.timestamp_ms <= time.time() * 1000 + 1000 for record in found[0] + found[1])
    assert await broker.poll(50, 10) == {}


async def test_start_assigns_every_partition_and_stop_revokes_them(world: World) -> None:
    rebalances = Rebalances()
    broker = await rebalances.start(world.broker())
    assert broker.connected
    assert broker.assigned == frozenset({0, 1})
    assert rebalances.assigned == [frozenset({0, 1})]
    await broker.stop()
    await broker.stop()
    assert rebalances.revoked == [frozenset({0, 1})]
    assert not broker.connected
    assert broker.assigned == frozenset()


async def test_an_assigned_partition_is_silent_until_sought(world: World) -> None:
    broker = await Rebalances(begin=None).start(world.broker())
    try:
        await world.append(0, values(5))
        await world.append(1, values(5))
        assert await broker.poll(300, 100) == {}
        broker.seek(1, 2)
        assert [record.offset for record in (await gather(broker, 3))[1]] == [2, 3, 4]
        assert await broker.poll(100, 100) == {}
    finally:
        await broker.stop()


async def test_max_records_bounds_a_poll_and_nothing_is_skipped(world: World, broker: Broker) -> None:
    await world.append(0, values(25))
    seen: list[int] = []
    while len(seen) < 25:
        polled = await broker.poll(200, 7)
        assert sum(map(len, polled.values())) <= 7
        seen += [record.offset for record in polled.get(0, ())]
    assert seen == list(range(25))


async def test_pause_holds_back_one_partition_and_resume_loses_nothing(world: World, broker: Broker) -> None:
    broker.pause([0])
    await world.append(0, values(5))
    await world.append(1, values(5))
    assert set(await gather(broker, 5)) == {1}
    assert await broker.poll(200, 100) == {}
    broker.resume([0])
    assert [record.offset for record in (await gather(broker, 5))[0]] == [0, 1, 2, 3, 4]


async def test_seek_of_a_paused_partition_does_not_wake_it(world: World, broker: Broker) -> None:
    await world.append(0, values(5))
    broker.pause([0])
    broker.seek(0, 3)
    assert await broker.poll(200, 100) == {}
    broker.resume([0])
    assert [record.offset for record in (await gather(broker, 2))[0]] == [3, 4]


async def test_seek_back_and_forth(world: World, broker: Broker) -> None:
    await world.append(0, values(10))
    await gather(broker, 10)
    broker.seek(0, 4)
    assert [record.offset for record in (await gather(broker, 6))[0]] == [4, 5, 6, 7, 8, 9]
    broker.seek(0, 9)
    assert [record.offset for record in (await gather(broker, 1))[0]] == [9]


async def test_partitions_not_owned_are_ignored(broker: Broker) -> None:
    broker.seek(7, 3)
    broker.pause([7])
    broker.resume([7])
    await broker.commit({7: Position(3)})
    assert await broker.committed(0) is None
    assert broker.lag(7) is None


async def test_commit_keeps_its_metadata_for_the_next_owner(world: World, broker: Broker) -> None:
    assert await broker.committed(0) is None
    await world.append(0, values(5))
    text = '{"p": 4, "f": 17, "名": "é"}'
    await broker.commit({0: Position(3, text), 1: Position(0)})
    assert await broker.committed(0) == Position(3, text)
    assert await broker.committed(1) == Position(0, "")
    await broker.stop()
    successor = await Rebalances(begin=None).start(world.broker())
    try:
        assert await successor.committed(0) == Position(3, text)
    finally:
        await successor.stop()


async def test_commit_works_inside_the_revoke_callback(world: World) -> None:
    broker = world.broker()

    async def sought(partitions: frozenset[int]) -> None:
        for partition in partitions:
            broker.seek(partition, 0)

    async def committing(partitions: frozenset[int]) -> None:
        await broker.commit({partition: Position(1, '"last words"') for partition in partitions})

    await broker.start(sought, committing)
    await broker.stop()
    successor = await Rebalances().start(world.broker())
    try:
        assert await successor.committed(1) == Position(1, '"last words"')
    finally:
        await successor.stop()


async def test_bounds_and_times(world: World, broker: Broker) -> None:
    assert (await broker.beginning_offset(0), await broker.end_offset(0)) == (0, 0)
    await world.append(0, values(3))
    await asyncio.sleep(0.02)
    between = time.time_ns() // 1_000_000
    await asyncio.sleep(0.02)
    await world.append(0, values(2))
    assert await broker.end_offset(0) == 5
    assert await broker.offset_at(0, between) == 3
    assert await broker.offset_at(0, 0) == 0
    assert await broker.offset_at(0, between + 3_600_000) is None
    await world.trim(0, 2)
    assert await broker.beginning_offset(0) == 2


async def test_lag_is_known_without_asking(world: World, broker: Broker) -> None:
    await world.append(0, values(20))
    found = await broker.poll(2000, 5)
    while not found:
        found = await broker.poll(2000, 5)
    assert broker.lag(0) == 20 - len(found[0])
    await gather(broker, 20 - len(found[0]))
    assert broker.lag(0) == 0


async def test_an_offset_below_what_is_held_is_lost_and_said(world: World, broker: Broker) -> None:
    await world.append(0, values(10))
    await world.trim(0, 6)
    broker.seek(0, 2)
    for _ in range(2):
        with pytest.raises(OffsetLost) as raised:
            await gather(broker, 1)
        assert (raised.value.partition, raised.value.wanted) == (0, 2)
        assert (raised.value.earliest, raised.value.latest) == (6, 10)
    await world.append(1, values(2))
    broker.seek(0, raised.value.earliest)
    found = await gather(broker, 6)
    assert [record.offset for record in found[0]] == [6, 7, 8, 9]
    assert len(found[1]) == 2


async def test_an_offset_beyond_the_end_is_lost_too(world: World, broker: Broker) -> None:
    await world.append(0, values(3))
    broker.seek(0, 50)
    with pytest.raises(OffsetLost) as raised:
        await gather(broker, 1)
    assert (raised.value.wanted, raised.value.earliest, raised.value.latest) == (50, 0, 3)


async def test_published_messages_are_read_back_with_headers(world: World, broker: Broker) -> None:
    headers = (("ce_id", b"id"), ("content-type", b"application/json"))
    messages = [Outgoing(world.findings, n % 2, b"stream", f"finding {n}".encode(), headers) for n in range(40)]
    assert await broker.publish(messages) == [n // 2 for n in range(40)]
    assert await broker.publish([]) == []
    read = [found async for found in broker.read_back(world.findings, 1, 5)]
    assert [record.offset for record, _ in read] == list(range(5, 20))
    assert [record.value for record, _ in read] == [f"finding {n}".encode() for n in range(11, 40, 2)]
    assert all(record.key == b"stream" and found == headers for record, found in read)
    assert [found async for found in broker.read_back(world.findings, 0, 20)] == []


async def test_read_back_ends_where_the_log_ended_when_it_was_called(world: World, broker: Broker) -> None:
    await broker.publish([Outgoing(world.findings, 0, b"k", bytes([n])) for n in range(3)])
    reading = broker.read_back(world.findings, 0, 0)
    first = await anext(reading)
    await broker.publish([Outgoing(world.findings, 0, b"k", b"later")])
    assert [first[0].offset] + [record.offset async for record, _ in reading] == [0, 1, 2]


async def test_counts_and_an_unknown_partition(world: World, broker: Broker) -> None:
    assert (broker.partitions(world.chunks), broker.partitions(world.findings)) == (2, 2)
    with pytest.raises(ConfigError, match="partition"):
        await broker.publish([Outgoing(world.findings, 5, b"k", b"v")])
    assert await broker.publish([Outgoing(world.findings, partition_for(b"k", 2), b"k", b"v")]) == [0]


async def test_publishing_to_a_topic_that_is_not_there_is_refused_at_once(broker: Broker) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="nowhere"):
        await broker.publish([Outgoing("nowhere", 0, b"k", b"v")])
    assert time.monotonic() - begun < 5


async def test_no_chunks_topic_is_a_matter_of_configuration(world: World) -> None:
    world.chunks = "nowhere"
    with pytest.raises(ConfigError, match="nowhere"):
        await Rebalances().start(world.broker())
