"""The stages of the worker, joined by bounded queues: read and cut -> score -> publish -> commit.

One order, never another: findings and dead letters of some records are published and acknowledged, then those records are
marked processed, then the offset is committed. Start order: broker, partitions (recovered from what was published), stages.
Drain order: reading stops, then scoring, publishing and the last commit run dry, all under one Deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import structlog

from stream_worker.holding import Holdings
from stream_worker.labels import BankSource
from stream_worker.partition import Partition
from stream_worker.publisher import Deadline, Publisher, Transactor
from stream_worker.records import Finding
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.scoring import Scoring
from stream_worker.seam import Broker, OffsetLost, Record
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.watch import EndWatch, OutageWatch
from stream_worker.wire import Decoder

__all__ = ["Pipeline"]

log = structlog.get_logger(__name__)
POLL_MS = 200
POLL_RECORDS = 2000
SLICE = 64  # records cut at a stretch, partitions in turn; between two stretches the event loop reads its sockets
PATIENCE_S = 0.5  # waited for the scorer before partitions are paused
COLLECT = (10_000, 2, 2)  # garbage collector: allocations, and how often the older generations take part
STALLED_S = 60.0  # a stage without a beat for this long is not alive

Slices = deque[tuple[Partition, Sequence[Record]]]


class Pipeline:
    """A worker over any broker. `run` returns after `stop` and a drain, or raises the WorkerError that ended it."""

    def __init__(
        self,
        broker: Broker,
        scorer: Callable[[], Scorer | None],
        settings: Settings,
        metrics: Metrics,
        labels: BankSource,
        clock: Callable[[], float] = time.monotonic,
        on_finding: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        self.broker, self.settings, self.metrics, self.labels = broker, settings, metrics, labels
        if settings.delivery == "exactly_once":
            self.publisher: Publisher = Transactor(broker, settings, metrics, clock, on_finding, void=self._void)
        else:
            self.publisher = Publisher(broker, settings, metrics, clock, on_finding)
        self.scoring = Scoring(scorer, labels, settings, metrics, clock, self.publisher.queue)
        rules, submit = Rules(hop_ms=settings.hop_ms), self.scoring.submit
        self.holdings = Holdings(broker, settings, rules, metrics, submit, self._last_words)
        self._ends = EndWatch(broker, self.holdings, metrics, submit)
        self._outage = OutageWatch(broker, settings, metrics)
        self._decode = Decoder(settings.max_chunk_bytes)
        self._uncut: Slices = deque()  # polled and not yet cut
        self._crowded = False  # too much waits for the scorer: nothing is read
        self._stopping = asyncio.Event()
        self._beats: dict[str, float] = {}
        self._clock = clock
        self._stages: list[asyncio.Task[None]] = []

    # ---- life

    def stop(self) -> None:
        """Begin the drain; `run` returns when it is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Start, work until `stop`, drain. Raises WorkerError."""
        starting, stopping = asyncio.create_task(self._start()), asyncio.create_task(self._stopping.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        stages = self._stages = [
            asyncio.create_task(stage(), name=stage.__name__.strip("_"))
            for stage in (self._read, self.scoring.score, self.publisher.publish, self._commit_often)
        ]
        try:
            await asyncio.wait([*stages, stopping], return_when=asyncio.FIRST_COMPLETED)
            for stage in stages[1:]:
                if stage.done():
                    stage.result()
            if stages[0].done() and not self._stopping.is_set():
                stages[0].result()
            await self._drain(Deadline(self.settings.drain_s))
        finally:
            for task in [*stages, stopping]:
                task.cancel()
            await asyncio.gather(*stages, stopping, return_exceptions=True)
            await self.holdings.close()
            await self.broker.stop()
            await self.publisher.close()
            await self.labels.stop()
            self.scoring.close()

    async def _start(self) -> None:
        gc.freeze()  # what is loaded stays; chunks and findings form no cycles, so the collector need not look often
        gc.set_threshold(*COLLECT)  # but connections that fail do, a hundred objects each
        await self.labels.start()
        await self.broker.start(self.holdings.on_assigned, self.holdings.on_revoked)

    async def _drain(self, deadline: Deadline) -> None:
        """Reading has stopped or stops now; let what was read run dry, then commit."""
        self._stopping.set()
        await asyncio.wait(self._stages[:1], timeout=deadline.left())
        parts = list(self.holdings.parts.values())
        dry = await self._dry(parts, deadline)
        try:
            async with asyncio.timeout(max(1.0, deadline.left())):
                await self.publisher.commit(parts)
        except TimeoutError:
            log.warning("the last commit did not come through: the next worker reads a little again")
        log.info("stopped", drained=dry, findings=self.publisher.published)

    async def _last_words(self, parts: Sequence[Partition]) -> bool:
        """Of partitions that are taken away."""
        dry = await self._dry(parts, Deadline(min(5.0, self.settings.drain_s)))
        await self.publisher.commit(parts)
        return dry

    async def _dry(self, parts: Sequence[Partition], deadline: Deadline) -> bool:
        while any(part.owned and part.in_flight for part in parts) and deadline.left() > 0:
            for stage in self._stages[1:]:
                if stage.cancelled():  # the drain's time is up: nothing runs dry any more
                    return False
                if stage.done():
                    stage.result()
            await asyncio.sleep(0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline.left()):
                    await self.publisher.settle(parts)
        return not any(part.in_flight for part in parts)

    def live(self) -> list[str]:
        """Why this process should be restarted."""
        now = self._clock()
        beats = {**self._beats, "score": self.scoring.beat or now, "publish": self.publisher.beat or now}
        return [f"stage {name} has not moved for {now - at:.0f} s" for name, at in beats.items() if now - at > STALLED_S]

    def ready(self) -> list[str]:
        """Why no findings are to be expected now."""
        why = [] if self.labels.bank is not None else ["no label bank yet"]
        if not self.broker.connected:  # it is not asked before there are labels
            return why or ["kafka does not answer"]
        why += self.holdings.why_not_ready()
        hung = sorted(part.number for part in self.publisher.hung())
        if hung:
            why.append(f"transactions of partitions {hung} do not end")
        return why if self._beats else [*why, "not started"]

    def _void(self, part: Partition) -> None:
        self.holdings.start_over(part)

    # ---- read and cut

    async def _read(self) -> None:
        while not self._stopping.is_set():
            self._beats["read"] = self._clock()
            if self.holdings.failure is not None:
                raise self.holdings.failure
            await self._throttle()
            polled = await self._poll() if self._crowded or not self._uncut else {}
            by_part = []
            for part in self.holdings.ready():
                records = polled.get(part.number, ())
                if records:
                    part.delivered = records[-1].offset + 1
                by_part.append([(part, records[at : at + SLICE]) for at in range(0, len(records), SLICE)])
            self._uncut += (one for turn in zip_longest(*by_part) for one in turn if one is not None)
            await self._cut()
            await self._ends.look(self._clock(), {*polled, *(part.number for part, _ in self._uncut)})
            self._outage.look(self._clock())

    async def _poll(self) -> Mapping[int, Sequence[Record]]:
        try:
            return await self.broker.poll(20 if self._uncut else POLL_MS, POLL_RECORDS)
        except OffsetLost as lost:
            self.holdings.offset_lost(lost)
            return {}

    async def _cut(self) -> None:
        """As long as there is room: one poll may hold far more windows than may wait."""
        while self._uncut and self.scoring.waiting < 2 * self.settings.queue_windows:
            part, records = self._uncut.popleft()
            if not part.ready:  # it was taken away, or begins anew elsewhere, as another object
                continue
            lags = part.delay.seconds(self._clock()) > self.settings.shed_after_s
            self.scoring.submit(part.take(records, self._decode, self.settings.dead_letter_payload, lags))
            self.metrics.chunks.inc(len(records))
            await asyncio.sleep(0)

    async def _throttle(self) -> None:
        """Reading stops while too much waits: at first between two polls, which costs nothing, then by pausing the partitions,
        which throws away what was fetched ahead; polling goes on then, so that the group keeps its partitions. A partition
        whose transaction hangs is paused alone."""
        limit, scoring = self.settings.queue_windows, self.scoring
        if not self._crowded and scoring.waiting >= limit:
            patience = Deadline(PATIENCE_S)
            while scoring.waiting > limit // 2 and patience.left() and not self._stopping.is_set():
                await asyncio.sleep(0.005)
            self._crowded = True
        self._crowded = self._crowded and scoring.waiting > limit // 2
        back = set(self.broker.assigned) if self._crowded else {part.number for part in self.publisher.hung()}
        if back != self.holdings.held_back:
            self.holdings.hold_back(back)
        self.metrics.paused.set(self._crowded)

    # ---- commit

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(self.settings.commit_interval_ms / 1000)
            self._beats["commit"] = self._clock()
            self._gauges()
            await self.publisher.commit_soon(self.holdings.ready())

    def _gauges(self) -> None:
        windowers = [part.windower for part in self.holdings.parts.values() if part.windower is not None]
        self.metrics.open_runs.set(sum(len(w.runs) for w in windowers))
        for windower in windowers:
            self.metrics.dropped_tails.inc(windower.tails_dropped())
        self.metrics.queue.labels("score").set(self.scoring.waiting)
        self.metrics.queue.labels("publish").set(self.publisher.queue.qsize())
        waiting = [track.times[0] for w in windowers for track in w.tracks() if track.times]
        self.metrics.oldest_unscored.set(max(0.0, time.time() - min(waiting) / 1000) if waiting else 0.0)
