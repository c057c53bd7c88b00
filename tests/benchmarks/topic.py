"""A topic full of chunks for what reads through Kafka: 100 streams under way, 48,000 chunks of 12 leads x 1 s, 4 partitions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_worker.kafka import topics
from stream_worker.kafka.clients import DeviceProducer
from stream_worker.proto.ecg_chunk_pb2 import Chunk
from stream_worker.settings import Settings
from tests.benchmarks.windower import SECONDS, messages

PARTITIONS, REPEAT = 4, 16  # 100 streams x 30 s, played so often on end: the rate is that of streams under way
LIMIT_S = 120  # of one reading
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reading:
    """By one or more processes, from the first record of the first to the last of the last. s: time. cpu_s: of them all."""

    chunks: int
    windows: int
    s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Chunks/s."""
        return self.chunks / self.s


async def made(kafka: str, partitions: int) -> Settings:
    """Empty topics of our own."""
    mark = uuid.uuid4().hex[:8]
    settings = Settings(
        kafka=kafka, chunks_topic=f"chunks-{mark}", findings_topic=f"findings-{mark}", dead_letters_topic=f"dead-{mark}",
        alerts_topic=f"alerts-{mark}", start="earliest", _env_file=None,
    )  # fmt: skip
    await topics.apply(settings, {}, partitions, 1)
    return settings


async def filled(kafka: str, repeat: int = REPEAT, partitions: int = PARTITIONS) -> tuple[Settings, int]:
    """Topics of our own, one of them full; how many chunks it holds."""
    settings, log = await made(kafka, partitions), messages()
    async with DeviceProducer(kafka, {}) as producer:
        for again in range(repeat):
            for at in range(0, len(log), 500):
                await producer.send(settings.chunks_topic, [(key, later(value, again)) for key, value in log[at : at + 500]])
    return settings, len(log) * repeat


def later(value: bytes, again: int) -> bytes:
    """The same chunk, `again` times the log's length later in its session."""
    chunk = Chunk.FromString(value)
    chunk.first_sample += again * SECONDS * 500
    return chunk.SerializeToString()


def read(command: Sequence[str], settings: Settings, chunks: int, processes: int = 1, python: str = sys.executable) -> Reading:
    """Run a reader, each time anew, in as many processes as share the partitions. It is given Kafka, topic, group, how many
    partitions are its own and how many chunks there are in all. Its last line is JSON: chunks, windows, first and last
    (monotonic, s), cpu (s)."""
    group = uuid.uuid4().hex
    given = [settings.kafka, settings.chunks_topic, group, str(PARTITIONS // processes), str(chunks)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([python, *command, *given], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for _ in range(processes)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[0].splitlines() for process in running]
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        raise RuntimeError(f"{' '.join(command)} ended with {[process.returncode for process in running]}")
    told = [json.loads(lines[-1]) for lines in said]
    s = max(t["last"] for t in told) - min(t["first"] for t in told)
    return Reading(sum(t["chunks"] for t in told), sum(t["windows"] for t in told), s, sum(t["cpu"] for t in told))
