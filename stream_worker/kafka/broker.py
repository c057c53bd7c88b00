"""The broker seam over a Kafka cluster.

What the client does not do by itself, and this module does:
  - it forgets nothing silently: an offset that the log does not hold is raised as OffsetLost, never reset;
  - the client's `getmany` waits without limit during a rebalance: `poll` leaves it waiting and returns;
  - the client swallows what a rebalance callback raises: `poll` raises it;
  - the client does not call the revoke callback when it stops: `stop` does;
  - the client says nothing when the cluster goes away: a request a second tells `connected`;
  - the client, when a record's checksum is wrong, loses others that it had in its hands: `poll` begins again before them;
  - the client's `committed()` drops the metadata, and tells old commits: `stable` asks for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from stream_worker.errors import BrokerUnavailable
from stream_worker.kafka.admin import closed, connect_admin, refusal
from stream_worker.kafka.joining import JOINING, ask_once
from stream_worker.kafka.member import Member
from stream_worker.kafka.sentences import denied, unread
from stream_worker.kafka.stable import stable_commit
from stream_worker.kafka.writer import METADATA_AGE_MS, KafkaWriter
from stream_worker.seam import Headers, OffsetLost, OnPartitions, Outgoing, Position, Record

__all__ = ["KafkaBroker"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_RETRY_S = 0.5
_ASSIGNORS = 2  # sticky; range where a worker has the other client
# One request is under way per node at a time, so a fetch that waits for an idle partition keeps a busy one waiting too.
_FETCH_WAIT_MS = 50
# The largest batch of a topic (1 MiB unless it says otherwise) must fit whole: what does not is sent, and thrown away. More is
# slower: the client grows one buffer for a whole answer.
_FETCH_PARTITION_BYTES = 1100 << 10
_FETCH_BYTES = 32 << 20


class KafkaBroker(Member):
    """See `seam.Broker`."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._common = {"bootstrap_servers": self._given.bootstrap, "client_id": self._given.client_id, **self._given.security}
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._writer: KafkaWriter | None = None
        self._polling: asyncio.Task[dict[TopicPartition, list[Any]]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Start and stop

    async def start(self, on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        self._callbacks = on_assigned, on_revoked
        try:
            self._admin = await connect_admin(self._common, self._request_timeout_s, deadline)
            await self._topics.learn(self._request_timeout_s)
            await self._topics.check(self._chunks, self._request_timeout_s)
            self._writer = KafkaWriter(
                self._common, self._topics, self._publish_timeout_s, self._request_timeout_s, self._spawn
            )
            await self._bounded(self._writer.ready(), deadline - time.monotonic(), "the producer")
            await self._join(_Listener(self), deadline)
        except BaseException:
            await self.stop()
            raise
        self._spawn(self._topics.run())

    async def _join(self, listener: _Listener, deadline: float) -> None:
        """A group whose members come and go all the time lets nobody in for a while: as long as the cluster answers that is
        no reason to end, up to a point."""
        last = deadline + JOINING * self._start_timeout_s
        while True:
            consumer = self._consumer = ask_once(self._new_consumer(group_id=self._group), _ASSIGNORS)
            consumer.subscribe([self._chunks], listener=listener)
            try:
                await self._bounded(consumer.start(), deadline - time.monotonic(), f"joining group {self._group}")
                return
            except BrokerUnavailable as error:
                if time.monotonic() > last:
                    raise
                _log.warning("%s: once more", error)
            await _ended(consumer, "consumer")
            await self._topics.learn(self._request_timeout_s)
            deadline = time.monotonic() + self._start_timeout_s

    async def _close(self) -> None:
        self._assigned = frozenset()
        self._topics.connected = False
        tasks = [*self._tasks, *([self._polling] if self._polling else [])]
        consumer, writer, admin = self._consumer, self._writer, self._admin
        self._polling = self._consumer = self._writer = self._admin = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if consumer is not None:
            await _ended(consumer, "consumer")
        if writer is not None:
            await writer.close()
        if admin is not None:
            await closed(admin.close(), "admin client")

    def _new_consumer(self, **kwargs: Any) -> AIOKafkaConsumer:
        # The assignor keeps its memory in class attributes: a class of its own keeps two consumers of a process apart.
        sticky = type("Sticky", (StickyPartitionAssignor,), {})
        return AIOKafkaConsumer(
            **self._common,
            **kwargs,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(sticky, RangePartitionAssignor),
            session_timeout_ms=int(self._session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._session_timeout_s * 1000 / 3),
            request_timeout_ms=int(self._request_timeout_s * 1000),
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=_FETCH_PARTITION_BYTES,
            fetch_max_bytes=_FETCH_BYTES,
            metadata_max_age_ms=METADATA_AGE_MS,
        )

    # Reading

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[int, Sequence[Record]]:
        self._raise_remembered()
        consumer = self._reader()
        if self._polling is None:
            self._moved.clear()
            self._polling = asyncio.create_task(consumer.getmany(timeout_ms=timeout_ms, max_records=max_records))
        done, _ = await asyncio.wait({self._polling}, timeout=timeout_ms / 1000 + 0.01)
        self._raise_remembered()
        if not done:
            return {}
        task, self._polling = self._polling, None
        try:
            found = task.result()
        except OffsetOutOfRangeError as error:
            await self._raise_lost(error)
            return {}
        except CorruptRecordException as error:
            await self._read_again(error)
            return {}
        except KafkaError as error:
            if not error.retriable:
                raise refusal(error, self._bootstrap) from error
            await asyncio.sleep(min(timeout_ms / 1000, _RETRY_S))
            return {}
        valid = {tp.partition: records for tp, records in found.items() if self._follows(tp, records[0].offset)}
        self._next.update((partition, records[-1].offset + 1) for partition, records in valid.items())
        return {partition: [_record(record) for record in records] for partition, records in valid.items()}

    async def _read_again(self, damage: CorruptRecordException) -> None:
        """Records altered on their way or where they are kept. The client forgets what it had taken out before it came to
        them, of this partition and of others."""
        _log.error("%s; damaged records are never used, they are read again", damage)
        await asyncio.sleep(_RETRY_S)
        for tp in self._held(self._next):
            self._reader().seek(tp, self._next[tp.partition])

    def _follows(self, tp: TopicPartition, offset: int) -> bool:
        """Whether records from `offset` on are what comes next, and not what a poll had in its hands when a seek came."""
        if tp.partition not in self._moved:
            return True
        wanted = self._next.get(tp.partition)
        if wanted is not None and wanted != offset:
            self._reader().seek(tp, wanted)
        return wanted == offset

    async def _raise_lost(self, error: OffsetOutOfRangeError) -> None:
        """Raise OffsetLost for the partition in `error`, unless it was taken away or sought elsewhere in the meantime."""
        for tp, wanted in error.args[0].items():
            if tp.partition not in self._next or await self._reader().position(tp) != wanted:
                continue
            earliest, latest = await self.beginning_offset(tp.partition), await self.end_offset(tp.partition)
            if not earliest <= wanted <= latest:
                raise OffsetLost(tp.partition, wanted, earliest, latest)

    def pause(self, partitions: Iterable[int]) -> None:
        paused = self._assigned.intersection(partitions)
        self._paused |= paused
        self._reader().pause(*self._held(paused))

    def resume(self, partitions: Iterable[int]) -> None:
        self._paused.difference_update(partitions)
        self._reader().resume(*self._held(self._next.keys() & set(partitions)))

    def seek(self, partition: int, offset: int) -> None:
        for tp in self._held({partition}):
            self._moved.add(partition)
            self._next[partition] = offset
            self._reader().seek(tp, offset)
            if partition not in self._paused:
                self._reader().resume(tp)

    def _held(self, partitions: Iterable[int]) -> list[TopicPartition]:
        """Those that the client, too, knows as assigned now."""
        known = self._reader().assignment()
        return [tp for tp in map(self._chunk, self._assigned.intersection(partitions)) if tp in known]

    def lag(self, partition: int) -> int | None:
        held = self._held({partition})
        end = self._reader().highwater(held[0]) if held else None
        return None if end is None or partition not in self._next else max(0, end - self._next[partition])

    async def beginning_offset(self, partition: int) -> int:
        return int((await self._ask(lambda reader, tp: reader.beginning_offsets([tp]), partition))[self._chunk(partition)])

    async def end_offset(self, partition: int) -> int:
        return int((await self._ask(lambda reader, tp: reader.end_offsets([tp]), partition))[self._chunk(partition)])

    async def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        found = await self._ask(lambda reader, tp: reader.offsets_for_times({tp: timestamp_ms}), partition)
        at = found[self._chunk(partition)]
        return None if at is None else int(at.offset)

    async def _ask(self, question: Callable[[AIOKafkaConsumer, TopicPartition], Awaitable[_T]], partition: int) -> _T:
        asked = question(self._reader(), self._chunk(partition))
        return await self._bounded(asked, self._request_timeout_s, f"offsets of {self._chunks}[{partition}]")

    async def committed(self, partition: int) -> Position | None:
        asked = stable_commit(self._administrator(), self._group, self._chunk(partition))
        return await self._bounded(asked, self._request_timeout_s, f"commits of group {self._group}")

    async def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        tp = TopicPartition(topic, partition)
        reader = self._new_consumer(group_id=None)
        try:
            reader.assign([tp])
            await self._bounded(reader.start(), self._request_timeout_s, f"reading {topic}")
            first = await self._bounded(reader.beginning_offsets([tp]), self._request_timeout_s, f"the start of {topic}")
            reader.seek(tp, max(start, first[tp]))
            end: int | None = None  # of the log, not of what is settled: a transaction that is open holds the latter down
            heard, place = time.monotonic(), -1
            while end is None or place < end:
                waiting = reader.getmany(timeout_ms=20 if end is None else 200)
                for record in (await self._bounded(waiting, self._request_timeout_s, f"reading {topic}")).get(tp, ()):
                    end = end or reader.highwater(tp)
                    if record.offset < end:
                        yield _record(record), tuple(record.headers)
                end = reader.highwater(tp) if end is None else end
                before, place = place, await reader.position(tp)
                heard = time.monotonic() if place > before else heard
                if time.monotonic() - heard > self._request_timeout_s:
                    raise unread(topic, partition, place, end, self._bootstrap)
        finally:
            await _ended(reader, "reader")

    # Writing

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[int]:
        return await self._writing().publish(messages)

    async def fence(self, partition: int) -> None:
        await self._writing().fence(self._group, self._chunk(partition))

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        await self._writing().transact(self._group, self._chunk(partition), messages, position)

    async def commit(self, positions: Mapping[int, Position]) -> None:
        owned = {tp: tuple(positions[tp.partition]) for tp in self._held(positions)}
        if not owned:
            return
        try:
            await self._bounded(self._reader().commit(owned), self._request_timeout_s, f"committing for group {self._group}")
        except (CommitFailedError, IllegalStateError) as error:
            _log.warning("commit of partitions %s is void, the group has rebalanced: %s", sorted(positions), error)

    # What goes on around

    async def _count_partitions(self, topics: Sequence[str], limit_s: float) -> dict[str, int]:
        described = await self._bounded(self._administrator().describe_topics(list(topics)), limit_s, "topics")
        for topic in described:
            if topic["error_code"] == TopicAuthorizationFailedError.errno:
                raise denied("Describe", "topic", topic["topic"], self._bootstrap)
        return {topic["topic"]: len(topic["partitions"]) for topic in described}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()  # a task of ours that dies must not do so unheard

    async def _bounded(self, work: Awaitable[_T], limit_s: float, what: str) -> _T:
        try:
            async with asyncio.timeout(max(0.0, limit_s)):
                return await work
        except TimeoutError as error:
            raise BrokerUnavailable(f"{what}: no answer from {self._bootstrap} within {limit_s:.0f} s") from error
        except (CommitFailedError, IllegalStateError):
            raise
        except KafkaError as error:
            raise refusal(error, self._bootstrap) from error

    def _chunk(self, partition: int) -> TopicPartition:
        return TopicPartition(self._chunks, partition)

    def _reader(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return self._consumer

    def _writing(self) -> KafkaWriter:
        if self._writer is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return self._writer

    def _administrator(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return self._admin


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Keeps a new partition silent until it is sought."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        broker = self._broker
        if broker._assigned:
            await broker._guard(1)
        if broker._writer is not None:
            broker._writer.interrupt(broker._assigned)
        broker._moved |= broker._assigned
        broker._assigned = frozenset()
        broker._next.clear()
        broker._paused.clear()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        broker = self._broker
        for tp in assigned:
            # With a position of any kind the client asks for none by itself; paused, it does not read from there.
            broker._reader().pause(tp)
            broker._reader().seek(tp, 0)
        broker._assigned = frozenset(tp.partition for tp in assigned)
        if broker._writer is not None:
            broker._writer.keep(broker._assigned)
        await broker._guard(0)


async def _ended(consumer: AIOKafkaConsumer, what: str) -> None:
    await closed(consumer.stop(), what)
    # A fetch that failed just now ends the client's own stop() half way: its connections are still open then.
    await closed(consumer._client.close(), f"{what}'s connections")


def _record(record: Any) -> Record:
    return Record(record.partition, record.offset, record.timestamp, record.key, record.value)
