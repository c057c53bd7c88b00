"""The partitions that this worker holds: assigned, recovered from what was published, begun anew, let go.

A rebalance takes all of them away and gives most of them straight back. With exactly-once delivery what was held of these is
kept, and nothing is read again: had another worker owned one in between, it would have fenced our producer, and our next
transaction would not come through; the partition is recovered then. At least once there is no such proof.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from stream_worker.errors import BrokerUnavailable
from stream_worker.partition import Partition, Work
from stream_worker.recovery import recover
from stream_worker.run import Rules
from stream_worker.seam import Broker, Fenced, OffsetLost
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.wire import dead_letter

__all__ = ["Holdings"]

log = structlog.get_logger(__name__)
REVOKE_S = 15.0  # for the last commit of what is taken away: far below the time after which the group takes us for dead
FIRST_DELAY_S, LAST_DELAY_S = 0.2, 5.0  # between two attempts to recover a partition
LOOK_S = 0.3  # between two looks at a topic that has too few partitions


class Holdings:
    """`parts`: by number. `submit` is given what no record gave rise to. `last_words` publishes and commits what partitions
    still hold, and says whether that was all of it. `failure`: what a recovery ended with, for the reading stage to raise."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        rules: Rules,
        metrics: Metrics,
        submit: Callable[[Work], None],
        last_words: Callable[[Sequence[Partition]], Awaitable[bool]],
    ) -> None:
        self.parts: dict[int, Partition] = {}
        self.held_back: set[int] = set()  # not read now; see `hold_back`
        self.failure: BaseException | None = None
        self._broker, self._settings, self._rules, self._metrics = broker, settings, rules, metrics
        self._submit, self._last_words = submit, last_words
        self._recoveries: dict[Partition, asyncio.Task[None]] = {}
        self._resting: list[Partition] = []  # taken away just now, with all that was read of them out

    def ready(self) -> list[Partition]:
        """Those that are recovered and not being taken away."""
        return [part for part in self.parts.values() if part.ready]

    def why_not_ready(self) -> list[str]:
        """For people."""
        s, chunks = self._settings, self._broker.partitions(self._settings.chunks_topic)
        if not chunks:
            return [f"topic {s.chunks_topic} does not exist"]
        counts = {topic: self._broker.partitions(topic) for topic in (s.findings_topic, s.dead_letters_topic)}
        why = [
            f"{topic} has {count} partitions, {s.chunks_topic} has {chunks}: ecg-worker topics --grow {chunks}"
            for topic, count in counts.items()
            if count < chunks
        ]
        waiting = [part for part in self.parts.values() if not part.ready]
        if waiting:
            why.append(f"recovering partitions {[part.number for part in waiting]}")
        return why + sorted({part.waits_for for part in waiting if part.waits_for})

    # ---- given and taken

    async def on_assigned(self, numbers: frozenset[int]) -> None:
        """Those that come straight back go on; each of the others is recovered, in a task of its own."""
        kept = {part.number: part.resumed() for part in self._resting if part.number in numbers}
        self._resting = []
        log.info("partitions assigned", partitions=sorted(numbers), kept=sorted(kept))
        self.held_back -= numbers  # the broker has forgotten it too
        for number in numbers:
            if number in kept:
                self.parts[number] = kept[number]
                self._broker.seek(number, kept[number].taken)
            else:
                self.parts[number] = Partition(number)
                self._begin_recovery(self.parts[number])

    async def on_revoked(self, numbers: frozenset[int]) -> None:
        """Publish and commit what was read, as far as the deadline allows; the next owner re-reads the rest."""
        parts = [self.parts[n] for n in numbers if n in self.parts]
        recovered = [part for part in parts if part.ready]
        for part in parts:
            part.ready, part.leaving = False, True
            if part in self._recoveries:
                self._recoveries[part].cancel()
        drained = False
        try:
            async with asyncio.timeout(REVOKE_S):
                drained = await self._last_words(parts)
        except TimeoutError:
            log.warning("the last commit of revoked partitions did not come through", partitions=sorted(numbers))
        finally:
            if drained and self._settings.delivery == "exactly_once":
                self._resting = [part for part in recovered if part.owned]
            for part in parts:
                part.owned = False
                self.parts.pop(part.number, None)
                with contextlib.suppress(KeyError):
                    self._metrics.lag.remove(str(part.number))
        log.info("partitions revoked", partitions=sorted(numbers), drained=drained)

    def start_over(self, part: Partition) -> None:
        """What this partition holds is void: another takes its place, later each time."""
        part.owned = part.ready = False
        if self.parts.get(part.number) is part and not part.leaving:
            again = self.parts[part.number] = Partition(part.number)
            again.voids = part.voids + 1
            self._begin_recovery(again, min(FIRST_DELAY_S * 2 ** min(part.voids, 10), LAST_DELAY_S))

    def offset_lost(self, lost: OffsetLost) -> None:
        """The log does not hold what a partition was to read next: retention took it, or the log was made anew."""
        part = self.parts.get(lost.partition)
        target = lost.earliest if lost.wanted < lost.earliest else lost.latest
        log.error("the log does not hold the next offset", partition=lost.partition, wanted=lost.wanted, goes_to=target)
        self._broker.seek(lost.partition, target)  # or every poll would say it again
        if part is None or not part.ready:
            return
        if lost.wanted < lost.earliest:
            self._report_lost(part, lost.wanted, lost.earliest)
        else:
            self.start_over(part)

    def hold_back(self, numbers: set[int]) -> None:
        """Read these no further for now, and all others."""
        self._broker.pause(numbers - self.held_back)
        self._broker.resume(self.held_back - numbers)
        self.held_back = set(numbers)

    async def close(self) -> None:
        """No recovery goes on."""
        for task in self._recoveries.values():
            task.cancel()
        await asyncio.gather(*self._recoveries.values(), return_exceptions=True)

    # ---- recovery

    def _begin_recovery(self, part: Partition, after_s: float = 0.0) -> None:
        part.ready = False
        task = self._recoveries[part] = asyncio.create_task(self._recover(part, after_s), name=f"recover-{part.number}")
        task.add_done_callback(lambda _: self._recoveries.pop(part, None))

    async def _recover(self, part: Partition, after_s: float) -> None:
        await asyncio.sleep(after_s)
        delay = FIRST_DELAY_S
        while part.owned:
            if self._has_no_place(part.number):
                await asyncio.sleep(LOOK_S)
                continue
            try:
                state = await recover(self._broker, part.number, self._settings, self._rules)
                break
            except (BrokerUnavailable, Fenced) as error:
                part.waits_for = str(error)
                log.warning("recovery waits for kafka", partition=part.number, error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY_S)
            except Exception as error:
                self.failure = error
                return
        if not part.owned or part.leaving:
            return
        part.restore(state)
        if state.lost:
            self._report_lost(part, *state.lost)
        self._broker.seek(part.number, state.start)
        if part.number in self.held_back:
            self._broker.pause([part.number])
        part.ready = True

    def _has_no_place(self, number: int) -> bool:
        """A partition that was added to the chunks, and not yet to where its findings and dead letters go."""
        topics = self._settings.findings_topic, self._settings.dead_letters_topic
        return min(map(self._broker.partitions, topics)) <= number

    def _report_lost(self, part: Partition, first: int, until: int) -> None:
        self._metrics.lost_records.inc(until - first)
        letter = replace(dead_letter(part.number, first, "lost_range", None), lost_until=until)
        self._submit(Work(part, [], [letter], until))
