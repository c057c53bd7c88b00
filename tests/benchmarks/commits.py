"""What a commit costs: the worker by its two deliveries, over commit intervals and partition counts, with a null scorer.

Throughput: chunks of a full topic in a second, and in a second of the worker's CPU time, exactly once over at least once, in
turns. Cost: CPU of worker and broker while every partition is given ten small chunks a second, so that each has something to
commit at each interval.

`python -m tests.benchmarks commits` measures with four partitions; COMMITS_PARTITIONS=4,12,32 all that the picture shows, which
is drawn from the JSON line: `python -m tests.benchmarks.commits docs/pictures/commits.png < line`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from deploy.local import LocalServices
from encoders.signal import LEADS
from stream_worker.devices.encode import encode_chunk
from stream_worker.kafka.clients import DeviceProducer
from stream_worker.labels import FixedBank
from stream_worker.operate import kafka_broker
from stream_worker.pipeline import Pipeline
from stream_worker.seam import partition_for
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from tests.benchmarks.kafka import NullEncoder, NullScorer, _worker
from tests.benchmarks.topic import filled, made
from tests.support import bank, layout, signal

INTERVALS_MS = (100, 250, 500, 1000)
PARTITIONS = tuple(int(n) for n in os.environ.get("COMMITS_PARTITIONS", "4").split(","))  # each takes some three minutes
DELIVERIES = ("at_least_once", "exactly_once")
REPEAT, ROUNDS = 5, 3  # 15,000 chunks
PACE_S, EVERY_S = 6.0, 0.1
TICK = os.sysconf("SC_CLK_TCK")


def measure() -> dict[str, float]:
    """exactly_once_<ms>ms_<partitions>: chunks/s over at least once; per_cpu_: chunks in a second of CPU time, likewise;
    worker_ and broker_: cores more than at least once."""
    found: dict[str, float] = {}
    with LocalServices() as services:
        pid = services.servers["kafka"].pid
        for partitions in PARTITIONS:
            found |= asyncio.run(_of(services.kafka, pid, partitions))
    return found


async def _of(kafka: str, pid: int, partitions: int) -> dict[str, float]:
    full, total = await filled(kafka, REPEAT, partitions)
    slow, found = await made(kafka, partitions), dict[str, float]()
    await _worker(full, total, NullScorer)
    for interval in INTERVALS_MS:
        ways = [{"commit_interval_ms": interval, "delivery": delivery} for delivery in DELIVERIES]
        rounds = [[await _rates(full.model_copy(update=way), total) for way in ways] for _ in range(ROUNDS)]
        costs = [await _cost(slow.model_copy(update=way), pid, partitions) for way in ways]
        name = f"{interval}ms_{partitions}"
        for place, what in enumerate(("exactly_once", "per_cpu")):
            found[f"{what}_{name}"] = statistics.median(exactly[place] / least[place] for least, exactly in rounds)
        found[f"worker_{name}"], found[f"broker_{name}"] = (costs[1][i] - costs[0][i] for i in (0, 1))
    return found


async def _rates(settings: Settings, total: int) -> tuple[float, float]:
    """Chunks in a second, and in a second of CPU time of all threads, start and stop included."""
    began = time.process_time()
    rate = await _worker(settings, total, NullScorer)
    return rate, total / (time.process_time() - began)


async def _cost(settings: Settings, pid: int, partitions: int) -> tuple[float, float]:
    """Cores of this process (worker and devices) and of the broker under a steady trickle."""
    settings = settings.model_copy(update={"group": uuid.uuid4().hex, "start": "latest"})
    encoder = NullEncoder()
    pipeline = Pipeline(
        kafka_broker(settings), lambda: NullScorer(encoder, bank(encoder)), settings, Metrics(), FixedBank(bank(encoder))
    )
    task = asyncio.create_task(pipeline.run())
    while pipeline.ready() or len(pipeline.holdings.parts) < partitions:
        await asyncio.sleep(0.05)
    session = uuid.uuid4().hex
    keys, of = _one_a_partition(partitions), layout(leads=LEADS[:1])
    x = signal(of, 50)
    async with DeviceProducer(settings.kafka, {}) as producer:
        wall, mine, theirs = time.monotonic(), time.process_time(), _cpu_s(pid)
        for turn in range(int(PACE_S / EVERY_S)):
            await producer.send(
                settings.chunks_topic, [(key.encode(), encode_chunk(key, session, 0, of, turn * 50, x)) for key in keys]
            )
            await asyncio.sleep(max(0.0, wall + (turn + 1) * EVERY_S - time.monotonic()))
        wall = time.monotonic() - wall
        cost = (time.process_time() - mine) / wall, (_cpu_s(pid) - theirs) / wall
    pipeline.stop()
    await task
    return cost


def _one_a_partition(partitions: int) -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < partitions:
        found.setdefault(partition_for(f"s{number}".encode(), partitions), f"s{number}")
        number += 1
    return list(found.values())


def _cpu_s(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def draw(found: dict[str, float], path: Path) -> None:
    """Two curves over the interval for each number of partitions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    for partitions in sorted(int(name.rpartition("_")[2]) for name in found if name.startswith(f"per_cpu_{INTERVALS_MS[0]}ms")):
        names = [f"{interval}ms_{partitions}" for interval in INTERVALS_MS]
        axes[0].plot(INTERVALS_MS, [found[f"per_cpu_{name}"] for name in names], "o-", label=f"{partitions} partitions")
        axes[1].plot(INTERVALS_MS, [found[f"broker_{name}"] for name in names], "o-")
    for axis, title in zip(
        axes, ("chunks in a CPU second, over at least once", "cores of the broker, more than at least once"), strict=True
    ):
        axis.set(title=title, xlabel="commit interval, ms", xscale="log", xticks=INTERVALS_MS, xticklabels=INTERVALS_MS)
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    draw(json.loads(sys.stdin.read().splitlines()[-1]), Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
