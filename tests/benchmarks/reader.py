"""One reading process: `python -m tests.benchmarks.reader bare|aiokafka|confluent KAFKA TOPIC GROUP PARTITIONS CHUNKS`.

`bare` counts what an aiokafka `getmany` loop brings; the others are the worker from bytes on Kafka to closed windows, by its
two clients. Findings count as published as soon as their window is closed. CPU time is that of all threads of the process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer

from stream_worker.operate import kafka_broker
from stream_worker.partition import Partition
from stream_worker.pipeline import COLLECT, POLL_MS, POLL_RECORDS, SLICE
from stream_worker.run import Rules
from stream_worker.settings import Settings
from stream_worker.window import Windower
from stream_worker.wire import Decoder

QUIET_S = 3.0  # after which one of several processes, whose share nobody knows beforehand, is done

Counts = AsyncIterator[tuple[int, int]]  # chunks and windows since the last


async def bare(settings: Settings, partitions: int) -> Counts:
    """An aiokafka loop that only counts."""
    consumer = AIOKafkaConsumer(
        settings.chunks_topic, bootstrap_servers=settings.kafka, group_id=settings.group, auto_offset_reset="earliest",
        max_partition_fetch_bytes=2 << 20, isolation_level="read_committed", enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        while len(consumer.assignment()) != partitions:
            await asyncio.sleep(0.01)
        while True:
            yield sum(map(len, (await consumer.getmany(timeout_ms=200, max_records=2000)).values())), 0
    finally:
        await consumer.stop()


async def cut(settings: Settings, partitions: int) -> Counts:
    """The worker without scoring and publishing."""
    gc.freeze()  # as the worker does
    gc.set_threshold(*COLLECT)
    broker, decode, parts = kafka_broker(settings), Decoder(), dict[int, Partition]()

    async def assigned(numbers: frozenset[int]) -> None:
        for number in numbers if len(numbers) == partitions else ():
            parts[number] = Partition(number)
            parts[number].windower = Windower(number, Rules())
            broker.seek(number, 0)

    async def revoked(numbers: frozenset[int]) -> None:
        parts.clear()

    await broker.start(assigned, revoked)
    try:
        while True:
            yield 0, 0  # also when nothing comes
            for number, records in (await broker.poll(POLL_MS, POLL_RECORDS)).items():
                for at in range(0, len(records), SLICE):
                    some = records[at : at + SLICE]
                    yield len(some), _closed(parts[number], parts[number].take(some, decode, False).events)
                    await asyncio.sleep(0)
    finally:
        await broker.stop()


def _closed(part: Partition, events: list[object]) -> int:
    assert part.windower is not None
    for event in events:
        track = part.windower.track(event.key)  # type: ignore[attr-defined]
        assert track is not None
        track.publish(event.next, 0)  # type: ignore[attr-defined]
    return len(events)


async def main(kind: str, kafka: str, topic: str, group: str, partitions: str, chunks: str) -> None:
    client = "aiokafka" if kind == "bare" else kind
    settings = Settings(kafka=kafka, chunks_topic=topic, group=group, client=client, _env_file=None)  # type: ignore[arg-type]
    seen = windows = first_chunks = 0
    first = last = cpu = 0.0
    counts = (bare if kind == "bare" else cut)(settings, int(partitions))
    async for more, closed in counts:
        seen, windows, now = seen + more, windows + closed, time.monotonic()
        if more and not first:
            first, cpu, first_chunks = now, time.process_time(), seen
        if more:
            last = now
        if seen >= int(chunks) or (seen and now - last > QUIET_S):
            break
    told = {"chunks": seen - first_chunks, "windows": windows, "first": first, "last": last}
    print(json.dumps(told | {"cpu": time.process_time() - cpu}), flush=True)
    await counts.aclose()  # type: ignore[attr-defined]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
