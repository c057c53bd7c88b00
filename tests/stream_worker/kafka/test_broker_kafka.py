"""What only a real cluster can show: rebalances, codecs, outages, transactions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreatePartitionsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.structs import OffsetAndMetadata

from deploy.local import LocalServices
from deploy.local.processes import free_port
from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.seam import Broker, Fenced, OffsetLost, Outgoing, Position
from tests.stream_worker.kafka_world import CLIENTS, KafkaWorld, Rebalances, gather

AFTER = '{"v":1,"P":17,"F":4,"N":4}'


@pytest.fixture(params=CLIENTS)
async def world(request: pytest.FixtureRequest, kafka: str) -> KafkaWorld:
    return await KafkaWorld(kafka, request.param).create(4)


async def until(met: Callable[[], bool], brokers: list[Broker], limit_s: float = 30.0) -> None:
    """Poll the brokers until `met()`."""
    deadline = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        await asyncio.gather(asyncio.sleep(0.01), *(broker.poll(100, 100) for broker in brokers))


async def test_a_second_worker_takes_half_and_gives_it_back(world: KafkaWorld) -> None:
    first_heard, second_heard = Rebalances(), Rebalances()
    first, second = world.broker(session_timeout_s=3), world.broker(session_timeout_s=3)
    await first_heard.start(first)
    try:
        joining = asyncio.create_task(second_heard.start(second))
        await until(lambda: joining.done() and len(first.assigned) == 2, [first])
        await joining
        assert len(second.assigned) == 2
        assert first.assigned | second.assigned == frozenset(range(4))
        assert first_heard.revoked == [frozenset(range(4))]
        assert first_heard.assigned[-1] == first.assigned
        with_first = first.assigned

        for partition in range(4):
            await world.append(partition, [b"x"])
        found_first, found_second = await asyncio.gather(gather(first, 2), gather(second, 2))
        assert set(found_first) == set(first.assigned)
        assert set(found_second) == set(second.assigned)

        await second.stop()
        await until(lambda: len(first.assigned) == 4, [first])
        assert second_heard.revoked[-1] == frozenset(range(4)) - with_first
        assert first_heard.revoked[-1] == with_first
    finally:
        await second.stop()
        await first.stop()


async def test_partitions_that_come_straight_back_stay_fenced_and_no_others(world: KafkaWorld) -> None:
    first, second = world.broker(session_timeout_s=3), world.broker(session_timeout_s=3)
    await Rebalances().start(first)
    try:
        for partition in range(4):
            await first.fence(partition)
        joining = asyncio.create_task(Rebalances().start(second))
        await until(lambda: joining.done() and len(first.assigned) == 2, [first])
        for partition in first.assigned:
            await first.transact(partition, [Outgoing(world.findings, partition, b"k", b"kept")], lambda _: Position(1))
        for partition in second.assigned:
            with pytest.raises(Fenced, match="not fenced"):
                await first.transact(partition, [], lambda _: Position(1))
        taken = min(first.assigned)
        await second.fence(taken)  # as one does that has owned it in between
        with pytest.raises(Fenced):
            await first.transact(taken, [Outgoing(world.findings, taken, b"k", b"late")], lambda _: Position(2))
        read = [record.value async for record, _ in second.read_back(world.findings, taken, 0)]
        assert read == [b"kept"]
    finally:
        await second.stop()
        await first.stop()


async def test_assignment_is_sticky_when_a_third_joins(world: KafkaWorld) -> None:
    """The two that are there keep what a third does not need: a round robin would deal all four anew."""
    if world.client == "confluent":
        pytest.skip("librdkafka's sticky assignor is the cooperative one, which does not take everything away")
    brokers = [world.broker(session_timeout_s=3) for _ in range(3)]
    started: list[Broker] = []
    try:
        for broker in brokers:
            before = [one.assigned for one in started]
            joining = asyncio.create_task(Rebalances().start(broker))
            held = [*started, broker]
            await until(lambda: joining.done() and sum(len(one.assigned) for one in held) == 4, started)  # noqa: B023
            await joining
            for one, had in zip(started, before, strict=True):
                assert one.assigned <= had, "a partition moved between two that were there before"
            started.append(broker)
        assert sorted(len(one.assigned) for one in started) == [1, 1, 2]
    finally:
        for broker in brokers:
            await broker.stop()


async def test_commit_of_a_partition_lost_in_between_is_not_sent(world: KafkaWorld) -> None:
    first, second = world.broker(session_timeout_s=3), world.broker(session_timeout_s=3)
    await Rebalances().start(first)
    try:
        await first.commit({partition: Position(1, '"first"') for partition in range(4)})
        joining = asyncio.create_task(Rebalances().start(second))
        await until(lambda: joining.done() and len(first.assigned) == 2, [first])
        await first.commit({partition: Position(9, '"late"') for partition in range(4)})
        for partition in range(4):
            expected = Position(9, '"late"') if partition in first.assigned else Position(1, '"first"')
            assert await second.committed(partition) == expected
    finally:
        await second.stop()
        await first.stop()


async def test_what_a_callback_raises_comes_out_of_poll(world: KafkaWorld, caplog: pytest.LogCaptureFixture) -> None:
    async def failing(partitions: frozenset[int]) -> None:
        raise ValueError("recovery failed")

    async def quiet(partitions: frozenset[int]) -> None:
        return None

    broker = world.broker()
    with caplog.at_level(logging.ERROR):
        await broker.start(failing, quiet)
    try:
        with pytest.raises(ValueError, match="recovery failed"):
            await broker.poll(100, 10)
        assert "rebalance callback failed" in caplog.text
    finally:
        await broker.stop()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_read(world: KafkaWorld, codec: str) -> None:
    sent = [f"{codec} {n} ".encode() * 200 for n in range(20)]
    await world.append(2, sent, compression_type=codec)
    broker = world.broker()
    await Rebalances().start(broker)
    try:
        assert [record.value for record in (await gather(broker, 20))[2]] == sent
    finally:
        await broker.stop()


async def test_aborted_messages_are_never_delivered(world: KafkaWorld) -> None:
    broker = world.broker()
    await Rebalances().start(broker)
    try:
        async with AIOKafkaProducer(bootstrap_servers=world.bootstrap, transactional_id=world.group) as producer:
            for number in range(6):
                await producer.begin_transaction()
                await producer.send_and_wait(world.findings, str(number).encode(), partition=0)
                await producer.send_and_wait(world.chunks, str(number).encode(), partition=0)
                await (producer.commit_transaction() if number % 2 else producer.abort_transaction())
        assert [record.value for record in (await gather(broker, 3))[0]] == [b"1", b"3", b"5"]
        assert [record.value async for record, _ in broker.read_back(world.findings, 0, 0)] == [b"1", b"3", b"5"]
        # The log ends with an abort marker: reading back must end there too, not wait for a record behind it.
        async with AIOKafkaProducer(bootstrap_servers=world.bootstrap, transactional_id=world.group) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(world.findings, b"never", partition=0)
            await producer.abort_transaction()
        assert [record.value async for record, _ in broker.read_back(world.findings, 0, 8)] == [b"5"]
    finally:
        await broker.stop()


async def test_added_partitions_of_findings_are_seen_and_used(world: KafkaWorld) -> None:
    broker = world.broker()
    await Rebalances().start(broker)
    admin = AIOKafkaAdminClient(bootstrap_servers=world.bootstrap)
    try:
        await broker.publish([Outgoing(world.findings, 3, b"k", b"v")])
        await admin.start()
        await admin._send_to_controller(
            CreatePartitionsRequest(topic_partitions=[(world.findings, (6, None))], timeout=10_000, validate_only=False)
        )
        await until(lambda: broker.partitions(world.findings) == 6, [broker])
        assert await broker.publish([Outgoing(world.findings, 5, b"k", b"v")]) == [0]
        assert broker.partitions(world.chunks) == 4
    finally:
        await admin.close()
        await broker.stop()


@pytest.mark.parametrize("client", CLIENTS)
async def test_absent_broker_is_named_within_the_limit(client: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    broker = KafkaWorld(address, client).broker(start_timeout_s=2.0)
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=address):
        await Rebalances().start(broker)
    assert 1.0 < time.monotonic() - begun < 6.0
    assert not broker.connected


async def test_a_group_that_lets_nobody_in_at_first_is_asked_again(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, tries = AIOKafkaConsumer.start, list[AIOKafkaConsumer]()

    async def late(consumer: AIOKafkaConsumer) -> None:
        tries.append(consumer)
        await (asyncio.Event().wait() if len(tries) == 1 else start(consumer))

    world = await KafkaWorld(kafka).create(2)
    monkeypatch.setattr(AIOKafkaConsumer, "start", late)
    broker = await Rebalances().start(world.broker(start_timeout_s=4.0))
    try:
        assert len(tries) == 2
        assert broker.assigned == {0, 1}
    finally:
        await broker.stop()


async def test_members_that_join_at_once_let_each_other_in(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send, offers = AIOKafkaClient.send, list[int]()

    async def seen(client: AIOKafkaClient, node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, JoinGroupRequest):
            offers.append(len(request._group_protocols))
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", seen)
    world = await KafkaWorld(kafka).create(4)
    brokers = [world.broker() for _ in range(3)]
    try:
        await asyncio.gather(*(Rebalances().start(broker) for broker in brokers))
        await until(lambda: sorted(p for broker in brokers for p in broker.assigned) == [0, 1, 2, 3], brokers)
        assert set(offers) == {2}  # never one assignor alone, which would be another offer
        assert len(offers) <= 12  # each once without a number and once with it, and again for those that came after it
    finally:
        await asyncio.gather(*(broker.stop() for broker in brokers))


async def test_a_coordinator_that_tells_nothing_yet_is_asked_again(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just started answers with an error for the whole group. A worker that took it for a group without commits
    would publish everything anew."""
    ask, asked = AIOKafkaAdminClient._send_request, list[Any]()

    async def loading(admin: AIOKafkaAdminClient, request: Any, *node: Any) -> Any:
        if request.API_KEY != OffsetFetchRequest.API_KEY:
            return await ask(admin, request, *node)
        asked.append(request)
        return SimpleNamespace(error_code=14, topics=[]) if len(asked) == 1 else await ask(admin, request, *node)

    world = await KafkaWorld(kafka).create(2)
    broker = await Rebalances().start(world.broker())
    try:
        await broker.commit({0: Position(0, '"here"')})
        monkeypatch.setattr(AIOKafkaAdminClient, "_send_request", loading)
        assert await broker.committed(0) == Position(0, '"here"')
        assert len(asked) == 2
        assert await broker.committed(1) is None
    finally:
        await broker.stop()


