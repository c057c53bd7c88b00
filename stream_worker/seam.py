"""The seam to the broker: what the worker asks of a partitioned log, in the worker's own words.

Two implementations: `broker.KafkaBroker` (a real cluster) and `memory_broker.MemoryBroker` (a log in this process, for the
demo and for tests). This module knows neither; pure code imports it without pulling in a client.

A broker belongs to one task at a time: `poll`, `publish` and `commit` are awaited by the pipeline's own stages, never twice
at once each. The two callbacks of `start` run between polls, in the client's own task, and must be short: a consumer that
lingers in them is taken for dead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from stream_worker.errors import WorkerError

__all__ = [
    "Broker",
    "Fenced",
    "Headers",
    "OffsetLost",
    "OnPartitions",
    "Outgoing",
    "Position",
    "Record",
    "TopicState",
    "partition_for",
]

Headers = tuple[tuple[str, bytes], ...]
OnPartitions = Callable[[frozenset[int]], Awaitable[None]]


class Record(NamedTuple):
    """One message as it lies in the log. `timestamp_ms`: epoch milliseconds, of the log where the topic says LogAppendTime."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Position(NamedTuple):
    """What a commit holds for a partition: the offset to read next, and a JSON text of at most 4,096 bytes, or none."""

    offset: int
    metadata: str = ""


class Outgoing(NamedTuple):
    """One message to publish; the partition is chosen by the caller, never by the client."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers = ()


class TopicState(NamedTuple):
    """A topic as it is or should be. `replication`: copies of each partition, -1 for the cluster's default; `settings`: by
    Kafka's names, all in force for a topic that is, those that matter for one that should be."""

    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str]


class OffsetLost(WorkerError):
    """The log does not hold `wanted` any more (or not yet): it holds [earliest, latest). Seek, and report what is lost."""

    retriable: ClassVar[bool] = True

    def __init__(self, partition: int, wanted: int, earliest: int, latest: int) -> None:
        super().__init__(f"partition {partition}: offset {wanted} is not in the log, which holds {earliest} to {latest}")
        self.partition = partition
        self.wanted = wanted
        self.earliest = earliest
        self.latest = latest


class Fenced(WorkerError):
    """A partition's transaction did not come through: another worker has taken over, or nobody knows how it ended. What was
    in it is to be read from the log."""

    retriable: ClassVar[bool] = True

    def __init__(self, partition: int, why: str) -> None:
        super().__init__(f"partition {partition}: the transaction is void: {why}")
        self.partition = partition


class Broker(Protocol):
    """A consumer of the chunks topic in a group, and a publisher. Partitions without a topic are those of the chunks topic.

    Errors: BrokerUnavailable (retriable) when the cluster does not answer in time, ConfigError when it refuses for a reason
    that waiting does not mend (no such topic, not authorised). Anything a callback of `start` raised comes out of `poll`.
    """

    @property
    def connected(self) -> bool:
        """False from when the cluster stops answering until it answers again; seconds may pass before either is noticed."""

    @property
    def assigned(self) -> frozenset[int]:
        """Partitions this worker owns now; inside `on_revoked` still those it is about to lose."""

    async def start(self, on_assigned: OnPartitions, on_revoked: OnPartitions) -> None:
        """Connect, join the group and call `on_assigned`; raise BrokerUnavailable when the time given for it runs out.

        A rebalance takes everything away and gives anew: `on_revoked(all)`, then `on_assigned(all)`, also for partitions
        that come straight back; these stay fenced. An assigned partition delivers nothing until it was given a position by
        `seek`, and is not paused.
        """

    async def stop(self) -> None:
        """Call `on_revoked` for what is still assigned (so that it can commit), leave the group, close. Safe to repeat."""

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[int, Sequence[Record]]:
        """Records by partition, in offset order; {} after `timeout_ms` without any, and during an outage.

        Raises OffsetLost for a partition whose position is not in the log: until it is sought elsewhere, again each time.
        """

    def pause(self, partitions: Iterable[int]) -> None:
        """Deliver nothing from these until `resume`; forgotten when a partition is assigned anew. Not owned: ignored."""

    def resume(self, partitions: Iterable[int]) -> None:
        """Undo `pause`."""

    def seek(self, partition: int, offset: int) -> None:
        """Deliver this partition from `offset` on. Not owned (any more): ignored."""

    async def committed(self, partition: int) -> Position | None:
        """The group's commit with its metadata; None when there is none."""

    async def beginning_offset(self, partition: int) -> int:
        """The first offset the log still holds."""

    async def end_offset(self, partition: int) -> int:
        """One past the last committed record."""

    async def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        """The first offset whose timestamp is at or after `timestamp_ms`; None when there is no such record yet."""

    def lag(self, partition: int) -> int | None:
        """Records between the next one to be delivered and the end as last heard of; None before the first fetch."""

    def partitions(self, topic: str) -> int:
        """How many a topic has, as last heard of; 0 when there is no such topic, or it was never asked for."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[int]:
        """Publish all, in order within a partition, and wait until all copies have them. Returns their offsets.

        After BrokerUnavailable some may be in the log and some not: publishing the same again is the caller's to do.
        """

    async def commit(self, positions: Mapping[int, Position]) -> None:
        """Commit for the partitions still owned; others are not sent. Lost to a rebalance in between: no error, it is void."""

    async def fence(self, partition: int) -> None:
        """From here on this worker alone writes for the partition, by `transact`; what a former owner has not committed is
        void. What is read after it (`committed`, `read_back`) stays true."""

    async def transact(
        self, partition: int, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        """Publish and commit at once: who reads committed messages sees all of it or nothing. `position` is given the
        offsets and says what to commit.

        Raises Fenced: the partition must be fenced and recovered again, and what was in the transaction may be out or not.
        """

    def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        """Committed messages from `start` (or the first held, if later) up to the end of the log as it is at the call; then it
        ends. A transaction of anybody that is still open there is waited for: raises BrokerUnavailable when that lasts."""


def partition_for(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives `key`: murmur2, sign bit dropped, modulo the count.

    Source: org.apache.kafka.common.utils.Utils.murmur2; agrees with aiokafka and with librdkafka's `murmur2_random`.
    """
    word, mix = 0xFFFFFFFF, 0x5BD1E995
    whole = len(key) & ~3
    h = 0x9747B28C ^ len(key)
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * mix & word
        k = (k ^ k >> 24) * mix & word
        h = (h * mix & word) ^ k
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * mix & word
    h = (h ^ h >> 13) * mix & word
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions
