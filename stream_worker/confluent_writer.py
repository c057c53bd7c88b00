"""Publishing on librdkafka: an idempotent producer that is replaced after a failure, so that nothing of it comes out late."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_worker.errors import BrokerUnavailable, WorkerError
from stream_worker.librdkafka import refusal
from stream_worker.seam import Outgoing

__all__ = ["Writer"]

_FULL_S = 0.05
_SPARE_S = 1.0  # the client's own limit ends first and says why


class Writer:
    """Blocking: `publish` and `close` are called in one thread, `abandon` in any."""

    def __init__(self, common: Mapping[str, Any], timeout_s: float) -> None:
        self._bootstrap, self._timeout_s = str(common["bootstrap.servers"]), timeout_s
        self._config = {
            **common,
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

    def _failure(self, failed: Sequence[KafkaError]) -> WorkerError:
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
