"""The whole worker through a real Kafka against a bare aiokafka `getmany` loop over the same records, in chunks/s."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer
from numpy.typing import NDArray

from deploy.local import LocalServices
from encoders.preprocess import Prepared
from encoders.quality import Quality
from stream_worker.labels import FixedBank
from stream_worker.operate import kafka_broker
from stream_worker.pipeline import Pipeline
from stream_worker.records import Window
from stream_worker.score import Scorer
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from tests.benchmarks.topic import filled
from tests.support import ProjectionEncoder, bank

LONG = 32  # 96,000 chunks, some 10 s: the last commit, up to one interval after the last chunk, weighs 3 % of that


class NullEncoder(ProjectionEncoder):
    """Costs nothing: the same embedding for every window."""

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.zeros((len(x), self.dim), dtype=np.float32)
        out[:, 0] = 1.0
        return out


class NullScorer(Scorer):
    """No preprocessing either: what is left is the way of the data, from Kafka to Kafka."""

    _ready = (Prepared(np.zeros((12, 5000), dtype=np.float32), 4095, 0, 5000, None), Quality({}, 4095, None, False, "mV"))

    def prepare(self, window: Window) -> Any:
        return self._ready

    def rows(self, windows: Sequence[Prepared]) -> list[NDArray[np.float32] | None]:
        return [np.full(len(self.bank.labels), 0.5, dtype=np.float32)] * len(windows)


def measure() -> dict[str, float]:
    """worker_vs_getmany: null scorer; worker_fast_vs_getmany: by the client of the extra `fast`, against the same loop.
    exactly_once_vs_at_least_once: the same worker by its two deliveries, until the last finding is out.
    worker_with_preprocessing_vs_getmany: only the encoder is null."""
    with LocalServices() as services:
        return asyncio.run(_measure(services.kafka))


async def _measure(kafka: str) -> dict[str, float]:
    settings, total = await filled(kafka, LONG)
    ratios = dict[str, list[float]]()
    await _bare(settings, total)
    fast = settings.model_copy(update={"client": "confluent"})
    twice = settings.model_copy(update={"delivery": "at_least_once"})
    for _ in range(5):
        bare = await _bare(settings, total)
        once = await _worker(settings, total, NullScorer)
        for name, ratio in (
            ("worker_vs_getmany", once / bare),
            ("worker_fast_vs_getmany", await _worker(fast, total, NullScorer) / bare),
            ("exactly_once_vs_at_least_once", once / await _worker(twice, total, NullScorer)),
        ):
            ratios.setdefault(name, []).append(ratio)
    rate = await _worker(settings, total, Scorer)
    ratios["worker_with_preprocessing_vs_getmany"] = [rate / await _bare(settings, total)]
    return {name: statistics.median(values) for name, values in ratios.items()}


async def _bare(settings: Settings, total: int) -> float:
    """Chunks/s of a loop that only counts."""
    consumer = AIOKafkaConsumer(
        settings.chunks_topic, bootstrap_servers=settings.kafka, group_id=None, auto_offset_reset="earliest",
        max_partition_fetch_bytes=2 << 20, isolation_level="read_committed",
    )  # fmt: skip
    await consumer.start()
    try:
        seen = first = 0
        began = time.perf_counter()
        while seen < total:
            for records in (await consumer.getmany(timeout_ms=200, max_records=2000)).values():
                seen += len(records)
            if not first and seen:
                first, began = seen, time.perf_counter()
        return (total - first) / (time.perf_counter() - began)
    finally:
        await consumer.stop()


async def _worker(settings: Settings, total: int, kind: type[Scorer]) -> float:
    """Chunks/s from the first records read to the last finding acknowledged."""
    encoder = NullEncoder()
    labels = FixedBank(bank(encoder))
    broker = kafka_broker(settings.model_copy(update={"group": uuid.uuid4().hex}))
    pipeline = Pipeline(broker, lambda: kind(encoder, bank(encoder)), settings, Metrics(), labels)
    task = asyncio.create_task(pipeline.run())

    def count() -> int:
        """Offsets begin at 0 and leave none out; asking the metrics so often would take 3 % of the event loop."""
        return sum(part.taken for part in pipeline.holdings.parts.values())

    while not count():
        await asyncio.sleep(0.002)
    first, began = count(), time.perf_counter()
    while count() < total or any(part.in_flight for part in pipeline.holdings.parts.values()):
        assert not task.done(), task
        await asyncio.sleep(0.005)
    rate = (total - first) / (time.perf_counter() - began)
    pipeline.stop()
    await task
    return rate
