"""Recordings as streams: cut by the same rules as chunks from Kafka, without a broker, as fast as the machine goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from encoders.recordings import Recording
from stream_worker.records import Chunk, Closed, Finding, Rejected, RunKey, Window
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.scoring import AT_ONCE
from stream_worker.window import Windower

__all__ = ["chunks", "findings", "session_start_ns", "windows"]


def session_start_ns(recording: Recording) -> int:
    """The recording's own start, or 1970 where its file names none: the same for every replay of the same file."""
    return max(0, int(recording.start.timestamp() * 1_000_000_000)) if recording.start is not None else 0


def chunks(recording: Recording, key: RunKey, chunk_ms: int = 1000) -> Iterator[Chunk]:
    """Samples (C, n) of `chunk_ms` each, in order; the last one says so."""
    step, total = max(1, recording.layout.samples(chunk_ms)), recording.samples.shape[1]
    for first in range(0, total, step):
        part = recording.samples[:, first : first + step]
        yield Chunk(key, recording.layout, first, part, first + step >= total)


def windows(recording: Recording, stream: str, session: str, rules: Rules) -> Iterator[Window | Closed]:
    """Every window of one recording, as if each chunk had reached the log when its last sample was recorded."""
    start_ns = session_start_ns(recording)
    key, windower = (stream, session, start_ns, recording.layout.digest), Windower(0, rules)
    for offset, chunk in enumerate(chunks(recording, key, chunk_ms=10_000)):
        at_ms = start_ns // 1_000_000 + (chunk.first + chunk.samples.shape[1]) * 1_000_000 // recording.layout.fs_mhz
        yield from (e for e in windower.push(chunk, offset, at_ms) if not isinstance(e, Rejected))


def findings(
    events: Iterable[Window | Closed], scorer: Scorer, batch: int, done: Callable[[int], None] = lambda n: None
) -> Iterator[Finding]:
    """Scored in order, as in the worker: while the encoder works on one batch another is prepared or written out."""
    source = iter(events)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way: deque[Future[list[Finding]]] = deque()
        while True:
            while len(under_way) < AT_ONCE and (items := list(islice(source, batch))):
                under_way.append(pool.submit(scorer, items))
            if not under_way:
                return
            scored = under_way.popleft().result()
            yield from scored
            done(len(scored))
