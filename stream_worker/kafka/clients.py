"""The other ends of the topics, over Kafka: a device that publishes chunks, a reader that follows findings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.admin import describe_topics
from stream_worker.seam import Record, partition_for

__all__ = ["DeviceProducer", "follow"]

CONNECT_S = 15.0


class DeviceProducer:
    """Publishes (key, value) messages by Kafka's default partitioner, acknowledged by all copies. An async context manager."""

    def __init__(self, bootstrap: str, security: Mapping[str, Any]) -> None:
        self._bootstrap, self._security = bootstrap, security
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        # linger and a large batch: the client's defaults send a tenth as many messages a second
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=1 << 20,
            **self._security,
        )
        await _connect(self._producer, self._bootstrap)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._producer is not None
        await self._producer.stop()

    async def send(self, topic: str, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """All of them, in order within a partition. Raises BrokerUnavailable when they are not acknowledged."""
        assert self._producer is not None
        try:
            partitions = len(await self._producer.partitions_for(topic))
        except UnknownTopicOrPartitionError:
            raise ConfigError(f"topic {topic} does not exist at {self._bootstrap}: ecg-worker topics --apply") from None
        try:
            futures = [await self._producer.send(topic, value, key, partition_for(key, partitions)) for key, value in messages]
            await asyncio.gather(*futures)
        except KafkaError as error:
            raise BrokerUnavailable(
                f"kafka at {self._bootstrap} did not take the chunks for {topic}: {type(error).__name__}"
            ) from None


async def follow(
    bootstrap: str, topic: str, security: Mapping[str, Any], from_beginning: bool = False, quiet_s: float | None = None
) -> AsyncIterator[Record]:
    """Committed records of the partitions that `topic` has now, from now or the beginning on, until `quiet_s` bring none."""
    there = (await describe_topics(bootstrap, [topic], security, CONNECT_S)).get(topic)
    if there is None:
        raise ConfigError(f"topic {topic} does not exist at {bootstrap}: ecg-worker topics --apply")
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        fetch_max_wait_ms=100,
        **security,
    )
    await _connect(consumer, bootstrap)
    try:
        parts = [TopicPartition(topic, number) for number in range(there.partitions)]
        consumer.assign(parts)  # a subscription would set positions of its own, now and then after our seek
        await (consumer.seek_to_beginning(*parts) if from_beginning else consumer.seek_to_end(*parts))
        heard = time.monotonic()
        while quiet_s is None or time.monotonic() - heard < quiet_s:
            try:
                found = await consumer.getmany(timeout_ms=200)
            except KafkaError as error:
                raise BrokerUnavailable(f"kafka at {bootstrap}: reading {topic} failed ({type(error).__name__})") from None
            for records in found.values():
                heard = time.monotonic()
                for r in records:
                    yield Record(r.partition, r.offset, r.timestamp, r.key, r.value)
    finally:
        await consumer.stop()


async def _connect(client: Any, bootstrap: str) -> None:
    try:
        async with asyncio.timeout(CONNECT_S):
            await client.start()
    except (KafkaError, TimeoutError) as error:
        await client.stop()
        raise BrokerUnavailable(
            f"kafka at {bootstrap} does not answer ({type(error).__name__}): check ECG_KAFKA and the broker"
        ) from None
