"""Findings and dead letters out, then the commit, in this order and no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from stream_worker.errors import BrokerUnavailable
from stream_worker.partition import Partition, Work
from stream_worker.records import DeadLetter, Finding
from stream_worker.seam import Broker, Outgoing, Position
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.wire import dead_letter_message, finding_message

__all__ = ["Deadline", "Publisher"]

log = structlog.get_logger(__name__)


class Deadline:
    """One budget of seconds for all the steps of a drain."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())


class Publisher:
    """Takes scored work from `queue`. `beat`: when it last moved; `published`: findings acknowledged so far."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        on_finding: Callable[[Finding], None],
    ) -> None:
        self.queue: asyncio.Queue[list[tuple[Work, list[Finding]]]] = asyncio.Queue(maxsize=4)
        self.published, self.beat = 0, 0.0
        self._broker, self._settings, self._metrics = broker, settings, metrics
        self._clock, self._on_finding = clock, on_finding

    async def publish(self) -> None:
        """The stage: runs until cancelled, or raises BrokerUnavailable beyond the outage limit."""
        while True:
            self.beat = self._clock()
            try:
                batch = await asyncio.wait_for(self.queue.get(), timeout=1.0)
            except TimeoutError:
                continue
            owned = [(work, finding) for work, findings in batch for finding in findings if work.part.owned]
            letters = [letter for work, _ in batch for letter in work.letters if work.part.owned]
            began = self._clock()
            offsets = await self._acknowledged([finding for _, finding in owned], letters)
            self._metrics.publish_seconds.observe(self._clock() - began)
            for (work, finding), offset in zip(owned, offsets, strict=False):  # dead letters come after the findings
                work.part.published(finding, offset)
                self.published += 1
                self._metrics.windows.labels(str(finding.body["kind"])).inc()
                self._on_finding(finding)
            for letter in letters:
                self._metrics.dead_letters.labels(letter.code).inc()
            for work, _ in batch:
                work.part.done(work)

    async def _acknowledged(self, findings: Sequence[Finding], letters: Sequence[DeadLetter]) -> Sequence[int]:
        """Offsets. A repeat after a cut may double a message; its id stays the same."""
        s = self._settings
        messages = [Outgoing(s.findings_topic, f.partition, *finding_message(f)) for f in findings]
        messages += [Outgoing(s.dead_letters_topic, d.partition, *dead_letter_message(d, s.chunks_topic)) for d in letters]
        deadline, delay = Deadline(s.outage_limit_s, self._clock), 0.1
        while messages:
            try:
                return await self._broker.publish(messages)
            except BrokerUnavailable:
                if deadline.left() == 0:
                    raise
                log.warning("publishing waits for kafka", messages=len(messages))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
                self.beat = self._clock()
        return []

    async def commit(self, parts: Sequence[Partition]) -> None:
        """W with P and F for every partition where something moved."""
        positions = {part.number: Position(*part.position()) for part in parts if part.dirty and part.windower is not None}
        if not positions:
            return
        try:
            await self._broker.commit(positions)
        except BrokerUnavailable as error:
            log.warning("commit waits for kafka", error=str(error))
            for part in parts:
                part.dirty = part.dirty or part.number in positions
