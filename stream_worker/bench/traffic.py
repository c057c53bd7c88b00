"""The load of `ecg-worker bench`: a log to be worked off, or streams that send in real time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from itertools import islice

from stream_worker.bench.stages import CHUNK_MS, Lane
from stream_worker.devices.simulator import fleet
from stream_worker.kafka.clients import DeviceProducer

__all__ = ["Sent", "backlog", "play", "real_time"]

Message = tuple[bytes, bytes, float]  # key, value, second of publication; below 0: before the clock starts
GROUPS = 10  # streams begin a second apart, so that windows come at a steady rate
SENDING = 500  # messages handed to the client at once


class Sent:
    """When each chunk of each stream was sent, by the event loop's clock."""

    def __init__(self) -> None:
        self._at: dict[bytes, list[float]] = {}

    def note(self, key: bytes, at: float) -> None:
        """The next chunk of this stream."""
        self._at.setdefault(key, []).append(at)

    def at(self, stream: str, chunk: int) -> float | None:
        """None: before the clock started, or not of ours."""
        times = self._at.get(stream.encode(), [])
        return times[chunk] if chunk < len(times) and times[chunk] > 0 else None

    def begun(self) -> float:
        """When the clock started; 0 when nothing was sent by it."""
        return min((at for times in self._at.values() for at in times if at > 0), default=0.0)


def backlog(lane: Lane, windows: int, streams: int) -> Iterator[Message]:
    """About `windows` windows of `streams` streams."""
    seconds = 10 * max(1, windows // streams)
    return fleet(streams, seconds, CHUNK_MS, devices=[lane.device()], last=False)


def real_time(lane: Lane, windows_per_s: float, seconds: float) -> Iterator[Message]:
    """Streams whose windows close at this rate all the time: when the clock starts they stand at any second of their window."""
    each = max(1, round(windows_per_s))  # streams of a group: each closes a window every GROUPS seconds
    groups = [_begun_before(lane, g, each, seconds) for g in range(GROUPS)]
    return heapq.merge(*groups, key=lambda message: message[2])


def _begun_before(lane: Lane, group: int, streams: int, seconds: float) -> Iterator[Message]:
    """A group that has sent for `group` seconds when the clock starts."""
    length = seconds + group
    for key, value, at in fleet(
        streams, length, CHUNK_MS, devices=[lane.device()], last=False, number_from=group * streams, seed=group
    ):
        yield key, value, at - group


async def play(messages: Iterator[Message], producer: DeviceProducer, topic: str, sent: Sent, paced: bool = True) -> float:
    """Send them at their seconds, or as fast as it goes. -> the most that the sender was late, s."""
    loop, started, latest = asyncio.get_running_loop(), 0.0, 0.0
    while batch := list(islice(messages, SENDING)):
        while batch:
            if paced and batch[0][2] >= 0:
                started = started or loop.time()
                await asyncio.sleep(max(0.0, started + batch[0][2] - loop.time()))
                now = loop.time() - started
                due = next((i for i, message in enumerate(batch) if message[2] > now), len(batch))
                latest = max(latest, now - batch[0][2])
            else:
                due = next((i for i, message in enumerate(batch) if message[2] >= 0), len(batch)) if paced else len(batch)
            for key, _, _ in batch[:due]:
                sent.note(key, loop.time() if started else 0.0)
            await producer.send(topic, [(key, value) for key, value, _ in batch[:due]])
            batch = batch[due:]
    return latest
