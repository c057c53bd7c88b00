"""The scoring stage: windows of all partitions in micro-batches, one finding each, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from encoders.base import DeviceLost
from encoders.signal import LEADS, WINDOW
from stream_worker.batch import Batcher
from stream_worker.labels import BankSource
from stream_worker.partition import Work
from stream_worker.publisher import Scored
from stream_worker.records import Closed, Finding, Window
from stream_worker.score import Scorer
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics

__all__ = ["AT_ONCE", "Scoring", "scored"]

AT_ONCE = 2  # batches: while the engine works on one, the host looks at the next windows or writes the last findings
log = structlog.get_logger(__name__)


class Scoring:
    """`waiting`: windows not yet scored and dead letters not yet handed on. `beat`: when the stage last moved."""

    def __init__(
        self,
        scorer: Callable[[], Scorer | None],
        labels: BankSource,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        out: asyncio.Queue[list[Scored]],
    ) -> None:
        self.waiting, self.beat = 0, 0.0
        self._first_scorer, self._labels, self._settings, self._metrics = scorer, labels, settings, metrics
        self._clock, self._out = clock, out
        self._scorer: Scorer | None = None
        self._queue: asyncio.Queue[Work] = asyncio.Queue()  # bounded by who looks at `waiting` before submitting
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="score")
        self._turns = asyncio.Semaphore(AT_ONCE)

    def submit(self, work: Work) -> None:
        """What a partition's records gave rise to."""
        work.part.in_flight += 1
        self.waiting += len(work.events) + len(work.letters)
        self._queue.put_nowait(work)

    async def score(self) -> None:
        """The stage: runs until cancelled, or raises what the engine raised."""
        batcher: Batcher[Work] = Batcher(self._settings.batch_size, self._settings.batch_deadline_ms / 1000)
        while True:
            self.beat = self._clock()
            wait = batcher.wait(self.beat)
            if wait is None or wait > 0:
                try:
                    async with asyncio.timeout(1.0 if wait is None else wait):
                        work = await self._queue.get()
                except TimeoutError:
                    continue
                batcher.add(work, len(work.events), self._clock())
                continue
            await self._hand_on(batcher.take())

    async def _hand_on(self, works: Sequence[Work]) -> None:
        findings = iter(await self._findings([event for work in works for event in work.to_score]))
        done: list[Scored] = []
        for work in works:
            scorer = self._current_scorer()
            told = [scorer.unscored(e, "shed") if at in work.shed else next(findings) for at, e in enumerate(work.events)]
            done.append((work, told))
            self._metrics.shed.inc(len(work.shed))
        while self._out.full():  # waiting for a slow sink is no standstill of ours
            self.beat = self._clock()
            await asyncio.sleep(0.02)
        self._out.put_nowait(done)
        self.waiting -= sum(len(work.letters) + len(work.shed) for work in works)

    async def _findings(self, events: Sequence[Window | Closed]) -> list[Finding]:
        size = self._settings.batch_size
        batches = [events[at : at + size] for at in range(0, len(events), size)]
        return [finding for found in await asyncio.gather(*map(self._batch, batches)) for finding in found]

    async def _batch(self, batch: Sequence[Window | Closed]) -> list[Finding]:
        async with self._turns:
            began = self._clock()
            out = await asyncio.get_running_loop().run_in_executor(self._pool, scored, self._current_scorer(), batch)
            self.waiting -= len(batch)
            self.beat = self._clock()
            self._metrics.score_seconds.observe(self.beat - began)
            self._metrics.batch.observe(len(batch))
            return out

    def _current_scorer(self) -> Scorer:
        """Labels are swapped here, between batches."""
        bank = self._labels.bank
        if self._scorer is None:
            self._scorer = self._first_scorer()
        assert self._scorer is not None
        if bank is not None and bank is not self._scorer.bank:
            self._scorer = self._scorer.with_bank(bank)
        return self._scorer

    def close(self) -> None:
        """Nothing is scored any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def scored(scorer: Scorer, events: Sequence[Window | Closed]) -> list[Finding]:
    """One finding an event. A batch that makes scoring raise is halved until the one at fault is alone: that one becomes
    `unscorable: engine`. Where the engine fails for any window, or the device is lost, it raises: not the window's fault."""
    try:
        return scorer(events)
    except DeviceLost:
        raise
    except Exception:
        if len(events) == 1:
            scorer.encoder.encode(np.zeros((1, len(LEADS), WINDOW), dtype=np.float32))
            key = events[0].key
            log.exception("a window could not be scored", stream=key[0], session=key[1], first=events[0].first)
            return [scorer.unscored(events[0], "engine")]
    middle = len(events) // 2
    return scored(scorer, events[:middle]) + scored(scorer, events[middle:])
