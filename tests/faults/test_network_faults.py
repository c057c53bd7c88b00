"""The network between the worker and its services is cut, stalled and broken in the middle of messages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deploy.local import LocalServices
from encoders.artifact import Artifact
from stream_worker.devices.simulator import fleet
from stream_worker.labels import publish_bank
from stream_worker.seam import Position
from stream_worker.settings import load_settings
from tests.faults.proxy import Proxy
from tests.faults.test_worker_faults import expected_ids, send
from tests.processes import World
from tests.stream_worker.kafka_world import CLIENTS, KafkaWorld, Rebalances, gather

Services = tuple[LocalServices, Proxy, Proxy]


@pytest.fixture(scope="module")
def wired() -> Iterator[Services]:
    """Services, and a proxy before Kafka and one before Redis, all whole."""
    with Proxy() as kafka, LocalServices(kafka_proxy=kafka.address) as services, Proxy() as redis:
        kafka.target = services.kafka_behind_proxy
        redis.target = services.redis.removeprefix("redis://").removesuffix("/0")
        yield services, kafka, redis


@pytest.fixture(scope="module")
def shipped() -> Artifact:
    return Artifact.load(load_settings().artifact_dir())


def behind(world: World, proxy: Proxy) -> World:
    """The same topics and group, for a worker whose way to Kafka is the proxy."""
    through = World(proxy.address)
    through.env = {**world.env, "ECG_KAFKA": proxy.address}
    return through


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_cut_of_five_seconds_and_broken_messages_lose_nothing(
    wired: Services, shipped: Artifact, client: str, delivery: str
) -> None:
    """Chunks go on arriving at Kafka all the time; only the worker is cut off."""
    services, proxy, _ = wired
    broken = proxy.truncated
    messages = [(key, value) for key, value, _ in fleet(4, 60, drop=0.01, duplicate=0.02, reorder=0.02, seed=21)]
    expected = expected_ids(messages, shipped, partitions=2)
    world = World(services.kafka, ECG_CLIENT=client, ECG_DELIVERY=delivery)
    world.command("topics", "--apply", "--partitions", "2")
    with behind(world, proxy).worker() as worker:
        worker.wait_ready()
        assert proxy.connections > 0  # it is the proxy it speaks through
        sending = threading.Thread(target=send, args=(world, messages, 0.35))
        sending.start()
        try:
            worker.until(lambda: worker.metric("ecg_chunks_total") > 20)
            proxy.truncate(1000)  # an answer ends in its middle
            worker.until(lambda: proxy.truncated == broken + 1)
            proxy.truncate(100, towards="server")  # and then a request
            worker.until(lambda: proxy.truncated == broken + 2)
            proxy.cut()
            time.sleep(5)
            assert worker.get("/livez")[0] == 200  # a lost network is no reason to restart
        finally:
            proxy.heal()
            sending.join()
        worker.until(lambda: {x["id"] for x in world.findings(quiet_s=1.0)} >= expected, 90)
        assert worker.stop() == 0
    found = [x["id"] for x in world.findings()]
    assert set(found) == expected  # none lost; what is doubled has the same id
    assert delivery == "at_least_once" or len(found) == len(expected)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_bit_that_flips_on_the_way_is_noticed_and_the_records_are_read_again(wired: Services, client: str) -> None:
    """Two partitions: the damage of one must not take along what came of the other."""
    services, proxy, _ = wired
    world = await KafkaWorld(services.kafka, client).create(2)
    values = {p: [bytes([100 * p + at % 100]) * 3000 for at in range(200)] for p in (0, 1)}

    async def append() -> None:
        for at in range(0, 200, 20):
            for partition in (0, 1):
                await world.append(partition, values[partition][at : at + 20])

    await append()
    broker = await Rebalances().start(world.broker(bootstrap=proxy.address))
    before = proxy.damaged
    try:
        found = await gather(broker, 400)
        for partition in (0, 1):
            proxy.damage(values[partition][150][:1000])
            await append()
            for number, records in (await gather(broker, 400)).items():
                found[number] += records
    finally:
        await broker.stop()
    assert proxy.damaged == before + 2
    expected = {p: [(at, value, value) for at, value in enumerate(3 * values[p])] for p in (0, 1)}
    assert {p: [(r.offset, r.key, r.value) for r in held] for p, held in found.items()} == expected


async def test_a_commit_that_waits_for_its_broker_holds_nothing_else_up(wired: Services) -> None:
    """librdkafka lets each call on a consumer wait for the one before: no call may be made in the event loop."""
    services, proxy, _ = wired
    world = await KafkaWorld(services.kafka, "confluent").create(1)
    await world.append(0, [b"x"] * 10)
    broker = await Rebalances().start(world.broker(bootstrap=proxy.address))
    try:
        await gather(broker, 10)
        assert broker.lag(0) == 0
        await broker.commit({0: Position(5)})
        proxy.stall()
        committing = asyncio.create_task(broker.commit({0: Position(10)}))
        longest, end = 0.0, time.monotonic() + 3
        while time.monotonic() < end:
            began = time.monotonic()
            assert broker.lag(0) == 0
            await broker.poll(50, 100)
            longest = max(longest, time.monotonic() - began)
        assert not committing.done()
        assert longest < 1
        proxy.heal()
        await committing
    finally:
        proxy.heal()
        await broker.stop()


def test_redis_cut_or_silent_freezes_the_labels_and_findings_go_on(wired: Services, shipped: Artifact) -> None:
    services, _, proxy = wired
    messages = [(key, value) for key, value, _ in fleet(2, 60, seed=7, last=False)]
    third, bank = len(messages) // 3, shipped.bank()
    asyncio.run(publish_bank(services.redis, bank))
    world = World(services.kafka, f"redis://{proxy.address}/0")
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.wait_ready()
        for part, fault in enumerate((proxy.cut, proxy.stall)):
            worker.until(lambda: worker.metric("ecg_redis_up") == 1)
            fault()
            worker.until(lambda: worker.metric("ecg_redis_up") == 0, 30)
            send(world, messages[third * part : third * (part + 1)])
            worker.until(lambda least=2 * (part + 1): worker.metric('ecg_windows_total{outcome="scored"}') >= least)  # type: ignore[misc]
            assert worker.get("/readyz")[0] == 200
            proxy.heal()
        worker.until(lambda: worker.metric("ecg_redis_up") == 1, 30)
        send(world, messages[2 * third :])
        worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 10)
        assert worker.stop() == 0
    assert {x["bank"] for x in world.findings()} == {bank.digest}
    lost = [line for line in worker.log.splitlines() if "redis does not answer" in line]
    assert len(lost) == 2  # once a fault, not once a look
    assert all("frozen" in line for line in lost)
    assert worker.log.count("redis is back") == 2


def test_redis_that_answers_late_holds_up_no_scoring(wired: Services, shipped: Artifact) -> None:
    services, _, proxy = wired
    messages = [(key, value) for key, value, _ in fleet(2, 40, seed=8, last=False)]
    bank = shipped.bank()
    other = replace(bank, scale=bank.scale / 2)
    asyncio.run(publish_bank(services.redis, bank))
    world = World(services.kafka, f"redis://{proxy.address}/0")
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.wait_ready()
        proxy.delay(0.8)  # every question, and every answer in pieces
        try:
            send(world, messages)
            began = time.monotonic()
            worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 8, 20)
            asked = time.monotonic()
            assert worker.get("/livez")[0] == 200
            assert time.monotonic() - asked < 3
            assert asked - began < 15
            assert worker.metric("ecg_redis_up") == 1
            asyncio.run(publish_bank(services.redis, other))
            worker.until(lambda: f'digest="{other.digest[:16]}"' in worker.get("/metrics")[1], 60)  # late, but it comes
        finally:
            proxy.heal()
        assert worker.stop() == 0
    assert {x["bank"] for x in world.findings()} == {bank.digest}
