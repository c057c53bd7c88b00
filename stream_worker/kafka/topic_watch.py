"""How many partitions the topics of a broker have, asked of the cluster once a second; the answer also tells `connected`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from stream_worker.errors import BrokerUnavailable, ConfigError, WorkerError

__all__ = ["TopicWatch"]

_log = logging.getLogger(__name__)
_EVERY_S = 1.0
_LIMIT_S = 3.0
_DENIED_S, _AGAIN_S = 3.0, 0.3
_GONE_S = 10.0


class TopicWatch:
    """ask: topics, seconds -> partition count by topic, 0 where there is none; raises WorkerError.
    failed: told what waiting does not mend."""

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        ask: Callable[[Sequence[str], float], Awaitable[Mapping[str, int]]],
        failed: Callable[[WorkerError], None],
    ) -> None:
        self.connected = False
        self._bootstrap, self._ask, self._failed = bootstrap, ask, failed
        self._there: dict[str, float | None] = {}  # topics that were seen, and since when they are missed
        self._counts: dict[str, int] = dict.fromkeys(topics, 0)  # and others, once something is published to them

    def count(self, topic: str) -> int:
        """As last heard."""
        return self._counts.get(topic, 0)

    async def learn(self, limit_s: float) -> None:
        """Ask now."""
        self._counts.update(await self._ask(sorted(self._counts), limit_s))
        self._there.update((topic, None) for topic, count in self._counts.items() if count)
        self.connected = True

    async def check(self, topic: str, limit_s: float, partition: int = 0) -> None:
        """Raises ConfigError where there is no such topic or partition. A broker that has just started denies all of them for a
        moment, so it is asked for a while."""
        end = time.monotonic() + _DENIED_S
        while not 0 <= partition < self._counts.setdefault(topic, 0):
            await self.learn(limit_s)
            if time.monotonic() > end or 0 <= partition < self._counts[topic]:
                break
            await asyncio.sleep(_AGAIN_S)
        if not self._counts[topic]:
            raise ConfigError(f"topic {topic} does not exist at {self._bootstrap}: ecg-worker topics --apply")
        if not 0 <= partition < self._counts[topic]:
            raise ConfigError(f"topic {topic} has no partition {partition}: ecg-worker topics --apply")

    def _miss(self, now: float) -> None:
        """A topic that was there is not: deleted, unless a broker that has just started denies it."""
        for topic, count in self._counts.items():
            if not count and topic in self._there:
                since = self._there[topic] = self._there[topic] or now
                if now - since > _GONE_S:
                    where = f"topic {topic} is gone from {self._bootstrap}, it was deleted"
                    self._failed(ConfigError(f"{where}: ecg-worker topics --apply makes it anew"))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.learn(_LIMIT_S)
                self._miss(time.monotonic())
            except BrokerUnavailable as error:
                if self.connected:
                    _log.warning("lost the broker at %s: %s", self._bootstrap, error)
                self.connected = False
            except WorkerError as error:
                self._failed(error)
