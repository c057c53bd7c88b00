"""Where an audit reads: topics of a Kafka cluster without joining any group, or a log in this process. It writes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.admin import closed, connect_admin, refusal
from stream_worker.kafka.sentences import unread
from stream_worker.kafka.stable import stable_commit
from stream_worker.memory_broker import MemoryLog
from stream_worker.seam import Position, Record

__all__ = ["KafkaSource", "MemorySource", "Source"]

_T = TypeVar("_T")
_FETCH_BYTES = 4 << 20


class Source(Protocol):
    """What an audit asks of a cluster. Errors: BrokerUnavailable, ConfigError."""

    async def partitions(self, topic: str) -> int:
        """Partition count; 0 when there is no such topic."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(oldest offset held, one past the last record, committed or not yet)."""

    async def at_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """The first offset at or after a time; None where there is none."""

    async def committed(self, group: str, topic: str, partition: int) -> Position | None:
        """A group's commit with its metadata."""

    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        """Committed records of [start, end); waits for transactions that are open there, BrokerUnavailable when that lasts."""


class KafkaSource:
    """A `Source` over a cluster, read_committed. An async context manager; one reading at a time."""

    def __init__(self, bootstrap: str, security: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        self._bootstrap, self._timeout_s = bootstrap, timeout_s
        self._common = {"bootstrap_servers": bootstrap, "client_id": "ecg-audit", **security}
        self._ends = AIOKafkaConsumer(**self._common, isolation_level="read_uncommitted", enable_auto_commit=False)
        self._consumer = AIOKafkaConsumer(
            **self._common,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )

    async def __aenter__(self) -> Self:
        self._admin = await connect_admin(self._common, self._timeout_s, time.monotonic() + self._timeout_s)
        try:
            await self._bounded(self._ends.start(), "connecting")
            await self._bounded(self._consumer.start(), "connecting")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await closed(self._consumer.stop(), "reader")
        await closed(self._ends.stop(), "reader")
        await closed(self._admin.close(), "admin client")

    async def partitions(self, topic: str) -> int:
        (found,) = await self._bounded(self._admin.describe_topics([topic]), f"topic {topic}")
        return len(found["partitions"]) if found["error_code"] == 0 else 0

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        tp = TopicPartition(topic, partition)
        first = await self._bounded(self._consumer.beginning_offsets([tp]), f"the start of {topic}[{partition}]")
        end = await self._bounded(self._ends.end_offsets([tp]), f"the end of {topic}[{partition}]")
        return int(first[tp]), int(end[tp])

    async def at_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        tp = TopicPartition(topic, partition)
        found = await self._bounded(self._consumer.offsets_for_times({tp: timestamp_ms}), f"times of {topic}[{partition}]")
        return None if found[tp] is None else int(found[tp].offset)

    async def committed(self, group: str, topic: str, partition: int) -> Position | None:
        asked = stable_commit(self._admin, group, TopicPartition(topic, partition))
        return await self._bounded(asked, f"commits of group {group}")

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        tp, consumer = TopicPartition(topic, partition), self._consumer
        if start >= end:
            return
        consumer.assign([tp])
        consumer.seek(tp, start)
        heard, place = time.monotonic(), start
        while (at := await self._bounded(consumer.position(tp), f"reading {topic}")) < end:
            for r in await self._batch(tp):
                if r.offset < end:
                    yield Record(r.partition, r.offset, r.timestamp, r.key, r.value)
            if at > place:
                heard, place = time.monotonic(), at
            elif time.monotonic() - heard > self._timeout_s:
                raise unread(topic, partition, at, end, self._bootstrap)

    async def _batch(self, tp: TopicPartition) -> Sequence[Any]:
        try:
            found: Sequence[Any] = (await self._consumer.getmany(tp, timeout_ms=200)).get(tp, ())
        except KafkaError as error:
            raise refusal(error, self._bootstrap) from error
        return found

    async def _bounded(self, question: Awaitable[_T], what: str) -> _T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await question
        except TimeoutError:
            raise BrokerUnavailable(f"{what}: no answer from {self._bootstrap} within {self._timeout_s:.0f} s") from None
        except KafkaError as error:
            raise refusal(error, self._bootstrap) from error
        except ValueError as error:  # the client's word for a partition that is not there
            raise ConfigError(f"{what}: {error}") from None


class MemorySource:
    """A `Source` over a log in this process."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def partitions(self, topic: str) -> int:
        return self._log.partitions(topic)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return self._log.bounds(topic, partition)

    async def at_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        held = self._log.read(topic, partition, 0)
        return next((record.offset for record, _ in held if record.timestamp_ms >= timestamp_ms), None)

    async def committed(self, group: str, topic: str, partition: int) -> Position | None:
        return self._log.commits.get((group, topic, partition))

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        for record, _ in self._log.read(topic, partition, start, max(0, end - start)):
            yield record
