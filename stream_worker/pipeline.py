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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import structlog

from stream_worker.batch import Batcher
from stream_worker.errors import BrokerUnavailable
from stream_worker.labels import BankSource
from stream_worker.partition import Partition, Work
from stream_worker.publisher import Deadline, Publisher, Transactor
from stream_worker.records import Closed, Finding, Window
from stream_worker.recovery import recover
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.seam import Broker, OffsetLost
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.wire import Decoder, dead_letter

__all__ = ["Pipeline"]

log = structlog.get_logger(__name__)
POLL_MS = 200
POLL_RECORDS = 2000
SLICE = 64  # records cut at a stretch; between two stretches the event loop reads its sockets
IDLE_AT_END_S = 35.0  # longer than the idle time of the log plus its clock's jitter
PATIENCE_S = 0.5  # waited for the scorer before partitions are paused
AWAKE_S = 2.0  # the reading stage turns at least this often unless the process is held up
REVOKE_S = 15.0  # for the last commit of what is taken away: far below the time after which the group takes us for dead
FIRST_DELAY_S, LAST_DELAY_S = 0.2, 5.0  # between two attempts to recover a partition
STALLED_S = 60.0  # a stage without a beat for this long is not alive


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
        self.rules = Rules(hop_ms=settings.hop_ms)
        self.parts: dict[int, Partition] = {}
        if settings.delivery == "exactly_once":
            self.publisher: Publisher = Transactor(broker, settings, metrics, clock, on_finding, void=self._start_over)
        else:
            self.publisher = Publisher(broker, settings, metrics, clock, on_finding)
        self._first_scorer, self._clock = scorer, clock
        self._scorer: Scorer | None = None
        self._failure: BaseException | None = None  # of a recovery, raised by the reading stage
        self._decode = Decoder(settings.max_chunk_bytes)
        self._to_score: asyncio.Queue[Work] = asyncio.Queue()
        self._waiting = 0  # windows not yet scored, dead letters not yet handed on
        self._paused = False
        self._stopping = asyncio.Event()
        self._beats: dict[str, float] = {}
        self._down_since: float | None = None
        self._looked_at_ends = clock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._tasks: set[asyncio.Task[None]] = set()

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
        stages = [
            asyncio.create_task(stage(), name=stage.__name__.strip("_"))
            for stage in (self._read, self._score, self.publisher.publish, self._commit_often)
        ]
        try:
            await asyncio.wait([*stages, stopping], return_when=asyncio.FIRST_COMPLETED)
            for stage in stages[1:]:
                if stage.done():
                    stage.result()
            if stages[0].done() and not self._stopping.is_set():
                stages[0].result()
            await self._drain(Deadline(self.settings.drain_s), stages)
        finally:
            for task in [*stages, stopping, *self._tasks]:
                task.cancel()
            await asyncio.gather(*stages, stopping, *self._tasks, return_exceptions=True)
            await self.broker.stop()
            await self.labels.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        gc.freeze()  # what is loaded stays; chunks and findings form no cycles, so the collector need not look often
        gc.set_threshold(100_000, 50, 100)
        await self.labels.start()
        await self.broker.start(self._on_assigned, self._on_revoked)

    async def _drain(self, deadline: Deadline, stages: Sequence[asyncio.Task[None]]) -> None:
        """Reading has stopped or stops now; let what was read run dry, then commit."""
        self._stopping.set()
        await asyncio.wait(stages[:1], timeout=deadline.left())
        dry = await self._dry(list(self.parts.values()), deadline, stages)
        try:
            await asyncio.wait_for(self.publisher.commit(list(self.parts.values())), timeout=max(1.0, deadline.left()))
        except TimeoutError:
            log.warning("the last commit did not come through: the next worker reads a little again")
        log.info("stopped", drained=dry, findings=self.publisher.published)

    async def _dry(self, parts: Sequence[Partition], deadline: Deadline, stages: Sequence[asyncio.Task[None]] = ()) -> bool:
        while any(part.owned and part.in_flight for part in parts) and deadline.left() > 0:
            for stage in stages[1:]:
                if stage.done():
                    stage.result()
            await asyncio.sleep(0.01)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.publisher.settle(parts), timeout=deadline.left())
        return not any(part.owned and part.in_flight for part in parts)

    def live(self) -> list[str]:
        """Why this process should be restarted."""
        now = self._clock()
        self._beats["publish"] = self.publisher.beat or now
        return [f"stage {name} has not moved for {now - at:.0f} s" for name, at in self._beats.items() if now - at > STALLED_S]

    def ready(self) -> list[str]:
        """Why no findings are to be expected now."""
        why = []
        if not self.broker.connected:
            why.append("kafka does not answer")
        if self.labels.bank is None:
            why.append("no label bank yet")
        chunks, findings = self.broker.chunk_partitions(), self.broker.findings_partitions()
        if findings < chunks:
            why.append(f"{self.settings.findings_topic} has {findings} partitions, {self.settings.chunks_topic} has {chunks}")
        recovering = [part.number for part in self.parts.values() if not part.ready]
        if recovering:
            why.append(f"recovering partitions {recovering}")
        if not self._beats:
            why.append("not started")
        return why

    # ---- partitions

    async def _on_assigned(self, numbers: frozenset[int]) -> None:
        log.info("partitions assigned", partitions=sorted(numbers))
        for number in numbers:
            self.parts[number] = Partition(number)
            self._begin_recovery(self.parts[number])

    def _start_over(self, part: Partition) -> None:
        """What this partition holds is void: another takes its place, later each time."""
        part.owned = part.ready = False
        if self.parts.get(part.number) is part and not part.leaving:
            again = self.parts[part.number] = Partition(part.number)
            again.voids = part.voids + 1
            self._begin_recovery(again, min(FIRST_DELAY_S * 2 ** min(part.voids, 10), LAST_DELAY_S))

    def _begin_recovery(self, part: Partition, after_s: float = 0.0) -> None:
        part.ready = False
        task = asyncio.create_task(self._recover(part, after_s), name=f"recover-{part.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recover(self, part: Partition, after_s: float) -> None:
        await asyncio.sleep(after_s)
        delay = FIRST_DELAY_S
        while part.owned:
            try:
                state = await recover(self.broker, part.number, self.settings, self.rules)
                break
            except BrokerUnavailable as error:
                log.warning("recovery waits for kafka", partition=part.number, error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY_S)
            except Exception as error:
                self._failure = error
                return
        if not part.owned:
            return
        part.restore(state)
        if state.lost:
            self._report_lost(part, *state.lost)
        self.broker.seek(part.number, state.start)
        if self._paused:
            self.broker.pause([part.number])
        part.ready = True

    async def _on_revoked(self, numbers: frozenset[int]) -> None:
        """Publish and commit what was read, as far as the deadline allows; the next owner re-reads the rest."""
        parts = [self.parts[n] for n in numbers if n in self.parts]
        for part in parts:
            part.ready, part.leaving = False, True
        dry = False
        try:
            dry = await self._dry(parts, Deadline(min(5.0, self.settings.drain_s)))
            await asyncio.wait_for(self.publisher.commit(parts), timeout=REVOKE_S)
        except TimeoutError:
            log.warning("the last commit of revoked partitions did not come through", partitions=sorted(numbers))
        finally:
            for part in parts:
                part.owned = False
                self.parts.pop(part.number, None)
                with contextlib.suppress(KeyError):
                    self.metrics.lag.remove(str(part.number))
        log.info("partitions revoked", partitions=sorted(numbers), drained=dry)

    def _report_lost(self, part: Partition, first: int, until: int) -> None:
        self.metrics.lost_records.inc(until - first)
        letter = replace(dead_letter(part.number, first, "lost_range", None), lost_until=until)
        self._submit(Work(part, [], [letter], until))

    # ---- read and cut

    async def _read(self) -> None:
        while not self._stopping.is_set():
            self._beats["read"] = self._clock()
            if self._failure is not None:
                raise self._failure
            await self._throttle()
            try:
                polled = await self.broker.poll(POLL_MS, POLL_RECORDS)
            except OffsetLost as lost:
                self._offset_lost(lost)
                continue
            # Whoever becomes ready while these are cut was sought elsewhere: what was fetched before is not for it.
            ready = {number: part for number, part in self.parts.items() if part.ready}
            for number, records in polled.items():
                part = ready.get(number)
                for at in range(0, len(records), SLICE):
                    while self._waiting >= 2 * self.settings.queue_windows:  # one poll may hold far more windows than wait
                        self._beats["read"] = self._clock()
                        await asyncio.sleep(0.01)
                    if part is not None and part.ready:  # it may be revoked between two slices
                        self._submit(part.take(records[at : at + SLICE], self._decode, self.settings.dead_letter_payload))
                        self.metrics.chunks.inc(len(records[at : at + SLICE]))
                        await asyncio.sleep(0)
            await self._watch_ends(set(polled))
            self._watch_outage()

    def _submit(self, work: Work) -> None:
        work.part.in_flight += 1
        self._waiting += len(work.events) + len(work.letters)
        self._to_score.put_nowait(work)

    async def _throttle(self) -> None:
        """Reading stops while too much waits: at first between two polls, which costs nothing, then by pausing the partitions,
        which throws away what was fetched ahead; polling goes on then, so that the group keeps its partitions."""
        limit = self.settings.queue_windows
        if not self._paused and self._waiting >= limit:
            patience = Deadline(PATIENCE_S)
            while self._waiting > limit // 2 and patience.left() and not self._stopping.is_set():
                await asyncio.sleep(0.005)
            if self._waiting > limit // 2:
                self._paused = True
                self.broker.pause(self.broker.assigned)
        elif self._paused and self._waiting <= limit // 2:
            self._paused = False
            self.broker.resume(self.broker.assigned)
        self.metrics.paused.set(self._paused)

    async def _watch_ends(self, delivered: set[int]) -> None:
        """A reader that stood at the end of a partition for 35 s may conclude that its runs are idle.

        It must have stood there awake: a process that was stopped, or cut off from the partition, knows nothing of that time.
        """
        now = self._clock()
        asleep, self._looked_at_ends = now - self._looked_at_ends > AWAKE_S, now
        for part in list(self.parts.values()):
            lag = self.broker.lag(part.number) if part.ready else None
            if lag is not None:
                self.metrics.lag.labels(str(part.number)).set(lag)
            if lag != 0 or part.number in delivered or self._paused or asleep or not self.broker.connected:
                part.at_end_since = None
            elif part.at_end_since is None:
                part.at_end_since = now
            elif now - part.at_end_since > IDLE_AT_END_S and part.windower is not None and part.windower.runs:
                part.at_end_since = None
                if await self._is_end(part) and (work := part.conclude_idle()) is not None:
                    self._submit(work)

    async def _is_end(self, part: Partition) -> bool:
        """Asks the broker, since what was heard with the last records may be old."""
        try:
            return part.ready and await self.broker.end_offset(part.number) == part.taken
        except BrokerUnavailable:
            return False

    def _watch_outage(self) -> None:
        self.metrics.broker_up.set(self.broker.connected)
        if self.broker.connected:
            if self._down_since is not None:
                log.info("kafka answers again")
            self._down_since = None
            return
        now = self._clock()
        if self._down_since is None:
            self._down_since = now
            log.error("kafka does not answer", servers=self.settings.kafka, gives_up_after_s=self.settings.outage_limit_s)
        if now - self._down_since > self.settings.outage_limit_s:
            raise BrokerUnavailable(
                f"kafka at {self.settings.kafka} has not answered for {self.settings.outage_limit_s:g} s; nothing is lost: "
                "start the worker again when it does"
            )

    def _offset_lost(self, lost: OffsetLost) -> None:
        part = self.parts.get(lost.partition)
        target = lost.earliest if lost.wanted < lost.earliest else lost.latest
        log.error("the log does not hold the next offset", partition=lost.partition, wanted=lost.wanted, goes_to=target)
        self.broker.seek(lost.partition, target)  # or every poll would say it again
        if part is None or not part.ready:
            return
        if lost.wanted < lost.earliest:
            self._report_lost(part, lost.wanted, lost.earliest)
        elif self.settings.delivery == "exactly_once":
            self._start_over(part)
        else:
            self._begin_recovery(part)

    # ---- score

    async def _score(self) -> None:
        batcher: Batcher[Work] = Batcher(self.settings.batch_size, self.settings.batch_deadline_ms / 1000)
        while True:
            self._beats["score"] = self._clock()
            wait = batcher.wait(self._clock())
            if wait is None or wait > 0:
                try:
                    work = await asyncio.wait_for(self._to_score.get(), timeout=1.0 if wait is None else wait)
                except TimeoutError:
                    continue
                batcher.add(work, len(work.events), self._clock())
                continue
            works = batcher.take()
            findings = iter(await self._findings([event for work in works for event in work.events]))
            while self.publisher.queue.full():  # waiting for a slow sink is no standstill of ours
                self._beats["score"] = self._clock()
                await asyncio.sleep(0.02)
            self.publisher.queue.put_nowait([(work, list(islice(findings, len(work.events)))) for work in works])
            self._waiting -= sum(len(work.letters) for work in works)

    async def _findings(self, events: list[Window | Closed]) -> list[Finding]:
        out: list[Finding] = []
        for at in range(0, len(events), self.settings.batch_size):
            scorer = self._current_scorer()
            batch = events[at : at + self.settings.batch_size]
            began = self._clock()
            out += await asyncio.get_running_loop().run_in_executor(self._pool, scorer, batch)
            self._waiting -= len(batch)
            self._beats["score"] = self._clock()
            self.metrics.score_seconds.observe(self._clock() - began)
            self.metrics.batch.observe(len(batch))
        return out

    def _current_scorer(self) -> Scorer:
        """Labels are swapped here, between batches."""
        bank = self.labels.bank
        if self._scorer is None:
            self._scorer = self._first_scorer()
        assert self._scorer is not None
        if bank is not None and bank is not self._scorer.bank:
            self._scorer = self._scorer.with_bank(bank)
        return self._scorer

    # ---- commit

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(self.settings.commit_interval_ms / 1000)
            self._beats["commit"] = self._clock()
            self._gauges()
            await self.publisher.commit([part for part in self.parts.values() if part.ready])

    def _gauges(self) -> None:
        windowers = [part.windower for part in self.parts.values() if part.windower is not None]
        self.metrics.open_runs.set(sum(len(w.runs) for w in windowers))
        self.metrics.dropped_tails.set(sum(w.dropped_tails for w in windowers))
        self.metrics.queue.labels("score").set(self._waiting)
        self.metrics.queue.labels("publish").set(self.publisher.queue.qsize())
        waiting = [track.times[0] for w in windowers for track in w.tracks() if track.times]
        self.metrics.oldest_unscored.set(max(0.0, time.time() - min(waiting) / 1000) if waiting else 0.0)
