"""From `kill -9` of one of two workers until the other takes a record that the dead one had not, and how much is read again.

Real Kafka, 1,000 streams of 12 leads at 500 Hz in chunks of 1 s, exactly once, a null scorer; a tenth of the streams falls
silent in the middle of a window, which holds back what may be committed until they count as idle. The victim is a process of
its own: `python -m tests.benchmarks.takeover work|feed '<settings as JSON>'`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.local import LocalServices
from encoders.signal import LEADS
from stream_worker.devices.encode import encode_chunk
from stream_worker.kafka.broker import KafkaBroker
from stream_worker.kafka.clients import DeviceProducer
from stream_worker.labels import FixedBank
from stream_worker.ledger import decode_metadata
from stream_worker.pipeline import Pipeline
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from tests.benchmarks.kafka import NullEncoder, NullScorer
from tests.benchmarks.topic import made
from tests.support import bank, layout, signal

STREAMS, SILENT, PARTITIONS = 1000, 100, 4
SESSION_S = 10.0
SILENT_FROM, KILLED_AT, FED = 13, 36, 75  # seconds of signal
LIMIT_S = 120.0
ROOT = Path(__file__).resolve().parents[2]


def measure() -> dict[str, float]:
    """takeover_over_session_s; reread_s: log time between the first record that is read again and the first that is not, which
    is at most window + grace + idle time + one commit interval, 42.5 s."""
    with LocalServices() as services:
        settings = asyncio.run(made(services.kafka, PARTITIONS))
        return asyncio.run(_measure(settings.model_copy(update={"delivery": "exactly_once", "group": "takeover"})))


async def _measure(settings: Settings) -> dict[str, float]:
    survivor = _pipeline(settings)
    task, parts = asyncio.create_task(survivor.run()), survivor.holdings.parts
    processes = [_process("work", settings)]
    try:
        await _until(lambda: len(parts) == PARTITIONS // 2 and all(part.ready for part in parts.values()), task)
        theirs = set(range(PARTITIONS)) - set(parts)
        processes.append(_process("feed", settings))
        await _until(lambda: sum(part.taken for part in parts.values()) >= KILLED_AT * STREAMS // 2, task)
        processes[0].send_signal(signals.SIGKILL)
        killed = time.monotonic()
        processes[0].wait()
        left = {partition: await _committed(survivor, partition) for partition in theirs}
        await _until(lambda: all(_beyond(survivor, partition, left[partition][1]) for partition in theirs), task)
        took = time.monotonic() - killed
    finally:
        for process in processes:
            process.kill()
            process.wait()
        survivor.stop()
        await task
    again = max([await _log_s(settings, partition, *offsets) for partition, offsets in left.items()])
    return {"takeover_over_session_s": took - SESSION_S, "reread_s": again}


async def _until(met: Callable[[], bool], task: asyncio.Task[None]) -> None:
    end = time.monotonic() + LIMIT_S
    while not met():
        assert time.monotonic() < end
        assert not task.done(), task
        await asyncio.sleep(0.01)


def _pipeline(settings: Settings) -> Pipeline:
    encoder = NullEncoder()
    broker = KafkaBroker(
        bootstrap=settings.kafka, group=settings.group, chunks=settings.chunks_topic, findings=settings.findings_topic,
        dead_letters=settings.dead_letters_topic, session_timeout_s=SESSION_S,
    )  # fmt: skip
    return Pipeline(broker, lambda: NullScorer(encoder, bank(encoder)), settings, Metrics(), FixedBank(bank(encoder)))


async def _committed(survivor: Pipeline, partition: int) -> tuple[int, int]:
    """W and P that the dead worker left."""
    position = await survivor.broker.committed(partition)
    assert position is not None
    return position.offset, decode_metadata(position.metadata, position.offset)[0]


def _beyond(survivor: Pipeline, partition: int, processed: int) -> bool:
    part = survivor.holdings.parts.get(partition)
    return part is not None and part.ready and part.taken > processed


async def _log_s(settings: Settings, partition: int, first: int, last: int) -> float:
    """Log time between two records."""
    reader, at = AIOKafkaConsumer(bootstrap_servers=settings.kafka), TopicPartition(settings.chunks_topic, partition)
    reader.assign([at])
    await reader.start()
    try:
        times = []
        for offset in (first, last):
            reader.seek(at, offset)
            times.append((await reader.getone(at)).timestamp)
        return float(times[1] - times[0]) / 1000
    finally:
        await reader.stop()


def _process(what: str, settings: Settings) -> subprocess.Popen[bytes]:
    given = settings.model_dump(include={"kafka", "group", "chunks_topic", "findings_topic", "dead_letters_topic", "start"})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.takeover", what, json.dumps(given)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def _feed(settings: Settings) -> None:
    """A chunk a second from each stream, but some stop."""
    of = layout(leads=LEADS)
    x, began = signal(of, 500), time.monotonic()
    async with DeviceProducer(settings.kafka, {}) as producer:
        for second in range(FED):
            for tenth in range(10):
                live = [s for s in range(tenth, STREAMS, 10) if s >= SILENT or second < SILENT_FROM]
                batch = [(f"s{s}".encode(), encode_chunk(f"s{s}", "1", 0, of, second * 500, x)) for s in live]
                await producer.send(settings.chunks_topic, batch)
                await asyncio.sleep(max(0.0, began + second + (tenth + 1) / 10 - time.monotonic()))


def main(arguments: Sequence[str]) -> None:
    what, given = arguments
    chosen: dict[str, Any] = json.loads(given)
    settings = Settings(**chosen, _env_file=None)
    asyncio.run(_feed(settings) if what == "feed" else _pipeline(settings).run())


if __name__ == "__main__":
    main(sys.argv[1:])
