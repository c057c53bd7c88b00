"""The whole worker in one process: simulated devices or recordings -> a log -> windows -> findings. Same stages as `run`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from encoders.artifact import Artifact
from encoders.recordings import Recording
from encoders.signal import Layout
from stream_worker.backend import opened
from stream_worker.devices.encode import encode_chunk
from stream_worker.devices.simulator import Device, demo_devices, synthesize
from stream_worker.labels import BankSource, FixedBank
from stream_worker.pipeline import Pipeline
from stream_worker.records import Finding
from stream_worker.score import Options, Scorer
from stream_worker.seam import Broker
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics

__all__ = ["Source", "play", "recorded", "run_demo", "simulated"]

Send = Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None]]


@dataclass(frozen=True)
class Source:
    """One stream to play. read(first, n): int16 (C, n) from sample `first` on. total: samples in all."""

    stream: str
    session: str
    session_start_ns: int
    layout: Layout
    total: int
    read: Callable[[int, int], NDArray[np.int16]]
    chunk_ms: int = 1000

    def chunk(self, number: int) -> bytes | None:
        """The Protobuf bytes of chunk `number`; None beyond the end."""
        first, end = (min(self.layout.samples(n * self.chunk_ms), self.total) for n in (number, number + 1))
        if first >= self.total:
            return None
        samples = self.read(first, end - first)
        return encode_chunk(self.stream, self.session, self.session_start_ns, self.layout, first, samples, end >= self.total)

    @property
    def rounds(self) -> int:
        """Chunks in all."""
        return -(-self.total * 1_000_000 // (self.chunk_ms * self.layout.fs_mhz))


def simulated(seconds: int, seed: int = 0) -> list[Source]:
    """The simulator's demo devices, for so many seconds of signal, as from now on."""
    start = time.time_ns() // 1_000_000_000 * 1_000_000_000
    return [
        Source(d.stream_id, d.session_id, start, d.layout, d.layout.samples(seconds * 1000), _reader(d))
        for d in demo_devices(seed)
    ]


def _reader(device: Device) -> Callable[[int, int], NDArray[np.int16]]:
    return lambda first, n: synthesize(device, n, first)


def recorded(
    recording: Recording, stream: str, session: str, start_ns: int, seconds: int | None = None, chunk_ms: int = 1000
) -> Source:
    """A recording as a source, cut to `seconds` when given."""
    total = recording.samples.shape[1]
    if seconds is not None:
        total = min(total, recording.layout.samples(seconds * 1000))
    return Source(
        stream, session, start_ns, recording.layout, total, lambda first, n: recording.samples[:, first : first + n], chunk_ms
    )


async def play(sources: Sequence[Source], send: Send, speed: float, tick: Callable[[int], None], chunk_ms: int = 1000) -> None:
    """Publish in device time, `speed` times as fast; 0 means as fast as it goes. tick(n): so many chunks of each are out."""
    began = time.monotonic()
    for number in count():
        messages = [(s.stream.encode(), value) for s in sources if (value := s.chunk(number)) is not None]
        if not messages:
            return
        if speed:
            await asyncio.sleep(max(0.0, began + (number + 1) * chunk_ms / 1000 / speed - time.monotonic()))
        await send(messages)
        tick(number + 1)


async def run_demo(
    broker: Broker,
    send: Send,
    sources: Sequence[Source],
    artifact: Artifact,
    settings: Settings,
    speed: float,
    on_finding: Callable[[Finding], None],
    tick: Callable[[int], None],
    labels: BankSource | None = None,
    metrics: Metrics | None = None,
) -> None:
    """Play the sources through a pipeline over `broker` until every stream is closed, then drain. Raises WorkerError."""
    metrics = metrics or Metrics()
    with opened(artifact, settings, metrics) as encoder:
        labels = labels or FixedBank(artifact.bank())
        open_streams = {source.stream for source in sources}
        closed = asyncio.Event()

        def seen(finding: Finding) -> None:
            on_finding(finding)
            if finding.body["closed"] is not None:
                open_streams.discard(finding.key[0])
                if not open_streams:
                    closed.set()

        def scorer() -> Scorer:
            assert labels is not None
            assert labels.bank is not None
            return Scorer(encoder, labels.bank, Options(top=settings.top))

        pipeline = Pipeline(broker, scorer, settings, metrics, labels, on_finding=seen)
        running = asyncio.create_task(pipeline.run())
        try:
            while not running.done() and (pipeline.ready() or not broker.assigned):
                await asyncio.sleep(0.02)
            playing = asyncio.create_task(play(sources, send, speed, tick))
            waiting = asyncio.create_task(closed.wait())
            await asyncio.wait([running, playing], return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            playing.cancel()
            waiting.cancel()
        finally:
            pipeline.stop()
            await running
