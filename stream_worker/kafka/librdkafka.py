"""What every librdkafka client here shares: its configuration, the meaning of its errors, questions to the cluster.

Beside `confluent_broker` and `confluent_writer` the only module that imports confluent_kafka; it comes with the extra `fast`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from stream_worker.errors import BrokerUnavailable, ConfigError, WorkerError
from stream_worker.kafka.stable import PATIENCE_S, RETRY_S
from stream_worker.seam import Position

__all__ = ["METADATA_AGE_MS", "REFUSED", "Questions", "configuration", "refusal"]

METADATA_AGE_MS = 30_000  # added partitions are noticed, and shared out anew, after this long
_SERVE_S = 0.1
_NONE = -1  # no such offset
_STALE = frozenset({  # a broker has another leader's number than the client
    KafkaError.FENCED_LEADER_EPOCH, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
})  # fmt: skip
_QUIET = 2  # syslog's "critical": the client repeats every failed attempt on stderr; we say once what it means
_NAMES = {
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
}
REFUSED = frozenset({  # what waiting does not mend; the client's own `retriable` speaks of transactions only
    KafkaError._AUTHENTICATION, KafkaError._INVALID_ARG, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.INVALID_GROUP_ID, KafkaError.INVALID_SESSION_TIMEOUT, KafkaError.INVALID_TIMESTAMP,
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.OFFSET_METADATA_TOO_LARGE, KafkaError.POLICY_VIOLATION,
    KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.SECURITY_DISABLED, KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT, KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.UNSUPPORTED_VERSION,
})  # fmt: skip


def configuration(bootstrap: str, security: Mapping[str, Any], client_id: str) -> dict[str, Any]:
    """`security`: what `kafka_security.security` gives, in librdkafka's names; certificates of its context go along as text."""
    given: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "client.id": client_id,
        "log_level": _QUIET,
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": METADATA_AGE_MS,
        # If it began anew at the bootstrap servers when all brokers are gone, the client would give up the broker that it holds
        # for the group's coordinator, and wait for that one for ever: in a transaction, beyond its limit, and at its end.
        "metadata.recovery.strategy": "none",
        **{_NAMES[name]: value for name, value in security.items() if name in _NAMES},
    }
    context: ssl.SSLContext | None = security.get("ssl_context")
    held = context.get_ca_certs(binary_form=True) if context is not None else []
    if held:  # none: the system keeps them in a folder, which librdkafka finds by itself
        given["ssl.ca.pem"] = "".join(map(ssl.DER_cert_to_PEM_cert, held))
    return given


def refusal(error: KafkaError, bootstrap: str, reason: str = "") -> WorkerError:
    """The error of ours that it stands for. `reason`: what the client last said about its connections."""
    kind = ConfigError if error.code() in REFUSED or error.fatal() else BrokerUnavailable
    more = f" ({reason})" if reason and kind is BrokerUnavailable else ""
    return kind(f"broker {bootstrap}: {error.name()}: {error.str()}{more}")


