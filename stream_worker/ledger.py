"""What may be committed for a partition. Pure: knows offsets and frontiers, no Kafka and no clock.

Three offsets, and all only rise:
    W  lowest offset that holds an accepted sample at or above the published frontier of any run, else P
    P  first offset not processed (its findings and dead letters are out)
    F  lowest position, in the findings topic, of the latest finding of any remembered run
A restart reads findings from F on to learn the frontiers, re-reads chunks from W, and dead-letters only from P on.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from stream_worker.errors import ConfigError

__all__ = ["Committed", "Ledger", "Track", "decode_metadata", "encode_metadata"]

SHARED_MS = 1000


class Track:
    """For one run: which offsets still hold samples that no published finding covers.

    An entry (offset, end) says: at or after `offset` stand accepted samples below `end`. Chunks shorter than `quantum` samples
    that come within a second share an entry, so the list stays short however small the chunks are; a shared entry only makes
    W a little lower.
    """

    __slots__ = ("_start", "ends", "offsets", "position", "published", "quantum", "times")

    def __init__(self, published: int, quantum: int, position: int | None = None) -> None:
        self.published = published  # frontier below which everything is published
        self.quantum = quantum
        self.position = position  # of the run's latest finding in the findings topic
        self.offsets: list[int] = []
        self.ends: list[int] = []
        self.times: list[int] = []  # log time (ms) of each entry's first chunk
        self._start = published

    def accept(self, offset: int, end: int, timestamp_ms: int = 0) -> None:
        """A chunk at `offset`, written to the log at `timestamp_ms`, brought samples up to (not including) `end`."""
        ends = self.ends
        if not ends:
            self._start = self.published
        elif end <= ends[-1]:
            return
        elif end - self._start < self.quantum and timestamp_ms - self.times[-1] < SHARED_MS:
            ends[-1] = end
            return
        else:
            self._start = ends[-1]
        self.offsets.append(offset)
        self.times.append(timestamp_ms)
        ends.append(end)

    def publish(self, frontier: int, position: int | None) -> None:
        """A finding whose `next` is `frontier` is out, at `position` of the findings topic."""
        if position is not None:
            self.position = position if self.position is None else max(self.position, position)
        if frontier <= self.published:
            return
        self.published = frontier
        if done := bisect_right(self.ends, frontier):
            del self.ends[:done], self.offsets[:done], self.times[:done]

    def low(self, frontier: int) -> int | None:
        """Lowest offset that may hold a sample at or above `frontier`."""
        at = bisect_right(self.ends, frontier)  # ends only rise
        return self.offsets[at] if at < len(self.ends) else None


class Ledger:
    """The commit of one partition: where it was recovered from (`start` = W, P, F), and how far this worker has come since.

    Until the records between W and P have been read again, the tracks do not know what they hold: W stays below `reached`.
    """

    def __init__(self, start: int, processed: int, findings: int = 0, partitions: int = 0) -> None:
        self.low, self.reached, self.processed, self.findings = start, start, processed, findings
        self.partitions = partitions  # of the topic when the group began with this one

    def advance(self, processed: int) -> None:
        """Everything that records below `processed` gave rise to is published."""
        self.reached = max(self.reached, processed)
        self.processed = max(self.processed, processed)

    def position(self, tracks: Iterable[Track], findings_end: int) -> tuple[int, str]:
        """The offset W to commit and its metadata. tracks: of all remembered runs."""
        low, findings = min(self.processed, self.reached), findings_end
        for track in tracks:
            if track.offsets and track.offsets[0] < low:
                low = track.offsets[0]
            if track.position is not None and track.position < findings:
                findings = track.position
        self.low, self.findings = max(low, self.low), max(findings, self.findings)
        return self.low, encode_metadata(self.processed, self.findings, self.partitions)


class Committed(NamedTuple):
    """The metadata of a commit. partitions: of the topic when the group began with this one; 0: not told."""

    processed: int
    findings: int
    partitions: int = 0


def encode_metadata(processed: int, findings: int, partitions: int = 0) -> str:
    """JSON under 200 bytes (a commit of more than 4,096 kills the producer)."""
    return json.dumps({"v": 1, "P": processed, "F": findings, "N": partitions}, separators=(",", ":"))


def decode_metadata(text: str, offset: int) -> Committed:
    """What a commit says; one without our metadata (made by a tool) counts as P = its offset, F unknown = 0."""
    if not text:
        return Committed(offset, 0)
    try:
        fields = json.loads(text.rstrip("\0"))  # librdkafka's Python client commits a zero byte behind it
        return Committed(max(int(fields["P"]), offset), max(int(fields["F"]), 0), max(int(fields.get("N", 0)), 0))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"the committed offset {offset} carries metadata this worker cannot read ({text[:60]!r}): "
            "another program commits under the same consumer group; choose another group"
        ) from error
