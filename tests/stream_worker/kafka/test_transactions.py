"""Exactly-once delivery: findings, dead letters and position in one transaction, by every broker, and what voids one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from stream_worker.devices.simulator import fleet
from stream_worker.errors import ConfigError
from stream_worker.labels import FixedBank
from stream_worker.ledger import decode_metadata, encode_metadata
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.score import Scorer
from stream_worker.seam import Broker, Fenced, Outgoing, Position
from stream_worker.telemetry import Metrics
from tests.stream_worker.kafka_world import CLIENTS, KafkaWorld, MemoryWorld, Rebalances, World
from tests.stream_worker.test_pipeline import TOPICS, committed, published, running, settings, until
from tests.support import ProjectionEncoder, bank


@pytest.fixture(params=["memory", *CLIENTS])
async def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return MemoryWorld(2)
    return await KafkaWorld(request.getfixturevalue("kafka"), request.param).create(2)


@pytest_asyncio.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    started = await Rebalances().start(world.broker())
    yield started
    await started.stop()


def some(world: World, *values: bytes) -> list[Outgoing]:
    return [Outgoing(world.findings, 1, b"k", value, (("h", b"x"),)) for value in values]


async def held(broker: Broker, world: World) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.value) async for record, _ in broker.read_back(world.findings, 1, 0)]


async def test_messages_and_position_appear_together(world: World, broker: Broker) -> None:
    given: list[Sequence[int]] = []

    def position(offsets: Sequence[int]) -> Position:
        given.append(offsets)
        return Position(7 + len(given), f'"of {len(offsets)}"')

    await broker.fence(1)
    await broker.transact(1, some(world, b"a", b"b"), position)
    await broker.fence(1)  # its own former self is an owner like any other; straight after a commit the old one may be told
    assert await broker.committed(1) == Position(8, '"of 2"')
    await broker.transact(1, some(world, b"c"), position)
    await broker.transact(1, [], position)  # nothing to say, but further on
    await broker.fence(1)
    assert await broker.committed(1) == Position(10, '"of 0"')
    found = await held(broker, world)
    assert [value for _, value in found] == [b"a", b"b", b"c"]
    assert [*given[0], *given[1]] == [offset for offset, _ in found]
    assert await broker.committed(0) is None


async def test_what_is_not_fenced_is_not_written(world: World, broker: Broker) -> None:
    with pytest.raises(Fenced, match="partition 1"):
        await broker.transact(1, some(world, b"a"), lambda offsets: Position(1))
    assert await held(broker, world) == []
    assert await broker.committed(1) is None


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_new_owner_voids_what_the_former_has_not_committed(kafka: str, client: str) -> None:
    world = await KafkaWorld(kafka, client).create(2)
    old = await Rebalances().start(world.broker())
    try:
        await old.fence(1)
        await old.transact(1, some(world, b"a"), lambda offsets: Position(1))
        taken = asyncio.Event()

        def late(offsets: Sequence[int]) -> Position:
            taken.set()
            return Position(2)

        name = f"{world.group}/{world.chunks}/1"  # a worker of either client is fenced by its name alone
        async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name) as new:
            with pytest.raises(Fenced):
                await old.transact(1, some(world, b"never"), late)
            assert not taken.is_set()  # it was refused before anything was acknowledged
            with pytest.raises(Fenced):  # and is never started again by itself
                await old.transact(1, some(world, b"never"), late)
            async with new.transaction():
                await new.send_and_wait(world.findings, b"b", partition=1)
        assert [value for _, value in await held(old, world)] == [b"a", b"b"]
        await old.fence(1)
        assert await old.committed(1) == Position(1)
    finally:
        await old.stop()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_topic_that_is_not_there_is_a_matter_of_configuration(kafka: str, client: str) -> None:
    world = await KafkaWorld(kafka, client).create(2)
    broker = await Rebalances().start(world.broker())
    try:
        await broker.fence(0)
        with pytest.raises(ConfigError, match="no-such-topic"):
            await broker.transact(0, [Outgoing("no-such-topic", 0, b"k", b"v")], lambda offsets: Position(0))
    finally:
        await broker.stop()


class Failing(MemoryBroker):
    """Every second transaction is void, also of those that say something; every second of the void has come through all the
    same. `count`: by whether they say something, of all workers of a test."""

    count: ClassVar[Counter[bool]] = Counter()

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        self.count[bool(messages)] += 1
        count = self.count[bool(messages)]
        if count % 2 == 0:
            if count % 4 == 0:
                await super().transact(partition, messages, position)
            self._fenced.discard(partition)
            raise Fenced(partition, "as the test wants it")
        await super().transact(partition, messages, position)


def exactly_once(log: MemoryLog, kind: type[MemoryBroker] = MemoryBroker, **changes: Any) -> Pipeline:
    encoder = ProjectionEncoder()
    labels = FixedBank(bank(encoder))
    chosen = settings(delivery="exactly_once", **changes)
    return Pipeline(kind(log), lambda: Scorer(encoder, labels.bank), chosen, Metrics(), labels)


@pytest.mark.parametrize("kind", [MemoryBroker, Failing])
async def test_every_window_once_whatever_becomes_of_the_transactions(
    kind: type[MemoryBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_worker.holding.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(Failing, "count", Counter())
    messages = list(fleet(6, 47, chunk_ms=500, drop=0.02, duplicate=0.05, reorder=0.05, seed=3))
    truth, log = MemoryLog(TOPICS), MemoryLog(TOPICS)
    for key, value, second in messages:
        truth.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
    async with running(exactly_once(truth)):
        await until(lambda: sum(committed(truth).values()) == len(messages))
    for part in range(5):
        for key, value, second in messages[len(messages) * part // 5 : len(messages) * (part + 1) // 5]:
            log.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
        async with running(exactly_once(log, kind)) as p:
            await until(lambda: p.ready() == [])
            await asyncio.sleep(0.1 * part)
    async with running(exactly_once(log, kind)):
        await until(lambda: sum(committed(log).values()) == len(messages))
    assert sorted(x["id"] for x in published(log)) == sorted(x["id"] for x in published(truth))
    letters = [sorted((x["offset"], x["partition"]) for x in published(one, "ecg.dead-letters")) for one in (truth, log)]
    assert letters[0] == letters[1]
    assert len(published(truth)) > 20
    assert kind is MemoryBroker or Failing.count[True] >= 8


async def test_nothing_is_seen_before_its_commit_and_all_of_it_after_a_stop() -> None:
    log = MemoryLog(TOPICS)
    for key, value, second in fleet(2, 25, seed=1):
        log.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
    async with running(exactly_once(log, commit_interval_ms=60_000)) as p:
        await until(lambda: p.scoring.waiting == 0 and any(part.in_flight for part in p.holdings.parts.values()))
        assert published(log) == []
    assert len(published(log)) == 6  # two whole windows and a tail of 5 s a stream


async def test_a_sink_that_takes_nothing_holds_reading_up() -> None:
    class Stuck(MemoryBroker):
        async def transact(self, *args: Any) -> None:
            await asyncio.sleep(30)

    log = MemoryLog(TOPICS)
    for key, value, _ in fleet(20, 120, seed=1):
        log.append("ecg.chunks", key, value, timestamp_ms=0)
    p = exactly_once(log, Stuck, queue_windows=8, drain_s=0.1)
    async with running(p):
        await until(lambda: p._crowded or p.scoring.waiting >= 16, 20)
        await asyncio.sleep(0.5)
        gathered = sum(len(work.events) for held in p.publisher._gathered.values() for work, _ in held)  # type: ignore[attr-defined]
        assert gathered <= 8 + 64  # and what one slice of records closes
        assert not p.live()


async def test_commits_from_long_before_double_no_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again, in vain: a coordinator that was started anew has been heard to tell them."""
    monkeypatch.setattr("stream_worker.recovery.STALE_S", 0.6)
    messages = [(key, value) for key, value, _ in fleet(6, 47, chunk_ms=500, seed=3)]
    messages[5::20] = [(key, b"no chunk") for key, _ in messages[5::20]]
    log = MemoryLog(TOPICS)

    def processed() -> int:
        return sum(decode_metadata(at.metadata, at.offset)[0] for at in log.commits.values())

    for place, (key, value) in enumerate(messages):
        log.append("ecg.chunks", key, value, timestamp_ms=100 * place)
    async with running(exactly_once(log)):
        await until(lambda: processed() == len(messages))
    letters, findings = published(log, "ecg.dead-letters"), published(log)
    log.commits = dict.fromkeys(log.commits, Position(0, encode_metadata(0, 0, 2)))
    for key, value in messages[-3:]:
        log.append("ecg.chunks", key, value, timestamp_ms=100 * len(messages))
    async with running(exactly_once(log)):
        await until(lambda: processed() == len(messages) + 3)
    assert len(findings) > 20
    assert len(published(log)) == len(findings)
    places = [(x["partition"], x["offset"]) for x in published(log, "ecg.dead-letters")]
    assert len(places) == len(set(places))
    assert len(places) <= len(letters) + 3
