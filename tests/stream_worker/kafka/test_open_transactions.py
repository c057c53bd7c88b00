"""Somebody else's transaction stands open in the findings: what lies behind it is published all the same."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiokafka import AIOKafkaProducer

from stream_worker.errors import BrokerUnavailable
from stream_worker.seam import Outgoing, Position
from tests.stream_worker.kafka_world import CLIENTS, KafkaWorld, Rebalances
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import X, running
from tests.support import layout, message

L = layout()


def stranger(world: KafkaWorld) -> AIOKafkaProducer:
    return AIOKafkaProducer(bootstrap_servers=world.bootstrap, transactional_id=f"stranger-{world.group}")


@pytest.mark.parametrize("client", CLIENTS)
async def test_what_stands_behind_an_open_transaction_is_read_back_once_that_ends(kafka: str, client: str) -> None:
    world = await KafkaWorld(kafka, client).create(1)
    broker = await Rebalances().start(world.broker(request_timeout_s=2.0))
    try:
        async with stranger(world) as other:
            await other.begin_transaction()
            await other.send_and_wait(world.findings, b"theirs", partition=0)
            await broker.fence(0)
            await broker.transact(0, [Outgoing(world.findings, 0, b"k", b"ours")], lambda offsets: Position(1))
            with pytest.raises(
                BrokerUnavailable, match=r"offsets 0 to [23] cannot be read yet: a transaction of another producer"
            ):
                [record async for record, _ in broker.read_back(world.findings, 0, 0)]
            reading = asyncio.create_task(_values(broker, world))
            await asyncio.sleep(0.5)
            assert not reading.done()
            await other.abort_transaction()
            assert await reading == [b"ours"]
    finally:
        await broker.stop()


async def _values(broker: object, world: KafkaWorld) -> list[bytes | None]:
    return [record.value async for record, _ in broker.read_back(world.findings, 0, 0)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_worker_waits_for_a_strangers_transaction_and_doubles_nothing(kafka: str, client: str) -> None:
    cluster = await Cluster(kafka, client).create(1)
    async with stranger(cluster) as other:
        await other.begin_transaction()
        await other.send_and_wait(cluster.findings, b"{}", partition=0)
        await cluster.send([message(L, at, X[:, at : at + 1000]) for at in range(0, 12_000, 1000)], 1)
        async with running(cluster.pipeline()) as first:
            await _until(lambda: first.publisher.published == 2)
        async with running(cluster.pipeline()) as second:
            second.broker._request_timeout_s = 1.0  # type: ignore[attr-defined]
            await _until(lambda: any("transaction of another producer" in why for why in second.ready()))
            await cluster.send([message(L, at, X[:, at : at + 1000]) for at in range(12_000, 15_000, 1000)], 1)
            await other.abort_transaction()
            await _until(lambda: second.ready() == [] and second.publisher.published == 1)
    assert [body["first_sample"] for body in await cluster.read(cluster.findings)] == [0, 5000, 10_000]


async def _until(met: object, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not met():  # type: ignore[operator]
        assert time.monotonic() < end, "did not come to pass in time"
        await asyncio.sleep(0.02)
