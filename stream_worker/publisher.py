"""Findings and dead letters out, and the commit: one after the other (at least once), or in one transaction (exactly once)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from stream_worker.errors import BrokerUnavailable
from stream_worker.partition import Partition, Work
from stream_worker.records import Finding
from stream_worker.seam import Broker, Fenced, Outgoing, Position
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.wire import dead_letter_message, finding_message

__all__ = ["Deadline", "Publisher", "Transactor"]

Scored = tuple[Work, list[Finding]]

log = structlog.get_logger(__name__)
HUNG_S = 2.0  # a transaction that takes longer is no longer waited for: the others go on without its partition


class Deadline:
    """One budget of seconds for all the steps of a drain."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())


class Publisher:
    """At least once: publishes what comes by `queue` at once and commits when asked to; a crash in between publishes again what
    is not yet committed, under the same ids. `beat`: when it last moved; `published`: findings acknowledged so far."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        on_finding: Callable[[Finding], None],
    ) -> None:
        self.queue: asyncio.Queue[list[Scored]] = asyncio.Queue(maxsize=4)
        self.published, self.beat = 0, 0.0
        self._broker, self._settings, self._metrics = broker, settings, metrics
        self._clock, self._on_finding = clock, on_finding

    async def publish(self) -> None:
        """The stage: runs until cancelled, or raises BrokerUnavailable beyond the outage limit."""
        while True:
            self.beat = self._clock()
            try:
                async with asyncio.timeout(1.0):
                    batch = await self.queue.get()
            except TimeoutError:
                continue
            await self._hand_on(batch)

    async def _hand_on(self, batch: list[Scored]) -> None:
        batch = [scored for scored in batch if scored[0].part.owned]
        began = self._clock()
        offsets = await self._acknowledged(self._messages(batch))
        self._metrics.publish_seconds.observe(self._clock() - began)
        self._note(batch, offsets)
        self._tell(batch)

    def _messages(self, batch: Sequence[Scored]) -> list[Outgoing]:
        """All findings, then all dead letters."""
        s = self._settings
        out = [Outgoing(s.findings_topic, f.partition, *finding_message(f)) for _, findings in batch for f in findings]
        letters = [letter for work, _ in batch for letter in work.letters]
        return out + [Outgoing(s.dead_letters_topic, d.partition, *dead_letter_message(d, s.chunks_topic)) for d in letters]

    def _note(self, batch: Sequence[Scored], offsets: Sequence[int]) -> None:
        """In the books of the partitions."""
        owned = [(work, finding) for work, findings in batch for finding in findings]
        for (work, finding), offset in zip(owned, offsets, strict=False):  # dead letters come after the findings
            work.part.published(finding, offset)
        for work, _ in batch:
            work.part.done(work)

    def _tell(self, batch: Sequence[Scored]) -> None:
        """Everyone else."""
        for work, findings in batch:
            for finding in findings:
                self.published += 1
                self._metrics.windows.labels(str(finding.body["kind"])).inc()
                self._on_finding(finding)
            for letter in work.letters:
                self._metrics.dead_letters.labels(letter.code).inc()

    async def _acknowledged(self, messages: list[Outgoing]) -> Sequence[int]:
        """Offsets. A repeat after a cut may double a message; its id stays the same."""
        deadline, delay = Deadline(self._settings.outage_limit_s, self._clock), 0.1
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

    async def settle(self, parts: Sequence[Partition]) -> None:
        """Get out what has come so far; called often while these run dry."""

    async def commit_soon(self, parts: Sequence[Partition]) -> None:
        """`commit`, called at every interval."""
        await self.commit(parts)

    def hung(self) -> list[Partition]:
        """Those whose publishing has stood still for a while, though others go on."""
        return []

    async def close(self) -> None:
        """Nothing is published any more."""

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


class Transactor(Publisher):
    """Exactly once: gathers what comes by `queue`; each commit puts a partition's findings, dead letters and position into one
    transaction. `void` is told of a partition whose transaction did not come through: only the log knows what became of it."""

    void: Callable[[Partition], None]

    def __init__(self, *args: Any, void: Callable[[Partition], None]) -> None:
        super().__init__(*args)
        self.void = void
        self._gathered: dict[Partition, list[Scored]] = {}
        self._turns: dict[Partition, asyncio.Task[None]] = {}  # transactions under way
        self._began: dict[Partition, float] = {}

    async def _hand_on(self, batch: list[Scored]) -> None:
        for work, findings in batch:
            if work.part.owned:
                self._gathered.setdefault(work.part, []).append((work, findings))
        hung = self.hung()
        going = {part: held for part, held in self._gathered.items() if part not in hung}
        waiting = sum(len(work.events) + len(work.letters) for held in going.values() for work, _ in held)
        if waiting >= self._settings.queue_windows:
            await self._end(self._begin(list(going)), HUNG_S)  # too much to wait for the next commit

    async def settle(self, parts: Sequence[Partition]) -> None:
        await self.commit([part for part in parts if part in self._gathered])

    async def commit(self, parts: Sequence[Partition]) -> None:
        underway = [self._turns[part] for part in parts if part in self._turns]
        try:
            await self._end(underway, None)  # what has come since it began is not in it
            await self._end(self._begin(parts), None)
        except asyncio.CancelledError:
            for part in parts:
                if part in self._turns:
                    self._turns[part].cancel()
            raise

    async def commit_soon(self, parts: Sequence[Partition]) -> None:
        """One partition whose transaction stands still keeps no other from its commit."""
        hung = self.hung()
        await self._end(self._begin([part for part in parts if part not in hung]), HUNG_S)
        self._gathered = {part: held for part, held in self._gathered.items() if part.owned}

    async def close(self) -> None:
        for task in self._turns.values():
            task.cancel()
        await asyncio.gather(*self._turns.values(), return_exceptions=True)

    def hung(self) -> list[Partition]:
        now = self._clock()
        return [part for part, began in self._began.items() if now - began >= HUNG_S]

    def _begin(self, parts: Sequence[Partition]) -> list[asyncio.Task[None]]:
        """A transaction for each of these where something moved and none is under way; and those whose time is up."""
        for part in parts:
            moved = part.owned and part.windower is not None and (part.dirty or part in self._gathered)
            if moved and part not in self._turns:
                self._turns[part] = asyncio.create_task(self._transact(part), name=f"transact-{part.number}")
                self._began[part] = self._clock()
        return [task for part, task in self._turns.items() if part in parts or task.done()]

    async def _end(self, turns: Sequence[asyncio.Task[None]], patience_s: float | None) -> None:
        """Wait until they have ended, or for as long. Raises what ended one of them."""
        if turns:
            await asyncio.wait(turns, timeout=patience_s)
        ended = [(part, task) for part, task in self._turns.items() if task.done()]
        for part, _ in ended:
            del self._turns[part], self._began[part]
        for _, task in ended:
            if not task.cancelled():  # as is what belongs to a partition that was taken away
                task.result()

    async def _transact(self, part: Partition) -> None:
        batch = self._gathered.pop(part, [])

        def position(offsets: Sequence[int]) -> Position:
            self._note(batch, offsets)
            return Position(*part.position())

        began = self._clock()
        try:
            await self._broker.transact(part.number, self._messages(batch), position)
        except Fenced as error:
            log.warning("a transaction is void, the partition is recovered again", partition=part.number, error=str(error))
            self.void(part)
            return
        except BaseException:
            part.owned = False  # its batch is gone: nothing may be committed beyond it
            raise
        self._metrics.publish_seconds.observe(self._clock() - began)
        part.voids = 0
        self._tell(batch)
