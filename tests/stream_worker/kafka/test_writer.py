"""Producers that are given up leave nothing behind: no task that tries for ever, no connection."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from deploy.local import LocalServices
from stream_worker.errors import BrokerUnavailable
from stream_worker.seam import Fenced, Outgoing, Position
from tests.stream_worker.kafka_world import KafkaWorld, Rebalances


def sockets() -> int:
    """Open ones of this process."""
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
    return sum(link.startswith("socket:") for link in links)


async def test_producers_given_up_in_an_outage_leave_nothing_behind(services: LocalServices) -> None:
    world = await KafkaWorld(services.kafka).create(2)
    before, tasks = sockets(), len(asyncio.all_tasks())
    broker = world.broker(publish_timeout_s=1.0, request_timeout_s=2.0)
    await Rebalances().start(broker)
    some = [Outgoing(world.findings, 0, b"k", b"v")]
    try:
        for partition in (0, 1):
            await broker.fence(partition)
        await asyncio.to_thread(services.stop_kafka)
        for partition in (0, 1):
            with pytest.raises(Fenced):
                await broker.transact(partition, some, lambda offsets: Position(1))
        with pytest.raises(BrokerUnavailable):
            await broker.publish(some)
        await broker.stop()
    finally:
        await asyncio.to_thread(services.start_kafka)
    await asyncio.sleep(1)  # what was left behind would connect again by now
    left = [task.get_coro() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert len(left) < tasks, left
    gc.collect()
    assert sockets() <= before
