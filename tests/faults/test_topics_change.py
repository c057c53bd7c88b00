"""The topics change under a worker: the chunks get more partitions, or are deleted."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from stream_worker.errors import ConfigError
from stream_worker.kafka.admin import add_partitions, delete_topics
from stream_worker.seam import partition_for
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import X, running, until
from tests.support import layout, message

L = layout(fs_mhz=100_000)
STREAMS = [f"s{n}" for n in range(9, 17)]
assert {partition_for(s.encode(), 4) for s in STREAMS} == {0, 1, 2, 3}
MOVED = {s for s in STREAMS if partition_for(s.encode(), 2) != partition_for(s.encode(), 4)}


def seconds(first: int, end: int) -> list[tuple[bytes, bytes]]:
    """Signal of every stream."""
    return [message(L, 100 * at, X[:, 100 * at : 100 * at + 100], s) for at in range(first, end) for s in STREAMS]


async def test_chunks_that_get_more_partitions_wait_for_the_findings_and_moved_streams_lose_one_window_a_side(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("broker", "writer"):
        monkeypatch.setattr(f"stream_worker.kafka.{module}.METADATA_AGE_MS", 1000)
    cluster = await Cluster(kafka).create(2)
    async with running(cluster.pipeline(start="latest")) as p:
        await until(lambda: p.ready() == [], 60)
        await cluster.send(seconds(0, 12), 2)
        await until(lambda: p.publisher.published == len(STREAMS), 60)
        await add_partitions(kafka, cluster.chunks, 4)
        await cluster.send(seconds(12, 25), 4)  # devices hear of it before the worker does
        await until(lambda: len(p.holdings.parts) == 4, 60)
        short = f"{cluster.findings} has 2 partitions, {cluster.chunks} has 4: ecg-worker topics --grow 4"
        await until(lambda: any(short in why for why in p.ready()), 60)
        for topic in (cluster.findings, cluster.letters):
            await add_partitions(kafka, topic, 4)
        await until(lambda: p.ready() == [], 60)
        await cluster.send(seconds(25, 42), 4)
        await until(lambda: p.publisher.published >= 4 * len(STREAMS), 60)
        await asyncio.sleep(1.0)
    told = Counter((x["stream"], x["first_sample"] // 1000, x["kind"]) for x in await cluster.read(cluster.findings))
    for stream in STREAMS:
        for window in range(4):
            lost = stream in MOVED and window == 1  # of 10 to 20 s, where 12 s stand in one partition and the rest in another
            assert told[stream, window, "unscorable" if lost else "scored"] == 1
    report = await cluster.audit()
    assert report.consistent, list(report.items())
    assert {item["stream"] for item in report.items()} == MOVED
    assert report.counts == {kind: len(MOVED) if kind == "split" else 0 for kind in report.counts}


@pytest.mark.parametrize("which", ["chunks", "findings"])
async def test_a_topic_that_is_deleted_ends_the_worker_with_its_name(
    kafka: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_worker.kafka.topic_watch._GONE_S", 2.0)
    cluster = await Cluster(kafka).create(2)
    p = cluster.pipeline()
    task = asyncio.create_task(p.run())
    await until(lambda: p.ready() == [], 60)
    topic = getattr(cluster, which)
    await delete_topics(kafka, [topic])
    await until(lambda: any(topic in why for why in p.ready()) or task.done(), 60)
    with pytest.raises(ConfigError, match=f"topic {topic} is gone from .*, it was deleted") as raised:
        async with asyncio.timeout(60):
            await task
    assert raised.value.exit_code == 2
