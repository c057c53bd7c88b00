"""Clocks that jump: the host's, a device's. The log's own: `test_window.py`."""

from __future__ import annotations

import time

import pytest

from stream_worker.memory_broker import MemoryLog
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import TOPICS, X, pipeline, published, running, until
from tests.support import layout, message

L = layout()
HOUR_S = 3600.0


async def test_a_host_whose_wall_clock_jumps_by_hours_publishes_every_window_once(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker refuses a message an hour ahead of it, unless it stamps messages itself: `ecg-worker check` looks for that."""
    cluster = await Cluster(kafka).create(1)
    now, now_ns = time.time, time.time_ns
    async with running(cluster.pipeline()) as p:
        await until(lambda: p.ready() == [], 60)
        for part, jump_s in enumerate((0.0, 6 * HOUR_S, -6 * HOUR_S, 100 * HOUR_S)):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now() + jump_s)
            monkeypatch.setattr(time, "time_ns", lambda jump_s=jump_s: now_ns() + int(jump_s * 1e9))
            at = 5000 * part
            chunks = [message(L, first, X[:, first : first + 1000]) for first in range(at, at + 5000, 1000)]
            await cluster.send(chunks, 1)
            await until(lambda part=part: p.publisher.published == part + 1, 60)  # type: ignore[misc]
            assert p.ready() == []
            assert p.live() == []
    found = await cluster.read(cluster.findings)
    assert [(x["first_sample"], x["kind"], x["closed"]) for x in found] == [(5000 * n, "scored", None) for n in range(4)]
    assert (await cluster.audit()).consistent


async def test_a_device_whose_clock_jumps_begins_another_run_and_is_not_late_for_ever() -> None:
    from stream_worker.devices.encode import encode_chunk

    log = MemoryLog(TOPICS)
    for start_ns in (1_700_000_000_000_000_000, 1_600_000_000_000_000_000, 1_800_000_000_000_000_000):
        for at in range(0, 5000, 1000):
            log.append(
                "ecg.chunks", b"s", encode_chunk("s", "1", start_ns, L, at, X[:, at : at + 1000], False), timestamp_ms=at
            )
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 3)
    assert [(x["kind"], x["first_sample"]) for x in published(log)] == [("scored", 0)] * 3
    assert len({x["session_start_ns"] for x in published(log)}) == 3
    assert published(log, "ecg.dead-letters") == []
