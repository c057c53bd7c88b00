"""A log to test the broker seam on: in this process, or topics of their own on a real cluster."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from stream_worker.kafka.admin import create_topics
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.operate import client_of
from stream_worker.seam import Broker, Record, TopicState


class World(Protocol):
    chunks: str
    findings: str

    def broker(self, **options: Any) -> Broker: ...
    async def append(self, partition: int, values: Sequence[bytes], **options: Any) -> int:
        """Append with the value as key too; returns the first offset."""

    async def trim(self, partition: int, before: int) -> None: ...


class MemoryWorld:
    def __init__(self, partitions: int) -> None:
        self.chunks, self.findings = "chunks", "findings"
        self.log = MemoryLog({self.chunks: partitions, self.findings: partitions})

    def broker(self, **options: Any) -> Broker:
        return MemoryBroker(self.log, chunks=self.chunks, group=options.get("group", "group"))

    async def append(self, partition: int, values: Sequence[bytes], **options: Any) -> int:
        offsets = [self.log.append_to(self.chunks, partition, value, value) for value in values]
        return offsets[0]

    async def trim(self, partition: int, before: int) -> None:
        self.log.trim(self.chunks, partition, before)


CLIENTS = ("aiokafka", "confluent")


class KafkaWorld:
    """Topics with names of their own, so that tests share a cluster and nothing else. `client`: the broker's."""

    def __init__(self, bootstrap: str, client: str = "aiokafka") -> None:
        mark = uuid.uuid4().hex[:12]
        self.bootstrap, self.client = bootstrap, client
        self.chunks, self.findings, self.group = f"chunks-{mark}", f"findings-{mark}", f"group-{mark}"

    async def create(self, partitions: int) -> KafkaWorld:
        by_log = {"message.timestamp.type": "LogAppendTime"}
        await create_topics(self.bootstrap, [TopicState(name, partitions, 1, by_log) for name in (self.chunks, self.findings)])
        return self

    def broker(self, client: str | None = None, **options: Any) -> Broker:
        given = {"bootstrap": self.bootstrap, "group": self.group, "chunks": self.chunks, "findings": self.findings, **options}
        return client_of(client or self.client)(**given)

    async def append(self, partition: int, values: Sequence[bytes], **options: Any) -> int:
        topic = options.pop("topic", self.chunks)
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", **options) as producer:
            sent = [await producer.send(topic, value, key=value, partition=partition) for value in values]
            landed = [await one for one in sent]
            return int(landed[0].offset)

    async def trim(self, partition: int, before: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(self.chunks, partition): RecordsToDelete(before)})
        finally:
            await admin.close()


async def gather(broker: Broker, count: int, limit_s: float = 20.0, max_records: int = 500) -> dict[int, list[Record]]:
    """Poll until `count` records have come; by partition."""
    found: dict[int, list[Record]] = {}
    deadline = time.monotonic() + limit_s
    while sum(map(len, found.values())) < count:
        assert time.monotonic() < deadline, f"only {sum(map(len, found.values()))} of {count} records within {limit_s} s"
        for partition, records in (await broker.poll(100, max_records)).items():
            found.setdefault(partition, []).extend(records)
    return found


class Rebalances:
    """Callbacks that note what they are told and, unless told otherwise, seek each new partition to where it begins."""

    def __init__(self, begin: int | None = 0) -> None:
        self.broker: Broker | None = None
        self.begin = begin
        self.assigned: list[frozenset[int]] = []
        self.revoked: list[frozenset[int]] = []

    async def start(self, broker: Broker) -> Broker:
        self.broker = broker
        await broker.start(self.on_assigned, self.on_revoked)
        return broker

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        self.assigned.append(partitions)
        if self.begin is not None and self.broker is not None:
            for partition in partitions:
                self.broker.seek(partition, self.begin)

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        self.revoked.append(partitions)
