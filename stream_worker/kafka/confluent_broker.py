"""The broker seam on librdkafka (extra `fast`): the promises of `broker.KafkaBroker` at a fraction of its time a record.

The consumer lives in one thread, commits in a second, the producer in a third; the event loop hands over and waits. What the
client does not do by itself, and this module does:
  - `assign` alone tells it what to read: the partitions that are owned, were sought and are not paused, each from its next
    offset. So a partition is silent until sought, and nothing is delivered from before a seek or behind a pause;
  - rebalance callbacks run inside its `consume`, in its thread: they wait for the event loop, within a limit;
  - a commit would wait for a coordinator after the session was lost: it is void then, and nothing is sent;
  - it says once that an offset is not in the log: `poll` repeats it until the partition is sought elsewhere;
  - it goes on behind records whose checksum is wrong: `poll` reads them again, with all that it delivered in the same turn;
  - it says little when the cluster goes away: a request a second tells `connected`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_worker.errors import BrokerUnavailable
from stream_worker.kafka.admin import closed
from stream_worker.kafka.confluent_reader import BackReader, Consumed, Reader, reading
from stream_worker.kafka.confluent_writer import Transaction, Writer
from stream_worker.kafka.joining import JOINING
from stream_worker.kafka.lane import Lane
from stream_worker.kafka.librdkafka import REFUSED, Questions, configuration, refusal
from stream_worker.kafka.member import Member
from stream_worker.kafka.sentences import unread
from stream_worker.seam import Fenced, Headers, OffsetLost, OnPartitions, Outgoing, Position, Record

__all__ = ["ConfluentBroker"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CONSUME_S = 0.1  # at most so long until a seek, a pause or a stop reaches the client
_MOST = 256  # records a poll, 3 MB: of 2,000 each is out of the processor's cache again when its turn comes
_STANDS_S = 5.0  # beyond the limits that the client was given
_RETRY_S = 0.5
_DAMAGED = KafkaError._BAD_MSG  # records altered on their way or where they are kept, which the client leaves out
_STRAYED = KafkaError._AUTO_OFFSET_RESET  # there is no reset: the offset is not in the log


class ConfluentBroker(Member):
    """See `seam.Broker`."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._common = configuration(*self._given)
        self._questions: Questions | None = None
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._transactions: dict[int, Transaction] = {}
        self._threads: dict[str, Lane] = {}
        self._joined = False
        self._strayed: set[int] = set()  # their next offset was not in the log
        self._aim = False  # the reader must be told anew what to read
        self._epoch = 0  # counts assignments
        self._void = False  # the group went on without this worker
        self._polling: asyncio.Future[Consumed] | None = None
        self._watching: asyncio.Task[None] | None = None

    # Start and stop

    async def start(self, on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        self._callbacks = on_assigned, on_revoked
        try:
            self._questions = Questions(self._common, self._group, self._request_timeout_s)
            await self._topics.learn(self._start_timeout_s)
            await self._topics.check(self._chunks, self._start_timeout_s)
            self._writer = Writer(self._common, self._publish_timeout_s)
            config = reading(self._common, self._group)
            self._reader = Reader(config, self._chunks, self._session_timeout_s, self._on_taken, self._on_given)
            last = deadline + JOINING * self._start_timeout_s
            while not self._joined:
                if time.monotonic() > last:
                    raise BrokerUnavailable(f"joining group {self._group}: {self._bootstrap} did not let us in in time")
                if time.monotonic() > deadline:
                    await self._topics.learn(self._request_timeout_s)
                    deadline = time.monotonic() + self._start_timeout_s
                _, errors = await self._in("read", self._reader.consume, None, _CONSUME_S, 1)
                self._heed(errors)
        except BaseException:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._topics.run())

    async def _close(self) -> None:
        self._assigned, self._topics.connected = frozenset(), False
        self._epoch += 1
        reader, writer, watching, threads = self._reader, self._writer, self._watching, self._threads
        self._reader = self._writer = self._questions = self._watching = self._polling = None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await self._let_go(list(self._transactions))
        if reader is not None:
            reader.abandon()
            await closed(self._in("read", reader.close), "consumer")
        if writer is not None:
            writer.abandon()
            await closed(self._in("write", writer.close), "producer")
        self._threads = {}
        for lane in threads.values():
            lane.end()

    def _thread(self, name: str, work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        """Run in the thread of that name, after what was given to it before."""
        if name not in self._threads:
            self._threads[name] = Lane(f"kafka-{name}")
        return self._threads[name].give(work, *args)

    async def _in(self, name: str, work: Callable[..., _T], *args: Any) -> _T:
        return await self._thread(name, work, *args)

    # Rebalances, while the reader waits

    async def _on_taken(self, lost: bool) -> None:
        self._void = lost
        try:
            if self._assigned:
                await self._guard(1)
        finally:
            gone = self._assigned
            self._moved |= gone
            for forgotten in (self._next, self._paused, self._strayed):
                forgotten.clear()
            self._assigned, self._void, self._aim = frozenset(), False, False
            self._epoch += 1
            if lost:
                await self._keep(frozenset())

    async def _on_given(self, partitions: frozenset[int]) -> None:
        self._assigned = partitions
        await self._keep(partitions)
        await self._guard(0)
        self._joined = True

    # Reading

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[int, Sequence[Record]]:
        end = time.monotonic() + timeout_ms / 1000
        while True:
            self._raise_remembered()
            await self._raise_strayed()
            left = max(0.0, end - time.monotonic())
            polling = self._polling or self._read_on(min(left, _CONSUME_S), max_records)
            done, _ = await asyncio.wait({polling}, timeout=left + 0.01)
            self._raise_remembered()
            if not done:  # in a rebalance
                self._polling = polling
                return {}
            self._polling = None
            records, errors = polling.result()
            found = self._accept(records, errors)
            if any(error.code() == _DAMAGED for _, error in errors):
                await asyncio.sleep(_RETRY_S)
            if found or time.monotonic() >= end:
                return found

    def _read_on(self, timeout_s: float, most: int) -> asyncio.Future[Consumed]:
        reader, aim = self._started(), None
        if self._aim:
            aim = {p: at for p, at in self._next.items() if p not in self._paused and p not in self._strayed}
            self._aim = False
        self._moved.clear()
        return self._thread("read", reader.consume, aim, timeout_s, min(most, _MOST))

    def _accept(self, records: dict[int, list[Record]], errors: list[tuple[int, KafkaError]]) -> dict[int, list[Record]]:
        """What of it still counts: what was sought, paused or taken away meanwhile is read again when its time comes."""
        self._heed(errors)
        damaged = {p for p, e in errors if e.code() == _DAMAGED}
        self._moved |= damaged
        self._aim = self._aim or bool(damaged)
        self._strayed |= {p for p, e in errors if e.code() == _STRAYED and p in self._next and p not in self._moved}
        found = {p: held for p, held in records.items() if p in self._next and p not in self._moved}
        self._next.update((p, held[-1].offset + 1) for p, held in found.items())
        return found

    def _heed(self, errors: Iterable[tuple[int, KafkaError]]) -> None:
        for partition, error in errors:
            if error.code() == _STRAYED:
                continue
            meaning = refusal(error, self._bootstrap)
            if not meaning.retriable:
                raise meaning
            _log.warning("reading %s[%d]: %s", self._chunks, partition, meaning)

    async def _raise_strayed(self) -> None:
        for partition in sorted(self._strayed):
            wanted = self._next[partition]
            earliest, latest = await self.beginning_offset(partition), await self.end_offset(partition)
            if partition not in self._strayed or self._next[partition] != wanted:
                continue  # taken away or sought elsewhere in the meantime
            if not earliest <= wanted <= latest:
                raise OffsetLost(partition, wanted, earliest, latest)
            self._strayed.discard(partition)
            self._aim = True

    def pause(self, partitions: Iterable[int]) -> None:
        paused = self._assigned.intersection(partitions) - self._paused
        self._paused |= paused
        self._moved |= paused
        self._aim = self._aim or bool(paused)

    def resume(self, partitions: Iterable[int]) -> None:
        resumed = self._paused.intersection(partitions)
        self._paused -= resumed
        self._aim = self._aim or bool(resumed)

    def seek(self, partition: int, offset: int) -> None:
        if partition in self._assigned:
            self._next[partition] = offset
            self._strayed.discard(partition)
            self._moved.add(partition)
            self._aim = True

    def lag(self, partition: int) -> int | None:
        if partition not in self._next:
            return None
        end = self._started().high(partition)
        return None if end is None else max(0, end - self._next[partition])

    async def beginning_offset(self, partition: int) -> int:
        return await self._asked().earliest(self._chunks, partition)

    async def end_offset(self, partition: int) -> int:
        return await self._asked().latest(self._chunks, partition)

    async def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        return await self._asked().at_time(self._chunks, partition, timestamp_ms)

    async def committed(self, partition: int) -> Position | None:
        return await self._asked().committed(self._chunks, partition)

    async def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        first = await self._asked().earliest(topic, partition)
        end = await self._asked().latest(
            topic, partition, committed=False
        )  # an open transaction must not hide what is behind it
        if max(start, first) >= end:
            return
        config = reading(self._common, f"{self._group}-read-back")  # the client wants a name; nothing is committed under it
        reader = await self._in("back", BackReader, config, topic, partition, max(start, first))
        try:
            heard = time.monotonic()
            while reader.next < end:
                before = reader.next
                for found in await self._bounded(self._thread("back", reader.read, end, 0.2), f"reading {topic}"):
                    yield found
                heard = time.monotonic() if reader.next > before else heard
                if time.monotonic() - heard > self._request_timeout_s:
                    raise unread(topic, partition, reader.next, end, self._bootstrap)
        finally:
            await closed(self._in("back", reader.close), "reader")

    # Writing

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[int]:
        for topic, partition in dict.fromkeys(message[:2] for message in messages):
            await self._topics.check(topic, self._request_timeout_s, partition)
        if self._writer is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return await self._in("write", self._writer.publish, messages) if messages else []

    async def fence(self, partition: int) -> None:
        await self._let_go([partition])
        name = f"{self._group}/{self._chunks}/{partition}"
        starting = self._thread(f"transact-{partition}", Transaction, self._common, name, self._request_timeout_s)
        epoch = self._epoch
        try:
            transaction = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(partial(self._unwanted, partition))
            raise
        except KafkaException as error:
            if error.args[0].code() in REFUSED:
                raise refusal(error.args[0], self._bootstrap) from error
            raise BrokerUnavailable(f"fencing {name} at {self._bootstrap}: {error.args[0].str()}") from error
        if self._epoch != epoch:  # the partition was taken away while it started
            self._unwanted(partition, starting)
            raise Fenced(partition, "it was taken away while it was fenced")
        self._transactions[partition] = transaction

    def _unwanted(self, partition: int, started: asyncio.Future[Transaction]) -> None:
        if not started.cancelled() and started.exception() is None:
            self._thread(f"transact-{partition}", started.result().close)

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        transaction = self._transactions.get(partition)
        if transaction is None:
            raise Fenced(partition, "not fenced")
        thread = f"transact-{partition}"
        try:
            for topic, number in dict.fromkeys(message[:2] for message in messages):
                await self._topics.check(topic, self._request_timeout_s, number)
            async with asyncio.timeout(3 * self._request_timeout_s + _STANDS_S):  # publish, offsets, commit
                at = position(await self._in(thread, transaction.begin, messages))
                offsets = [TopicPartition(self._chunks, partition, at.offset, at.metadata)]
                await self._in(thread, transaction.commit, offsets, self._started().member())
        except TimeoutError:
            del self._transactions[partition]
            self._leave(thread)
            raise Fenced(partition, "the client stands in the transaction") from None
        except (KafkaException, BrokerUnavailable) as error:
            await self._let_go([partition])
            meaning = refusal(error.args[0], self._bootstrap) if isinstance(error, KafkaException) else error
            if not meaning.retriable and not _superseded(error):
                raise meaning from error
            raise Fenced(partition, str(meaning)) from error

    async def _keep(self, partitions: frozenset[int]) -> None:
        """The producers of all others are closed, side by side."""
        await asyncio.gather(*(self._let_go([partition]) for partition in self._transactions.keys() - partitions))

    async def _let_go(self, partitions: Iterable[int]) -> None:
        """Their producers are closed; what they had not committed is void."""
        for partition in partitions:
            transaction = self._transactions.pop(partition, None)
            if transaction is not None:
                transaction.abandon()
                closing = self._thread(f"transact-{partition}", transaction.close)
                await closed(_outcome(closing), "transactional producer")
                if closing.cancelled():
                    self._leave(f"transact-{partition}")

    def _leave(self, name: str) -> None:
        """A thread that stands in the client, with the producer it holds: the next one fences that producer."""
        _log.error("the client does not come back in thread %s: it is left behind", name)
        if (lane := self._threads.pop(name, None)) is not None:
            lane.end()

    async def commit(self, positions: Mapping[int, Position]) -> None:
        owned = {partition: positions[partition] for partition in self._assigned.intersection(positions)}
        epoch = self._epoch
        if owned:
            still = lambda: self._epoch == epoch and not self._void  # noqa: E731
            committing = self._thread("commit", self._started().commit, owned, still)
            await self._bounded(committing, f"committing for group {self._group}")

    # What goes on around

    async def _count_partitions(self, topics: Sequence[str], limit_s: float) -> dict[str, int]:
        return await self._asked().counts(topics, limit_s)

    async def _bounded(self, work: Awaitable[_T], what: str) -> _T:
        try:
            async with asyncio.timeout(self._request_timeout_s):
                return await work
        except TimeoutError:
            raise BrokerUnavailable(
                f"{what}: no answer from {self._bootstrap} within {self._request_timeout_s:.0f} s"
            ) from None
        except KafkaException as error:
            raise refusal(error.args[0], self._bootstrap) from error

    def _started(self) -> Reader:
        if self._reader is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return self._reader

    def _asked(self) -> Questions:
        if self._questions is None:
            raise BrokerUnavailable(f"not started with {self._bootstrap}")
        return self._questions


async def _outcome(work: Awaitable[_T]) -> _T:
    return await work


def _superseded(error: Exception) -> bool:
    """Fatal for the producer, but only because another has taken over, or the broker has forgotten its transaction."""
    return isinstance(error, KafkaException) and error.args[0].code() not in REFUSED
