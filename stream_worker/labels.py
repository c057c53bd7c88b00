"""Where the label bank comes from: the artifact itself, or Redis, whose active bank is swapped in between batches.

`ecg:bank:active` names a digest, `ecg:bank:<digest>` holds the bytes. Only the name is polled; the bytes are read on change.
Redis lost at run time freezes the labels and raises an alarm; a bank for another encoder is refused and the old one stays.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from encoders.bank import BankError, LabelBank
from stream_worker.errors import ArtifactRefused, ConfigError, StoreUnavailable
from stream_worker.telemetry import Metrics

__all__ = ["ACTIVE_KEY", "BankSource", "BankWatcher", "FixedBank", "bank_key", "publish_bank"]

ACTIVE_KEY = "ecg:bank:active"
log = structlog.get_logger(__name__)


def bank_key(digest: str) -> str:
    """The Redis key of a bank's bytes."""
    return f"ecg:bank:{digest}"


async def publish_bank(url: str, bank: LabelBank, in_place_of_another: bool = True) -> None:
    """Store the bank under its digest, then make it the active one. Raises StoreUnavailable, and ConfigError where another is
    active and must stay."""
    import redis.asyncio as redis
    from redis.exceptions import RedisError

    client: Any = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    try:
        if not in_place_of_another:
            active = (await client.get(ACTIVE_KEY) or b"").decode("ascii", "replace")
            if active not in ("", bank.digest):
                raise ConfigError(
                    f"redis has another active label bank, {active[:16]}: give an empty database, redis://HOST:PORT/N"
                )
        await client.set(bank_key(bank.digest), bank.to_bytes())
        await client.set(ACTIVE_KEY, bank.digest)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(
            f"redis does not take the label bank ({type(error).__name__}): check ECG_REDIS and the server"
        ) from None
    finally:
        await client.aclose()


class BankSource(Protocol):
    """`bank` is the one to use for the next batch; None until there is one."""

    bank: LabelBank | None

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class FixedBank:
    """The artifact's own bank: for the demo, replay, and workers without Redis."""

    def __init__(self, bank: LabelBank) -> None:
        self.bank: LabelBank | None = bank

    async def start(self) -> None:
        """Nothing to fetch."""

    async def stop(self) -> None:
        """Nothing to close."""


class BankWatcher:
    """Follows the active bank in Redis for one encoder (its digest and D)."""

    def __init__(self, url: str, encoder: str, dim: int, metrics: Metrics, poll_s: float = 1.0) -> None:
        self.bank: LabelBank | None = None
        self._url, self._encoder, self._dim, self._metrics, self._poll_s = url, encoder, dim, metrics, poll_s
        self._refused: str | None = None
        self._missing: str | None = None  # what was last said to be absent
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait, with back-off, for a first bank that fits; then follow. Raises ArtifactRefused when the active one does not."""
        import redis.asyncio as redis

        self._redis: Any = redis.Redis.from_url(self._url, socket_timeout=5, socket_connect_timeout=5)
        delay = 0.2
        while not await self._refresh(first=True):
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)
        self._task = asyncio.create_task(self._follow(), name="bank-watcher")

    async def stop(self) -> None:
        """End following and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._refresh(first=False)

    async def _refresh(self, first: bool) -> bool:
        """One look at Redis. True when `bank` is what is active, as far as Redis can tell."""
        from redis.exceptions import RedisError

        try:
            name: bytes | None = await self._redis.get(ACTIVE_KEY)
            digest = name.decode("ascii", "replace") if name else ""
            have = self.bank.digest if self.bank else None
            data: bytes | None = (
                await self._redis.get(bank_key(digest)) if digest and digest not in (have, self._refused) else None
            )
        except (RedisError, OSError) as error:
            self._lost(error)
            return False
        if not self._metrics.redis_is_up():
            log.info("redis is back", labels="following again")
        self._metrics.redis_up.set(1)
        self._tell_missing(digest if data is None and digest not in (have, self._refused) else None)
        if data is None:
            return bool(digest) and digest == have
        return self._take(digest, data, first)

    def _tell_missing(self, digest: str | None) -> None:
        """digest: what should be there and is not, "" where none is active; None where all is well. Said when it changes."""
        if digest is not None and digest != self._missing:
            what = f"the bytes of the active bank {digest[:16]} are gone" if digest else f"no {ACTIVE_KEY}"
            labels = "frozen" if self.bank else "none yet, waiting"
            remedy = "ecg-train publish --redis URL ARTIFACT"
            log.warning("redis holds no active label bank", what=what, labels=labels, remedy=remedy)
        self._missing = digest
        self._metrics.bank_missing.set(digest is not None)

    def _take(self, digest: str, data: bytes, first: bool) -> bool:
        try:
            bank = LabelBank.from_bytes(data, expect_digest=digest)
            bank.check(self._encoder, self._dim)
        except BankError as error:
            if first:
                raise ArtifactRefused(f"the active label bank in Redis is refused: {error}") from None
            self._refused = digest
            self._metrics.bank_refused.inc()
            log.error("label bank refused, the old one stays", error=str(error))
            return False
        own = {id: share.own for id, share in bank.prevalence.labels.items()} if bank.prevalence else None
        log.info("label bank in use", digest=digest[:16], labels=len(bank.labels), own_prevalence=own)
        self.bank, self._refused = bank, None
        self._metrics.use_bank(digest)
        return True

    def _lost(self, error: Exception) -> None:
        if self._metrics.redis_is_up() or self.bank is None:
            state = "frozen" if self.bank else "none yet, waiting"
            log.error(
                "redis does not answer", error=type(error).__name__, labels=state, remedy="check ECG_REDIS and the server"
            )
        self._metrics.redis_up.set(0)
