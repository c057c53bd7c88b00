"""What is asked of a cluster beside its records: connect, describe and create topics, close in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CorruptRecordException,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)

from stream_worker.errors import BrokerUnavailable, ConfigError, WorkerError
from stream_worker.kafka.sentences import denied
from stream_worker.seam import TopicState

__all__ = ["add_partitions", "closed", "connect_admin", "create_topics", "delete_topics", "describe_topics", "refusal"]

_log = logging.getLogger(__name__)
_RETRY_S = 0.5
_CLOSE_LIMIT_S = 10.0
_RIGHTS = {  # operation, "" as the caller says; kind of resource
    TopicAuthorizationFailedError: ("", "topic"),
    GroupAuthorizationFailedError: ("Read", "group"),
    TransactionalIdAuthorizationFailed: ("Write", "transactional-id"),
}


def refusal(error: KafkaError, where: str, doing: str = "Read") -> WorkerError:
    """Waiting mends the retriable ones, and perhaps a record that came damaged; the others are a matter of configuration or
    rights. `doing`: to a topic."""
    right = _RIGHTS.get(type(error))
    if right is not None:
        operation, kind = right
        given = error.args[0] if error.args else "?"
        name = ", ".join(sorted(given)) if isinstance(given, set | frozenset | list | tuple) else str(given)
        return denied(operation or doing, kind, name, where)
    if isinstance(error, ClusterAuthorizationFailedError):  # what a producer hears that may write to no topic at all
        return ConfigError(f"broker {where}: no right to Write any topic; the worker needs it for findings and dead letters")
    passing = error.retriable or isinstance(error, CorruptRecordException)
    kind_of = BrokerUnavailable if passing else ConfigError
    return kind_of(f"broker {where}: {type(error).__name__}: {error}")


async def closed(closing: Coroutine[Any, Any, None], what: str, limit_s: float = _CLOSE_LIMIT_S) -> None:
    """Close within a time; what cannot be closed in order (no broker) is left behind and said."""
    task = asyncio.create_task(closing)  # of its own: the client lets cancellations of its inner tasks out
    try:
        await asyncio.wait({task}, timeout=limit_s)
    finally:
        task.cancel()
    (error,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(error, BaseException):
        _log.warning("the %s did not close in order: %r", what, error)


async def connect_admin(common: Mapping[str, Any], request_timeout_s: float, deadline: float) -> AIOKafkaAdminClient:
    """An admin client that has talked to the cluster; retries until `deadline` (monotonic), then BrokerUnavailable."""
    begun = time.monotonic()
    while True:
        admin = AIOKafkaAdminClient(**common, request_timeout_ms=int(request_timeout_s * 1000))
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.1, left)):
                await admin.start()
                return admin
        except (KafkaError, TimeoutError, OSError) as error:
            with contextlib.suppress(KafkaError, OSError):
                await admin.close()
            if isinstance(error, KafkaError) and not error.retriable:
                raise refusal(error, str(common["bootstrap_servers"])) from error
            if left < _RETRY_S:
                waited = time.monotonic() - begun
                where = common["bootstrap_servers"]
                raise BrokerUnavailable(f"no Kafka broker answers at {where} (tried for {waited:.0f} s)") from error
            await asyncio.sleep(_RETRY_S)


async def describe_topics(
    bootstrap: str, names: Sequence[str], security: Mapping[str, Any] | None = None, timeout_s: float = 15.0
) -> dict[str, TopicState]:
    """The named topics that exist. Raises BrokerUnavailable, or ConfigError when the cluster refuses to say."""
    async with _admin(bootstrap, security, timeout_s) as admin:
        described = {t["topic"]: t["partitions"] for t in await admin.describe_topics(list(names)) if t["error_code"] == 0}
        if not described:
            return {}
        wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in described]
        settings: dict[str, dict[str, str]] = {}
        for response in await admin.describe_configs(wanted):
            for code, message, _, name, entries in response.resources:
                if code:
                    raise ConfigError(f"settings of topic {name}: {for_code(code).__name__} {message or ''}")
                settings[name] = {entry[0]: entry[1] for entry in entries}
        return {
            name: TopicState(name, len(parts), min((len(part["replicas"]) for part in parts), default=0), settings[name])
            for name, parts in described.items()
        }


async def create_topics(
    bootstrap: str,
    topics: Sequence[TopicState],
    security: Mapping[str, Any] | None = None,
    timeout_s: float = 15.0,
) -> None:
    """Create topics and wait until they can be used; replication -1 takes the cluster's default.

    Raises ConfigError naming what the cluster refused.
    """
    async with _admin(bootstrap, security, timeout_s) as admin:
        new = [NewTopic(t.name, t.partitions, t.replication, topic_configs=dict(t.settings)) for t in topics]
        answer = await admin.create_topics(new, timeout_ms=int(timeout_s * 1000))
        for name, code, *message in answer.topic_errors:
            if code:
                raise ConfigError(f"topic {name} was not created: {for_code(code).__name__} {message[0] if message else ''}")
        # Created is not yet known everywhere: a client that asks too early hears that there is no such topic.
        names = [topic.name for topic in topics]
        while not all(map(_has_leaders, await admin.describe_topics(names))):
            await asyncio.sleep(0.05)


async def delete_topics(
    bootstrap: str, names: Sequence[str], security: Mapping[str, Any] | None = None, timeout_s: float = 15.0
) -> None:
    """Delete them with all they hold. Raises ConfigError naming what the cluster refused."""
    async with _admin(bootstrap, security, timeout_s) as admin:
        answer = await admin.delete_topics(list(names), timeout_ms=int(timeout_s * 1000))
        for name, code, *_ in answer.topic_error_codes:
            if code:
                raise ConfigError(f"topic {name} was not deleted: {for_code(code).__name__}")


async def add_partitions(
    bootstrap: str, topic: str, partitions: int, security: Mapping[str, Any] | None = None, timeout_s: float = 15.0
) -> None:
    """Let a topic grow to so many, and wait until they can be used. Raises ConfigError with what the cluster said."""
    async with _admin(bootstrap, security, timeout_s) as admin:
        await admin.create_partitions({topic: NewPartitions(partitions)}, timeout_ms=int(timeout_s * 1000))
        while len((described := await admin.describe_topics([topic]))[0]["partitions"]) < partitions or not _has_leaders(
            described[0]
        ):
            await asyncio.sleep(0.05)


def _has_leaders(described: Mapping[str, Any]) -> bool:
    return described["error_code"] == 0 and all(part["leader"] >= 0 for part in described["partitions"])


@contextlib.asynccontextmanager
async def _admin(bootstrap: str, security: Mapping[str, Any] | None, timeout_s: float) -> AsyncIterator[AIOKafkaAdminClient]:
    common = {"bootstrap_servers": bootstrap, "client_id": "ecg-worker-admin", **(security or {})}
    admin = await connect_admin(common, timeout_s, time.monotonic() + timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            yield admin
    except KafkaError as error:
        raise refusal(error, bootstrap) from error
    except TimeoutError as error:
        raise BrokerUnavailable(f"broker {bootstrap}: no answer within {timeout_s:.0f} s") from error
    finally:
        await closed(admin.close(), "admin client")