async def test_a_commit_is_told_when_no_transaction_can_change_it_any_more(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that was killed after it had acknowledged a transaction tells, when it is back, the commit before that. One
    that goes on waiting for that transaction is not waited for."""
    broker = await Rebalances().start(world.broker())
    tp = TopicPartition(world.chunks, 0)
    async with AIOKafkaProducer(bootstrap_servers=world.bootstrap, transactional_id=world.group) as producer:
        await broker.commit({0: Position(0, "{}")})
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({tp: OffsetAndMetadata(0, AFTER)}, world.group)
        asked = asyncio.create_task(broker.committed(0))
        assert not (await asyncio.wait({asked}, timeout=1.0))[0]
        for module in ("stable", "librdkafka"):
            monkeypatch.setattr(f"stream_worker.kafka.{module}.PATIENCE_S", 0.5)
        assert await broker.committed(0) == Position(0, "{}")
        await producer.commit_transaction()
        assert await asked == Position(0, AFTER)
    await broker.stop()


async def test_an_oversized_message_is_refused_and_the_next_goes_through(world: KafkaWorld) -> None:
    broker = world.broker()
    await Rebalances().start(broker)
    try:
        with pytest.raises(ConfigError, match=r"TooLarge|TOO_LARGE"):
            await broker.publish([Outgoing(world.findings, 0, b"k", b"x" * (2 << 20))])
        assert await broker.publish([Outgoing(world.findings, 0, b"k", b"small")]) == [0]
    finally:
        await broker.stop()


async def test_an_idle_partition_does_not_slow_a_busy_one(world: KafkaWorld) -> None:
    """A reader that is busy for longer than the client's prefetch pause: then fetches for the idle partitions alone go out,
    and the busy one's next has to wait for them. With the client's own fetch wait of 500 ms every other poll took 0.32 s,
    with 50 ms none took 0.01 s."""
    await world.append(0, [b"x" * 12_000] * 800)
    broker = world.broker()
    await Rebalances().start(broker)
    waits: list[float] = []
    try:
        left = 800
        while left:
            begun = time.monotonic()
            polled = await broker.poll(1000, 200)
            waits.append(time.monotonic() - begun)
            left -= len(polled.get(0, ()))
            await asyncio.sleep(0.15)  # the work of a worker that is slower than the broker
        assert sum(waits[1:]) / len(waits[1:]) < 0.07
    finally:
        await broker.stop()


@pytest.mark.parametrize("end", ["stop_kafka", "kill_kafka"])
async def test_a_broker_that_goes_and_comes_back_loses_nothing(services: LocalServices, world: KafkaWorld, end: str) -> None:
    broker = world.broker(publish_timeout_s=3.0, request_timeout_s=3.0)
    await Rebalances().start(broker)
    try:
        await world.append(0, [b"before"])
        assert len((await gather(broker, 1))[0]) == 1
        await broker.commit({0: Position(1, '"before"')})
        try:
            await asyncio.to_thread(getattr(services, end))
            await until(lambda: not broker.connected, [broker])
            with pytest.raises(BrokerUnavailable):
                await broker.publish([Outgoing(world.findings, 0, b"k", b"lost?")])
            with pytest.raises(BrokerUnavailable):
                await broker.commit({0: Position(1, '"during"')})
            with pytest.raises(BrokerUnavailable):
                await broker.end_offset(0)
        finally:
            await asyncio.to_thread(services.start_kafka)
        await until(lambda: broker.connected, [broker])
        for again in range(20):  # its leader has another number now, which not all know at once
            with contextlib.suppress(BrokerUnavailable):
                assert await broker.end_offset(0) == 1
                break
            assert again < 19
            await asyncio.sleep(0.2)
        await world.append(0, [b"after"])
        found = await gather(broker, 1)
        values = [record.value for record in found[0]]
        assert values[-1] == b"after"
        assert set(values) <= {b"before", b"after"}  # a rebalance may have begun the partition anew
        again = await broker.publish([Outgoing(world.findings, 0, b"k", b"after")])
        read = [record.value async for record, _ in broker.read_back(world.findings, 0, 0)]
        assert read[again[0]] == b"after"
        assert set(read) <= {b"lost?", b"after"}
        await broker.commit({0: Position(2, '"after"')})
        assert await broker.committed(0) == Position(2, '"after"')
    finally:
        await broker.stop()


async def test_stop_during_an_outage_ends(services: LocalServices, world: KafkaWorld) -> None:
    broker = world.broker(publish_timeout_s=2.0, request_timeout_s=2.0)
    heard = Rebalances()
    await heard.start(broker)
    try:
        await asyncio.to_thread(services.stop_kafka)
        begun = time.monotonic()
        await broker.stop()
        assert time.monotonic() - begun < 25
        assert heard.revoked == [frozenset(range(4))]
    finally:
        await asyncio.to_thread(services.start_kafka)


async def test_offset_lost_after_retention_overtook_a_paused_reader(world: KafkaWorld) -> None:
    broker = world.broker()
    await Rebalances().start(broker)
    try:
        await world.append(0, [b"x"] * 10)
        await gather(broker, 10)
        broker.pause([0])
        await broker.poll(300, 10)  # the fetch under way at the pause comes back empty
        await world.append(0, [b"y"] * 10)
        await world.trim(0, 15)
        broker.resume([0])
        with pytest.raises(OffsetLost) as raised:
            await gather(broker, 1)
        assert (raised.value.wanted, raised.value.earliest, raised.value.latest) == (10, 15, 20)
    finally:
        await broker.stop()
