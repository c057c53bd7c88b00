"""What is peculiar to the broker on librdkafka: its threads, its names for things, its place beside the other client."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.confluent_reader import sorted_out
from stream_worker.kafka.confluent_writer import Transaction, Writer
from stream_worker.kafka.librdkafka import _metadata, configuration, refusal
from stream_worker.kafka.security import security
from stream_worker.ledger import decode_metadata, encode_metadata
from stream_worker.operate import client_of
from stream_worker.seam import Fenced, Outgoing, Position
from tests.stream_worker.kafka_world import KafkaWorld, Rebalances, gather


@pytest.fixture
async def world(kafka: str) -> KafkaWorld:
    return await KafkaWorld(kafka, "confluent").create(4)


def test_security_in_the_names_of_the_other_client() -> None:
    given = configuration("a:1,b:2", security("SASL_SSL", "SCRAM-SHA-256", "me", "secret"), "ecg")
    wanted = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256", "sasl.username": "me"}
    assert {name: given[name] for name in wanted} == wanted
    assert (given["bootstrap.servers"], given["sasl.password"]) == ("a:1,b:2", "secret")
    assert "ssl_context" not in given
    Producer(given).close()  # the client knows every name, and reads the certificates


def test_certificates_go_along_as_text() -> None:
    context = security("SSL")["ssl_context"]
    pem = configuration("a:1", {"security_protocol": "SSL", "ssl_context": context}, "ecg").get("ssl.ca.pem", "")
    assert pem.count("BEGIN CERTIFICATE") == len(context.get_ca_certs())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._TRANSPORT, BrokerUnavailable),
        (KafkaError._MSG_TIMED_OUT, BrokerUnavailable),
        (KafkaError.NOT_ENOUGH_REPLICAS, BrokerUnavailable),
        (KafkaError._AUTHENTICATION, ConfigError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigError),
        (KafkaError.MSG_SIZE_TOO_LARGE, ConfigError),
    ],
)
def test_waiting_mends_some_errors_and_not_others(code: int, kind: type[Exception]) -> None:
    found = refusal(KafkaError(code), "a:1")
    assert type(found) is kind
    assert "a:1" in str(found)


def test_records_and_errors_are_told_apart() -> None:
    lost = KafkaError(KafkaError._AUTO_OFFSET_RESET)
    records, errors = sorted_out(
        [
            Message(topic="t", partition=1, offset=7, key=b"k", value=b"v", timestamp=(2, 1234)),
            Message(topic="t", partition=0, offset=3, error=lost),
            Message(topic="t", partition=1, offset=9, key=None, value=None, timestamp=(2, 1235)),
        ]
    )
    assert records == {1: [(1, 7, 1234, b"k", b"v"), (1, 9, 1235, None, None)]}
    assert [(partition, error.code()) for partition, error in errors] == [(0, KafkaError._AUTO_OFFSET_RESET)]


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("confluent_kafka", "stream_worker.kafka.confluent_broker"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in (
        "stream_worker.kafka.confluent_reader",
        "stream_worker.kafka.confluent_writer",
        "stream_worker.kafka.librdkafka",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"ecg-stream-worker\[fast\]"):
        client_of("confluent")


@pytest.mark.parametrize("behind", [b"", b"\x7f", b"}}", b"\xff\xfe", b'{"v":1'])
def test_what_the_client_reads_behind_a_commit_is_cut_off(behind: bytes) -> None:
    """librdkafka does not end a copy of it with a zero byte, and the client looks for one."""

    class Found:
        @property
        def metadata(self) -> str:
            return (b'{"v":1,"P":17}' + behind).decode()

    assert _metadata(Found()) == '{"v":1,"P":17}'  # type: ignore[arg-type]


async def test_workers_of_both_clients_share_a_group(world: KafkaWorld) -> None:
    """So a fleet can change its client one worker at a time."""
    first, second = world.broker("aiokafka", session_timeout_s=3), world.broker("confluent", session_timeout_s=3)
    await Rebalances().start(first)
    try:
        joining = asyncio.create_task(Rebalances().start(second))
        end = time.monotonic() + 30
        while not (joining.done() and len(first.assigned) == 2):
            assert time.monotonic() < end
            await first.poll(100, 100)
        await joining
        assert first.assigned | second.assigned == frozenset(range(4))
        for partition in range(4):
            await world.append(partition, [b"x"])
        found_first, found_second = await asyncio.gather(gather(first, 2), gather(second, 2))
        assert (set(found_first), set(found_second)) == (set(first.assigned), set(second.assigned))
        for owner in (first, second):  # what one commits, either way, both read
            fenced, plain = sorted(owner.assigned)
            at = Position(5, encode_metadata(7, 3, 4))
            await owner.fence(fenced)
            await owner.transact(fenced, [], lambda _, at=at: at)  # type: ignore[misc]
            await owner.commit({plain: at})
            for reader, partition in itertools.product((first, second), (fenced, plain)):
                told = await reader.committed(partition)
                assert told is not None
                assert decode_metadata(told.metadata, told.offset) == (7, 3, 4)
    finally:
        await second.stop()
        await first.stop()


async def test_a_slow_callback_holds_up_neither_the_loop_nor_poll(world: KafkaWorld) -> None:
    first, second = world.broker(session_timeout_s=6), world.broker(session_timeout_s=6)
    slow, let_go = asyncio.Event(), asyncio.Event()

    async def given(partitions: frozenset[int]) -> None:
        return None

    async def taken(partitions: frozenset[int]) -> None:
        slow.set()
        await let_go.wait()

    await first.start(given, taken)
    try:
        joining = asyncio.create_task(Rebalances().start(second))
        while not slow.is_set():
            await first.poll(100, 100)
        begun = time.monotonic()
        assert [await first.poll(50, 100) for _ in range(5)] == [{}] * 5
        assert time.monotonic() - begun < 1.0
        assert first.assigned == frozenset(range(4))  # still, inside on_revoked
        let_go.set()
        while not joining.done():
            await first.poll(100, 100)
        await joining
        assert len(first.assigned) == len(second.assigned) == 2
    finally:
        let_go.set()
        await second.stop()
        await first.stop()


async def test_a_seek_while_records_are_under_way_is_not_overtaken_by_them(world: KafkaWorld) -> None:
    broker = world.broker()
    await Rebalances().start(broker)
    try:
        await world.append(0, [bytes([n]) for n in range(100)])
        await gather(broker, 10, max_records=10)
        polling = asyncio.create_task(broker.poll(1000, 20))
        await asyncio.sleep(0)  # it has asked the other thread
        broker.seek(0, 5)
        assert [record.offset for record in (await polling)[0]] == list(range(5, 25))
    finally:
        await broker.stop()


def test_an_acknowledgement_without_an_offset_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that the cluster knows but has no number for any more: the caller publishes again."""

    class Vague:
        def produce(self, topic: str, value: bytes, key: bytes, partition: int, landed: object, headers: object) -> None:
            landed(None, Message(topic=topic, partition=partition, offset=-1001))  # type: ignore[operator]

        def flush(self, timeout: float) -> int:
            return 0

        def purge(self) -> None:
            return None

        def close(self) -> None:
            return None

    monkeypatch.setattr("stream_worker.kafka.confluent_writer.Producer", lambda config: Vague())
    with pytest.raises(BrokerUnavailable, match="not acknowledged"):
        Writer({"bootstrap.servers": "a:1"}, 1.0).publish([Outgoing("t", 0, b"k", b"v")])


