"""Publishing on librdkafka: at least once by an idempotent producer that is replaced after a failure, so that nothing of it
comes out late; exactly once by a transactional one for each partition, which is not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_worker.errors import BrokerUnavailable, WorkerError
from stream_worker.kafka.librdkafka import refusal
from stream_worker.seam import Outgoing

__all__ = ["Transaction", "Writer"]

_FULL_S = 0.05
_SPARE_S = 1.0  # the client's own limit ends first and says why


class Writer:
    """Blocking: `publish` and `close` are called in one thread, `abandon` in any."""

    def __init__(self, common: Mapping[str, Any], timeout_s: float, **more: Any) -> None:
        self._bootstrap, self._timeout_s = str(common["bootstrap.servers"]), timeout_s
        self._config = {
            **common,
            **more,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.max.bytes": 1 << 20,
            "delivery.timeout.ms": int(timeout_s * 1000),
            "request.timeout.ms": int(timeout_s * 1000),
        }
        self._producer: Producer | None = None

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Offsets of all, once every copy has them. Raises BrokerUnavailable or ConfigError; some may be in the log then."""
        deadline = time.monotonic() + self._timeout_s
        offsets, failed = [-1] * len(messages), list[KafkaError]()
        if self._producer is None:
            self._producer = Producer(self._config)
        producer = self._producer

        def landed(place: int, error: KafkaError | None, message: Message[bytes, bytes]) -> None:
            offset = message.offset()
            if error is not None:
                failed.append(error)
            elif offset is not None:
                offsets[place] = offset

        try:
            for place, message in enumerate(messages):
                self._produce(producer, message, partial(landed, place), deadline)
            waiting = producer.flush(max(0.0, deadline - time.monotonic()) + _SPARE_S)
        except KafkaException as error:
            failed.append(error.args[0])
            waiting = 0
        if failed or waiting or min(offsets, default=0) < 0:
            self.close()
            raise self._failure(failed)
        return offsets

    def _produce(self, producer: Producer, message: Outgoing, landed: Any, deadline: float) -> None:
        topic, partition, key, value, headers = message
        looked = False
        while True:
            try:
                producer.produce(topic, value, key, partition, landed, headers=list(headers))
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT_QUEUE)) from None
                producer.poll(_FULL_S)
            except KafkaException as error:
                if looked or error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                looked = True  # the caller knows of it: added since the producer last heard of its topic
                producer.list_topics(topic, max(0.1, deadline - time.monotonic()))

    def _failure(self, failed: Sequence[KafkaError]) -> WorkerError | KafkaException:
        if failed:
            return refusal(failed[0], self._bootstrap)
        return BrokerUnavailable(f"publishing at {self._bootstrap}: not acknowledged within {self._timeout_s:g} s")

    def abandon(self) -> None:
        """What waits is given up, so that a `publish` under way ends at once."""
        if self._producer is not None:
            self._producer.purge(blocking=False)

    def close(self) -> None:
        """Give up what waits and end the producer; the next `publish` makes another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaException):
                producer.purge()
            producer.close()


class Transaction(Writer):
    """One partition's transactional producer. Any failure is final: `publish` and `commit` raise KafkaException or WorkerError.
    Blocking, in one thread."""

    def __init__(self, common: Mapping[str, Any], name: str, timeout_s: float) -> None:
        super().__init__(common, timeout_s, **{"transactional.id": name, "transaction.timeout.ms": 60_000})
        self._producer = Producer(self._config)
        self._producer.init_transactions(timeout_s)  # fences the former owner, and ends its transaction

    def begin(self, messages: Sequence[Outgoing]) -> list[int]:
        """Offsets, in a transaction that `commit` ends."""
        self._alive().begin_transaction()
        try:
            return self.publish(messages)
        except SystemError as error:  # the client runs the callbacks with its own fatal error set
            raise KafkaException(KafkaError(KafkaError._FENCED, str(error))) from error

    def close(self) -> None:
        """Give up what is not committed and end the producer, also one that was fenced."""
        with contextlib.suppress(SystemError):
            super().close()

    def commit(self, offsets: Sequence[TopicPartition], member: Any) -> None:
        """member: the consumer's group metadata; the group refuses it from a worker that it has gone on without."""
        producer = self._alive()
        producer.send_offsets_to_transaction(list(offsets), member, self._timeout_s)
        producer.commit_transaction(self._timeout_s)

    def _failure(self, failed: Sequence[KafkaError]) -> WorkerError | KafkaException:
        return KafkaException(failed[0]) if failed else super()._failure(failed)

    def _alive(self) -> Producer:
        if self._producer is None:
            raise BrokerUnavailable("its producer has failed")
        return self._producer
