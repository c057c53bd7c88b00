"""Devices that never stop: chunks in real time, with losses, repeats, disorder, silences, a second rate and rubbish between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np

from stream_worker.devices.simulator import fleet
from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.clients import DeviceProducer

__all__ = ["Feeder"]

SILENT_S = (3.0, 45.0)  # how long a stream falls silent: within the idle time, or beyond it
SILENCES = 0.002  # a chunk that begins one
RUBBISH = (b"", b"no chunk", b"\x08\x96\x01", b"x" * 100_000)


def messages(streams: int, seconds: float, seed: int) -> Iterator[tuple[bytes, bytes, float]]:
    """(key, value, second): half of the sessions in chunks of 1 s, half in chunks of 0.5 s; two share a stream."""
    rng = np.random.default_rng([seed, 17])
    halves = [
        fleet(n, seconds, chunk_ms=ms, drop=0.01, duplicate=0.02, reorder=0.02, seed=seed + ms, session_start_ns=ms)
        for n, ms in ((streams - streams // 2, 1000), (streams // 2, 500))
    ]
    waiting = [next(half, None) for half in halves]
    silent: dict[tuple[int, bytes], float] = {}
    while any(waiting):
        which = min((i for i, message in enumerate(waiting) if message), key=lambda i: waiting[i][2])  # type: ignore[index]
        key, value, at = waiting[which]  # type: ignore[misc]
        waiting[which] = next(halves[which], None)
        if rng.random() < SILENCES:
            silent[which, key] = at + rng.uniform(*SILENT_S)
        if silent.get((which, key), 0.0) < at:
            yield key, value, at
        if rng.random() < 0.001:
            yield key, RUBBISH[rng.integers(len(RUBBISH))], at


class Feeder(threading.Thread):
    """Publishes `messages` at their time, whatever becomes of the broker. `sent`: so far; `failure`: why it ended early."""

    def __init__(self, kafka: str, topic: str, streams: int, seconds: float, seed: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self.sent = 0
        self.failure: BaseException | None = None
        self._kafka, self._topic = kafka, topic
        self._messages = messages(streams, seconds, seed)
        self._producer: DeviceProducer | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._feed())
        except BaseException as error:
            self.failure = error

    async def _feed(self) -> None:
        try:
            await self._in_time()
        finally:
            await self._drop_producer()

    async def _in_time(self) -> None:
        began, batch = time.monotonic(), list[tuple[bytes, bytes]]()
        for key, value, at in self._messages:
            if batch and (at > time.monotonic() - began or len(batch) >= 200):
                await self._send(batch)
                batch = []
            await asyncio.sleep(max(0.0, at - (time.monotonic() - began)))
            batch.append((key, value))
        await self._send(batch)

    async def _send(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Until it is in the log; a part of it may be there twice then."""
        while True:
            try:
                if self._producer is None:
                    self._producer = await DeviceProducer(self._kafka, {}).__aenter__()
                await self._producer.send(self._topic, batch)
                self.sent += len(batch)
                return
            except (BrokerUnavailable, ConfigError):
                await self._drop_producer()
                await asyncio.sleep(0.5)

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.__aexit__(None, None, None)
