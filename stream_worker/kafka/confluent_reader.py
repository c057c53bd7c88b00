"""Consuming on librdkafka, as its threads see it: blocking calls, and the way from rebalance callbacks to the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_worker.seam import Headers, Position, Record

__all__ = ["BackReader", "Consumed", "Reader", "reading"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_HAND_OVER_S = 60.0  # far below max.poll.interval.ms, after which the group would go on without this worker
_VOID = frozenset({  # what the group answers to a commit of a worker that it has gone on without
    KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID, KafkaError._ASSIGNMENT_LOST, KafkaError._STATE,
})  # fmt: skip

OnTaken = Callable[[bool], Coroutine[Any, Any, None]]  # whether the group has gone on without us
OnGiven = Callable[[frozenset[int]], Coroutine[Any, Any, None]]
Consumed = tuple[dict[int, list[Record]], list[tuple[int, KafkaError]]]


def reading(common: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The configuration of every consumer of ours."""
    return {
        **common,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,  # off by the client's default: a bit that flips on its way or on a disk would be a sample
        "fetch.wait.max.ms": 50,  # a fetch that waits for an idle partition keeps a busy one waiting too
        "fetch.message.max.bytes": 1 << 20,
        "fetch.max.bytes": 32 << 20,
        "queued.max.messages.kbytes": 32 << 10,
        "fetch.queue.backoff.ms": 5,  # with the client's second a worker that is faster than this queue stands still
    }


class Reader:
    """A member of a group. `consume` and `close` are called in one thread, `commit` in another. The client lets each call wait
    for the one before, be it a commit that waits for its broker: the event loop may make none; `high` and `member` make none.

    `taken` (everything) and `given` run in the event loop while `consume` waits for them.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, session_timeout_s: float, taken: OnTaken, given: OnGiven) -> None:
        self._topic, self._taken, self._given = topic, taken, given
        self._loop = asyncio.get_running_loop()
        self._handed: concurrent.futures.Future[None] | None = None
        self._closing = False
        self._member: Any = None
        self._highs: dict[int, int] = {}  # of what is read, as the last fetch told them
        self._consumer = Consumer(
            {
                **config,
                # Everything is handed over at every rebalance, so that a sticky assignor would keep nothing. aiokafka knows
                # this one too: workers of both clients can share a group.
                "partition.assignment.strategy": "range",
                "session.timeout.ms": int(session_timeout_s * 1000),
                "heartbeat.interval.ms": int(session_timeout_s * 1000 / 3),
            }
        )
        self._consumer.subscribe([topic], self._on_assign, self._on_revoke, self._on_lost)

    def consume(self, aim: Mapping[int, int] | None, timeout_s: float, most: int) -> Consumed:
        """Records by partition, and errors. `aim`: read these partitions from these offsets from now on, and no others."""
        consumer = self._consumer
        if aim is not None:
            consumer.assign([TopicPartition(self._topic, partition, offset) for partition, offset in aim.items()])
            self._highs = dict.fromkeys(aim, -1)
        messages = consumer.consume(1, timeout_s)
        if messages and most > 1:
            messages += consumer.consume(most - 1, 0)  # what is there: with a timeout it would wait for all of them
        for partition in self._highs:
            found = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)  # asks nobody
            self._highs[partition] = -1 if found is None else found[1]
        return sorted_out(messages)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.assign([])  # else the client reads what it was given, from where the group committed
        self._member = consumer.consumer_group_metadata()
        self._hand_over(self._given, frozenset(tp.partition for tp in partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._hand_over(self._taken, False)
        consumer.unassign()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._hand_over(self._taken, True)
        consumer.unassign()

    def _hand_over(self, work: Callable[[_T], Coroutine[Any, Any, None]], what: _T) -> None:
        if self._closing:
            return
        self._handed = asyncio.run_coroutine_threadsafe(work(what), self._loop)
        try:
            self._handed.result(_HAND_OVER_S)
        except (TimeoutError, concurrent.futures.CancelledError) as error:
            self._handed.cancel()
            _log.error("a rebalance callback did not end: %r", error)

    def commit(self, positions: Mapping[int, Position], still: Callable[[], bool]) -> None:
        """Waits for the answer. Nothing is sent unless `still()` when its turn comes; raises KafkaException."""
        if not still():
            return
        offsets = [TopicPartition(self._topic, p, at.offset, at.metadata) for p, at in positions.items()]
        try:
            errors = [tp.error for tp in self._consumer.commit(offsets=offsets, asynchronous=False) if tp.error is not None]
        except KafkaException as failure:
            errors = [failure.args[0]]
        for error in errors:
            if error.code() not in _VOID:
                raise KafkaException(error)
        if errors:
            _log.warning("commit of partitions %s is void, the group has rebalanced: %s", sorted(positions), errors[0].name())

    def member(self) -> Any:
        """Who we are in the group, for transactions: since the last assignment, with its generation."""
        return self._member

    def high(self, partition: int) -> int | None:
        """The end of a partition as the last fetch told it."""
        end = self._highs.get(partition, -1)
        return None if end < 0 else end

    def abandon(self) -> None:
        """A hand-over under way is given up; none is begun any more. Called in the event loop."""
        self._closing = True
        if self._handed is not None:
            self._handed.cancel()

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


class BackReader:
    """Reads one partition up to a given end, without a group. Blocking."""

    def __init__(self, config: Mapping[str, Any], topic: str, partition: int, start: int) -> None:
        self._consumer = Consumer({**config, "enable.partition.eof": True})  # the last record may be an abort marker
        self._consumer.assign([TopicPartition(topic, partition, start)])
        self.next = start

    def read(self, end: int, timeout_s: float) -> list[tuple[Record, Headers]]:
        """Some records below `end`; [] after `timeout_s`. `next` reaches `end` with the last one."""
        found: list[tuple[Record, Headers]] = []
        for message in self._consumer.consume(1, timeout_s) + self._consumer.consume(1000, 0):
            error, offset = message.error(), message.offset() or 0
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if error is None and offset < end:
                headers: Any = message.headers() or ()
                found.append((_record(message), tuple(headers)))
            self.next = max(self.next, offset + (error is None))
        return found

    def close(self) -> None:
        """Give the connections back."""
        self._consumer.close()


def sorted_out(messages: list[Message[bytes, bytes]]) -> Consumed:
    """Records by partition, and errors with theirs (-1: of none)."""
    records: dict[int, list[Record]] = {}
    errors: list[tuple[int, KafkaError]] = []
    for message in messages:
        error = message.error()
        if error is not None:
            errors.append((-1 if message.partition() is None else message.partition(), error))  # type: ignore[arg-type]
            continue
        record = _record(message)
        held = records.get(record.partition)
        if held is None:
            records[record.partition] = [record]
        else:
            held.append(record)
    return records, errors


def _record(m: Message[bytes, bytes]) -> Record:
    return Record(m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value())  # type: ignore[arg-type]
