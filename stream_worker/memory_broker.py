"""A partitioned log in this process, and the broker seam over it: for the demo and for tests.

It keeps offsets, timestamps, headers and commits as Kafka does, and wakes a waiting reader when something arrives. It has
no groups of several workers, no transactions, no disk, and lives in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.seam import Fenced, Headers, OffsetLost, OnPartitions, Outgoing, Position, Record, partition_for

__all__ = ["MemoryBroker", "MemoryLog"]


class _Entry(NamedTuple):
    record: Record
    headers: Headers


class _Partition:
    """Entries of one partition; `first` is the offset of the oldest one still held."""

    def __init__(self) -> None:
        self.first = 0
        self.entries: list[_Entry] = []

    @property
    def end(self) -> int:
        return self.first + len(self.entries)


class MemoryLog:
    """Topics with partitions and offsets.

    `topics`: partition count by topic name. `clock_ms`: epoch milliseconds of an append that names none. `available`: set
    it False for an outage; brokers over this log then behave as if the cluster were gone.
    """

    def __init__(self, topics: Mapping[str, int], clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._topics = {name: [_Partition() for _ in range(count)] for name, count in topics.items()}
        self._clock_ms = clock_ms
        self._waiting: set[asyncio.Event] = set()
        self.commits: dict[tuple[str, str, int], Position] = {}
        self.available = True

    def partitions(self, topic: str) -> int:
        """Partition count; 0 when there is no such topic."""
        return len(self._topics.get(topic, ()))

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int | None = None, headers: Headers = ()
    ) -> tuple[int, int]:
        """Append by key as Kafka's default partitioner does (no key: partition 0); returns (partition, offset)."""
        partition = 0 if key is None else partition_for(key, len(self._held(topic)))
        return partition, self.append_to(topic, partition, key, value, timestamp_ms, headers)

    def append_to(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
    ) -> int:
        """Append to a named partition; returns the offset."""
        held = self._one(topic, partition)
        at = self._clock_ms() if timestamp_ms is None else timestamp_ms
        held.entries.append(_Entry(Record(partition, held.end, at, key, value), headers))
        for event in self._waiting:
            event.set()
        return held.end - 1

    def read(self, topic: str, partition: int, start: int, limit: int | None = None) -> list[tuple[Record, Headers]]:
        """Messages from offset `start` (or the oldest held, if later), at most `limit` of them."""
        held = self._one(topic, partition)
        begin = max(0, start - held.first)
        return [(entry.record, entry.headers) for entry in held.entries[begin : None if limit is None else begin + limit]]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(oldest offset held, one past the newest)."""
        held = self._one(topic, partition)
        return held.first, held.end

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Forget everything below offset `before`, as retention does."""
        held = self._one(topic, partition)
        drop = min(max(0, before - held.first), len(held.entries))
        del held.entries[:drop]
        held.first += drop

    async def wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return when `ready()` (looked at after each append) or after `timeout_s`; sleeps in between."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    event.clear()
                    await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting.discard(event)

    def _held(self, topic: str) -> list[_Partition]:
        try:
            return self._topics[topic]
        except KeyError:
            raise ConfigError(f"topic {topic} does not exist") from None

    def _one(self, topic: str, partition: int) -> _Partition:
        held = self._held(topic)
        if not 0 <= partition < len(held):
            raise ConfigError(f"topic {topic} has {len(held)} partitions, none of number {partition}")
        return held[partition]


