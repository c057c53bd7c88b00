"""One open run: its grid, its frontier and the page of received samples. Pure; the rules of closing are `window`'s."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.signal import ABSENT, WINDOW_MS, Layout
from stream_worker.ledger import Track
from stream_worker.records import RunKey

__all__ = ["Rules", "Run", "first_at_or_after", "last_at_or_before"]


@dataclass(frozen=True)
class Rules:
    """hop_ms: 1000 to 10000. grace_ms, jump_ms: of signal. idle_ms, memory_ms: of log time. runs: open at once in a stream."""

    hop_ms: int = 10_000
    grace_ms: int = 2_000
    idle_ms: int = 30_000
    jump_ms: int = 60_000
    tail_ms: int = 5_000
    memory_ms: int = 600_000
    runs: int = 8

    @property
    def stalled_ms(self) -> int:
        """Log time that a window may stay open: its own length, the grace, and the idle time."""
        return WINDOW_MS + self.grace_ms + self.idle_ms


def first_at_or_after(sample: int, step: int) -> int:
    """Smallest n with a(n) = floor(n * step / 10^6) >= sample; step is hop_ms * fs_mhz."""
    return -(-sample * 1_000_000 // step)


def last_at_or_before(sample: int, step: int) -> int:
    """Largest n with a(n) <= sample."""
    return ((sample + 1) * 1_000_000 - 1) // step


class Run:
    """One open run. The page holds a window from `base` on, which is the frontier but while it moves, and `ahead` the samples
    of the grace beyond it; `spans` are the received stretches [start, end, ...]."""

    __slots__ = (
        *("ahead", "base", "between", "cap", "end", "final", "frontier", "given", "grid", "high", "key", "last_ms"),
        *("last_offset", "layout", "mark", "opened", "page", "seen", "spans", "step", "track", "window"),
    )

    def __init__(self, key: RunKey, layout: Layout, rules: Rules, grid: int, track: Track | None = None) -> None:
        self.key, self.layout = key, layout
        self.step = rules.hop_ms * layout.fs_mhz
        self.between = int(self.step % 1_000_000 != 0)  # samples that may lie between two windows where the grid is rounded
        self.window = layout.window
        self.cap = self.window + layout.samples(rules.grace_ms)
        self.page: NDArray[np.int16] | None = None  # (C, window), in one piece: what is digested and scored
        self.ahead: NDArray[np.int16] | None = None  # (C, cap - window)
        self.given = False  # the page is part of a window that was cut: nothing may be written there any more
        self.spans: list[int] = []
        self.grid = grid
        self._aim()
        self.base = self.frontier
        self.high = self.frontier  # one past the highest accepted sample
        self.final: int | None = None  # one past the last sample of the session, once the device has said so
        self.last_ms = self.last_offset = 0  # of the last accepted chunk, in the log
        self.opened: list[int] = []  # log times when samples beyond the frontier first came, beyond the next grid point, ...
        self.mark = self.frontier  # the grid point for which `opened` waits
        self.seen = -1  # of a recovered run: the last offset that its latest finding knew
        self.track = track or Track(self.frontier, quantum=layout.samples(1000))

    def start(self, n: int) -> int:
        """a(n): first sample of window n."""
        return n * self.step // 1_000_000

    def _aim(self) -> None:
        self.frontier = self.start(self.grid)
        self.end = self.frontier + self.window

    def advance(self) -> None:
        """The window at the frontier is decided; forget what lies below the next."""
        self._move(self.grid + 1)

    def skip_to(self, sample: int) -> None:
        """Move the frontier to the first grid point at or after `sample`."""
        self._move(max(self.grid, first_at_or_after(sample, self.step)))

    def _move(self, grid: int) -> None:
        del self.opened[: grid - self.grid]
        self.grid = grid
        self._aim()
        self.mark = self.start(grid + len(self.opened))
        self.forget()

    def open(self, end: int, timestamp_ms: int) -> None:
        """Samples up to (not including) `end`, beyond `mark`, came at this log time."""
        while end > self.mark:
            self.opened.append(timestamp_ms)
            self.mark = self.start(self.grid + len(self.opened))

    def forget(self) -> None:
        """Drop received stretches below the frontier."""
        spans = self.spans
        while spans and spans[1] <= self.frontier:
            del spans[:2]
        if spans and spans[0] < self.frontier:
            spans[0] = self.frontier
        kept = list(self._parts(spans[0], spans[-1])) if spans else []
        self.base = self.frontier
        if self.given:
            self.page, self.given = None, False
        for at, samples in kept:
            self.write(at, at + samples.shape[1], samples)

    def jumps(self, first: int, offset: int, most: int) -> bool:
        """Whether a chunk lies more than `most` samples ahead. One that is read again is judged as when it was read first: what
        the run then accepted lay less than window + grace beyond where its frontier is now."""
        return first - self.high > most or (offset <= self.seen and first - self.frontier >= self.cap)

    def write(self, first: int, end: int, samples: NDArray[np.int16]) -> None:
        """Put samples (C, end - first) into the page, or ahead of it; the caller has seen to it that they fit."""
        at, window, page = first - self.base, self.window, self.page
        if page is not None and end - self.base <= window:
            page[:, at : end - self.base] = samples
            return
        leads = len(self.layout.leads)
        fit = min(max(window - at, 0), samples.shape[1])
        if fit:
            if self.page is None:
                self.page = np.empty((leads, window), dtype=np.int16)
            self.page[:, at : at + fit] = samples[:, :fit]
        if fit < samples.shape[1]:
            if self.ahead is None:
                self.ahead = np.empty((leads, self.cap - window), dtype=np.int16)
            beyond = at + fit - window
            self.ahead[:, beyond : beyond + samples.shape[1] - fit] = samples[:, fit:]

    def _parts(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """Received samples [first, end) as they lie: (first sample, (C, n)), at most two."""
        middle = self.base + self.window
        if first < min(end, middle):
            assert self.page is not None
            yield first, self.page[:, first - self.base : min(end, middle) - self.base]
        if max(first, middle) < end:
            assert self.ahead is not None
            yield max(first, middle), self.ahead[:, max(first, middle) - middle : end - middle]

    def cut(self, end: int) -> NDArray[np.int16] | None:
        """Received samples of [frontier, end) as int16 (C, n), ABSENT where none came; None when none came at all.

        A window without holes is not copied: it is the page itself, and the run goes on with another.
        """
        pieces = list(_overlaps(self.spans, self.frontier, end))
        if not pieces:
            return None
        if pieces == [(self.frontier, end)]:
            self.given = True
            assert self.page is not None
            return self.page[:, : end - self.frontier]
        out = np.full((len(self.layout.leads), end - self.frontier), ABSENT, dtype=np.int16)
        for first, last in pieces:
            for at, samples in self._parts(first, last):
                out[:, at - self.frontier : at - self.frontier + samples.shape[1]] = samples
        return out

    def scatter(self, first: int, samples: NDArray[np.int16]) -> tuple[bool, bool]:
        """Write the samples (C, n) that are new. Returns (any written, any that differ from what was received before)."""
        end = first + samples.shape[1]
        clash, at, wrote = False, first, False
        for a, b in [*_overlaps(self.spans, first, end), (end, end)]:
            if at < a:
                self.write(at, a, samples[:, at - first : a - first])
                wrote = True
            for place, held in self._parts(a, b):
                clash = clash or not np.array_equal(held, samples[:, place - first : place - first + held.shape[1]])
            at = b
        if wrote:
            _merge(self.spans, first, end)
        return wrote, clash


def _overlaps(spans: list[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [first, end) that `spans` cover."""
    for i in range(bisect_right(spans, first) & ~1, len(spans), 2):
        a, b = max(spans[i], first), min(spans[i + 1], end)
        if a >= end:
            return
        if a < b:
            yield a, b


def _merge(spans: list[int], first: int, end: int) -> None:
    """[first, end) is received too; touching stretches join."""
    low, high = bisect_left(spans, first), bisect_right(spans, end)
    spans[low:high] = [at for at, place in ((first, low), (end, high)) if place % 2 == 0]
