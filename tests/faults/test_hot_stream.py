"""One stream that sends a hundred times what it records, on a real partition: the others do not wait for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from threading import Lock
from typing import Any

import jsonschema
import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray

from encoders.signal import ABSENT
from stream_worker.records import Finding
from stream_worker.wire import schema
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import until
from tests.support import ProjectionEncoder, layout, message, signal

L = layout(fs_mhz=100_000)
X = signal(L, 400_000)
SECONDS, OTHERS, FACTOR = 18, 6, 100
assert ABSENT not in X


class Slow(ProjectionEncoder):
    """30 windows a second at most, however many threads ask: enough for all but the hot stream."""

    def __init__(self) -> None:
        super().__init__()
        self._one = Lock()

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._one:
            time.sleep(len(x) / 30)
        return super().encode(x)


class Day:
    """Devices that send a second of signal every second, and one that sends a hundred."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.sent: dict[tuple[str, int], float] = {}  # by stream and window: when its last sample was sent
        self.heard: dict[tuple[str, int], float] = {}
        self.kinds = Counter[str]()

    def note(self, finding: Finding) -> None:
        body = finding.body
        if body.get("reason") == "shed" and not self.kinds["hot shed"]:
            jsonschema.validate(body, schema("finding"))
        self.kinds[f"{body['stream'][:3]} {body.get('reason') or body['kind']}"] += 1
        if body["kind"] != "closed" and body["closed"] is None:
            self.heard[body["stream"], body["first_sample"]] = time.monotonic()

    async def pass_by(self) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.cluster.bootstrap, linger_ms=0) as producer:
            began = time.monotonic()
            for second in range(SECONDS):
                for n in range(OTHERS):
                    # The first chunk holds nine seconds, so that a window ends with every other second from the next on.
                    first, end = (0, 900) if second == 0 else (800 + 100 * second, 900 + 100 * second)
                    await producer.send(
                        self.cluster.chunks, *reversed(message(L, first, X[:, first:end], f"other{n}")), partition=0
                    )
                    if end % 200 == 0:
                        self.sent[f"other{n}", end - 1000] = time.monotonic()
                for at in range(FACTOR * 100 * second, FACTOR * 100 * (second + 1), 100):
                    await producer.send(self.cluster.chunks, *reversed(message(L, at, X[:, at : at + 100], "hot")), partition=0)
                await asyncio.sleep(max(0.0, began + second + 1 - time.monotonic()))
            await producer.flush()

    def told(self) -> float:
        """The share of the others' windows out, of those that ended in the first two thirds."""
        ended = [key for key in self.sent if key[1] + 1000 <= 900 + 100 * SECONDS * 2 // 3]
        return sum(key in self.heard for key in ended) / len(ended)


async def lived(cluster: Cluster, **changes: Any) -> tuple[Day, float]:
    day = Day(cluster)
    p = cluster.pipeline(Slow(), hop_ms=2000, batch_size=8, queue_windows=64, **changes)
    p.publisher._on_finding = day.note
    task = asyncio.create_task(p.run())
    await until(lambda: p.ready() == [], 60)
    await day.pass_by()
    await asyncio.sleep(1.0)
    told = day.told()
    await until(lambda: p.broker.lag(0) == 0 and not p.scoring.waiting, 60)
    p.stop()
    await task
    return day, told


async def test_a_hot_stream_is_shed_and_the_others_are_not_kept_waiting(kafka: str) -> None:
    cluster = await Cluster(kafka).create(1)
    day, told = await lived(cluster, shed_after_s=1.0)
    assert day.kinds["oth shed"] == 0
    assert day.kinds["hot shed"] > 400
    assert told > 0.9  # without shedding 0.2: 50 windows a second for an engine of 30
    hot = [body for body in await cluster.read(cluster.findings) if body["stream"] == "hot"]
    assert len(hot) >= FACTOR * SECONDS // 2 - 10  # no chunk was dropped: every window is there, scored or said to be shed
    assert [body["first_sample"] for body in hot] == sorted({body["first_sample"] for body in hot})
    report = await cluster.audit(hop_ms=2000)
    assert report.consistent, list(report.items())
    assert report.judged >= FACTOR * SECONDS // 2
