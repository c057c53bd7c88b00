"""Which windows are not scored when a partition falls behind: those by which one stream takes more than its share.

A device that sends a hundred times as much as it records (a backlog, a clock gone wrong) closes a hundred windows where others
close one. Its chunks are read and cut like all others; while its partition lags, its windows beyond the share are published as
`unscorable: shed`. Pure: the caller brings the time.
"""

from __future__ import annotations

__all__ = ["Delay", "Share"]

RATE = 2  # ms of windows that a stream may close in a ms of log time: a real one closes one
BURST_MS = 60_000  # of windows that it may close at once, after a pause
LATE_S = 30.0  # for which a delay counts
_MANY = 1024  # streams, before those that owe nothing are forgotten


class Delay:
    """How long records of a partition wait until they are taken, measured without looking at any wall clock: the time from
    when an end of the log is heard of until it is reached, or for which it has not been reached yet. The longest of late
    counts: while nothing is fetched the end is not heard of either, and who has just caught up seems not to lag."""

    def __init__(self) -> None:
        self._goal: int | None = None
        self._since = self._longest = self._at = 0.0

    def note(self, now: float, taken: int, end: int) -> None:
        """Records below `taken` have been taken, the log ends at `end`. now: seconds on any steady clock."""
        if self._goal is not None:
            if taken < self._goal:
                return
            if now - self._since >= self._longest or now - self._at > LATE_S:
                self._longest, self._at = now - self._since, now
        self._goal, self._since = end, now

    def seconds(self, now: float) -> float:
        """The longest of late, and no less than the measurement under way."""
        return max(self._longest, now - self._since) if self._goal is not None else 0.0


class Share:
    """What each stream of a partition has closed beyond what its log time allows, in ms of windows."""

    def __init__(self) -> None:
        self._owed: dict[str, tuple[float, int]] = {}  # stream: (ms of windows, at log time ms)
        self._look = _MANY

    def exceeded(self, stream: str, hop_ms: int, clock_ms: int, lags: bool) -> bool:
        """A window of `stream` closes at log time `clock_ms`: is it beyond the share? One that is, is not charged, nor is
        it held against a stream while the partition does not lag."""
        owed, at = self._owed.get(stream, (0.0, clock_ms))
        owed = max(0.0, owed - RATE * (clock_ms - at)) + hop_ms
        if owed > BURST_MS:
            self._owed[stream] = (owed - hop_ms, clock_ms)
            return lags
        self._owed[stream] = (owed, clock_ms)
        if len(self._owed) > self._look:
            self._forget(clock_ms)
        return False

    def _forget(self, clock_ms: int) -> None:
        self._owed = {s: (owed, at) for s, (owed, at) in self._owed.items() if owed > RATE * (clock_ms - at)}
        self._look = 2 * len(self._owed) + _MANY
