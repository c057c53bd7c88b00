"""A record, a window, an engine that makes our own code raise: what it costs, and whom."""

from __future__ import annotations

import asyncio
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.base import DeviceLost
from stream_worker.audit.source import MemorySource
from stream_worker.audit.time_range import examine
from stream_worker.devices.simulator import fleet
from stream_worker.memory_broker import MemoryLog
from stream_worker.records import Chunk
from stream_worker.window import Windower
from stream_worker.wire import Decoder, schema
from tests.stream_worker.test_pipeline import TOPICS, X, committed, pipeline, published, running, settings, until
from tests.support import ProjectionEncoder, layout, message

L = layout()
POISON = 7_500  # first sample of the chunk of stream "p" that is not digested


def fed(partitions: int = 2) -> MemoryLog:
    """Six orderly streams, one that falls silent, and "p"; then time goes on until all are closed."""
    log = MemoryLog(dict.fromkeys(TOPICS, partitions))
    at = 0
    for key, value, second in fleet(6, 42, chunk_ms=500, seed=3):
        log.append("ecg.chunks", key, value, timestamp_ms=int(1000 * second))
        if key == b"sim-00000":
            if second < 7:
                log.append("ecg.chunks", *message(L, at, X[:, at : at + 250], "silent"), timestamp_ms=int(1000 * second))
            log.append("ecg.chunks", *message(L, at, X[:, at : at + 250], "p"), timestamp_ms=int(1000 * second))
            at += 250
    for number in range(partitions):
        log.append_to("ecg.chunks", number, b"x", b"", timestamp_ms=100_000)
    return log


def spoil(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    decode, place, conclude = Decoder.__call__, Windower._accept, Windower._conclude

    def bad_decode(self: Decoder, key: bytes | None, value: bytes | None) -> Chunk:
        chunk = decode(self, key, value)
        if key == b"p" and chunk.first == POISON:
            raise ZeroDivisionError("a defect of ours")
        return chunk

    def bad_accept(self: Windower, run: Any, end: int, offset: int) -> None:
        place(self, run, end, offset)  # it raises when half is done
        if run.key[0] == "p" and end == POISON + 250:
            raise ZeroDivisionError("a defect of ours")

    def bad_end(self: Windower, run: Any, why: str, events: Any) -> None:
        if run.key[0] == "p":
            raise ZeroDivisionError("a defect of ours")
        conclude(self, run, why, events)

    target, name, bad = {
        "decode": (Decoder, "__call__", bad_decode),
        "windower": (Windower, "_accept", bad_accept),
        "end": (Windower, "_conclude", bad_end),
    }[where]
    monkeypatch.setattr(target, name, bad)


async def worked(log: MemoryLog, stops: int = 1) -> None:
    for part in range(stops):
        async with running(pipeline(log)) as p:
            if part < stops - 1:
                await until(lambda: p.ready() == [])
                await asyncio.sleep(0.1)
            else:
                await until(lambda: committed(log) == {n: log.bounds("ecg.chunks", n)[1] for n in range(2)})


@pytest.mark.parametrize("stops", [1, 3])
@pytest.mark.parametrize("where", ["decode", "windower", "end"])
async def test_a_chunk_that_our_code_fails_on_is_refused_and_harms_no_other_stream(
    where: str, stops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, log = fed(), fed()
    await worked(truth)
    spoil(monkeypatch, where)
    await worked(log, stops)
    others = [sorted(x["id"] for x in published(one) if x["stream"] != "p") for one in (truth, log)]
    assert others[0] == others[1]
    letters = [x for x in published(log, "ecg.dead-letters") if x["reason"] != "empty"]
    late = 9 if where == "windower" else 0  # the run begins anew at its next grid point
    assert [x["reason"] for x in letters] == ([] if where == "end" else ["defect"]) + ["late"] * late
    mine = sorted((x for x in published(log) if x["stream"] == "p"), key=lambda x: x["input"]["last"])
    for body in mine:
        jsonschema.validate(body, schema("finding"))
    for letter in letters:
        jsonschema.validate(letter, schema("dead-letter"))
    told = {"decode": None, "windower": "defect", "end": "defect"}[where]
    assert [x["closed"] for x in mine if x["closed"]] == ([told, "idle"] if where == "windower" else [told or "idle"])
    assert mine[-1]["next"] >= (20_000 if where != "end" else 15_000)  # it went on after the chunk
    slots = [(x["first_sample"], x["kind"] != "closed") for x in mine]  # a closing comes before what begins there
    assert slots == sorted(set(slots))
    assert (await examine(MemorySource(log), settings())).counts.items() >= {"missing": 0, "doubled": 0}.items()
    assert (await examine(MemorySource(log), settings())).consistent


async def test_an_audit_by_code_that_does_not_fail_takes_the_workers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    log = fed()
    with monkeypatch.context() as patched:
        spoil(patched, "windower")
        await worked(log)
    report = await examine(MemorySource(log), settings())
    assert report.consistent, list(report.items())


SPIKE = 8.0


class Picky(ProjectionEncoder):
    """Fails on any batch that holds a window with a spike in lead I."""

    calls, dead = 0, False

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        if self.dead or (np.abs(x[:, 0]).max(axis=1) > SPIKE).any():
            raise RuntimeError("the engine does not like this")
        return super().encode(x)


async def test_a_window_that_the_engine_fails_on_is_a_finding_and_its_batch_is_scored() -> None:
    log, encoder = MemoryLog(TOPICS), Picky()
    for stream in range(64):
        samples = X[:, :5000].copy()
        if stream == 17:
            samples[:, 2490:2510] = 30_000
        log.append("ecg.chunks", *message(L, 0, samples, f"s{stream}"))
    async with running(pipeline(log, encoder, batch_size=64, batch_deadline_ms=300)):
        await until(lambda: len(published(log)) == 64)
    assert {x["stream"]: x["reason"] for x in published(log) if x["kind"] == "unscorable"} == {"s17": "engine"}
    for body in published(log):
        jsonschema.validate(body, schema("finding"))
    assert encoder.calls <= 2 * 2 * 7  # halved, not tried one by one


async def test_an_engine_that_fails_for_every_window_ends_the_worker_and_gives_no_verdict() -> None:
    log, encoder = MemoryLog(TOPICS), Picky()
    encoder.dead = True
    for stream in range(8):
        log.append("ecg.chunks", *message(L, 0, X[:, :5000], f"s{stream}"))
    with pytest.raises(RuntimeError, match="does not like"):
        async with asyncio.timeout(20):
            await pipeline(log, encoder).run()
    assert published(log) == []
    encoder.dead = False
    async with running(pipeline(log, encoder)):
        await until(lambda: len(published(log)) == 8)
    assert {x["kind"] for x in published(log)} == {"scored"}


class Lost(ProjectionEncoder):
    """Of its engines only the one for prepared windows still answers: the others run elsewhere on a device that is gone."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def serves(self, fs_mhz: int) -> bool:
        if self.at == "serves":
            raise DeviceLost("cudaMalloc: 700")
        return True

    def score(self, *_: Any) -> Any:
        raise DeviceLost("cudaStreamSynchronize: 700")


@pytest.mark.parametrize("at", ["serves", "score"])
async def test_a_device_that_is_lost_for_counts_ends_the_worker_and_gives_no_verdict(at: str) -> None:
    log = MemoryLog(TOPICS)
    for stream in range(8):
        log.append("ecg.chunks", *message(L, 0, X[:, :5000], f"s{stream}"))
    with pytest.raises(DeviceLost, match="700"):
        async with asyncio.timeout(20):
            await pipeline(log, Lost(at)).run()
    assert published(log) == []
