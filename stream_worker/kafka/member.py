"""What the brokers of both clients share: what they are given, what they hold, and the callbacks of a rebalance."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stream_worker.kafka.sentences import place
from stream_worker.kafka.topic_watch import TopicWatch
from stream_worker.seam import OnPartitions

__all__ = ["Given", "Member"]

_log = logging.getLogger(__name__)


class Given(NamedTuple):
    """What the clients are made with."""

    bootstrap: str
    security: dict[str, Any]
    client_id: str


class Member(ABC):
    """A member of a group, see `seam.Broker`. All keyword arguments; times in seconds.

    `security`: what `kafka_security.security` gives. `start_timeout_s`: for connecting and joining the group;
    `publish_timeout_s`: for one `publish`; `request_timeout_s`: for one question to the cluster; `session_timeout_s`:
    silence after which the group gives this worker's partitions to others.
    """

    def __init__(
        self,
        *,
        bootstrap: str,
        group: str = "ecg-worker",
        chunks: str = "ecg.chunks",
        findings: str = "ecg.findings",
        dead_letters: str = "ecg.dead-letters",
        security: Mapping[str, Any] | None = None,
        client_id: str = "ecg-worker",
        start_timeout_s: float = 60.0,
        publish_timeout_s: float = 30.0,
        request_timeout_s: float = 15.0,
        session_timeout_s: float = 10.0,
    ) -> None:
        self._given = Given(bootstrap, dict(security or {}), client_id)
        self._bootstrap = place(bootstrap, security or {})  # as it is named in messages
        self._group, self._chunks = group, chunks
        self._start_timeout_s, self._publish_timeout_s = start_timeout_s, publish_timeout_s
        self._request_timeout_s, self._session_timeout_s = request_timeout_s, session_timeout_s
        self._callbacks: tuple[OnPartitions, OnPartitions] | None = None  # on_assigned, on_revoked
        self._topics = TopicWatch(self._bootstrap, (chunks, findings, dead_letters), self._count_partitions, self._fail)
        self._assigned: frozenset[int] = frozenset()
        self._next: dict[int, int] = {}  # the offset that is delivered next, of what was sought
        self._paused: set[int] = set()
        self._moved: set[int] = set()  # sought, paused or taken away since the poll under way began
        self._failure: BaseException | None = None  # for `poll` to raise

    @property
    def connected(self) -> bool:
        return self._topics.connected

    @property
    def assigned(self) -> frozenset[int]:
        return self._assigned

    def partitions(self, topic: str) -> int:
        return self._topics.count(topic)

    async def stop(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        try:
            if callbacks is not None and self._assigned:
                await callbacks[1](self._assigned)
        finally:
            await self._close()

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def _count_partitions(self, topics: Sequence[str], limit_s: float) -> Mapping[str, int]:
        """By topic, 0 where there is none. Raises WorkerError."""

    async def _guard(self, which: int) -> None:
        """Call on_assigned (0) or on_revoked (1) with what is assigned."""
        try:
            if self._callbacks is not None:
                await self._callbacks[which](self._assigned)
        except Exception as error:
            _log.error("a rebalance callback failed for partitions %s: %r", sorted(self._assigned), error)
            self._failure = error

    def _fail(self, error: BaseException) -> None:
        self._failure = error

    def _raise_remembered(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
