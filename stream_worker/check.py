"""What `ecg-worker check` looks at, one item after the other; each problem is a WorkerError that says what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from encoders.artifact import Artifact, ArtifactError
from encoders.bank import BankError, LabelBank
from stream_worker.backend import opened
from stream_worker.errors import ArtifactRefused, BrokerUnavailable, ConfigError, StoreUnavailable, WorkerError
from stream_worker.labels import ACTIVE_KEY, bank_key
from stream_worker.settings import Settings

__all__ = ["Item", "problems"]


class Item(NamedTuple):
    """One thing checked: `detail` where it is well, `error` where it is not."""

    what: str
    detail: str
    error: WorkerError | None


async def problems(settings: Settings, security: Mapping[str, Any]) -> AsyncIterator[Item]:
    """Model, labels, Kafka's client, Kafka and its topics, Redis: every item, in that order, as soon as it is known."""
    model = None
    try:
        model = Artifact.load(settings.artifact_dir())
        with opened(model, settings) as encoder:
            text = f"{model.digest[:16]}, D = {encoder.dim}, {len(model.bank().labels)} labels, golden window agrees"
            yield Item("model", f"{text}, backend {encoder.backend}", None)
    except ArtifactError as error:
        yield Item("model", "", ArtifactRefused(str(error)))
    except WorkerError as error:
        yield Item("model", "", error)
    yield _client(settings)
    for item in await _kafka(settings, security):
        yield item
    yield await _redis(settings, model)


def _client(settings: Settings) -> Item:
    from stream_worker.operate import client_of

    try:
        return Item("client", f"{settings.client}: {client_of(settings.client).__name__}", None)
    except ConfigError as error:
        return Item("client", "", error)


async def _kafka(settings: Settings, security: Mapping[str, Any]) -> list[Item]:
    from stream_worker.kafka.topics import inspect

    try:
        found = await inspect(settings, security)
    except (BrokerUnavailable, ConfigError) as error:
        return [Item("kafka", "", error)]
    items = [Item("kafka", f"answers at {settings.kafka}", None)]
    return items + (
        [Item("topics", "", ConfigError(text)) for text in found] or [Item("topics", "as the worker needs them", None)]
    )


async def _redis(settings: Settings, model: Artifact | None) -> Item:
    if settings.redis is None:
        return Item("redis", "not set (ECG_REDIS): the worker would use the model's own labels", None)
    import redis.asyncio as redis
    from redis.exceptions import RedisError

    client: Any = redis.Redis.from_url(settings.redis.get_secret_value(), socket_timeout=5, socket_connect_timeout=5)
    try:
        digest = (await client.get(ACTIVE_KEY) or b"").decode("ascii", "replace")
        data = await client.get(bank_key(digest)) if digest else None
    except (RedisError, OSError) as error:
        return Item("redis", "", StoreUnavailable(f"does not answer ({type(error).__name__}): check ECG_REDIS and the server"))
    finally:
        await client.aclose()
    if data is None:
        return Item(
            "redis", "", StoreUnavailable("answers, but holds no active label bank: ecg-train publish --redis URL ARTIFACT")
        )
    try:
        bank = LabelBank.from_bytes(data, expect_digest=digest)
        if model is not None:
            bank.check(model.encoder_digest, model.manifest.model.dim)
    except BankError as error:
        return Item("redis", "", ArtifactRefused(str(error)))
    return Item("redis", f"active label bank {bank.digest[:16]}, {len(bank.labels)} labels", None)