def test_a_full_queue_of_the_client_ends_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def produce(self, *args: object, **kwargs: object) -> None:
            raise BufferError

        def poll(self, timeout: float) -> None:
            time.sleep(timeout)

        def purge(self) -> None:
            raise KafkaException(KafkaError(KafkaError._STATE))

        def close(self) -> None:
            return None

    monkeypatch.setattr("stream_worker.kafka.confluent_writer.Producer", lambda config: Full())
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="_TIMED_OUT_QUEUE"):
        Writer({"bootstrap.servers": "a:1"}, 0.2).publish([Outgoing("t", 0, b"k", b"v")])
    assert time.monotonic() - begun < 2


async def test_a_transaction_in_which_the_client_stands_is_left_behind(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been seen to wait for a broker that is gone, beyond its limit and for ever."""
    commit, stood = Transaction.commit, threading.Event()

    def stand(self: Transaction, offsets: Sequence[TopicPartition], member: Any) -> None:
        if not stood.is_set():
            stood.set()
            threading.Event().wait()
        commit(self, offsets, member)

    monkeypatch.setattr(Transaction, "commit", stand)
    monkeypatch.setattr("stream_worker.kafka.confluent_broker._STANDS_S", 0.1)
    broker = await Rebalances().start(world.broker(request_timeout_s=2.0))
    try:
        await broker.fence(1)
        with pytest.raises(Fenced, match="stands"):
            await broker.transact(1, [Outgoing(world.findings, 1, b"k", b"void")], lambda offsets: Position(1))
        await broker.fence(1)
        await broker.transact(1, [Outgoing(world.findings, 1, b"k", b"v")], lambda offsets: Position(2))
        await broker.fence(1)
        assert await broker.committed(1) == Position(2)
        assert [record.value async for record, _ in broker.read_back(world.findings, 1, 0)] == [b"v"]
    finally:
        await broker.stop()
