"""Chunks of one partition in log order -> windows. Pure: knows no Kafka and no clock, only offsets and the log's timestamps.

docs/semantics.md states the rules with pictures. In short: a run is (stream, session, session start, layout); window n starts
at a(n) = floor(n * hop_ms * fs_mHz / 10^6) and holds 10 s; the frontier is the first sample of the next undecided window and
only rises. A window closes at the chunk that completes it, or at the one that takes the run's highest index to end + grace.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from encoders.signal import Layout
from stream_worker.ledger import Track
from stream_worker.records import Chunk, Closed, Event, Input, Rejected, RunKey, Window
from stream_worker.run import Rules, Run, first_at_or_after, last_at_or_before

__all__ = ["Remembered", "Windower"]

log = structlog.get_logger(__name__)


class Remembered(NamedTuple):
    """What outlives a run: its frontier (late samples stay late), when it was last heard, and where its last finding stands."""

    frontier: int
    timestamp_ms: int
    track: Track


class Windower:
    """All runs of one partition. `push` and `tick` return the events that a record gave rise to, in order."""

    def __init__(
        self, partition: int, rules: Rules, runs: Iterable[Run] = (), memory: Mapping[RunKey, Remembered] | None = None
    ) -> None:
        self.partition, self.rules = partition, rules
        self.runs: dict[RunKey, Run] = {}
        self.memory: dict[RunKey, Remembered] = dict(memory or {})  # closed runs, oldest first
        self.by_stream: dict[str, list[RunKey]] = {}
        self.clock_ms = 0  # highest timestamp seen in the log
        self.dropped_tails = 0
        self._idle: list[tuple[int, int, Run]] = []  # heap: at or before the log time after which a run ends; one entry a run
        self._opened = 0
        self.underway: list[Event] = []  # what the record at hand has given rise to, should it end in an exception
        for run in runs:
            self._add(run)

    def tracks(self) -> Iterator[Track]:
        """Of every remembered run, open or closed."""
        for run in self.runs.values():
            yield run.track
        for closed in self.memory.values():
            yield closed.track

    def track(self, key: RunKey) -> Track | None:
        """Of a remembered run."""
        run, closed = self.runs.get(key), self.memory.get(key)
        return run.track if run else closed.track if closed else None

    def tick(self, timestamp_ms: int) -> list[Event]:
        """A record, usable or not, stands at this log time: end the runs that have been silent for longer than idle_ms, and
        those that have brought so little that their window is still open when a silent one's would not be."""
        events: list[Event] = []
        self.clock_ms = max(self.clock_ms, timestamp_ms)
        while self._idle and self.clock_ms > self._idle[0][0]:
            _, number, run = heapq.heappop(self._idle)
            if self.runs.get(run.key) is not run:
                continue  # it has ended in another way
            if self.clock_ms > self._due(run):
                self._end(run, "idle", events)
            else:
                heapq.heappush(self._idle, (self._due(run), number, run))
        while self.memory and self._forgettable(next(iter(self.memory.values()))):
            del self.memory[next(iter(self.memory))]
        return events

    def _due(self, run: Run) -> int:
        """The log time after which it ends."""
        idle = run.last_ms + self.rules.idle_ms
        return min(idle, run.opened[0] + self.rules.stalled_ms) if run.opened else idle

    def _forgettable(self, closed: Remembered) -> bool:
        """Old, and its last finding is out: until then its track holds the commit down."""
        return self.clock_ms - closed.timestamp_ms > self.rules.memory_ms and closed.track.published >= closed.frontier

    def _add(self, run: Run) -> None:
        self.runs[run.key] = run
        self.by_stream.setdefault(run.key[0], []).append(run.key)
        self._opened += 1
        heapq.heappush(self._idle, (self._due(run), self._opened, run))

    def conclude_idle(self) -> list[Event]:
        """The reader stood at the end of the partition for longer than idle_ms: any later record would end every run."""
        events: list[Event] = []
        for run in sorted(self.runs.values(), key=lambda r: (r.last_ms, r.last_offset)):
            self._end(run, "idle", events)
        return events

    def push(self, chunk: Chunk, offset: int, timestamp_ms: int) -> list[Event]:
        """One decoded chunk. Its samples (C, n) are copied; the log's first copy of a sample wins."""
        clock = self.clock_ms
        if timestamp_ms > clock:
            clock = self.clock_ms = timestamp_ms
        idle = self._idle
        may_end = self.memory or (idle and clock > idle[0][0])
        events = self.underway = self.tick(timestamp_ms) if may_end else []
        key, layout, first, samples, last = chunk
        end = first + samples.shape[1]
        run = self.runs.get(key)
        if run is None:
            run = self._open(key, layout, first, end, offset, events)
            if run is None:
                return events
        spans = run.spans
        if spans and first == run.high == spans[-1] and end <= run.frontier + run.cap:
            run.write(first, end, samples)  # the common case: the next stretch, and there is room
            spans[-1] = run.high = end
            self._accept(run, end, offset)
            if end >= run.end:
                self._decide_complete(run, events)
        elif not self._place(run, first, samples, offset, events) and not (last and end <= run.frontier):
            return events  # refused as a whole; but that the session ends may be said late
        if last:
            run.final = max(end, run.final or 0)
        if run.final is not None and self._finished(run):
            self._end(run, "last", events)
        return events

    def _open(self, key: RunKey, layout: Layout, first: int, end: int, offset: int, events: list[Event]) -> Run | None:
        """A run for a key that has none: its grid starts at or before the first index less the grace, not below its memory."""
        known = self.memory.get(key)
        if known is not None and end <= known.frontier:
            events.append(Rejected(offset, "late"))
            return None
        step = self.rules.hop_ms * layout.fs_mhz
        grid = last_at_or_before(max(0, first - layout.samples(self.rules.grace_ms)), step)
        if known is not None:
            grid = max(grid, first_at_or_after(known.frontier, step))
            del self.memory[key]
        siblings = self.by_stream.get(key[0], [])
        if len(siblings) >= self.rules.runs:
            self._end(min((self.runs[k] for k in siblings), key=lambda r: r.last_offset), "evicted", events)
        run = Run(key, layout, self.rules, grid, known.track if known else None)
        run.high = max(first, run.frontier)
        run.last_ms = self.clock_ms
        self._add(run)
        return run

    def _accept(self, run: Run, end: int, offset: int) -> None:
        if self.clock_ms > run.last_ms:
            run.last_ms = self.clock_ms
        run.last_offset = offset
        run.track.accept(offset, end, self.clock_ms)
        if end > run.mark:
            run.open(end, self.clock_ms)

    def _place(self, run: Run, first: int, samples: NDArray[np.int16], offset: int, events: list[Event]) -> bool:
        """Any chunk, piece by piece in rising order so that the page never overflows. False: refused as a whole."""
        end = first + samples.shape[1]
        if end <= run.frontier:
            events.append(Rejected(offset, "late"))
            return False
        if run.jumps(first, offset, run.layout.samples(self.rules.jump_ms)):
            events.append(Rejected(offset, "index_jump"))
            return False
        if run.frontier - first > run.between:
            events.append(Rejected(offset, "late"))
        at, conflict = max(first, run.frontier), False
        while at < end:
            while at - run.frontier >= run.cap:  # this sample is at window end + grace
                self._decide(run, events)
            stop = min(end, run.frontier + run.cap)
            wrote, clash = run.scatter(at, samples[:, at - first : stop - first])
            conflict = conflict or clash
            run.high = max(run.high, stop)
            if wrote:
                self._accept(run, stop, offset)
                self._decide_complete(run, events)
            at = max(stop, run.frontier)
        if conflict:
            events.append(Rejected(offset, "conflict"))
        return True

    def _decide_complete(self, run: Run, events: list[Event]) -> None:
        while run.spans and run.spans[0] <= run.frontier and run.spans[1] >= run.end:
            self._decide(run, events)

    def _decide(self, run: Run, events: list[Event], closed: str = "") -> None:
        """Cut the window at the frontier and move on. A window without a sample gives no event."""
        first, end = run.frontier, min(run.end, run.high) if closed else run.end
        samples, source = run.cut(end), self._input(run)
        if closed:
            run.skip_to(run.high)
        else:
            run.advance()
        if samples is not None:
            events.append(Window(run.key, run.layout, first, samples, run.frontier, closed, source))

    def _input(self, run: Run) -> Input:
        low = run.track.low(run.frontier)
        return Input(self.partition, run.last_offset if low is None else low, run.last_offset, run.last_ms)

    def _finished(self, run: Run) -> bool:
        """The device has said where it ends, and no hole is young enough to be filled within the grace."""
        if run.final is None or run.high < run.final:
            return False
        newest = run.spans[-2] if run.spans else run.frontier
        return newest <= max(run.frontier, run.high - run.layout.samples(self.rules.grace_ms))

    def break_off(self, chunk: Chunk, offset: int, events: list[Event]) -> list[Event]:
        """`push` has raised: a defect of ours. The chunk is refused, and its run, in whatever state it is, ends behind it; read
        again, the chunk is late. events: what the record gave rise to before, which counts."""
        run = self.runs.get(chunk.key)
        events.append(Rejected(offset, "defect"))
        if run is not None:
            end = min(chunk.first + chunk.samples.shape[1], run.high + 2 * run.layout.samples(self.rules.jump_ms))
            self._break_off(run, end, events)
        return events

    def _break_off(self, run: Run, end: int, events: list[Event]) -> None:
        frontier = run.start(first_at_or_after(max(run.high, end), run.step))
        events.append(Closed(run.key, run.layout, frontier, "defect", self._input(run)))
        self._remember(run, frontier)

    def _end(self, run: Run, why: str, events: list[Event]) -> None:
        """A run ends; a defect of ours in it costs its last windows and nobody else's."""
        try:
            self._conclude(run, why, events)
        except Exception:
            log.exception("a run could not be ended in order", stream=run.key[0], session=run.key[1], frontier=run.frontier)
            self._break_off(run, run.high, events)

    def tails_dropped(self) -> int:
        """Ends of runs too short to be decided, since this was last asked."""
        dropped, self.dropped_tails = self.dropped_tails, 0
        return dropped

    def _conclude(self, run: Run, why: str, events: list[Event]) -> None:
        """Decide what is whole, then the tail if it reaches 5 s; remember the frontier so that late samples stay late."""
        while run.end <= run.high:
            self._decide(run, events)
        if run.high - run.frontier >= run.layout.samples(self.rules.tail_ms):
            self._decide(run, events, closed=why)
        else:
            self.dropped_tails += run.high > run.frontier
            source = self._input(run)
            run.skip_to(run.high)
            events.append(Closed(run.key, run.layout, run.frontier, why, source))
        self._remember(run, run.frontier)

    def _remember(self, run: Run, frontier: int) -> None:
        """Of a run that has ended."""
        del self.runs[run.key]
        run.page = run.ahead = None  # the run itself may stand in the heap of idle times for a while
        siblings = self.by_stream[run.key[0]]
        siblings.remove(run.key)
        if not siblings:
            del self.by_stream[run.key[0]]
        self.memory.pop(run.key, None)
        self.memory[run.key] = Remembered(frontier, run.last_ms, run.track)