class Questions:
    """What is asked of a cluster beside its records. Every method raises BrokerUnavailable or ConfigError."""

    def __init__(self, common: Mapping[str, Any], group: str, timeout_s: float) -> None:
        self._bootstrap, self._group, self._timeout_s = str(common["bootstrap.servers"]), group, timeout_s
        self._reason = ""
        self._refused: WorkerError | None = None
        try:
            config: dict[str, Any] = {**common, "error_cb": self._said}
            self._admin = AdminClient(config)
        except KafkaException as error:
            raise ConfigError(f"broker {self._bootstrap}: {error.args[0].str()}") from None

    def _said(self, error: KafkaError) -> None:
        self._reason = error.str()
        if error.code() in REFUSED:
            self._refused = refusal(error, self._bootstrap)

    async def counts(self, topics: Sequence[str], timeout_s: float | None = None) -> dict[str, int]:
        """Partition count by topic; 0 where there is no such topic."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        asked = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=max(0.1, limit))
        return {name: await self._count(future) for name, future in asked.items()}

    async def _count(self, asked: concurrent.futures.Future[Any]) -> int:
        try:
            return len((await self._answer(asked)).partitions)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return 0
            raise refusal(error.args[0], self._bootstrap, self._reason) from None

    async def earliest(self, topic: str, partition: int) -> int:
        """The first offset held."""
        return await self._offset(topic, partition, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    async def latest(self, topic: str, partition: int, committed: bool = True) -> int:
        """One past the last committed record; not `committed`: one past the last record that all copies have."""
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return await self._offset(topic, partition, OffsetSpec.latest(), isolation)  # type: ignore[no-untyped-call]

    async def at_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """The first offset at or after a time; None where there is none."""
        at = await self._offset(topic, partition, OffsetSpec.for_timestamp(timestamp_ms))
        return None if at == _NONE else at

    async def _offset(
        self, topic: str, partition: int, at: OffsetSpec, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
    ) -> int:
        try:
            found = await self._asked_offset(topic, partition, at, isolation)
        except KafkaException as error:
            if error.args[0].code() not in _STALE:
                raise refusal(error.args[0], self._bootstrap, self._reason) from None
            try:  # the client goes on asking by what it has heard before
                await asyncio.to_thread(self._admin.list_topics, topic, self._timeout_s)
                found = await self._asked_offset(topic, partition, at, isolation)
            except KafkaException as again:
                raise refusal(again.args[0], self._bootstrap, self._reason) from None
        if found < _NONE:  # the client's way to say that nobody has answered
            raise BrokerUnavailable(f"offsets of {topic}[{partition}]: no answer from {self._bootstrap}")
        return found

    async def _asked_offset(self, topic: str, partition: int, at: OffsetSpec, isolation: IsolationLevel) -> int:
        asked = self._admin.list_offsets(
            {TopicPartition(topic, partition): at}, isolation_level=isolation, request_timeout=self._timeout_s
        )
        return int((await self._answer(*asked.values())).offset)

    async def committed(self, topic: str, partition: int) -> Position | None:
        """The group's commit with its metadata, as `stable.stable_commit` gives it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = await self._asked_commit(topic, partition, time.monotonic() < deadline)
            if found.error is None:
                return None if found.offset < 0 else Position(found.offset, _metadata(found))
            if found.error.code() != KafkaError.UNSTABLE_OFFSET_COMMIT:
                raise refusal(found.error, self._bootstrap)
            await asyncio.sleep(RETRY_S)

    async def _asked_commit(self, topic: str, partition: int, stable: bool) -> TopicPartition:
        wanted = ConsumerGroupTopicPartitions(self._group, [TopicPartition(topic, partition)])
        asked = self._admin.list_consumer_group_offsets([wanted], require_stable=stable, request_timeout=self._timeout_s)
        try:
            found: TopicPartition = (await self._answer(*asked.values())).topic_partitions[0]
        except KafkaException as error:
            raise refusal(error.args[0], self._bootstrap, self._reason) from None
        return found

    async def _answer(self, asked: concurrent.futures.Future[Any]) -> Any:
        """The client sets `asked` from a thread of its own, always, by the request's time limit; it must not be cancelled."""
        loop, answered = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(answered.set)

        asked.add_done_callback(wake)
        while not asked.done():
            self._admin.poll(0)  # or it keeps to itself that it was refused
            if self._refused is not None:
                raise self._refused
            try:
                async with asyncio.timeout(_SERVE_S):
                    await answered.wait()
            except TimeoutError:
                continue
        self._reason = "" if asked.exception() is None else self._reason
        return asked.result()


def _metadata(found: TopicPartition) -> str:
    """What was committed, a JSON document. The client reads on behind its end, to the next zero byte in memory."""
    try:
        text = found.metadata or ""
    except UnicodeDecodeError as error:
        text = error.object[: error.start].decode()
    try:
        return text[: json.JSONDecoder().raw_decode(text)[1]]
    except ValueError:
        return text
