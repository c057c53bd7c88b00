"""Publishing by aiokafka: at least once by one idempotent producer, exactly once by a transactional one for each partition.

A producer that failed is closed and never used again. The idempotent one is replaced, since a batch that ran out of time leaves
a hole in its numbers; a transactional one is not: only who recovers the partition again may start another, because starting it
fences the owner before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from stream_worker.errors import BrokerUnavailable
from stream_worker.kafka import sentences
from stream_worker.kafka.admin import closed, refusal
from stream_worker.kafka.topic_watch import TopicWatch
from stream_worker.seam import Fenced, Outgoing, Position

__all__ = ["METADATA_AGE_MS", "KafkaWriter", "ended"]

_STOP_S = 5.0  # for what is under way; nobody waits for its outcome any more
_CANCEL_S = 0.1
METADATA_AGE_MS = 30_000  # added partitions are noticed, and shared out anew, after this long
_REFUSED = (  # what starting over does not mend
    GroupAuthorizationFailedError, MessageSizeTooLargeError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed,
)  # fmt: skip


class KafkaWriter:
    """The producers of one worker. `spawn` keeps a task alive that nobody waits for."""

    def __init__(
        self,
        common: Mapping[str, Any],
        topics: TopicWatch,
        publish_timeout_s: float,
        request_timeout_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._common, self._bootstrap, self._topics = (
            dict(common),
            sentences.place(str(common["bootstrap_servers"]), common),
            topics,
        )
        self._publish_timeout_s, self._request_timeout_s, self._spawn = publish_timeout_s, request_timeout_s, spawn
        self._producer: AIOKafkaProducer | None = None
        self._transactional: dict[int, AIOKafkaProducer] = {}
        self._turns = Counter[int]()  # how often each partition was let go
        self._retired: set[AIOKafkaProducer] = set()  # being closed, by tasks that may themselves be ended

    async def ready(self) -> AIOKafkaProducer:
        """The idempotent producer, started."""
        if self._producer is None:
            self._producer = await self._start()
        return self._producer

    async def _start(self, **more: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._common,
            **more,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=1 << 20,
            request_timeout_ms=int(self._publish_timeout_s * 1000),
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        try:
            await producer.start()
        except BaseException:
            await ended(producer)
            raise
        return producer

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[int]:
        """See `seam.Broker.publish`."""
        try:
            async with self._limited(self._publish_timeout_s, "publishing"):
                return await self._sent(await self.ready(), messages)
        except (BrokerUnavailable, KafkaError) as error:
            producer, self._producer = self._producer, None
            if producer is not None:
                self._retire(producer)
            raise error if isinstance(error, BrokerUnavailable) else refusal(error, self._bootstrap, "Write") from error

    async def fence(self, group: str, chunk: TopicPartition) -> None:
        """See `seam.Broker.fence`. The client's start waits until the former owner's transaction has ended."""
        self.let_go([chunk.partition])
        turn = self._turns[chunk.partition]
        named = f"{group}/{chunk.topic}/{chunk.partition}"
        try:
            async with self._limited(self._request_timeout_s, f"fencing {named}"):
                producer = await self._start(transactional_id=named)
        except _REFUSED as error:
            raise refusal(error, self._bootstrap, "Write") from error
        except KafkaError as error:  # a broken connection, or two that fence at once, are not called retriable
            raise BrokerUnavailable(f"fencing {named} at {self._bootstrap}: {error!r}") from error
        if self._turns[chunk.partition] != turn:  # let go, or fenced again, while it started
            self._retire(producer)
            raise Fenced(chunk.partition, "it was let go while it was fenced")
        self._transactional[chunk.partition] = producer

    async def transact(
        self, group: str, chunk: TopicPartition, messages: Sequence[Outgoing], position: Callable[[Sequence[int]], Position]
    ) -> None:
        """See `seam.Broker.transact`."""
        producer = self._transactional.get(chunk.partition)
        if producer is None:
            raise Fenced(chunk.partition, "not fenced")
        try:
            async with self._limited(self._publish_timeout_s, f"the transaction of {chunk.topic}[{chunk.partition}]"):
                await producer.begin_transaction()
                at = position(await self._sent(producer, messages))
                await producer.send_offsets_to_transaction({chunk: tuple(at)}, group)
                await producer.commit_transaction()
        except _REFUSED as error:
            self.let_go([chunk.partition])
            raise refusal(error, self._bootstrap, "Write") from error
        except (KafkaError, BrokerUnavailable, AssertionError) as error:  # the last: of a client whose own task has died
            self.let_go([chunk.partition])
            raise Fenced(chunk.partition, repr(error)) from error
        except BaseException:  # given up in its middle: it cannot go on
            self.let_go([chunk.partition])
            raise

    async def _sent(self, producer: AIOKafkaProducer, messages: Sequence[Outgoing]) -> list[int]:
        """One batch a partition, or several where one gets too large -> the offset of each message."""
        by_partition: dict[tuple[str, int], list[int]] = {}
        for place, message in enumerate(messages):
            by_partition.setdefault(message[:2], []).append(place)
        for topic, partition in by_partition:
            await self._topics.check(topic, self._request_timeout_s, partition)
            if len(await producer.partitions_for(topic)) != self._topics.count(topic):  # it heard of it before they were added
                await producer.client.force_metadata_update()
        sent: list[tuple[asyncio.Future[Any], list[int]]] = []
        for (topic, partition), places in by_partition.items():
            while places:
                batch, now = producer.create_batch(), time.time_ns() // 1_000_000
                taken = 0
                for _, _, key, value, headers in map(messages.__getitem__, places):
                    if batch.append(timestamp=now, key=key, value=value, headers=list(headers)) is None:
                        break
                    taken += 1
                batch.close()
                future = await producer.send_batch(batch, topic, partition=partition)
                future.add_done_callback(_look)
                sent.append((future, places[:taken]))
                places = places[taken:]
        offsets = [0] * len(messages)
        if sent:
            await asyncio.wait([landed for landed, _ in sent])
        for landed, places in sent:
            for offset, place in enumerate(places, landed.result().offset):
                offsets[place] = offset
        return offsets

    @asynccontextmanager
    async def _limited(self, limit_s: float, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise BrokerUnavailable(f"{what}: no answer from {self._bootstrap} within {limit_s:.0f} s") from error

    def interrupt(self, partitions: Iterable[int]) -> None:
        """A fence of these that is under way comes to nothing."""
        self._turns.update(partitions)

    def keep(self, partitions: Iterable[int]) -> None:
        """The transactional producers of all others are closed."""
        self.let_go(self._transactional.keys() - set(partitions))

    def let_go(self, partitions: Iterable[int]) -> None:
        """Their transactional producers are closed; what they had not committed is void."""
        for partition in partitions:
            self._turns[partition] += 1
            producer = self._transactional.pop(partition, None)
            if producer is not None:
                self._retire(producer)

    def _retire(self, producer: AIOKafkaProducer) -> None:
        self._retired.add(producer)
        self._spawn(self._end(producer))

    async def _end(self, producer: AIOKafkaProducer) -> None:
        await ended(producer)
        self._retired.discard(producer)

    async def close(self) -> None:
        """All of them."""
        producers = [*self._transactional.values(), *([self._producer] if self._producer else []), *self._retired]
        self._transactional, self._producer = {}, None
        self._retired.clear()
        await asyncio.gather(*map(ended, producers))


async def ended(producer: AIOKafkaProducer) -> None:
    """Stop a producer and leave nothing of it behind.

    The client's own stop() waits until what was given to it is sent. Where it will not be (no broker, or fenced in the middle)
    it is cut off, and would leave its sender, which tries for ever, its connections and all their memory.
    """
    accumulator, sender, client = producer._message_accumulator, producer._sender, producer.client
    try:
        await closed(producer.stop(), "producer", _STOP_S)
    finally:
        accumulator.fail_all(ProducerClosed())
        task = sender.sender_task
        while task is not None and not task.done():  # once for each request that it waits for
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_S)
        await closed(client.close(), "producer's connections")


def _look(future: asyncio.Future[Any]) -> None:
    """Take note of a failure that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