class MemoryBroker:
    """The broker seam over a MemoryLog; the only worker of its group, so it owns every partition of the chunks topic."""

    def __init__(self, log: MemoryLog, *, group: str = "ecg-worker", chunks: str = "ecg.chunks") -> None:
        self._log = log
        self._group = group
        self._chunks = chunks
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._fenced: set[int] = set()
        self._turn = 0
        self._assigned: frozenset[int] = frozenset()
        self._on_assigned: OnPartitions | None = None
        self._on_revoked: OnPartitions | None = None

    @property
    def connected(self) -> bool:
        return self._on_assigned is not None and self._log.available

    @property
    def assigned(self) -> frozenset[int]:
        return self._assigned

    async def start(self, on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        self._reach()
        if self.partitions(self._chunks) == 0:
            raise ConfigError(f"topic {self._chunks} does not exist")
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        await self._assign(frozenset(range(self.partitions(self._chunks))))

    async def stop(self) -> None:
        await self._revoke()
        self._on_assigned = self._on_revoked = None

    async def rebalance(self, partitions: Iterable[int]) -> None:
        """Take everything away and assign `partitions`, as the group's coordinator would."""
        await self._revoke()
        await self._assign(frozenset(partitions))

    async def _assign(self, partitions: frozenset[int]) -> None:
        self._assigned = partitions
        self._fenced &= partitions
        self._next.clear()
        self._paused.clear()
        if self._on_assigned is not None:
            await self._on_assigned(partitions)

    async def _revoke(self) -> None:
        if self._on_revoked is not None and self._assigned:
            await self._on_revoked(self._assigned)
        self._assigned = frozenset()

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[int, Sequence[Record]]:
        await self._log.wait(self._has_any, timeout_ms / 1000)
        if not self.connected:
            return {}
        ready = sorted(self._ready())
        turn = self._turn = (self._turn + 1) % max(1, len(ready))
        found: dict[int, Sequence[Record]] = {}
        # Each poll begins with another partition, so that a deep one does not starve the others.
        for partition in ready[turn:] + ready[:turn]:
            lost = self._lost(partition)
            if lost is not None and found:
                break  # what was found is delivered first; the next poll raises
            if lost is not None:
                raise lost
            records = self._take(partition, max_records)
            if records:
                found[partition] = records
                max_records -= len(records)
            if max_records == 0:
                break
        return found

    def _ready(self) -> Iterable[int]:
        return (self._assigned & self._next.keys()) - self._paused

    def _has_any(self) -> bool:
        return self.connected and any(self.lag(partition) or self._lost(partition) for partition in self._ready())

    def _lost(self, partition: int) -> OffsetLost | None:
        wanted = self._next[partition]
        first, end = self._log.bounds(self._chunks, partition)
        return None if first <= wanted <= end else OffsetLost(partition, wanted, first, end)

    def _take(self, partition: int, limit: int) -> list[Record]:
        records = [record for record, _ in self._log.read(self._chunks, partition, self._next[partition], limit)]
        self._next[partition] += len(records)
        return records

    def pause(self, partitions: Iterable[int]) -> None:
        self._paused |= self._assigned.intersection(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        self._paused.difference_update(partitions)

    def seek(self, partition: int, offset: int) -> None:
        if partition in self._assigned:
            self._next[partition] = offset

    async def committed(self, partition: int) -> Position | None:
        self._reach()
        return self._log.commits.get((self._group, self._chunks, partition))

    async def beginning_offset(self, partition: int) -> int:
        self._reach()
        return self._log.bounds(self._chunks, partition)[0]

    async def end_offset(self, partition: int) -> int:
        self._reach()
        return self._log.bounds(self._chunks, partition)[1]

    async def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        self._reach()
        held = self._log.read(self._chunks, partition, 0)
        return next((record.offset for record, _ in held if record.timestamp_ms >= timestamp_ms), None)

    def lag(self, partition: int) -> int | None:
        if partition not in self._next:
            return None
        return max(0, self._log.bounds(self._chunks, partition)[1] - self._next[partition])

    def partitions(self, topic: str) -> int:
        return self._log.partitions(topic)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[int]:
        self._reach()
        return [self._log.append_to(m.topic, m.partition, m.key, m.value, headers=m.headers) for m in messages]

    async def commit(self, positions: Mapping[int, Position]) -> None:
        self._reach()
        for partition in self._assigned.intersection(positions):
            self._log.commits[self._group, self._chunks, partition] = positions[partition]

    async def fence(self, partition: int) -> None:
        self._reach()
        self._fenced.add(partition)

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        if partition not in self._fenced or not self._log.available:
            self._fenced.discard(partition)
            raise Fenced(partition, "not fenced" if self._log.available else "the in-process log is switched off")
        self._log.commits[self._group, self._chunks, partition] = position(await self.publish(messages))

    async def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        self._reach()
        for found in self._log.read(topic, partition, start):
            yield found

    def _reach(self) -> None:
        if not self._log.available:
            raise BrokerUnavailable("the in-process log is switched off")
