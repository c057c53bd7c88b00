"""What the number of streams costs: a chunk in steady state, a start, memory, and the time to the first finding."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from aiokafka import AIOKafkaConsumer

from deploy.local import LocalServices
from encoders.signal import LEADS
from stream_worker.bench.process import worker_process
from stream_worker.devices.encode import encode_chunk
from stream_worker.kafka import topics
from stream_worker.kafka.clients import DeviceProducer
from stream_worker.partition import Partition
from stream_worker.pipeline import COLLECT, SLICE
from stream_worker.run import Rules
from stream_worker.seam import Record
from stream_worker.settings import Settings
from stream_worker.window import Windower
from stream_worker.wire import Decoder
from tests.support import layout, signal

L = layout(leads=LEADS)
PARTITIONS = 4
TIMED = 24_000  # chunks, whatever the number of streams
RUNS = (1000, 4000)
STARTS = 20_000


def measure() -> dict[str, float]:
    """chunk_cost_...: CPU time of a chunk, from bytes in memory to windows, over that of 100 streams; start_us, starts_20000_s:
    first chunks; run_kb: resident memory of an open run; run_kb_ratio: is it linear; first_finding_s: through Kafka."""
    costs: dict[int, list[float]] = {100: [], 1000: [], 12_000: []}
    for _ in range(5):  # each in a process of its own, in turn
        for streams, taken in costs.items():
            taken.append(_apart("steady", streams))
    few = costs[100]
    over = {n: statistics.median(a / b for a, b in zip(c, few, strict=True)) for n, c in costs.items()}
    starts = statistics.median(_apart("starts", STARTS) for _ in range(3))
    few_kb, many_kb = (_apart("resident", runs) / runs for runs in RUNS)
    return {
        "chunk_cost_1000_vs_100": over[1000],
        "chunk_cost_12000_vs_100": over[12_000],
        "start_us": starts / STARTS * 1e6,
        "starts_20000_s": starts,
        "run_kb": many_kb,
        "run_kb_ratio": many_kb / few_kb,
        "first_finding_s": statistics.median(asyncio.run(first_findings())),
    }


class Fleet:
    """Streams of one chunk a second each, over the partitions of one worker."""

    def __init__(self, streams: int) -> None:
        gc.freeze()  # as the worker does
        gc.set_threshold(*COLLECT)
        self.streams, self.decode, self.offset = streams, Decoder(), 0
        self.parts = [Partition(n) for n in range(PARTITIONS)]
        for part in self.parts:
            part.windower = Windower(part.number, Rules())
        self._forms = [encode_chunk(f"stream-{s:05}", "1", 0, L, 1 << 20, signal(L, 500)) for s in range(streams)]

    def values(self, second: int) -> Iterator[tuple[int, bytes]]:
        """Every stream's chunk of one second, as bytes of its own: (stream, value)."""
        # All indices from 2^20 to 2^21 take three bytes, so that one may take another's place.
        first = _varint((1 << 20) + second * 500)
        for stream, form in enumerate(self._forms):
            yield stream, form.replace(_varint(1 << 20), first, 1)

    def take(self, records: list[list[Record]]) -> float:
        """CPU seconds. Findings count as published at once."""
        began = time.process_time()
        for part, mine in zip(self.parts, records, strict=True):
            if mine:
                for event in part.take(mine, self.decode, False).events:
                    part.windower.track(event.key).publish(event.next, 0)  # type: ignore[union-attr]
        return time.process_time() - began

    def second(self, number: int) -> float:
        """All streams once, in polls of `SLICE` a partition."""
        spent, waiting = 0.0, [list[Record]() for _ in self.parts]
        for stream, value in self.values(number):
            key, part = b"stream-%05d" % stream, stream % PARTITIONS
            waiting[part].append(Record(part, self.offset, number * 1000, key, value))
            self.offset += 1
            if len(waiting[part]) == SLICE:
                spent += self.take(waiting)
                waiting = [[] for _ in self.parts]
        return spent + self.take(waiting)


def _varint(number: int) -> bytes:
    return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))


def steady(streams: int) -> float:
    """CPU time of a chunk, us, once every stream has closed a window."""
    fleet = Fleet(streams)
    for second in range(11):
        fleet.second(second)
    seconds = max(10, TIMED // streams // 10 * 10)  # whole windows
    return sum(fleet.second(11 + second) for second in range(seconds)) / seconds / streams * 1e6


def starts(streams: int) -> float:
    """CPU time of all first chunks, s."""
    return Fleet(streams).second(0)


def resident(runs: int) -> float:
    """kB that this process grows by with so many open runs, 9 s after their start."""
    fleet = Fleet(runs)
    before = _resident_kb()
    for second in range(9):
        fleet.second(second)
    gc.collect()
    return _resident_kb() - before


def _resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def _apart(what: str, number: int) -> float:
    code = f"from tests.benchmarks import scale; print(scale.{what}({number}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


async def first_findings(rounds: int = 3) -> list[float]:
    """Seconds from the start of an `ecg-worker run` to a reader's first finding, of a stream whose window lies in the log."""
    with LocalServices() as services:
        mark = uuid.uuid4().hex[:8]
        settings = Settings(
            kafka=services.kafka, chunks_topic=f"chunks-{mark}", findings_topic=f"findings-{mark}",
            dead_letters_topic=f"dead-{mark}", alerts_topic=f"alerts-{mark}", start="earliest", _env_file=None,
        )  # fmt: skip
        await topics.apply(settings, {}, PARTITIONS, 1)
        async with DeviceProducer(services.kafka, {}) as producer:
            chunks = [(b"s", encode_chunk("s", "1", 0, L, at * 500, signal(L, 500))) for at in range(10)]
            await producer.send(settings.chunks_topic, chunks)
        return [await _first_finding(settings.model_copy(update={"group": f"{mark}-{n}"})) for n in range(rounds)]


async def _first_finding(settings: Settings) -> float:
    reader = AIOKafkaConsumer(
        settings.findings_topic, bootstrap_servers=settings.kafka, group_id=None, auto_offset_reset="latest",
        isolation_level="read_committed",
    )  # fmt: skip
    await reader.start()
    try:
        for partition in reader.assignment():
            await reader.position(partition)  # reads from here on, whatever is written meanwhile
        began = time.monotonic()
        async with worker_process(settings):
            async with asyncio.timeout(60):
                await reader.getone()
            return time.monotonic() - began
    finally:
        await reader.stop()
