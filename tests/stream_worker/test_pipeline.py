"""The stages over a log in this process: order of publish and commit, restarts, bad input, outages, back-pressure."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from encoders.signal import LEADS
from stream_worker.devices.simulator import fleet
from stream_worker.errors import BrokerUnavailable
from stream_worker.labels import FixedBank
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.publisher import Deadline
from stream_worker.score import Scorer
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from stream_worker.wire import schema
from tests.stream_worker.bad_messages import refused
from tests.support import ProjectionEncoder, bank, layout, message, signal

TOPICS = {"ecg.chunks": 2, "ecg.findings": 2, "ecg.dead-letters": 2}
L = layout()
X = signal(L, 60_000)


def settings(**changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "start": "earliest",
        "commit_interval_ms": 50,
        "batch_deadline_ms": 5,
        "shed_after_s": 1e9,
        "_env_file": None,
    }
    return Settings(**(fields | changes))


def pipeline(log: MemoryLog, encoder: ProjectionEncoder | None = None, labels: Any = None, **changes: Any) -> Pipeline:
    encoder = encoder or ProjectionEncoder()
    labels = labels or FixedBank(bank(encoder))
    return Pipeline(MemoryBroker(log), lambda: Scorer(encoder, labels.bank), settings(**changes), Metrics(), labels)


@asynccontextmanager
async def running(p: Pipeline) -> AsyncIterator[Pipeline]:
    task = asyncio.create_task(p.run())
    try:
        yield p
    finally:
        p.stop()
        await task


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come to pass in time"
        await asyncio.sleep(0.01)


def published(log: MemoryLog, topic: str = "ecg.findings") -> list[dict[str, Any]]:
    return [json.loads(r.value or b"") for p in range(2) for r, _ in log.read(topic, p, 0)]


def send(log: MemoryLog, first: int, end: int, stream: str = "s", last: bool = False, ts: int | None = None) -> None:
    log.append("ecg.chunks", *message(L, first, X[:, first:end], stream, last=last), timestamp_ms=ts)


def committed(log: MemoryLog) -> dict[int, int]:
    return {p: position.offset for (_, _, p), position in log.commits.items()}


async def test_findings_carry_cloudevents_headers_and_keep_key_and_partition() -> None:
    log = MemoryLog(TOPICS)
    for stream in ("a", "b", "c", "d"):
        send(log, 0, 5000, stream)
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 4)
    for p in range(2):
        streams = {r.key for r, _ in log.read("ecg.chunks", p, 0)}
        for record, headers in log.read("ecg.findings", p, 0):
            body, named = json.loads(record.value or b""), dict(headers)
            jsonschema.validate(body, schema("finding"))
            assert record.key == body["stream"].encode()
            assert record.key in streams
            assert named["ce_id"] == body["id"].encode()
            assert named["ce_time"] == body["time"].encode()
            assert named["ce_type"] == b"ecg.finding.scored.v1"


async def test_bad_input_becomes_dead_letters_and_harms_nobody() -> None:
    log = MemoryLog(TOPICS)
    send(log, 0, 2500)
    bad = [(b"s", b"\xff\xffnoise"), (b"s", b""), (b"s", None), (b"t", message(L, 0, X[:, :100])[1]), (b"s", b"\0" * 2_000_000)]
    for key, value in bad:
        log.append("ecg.chunks", key, value)
    send(log, 0, 2500)  # a duplicate, ignored
    log.append("ecg.chunks", *message(L, 100_000, X[:, :100]))  # an index jump
    send(log, 2500, 5000)
    async with running(pipeline(log)) as p:
        await until(lambda: len(published(log)) == 1 and len(published(log, "ecg.dead-letters")) == 6)
        assert p.ready() == []
    letters = published(log, "ecg.dead-letters")
    for letter in letters:
        jsonschema.validate(letter, schema("dead-letter"))
    assert sorted(x["reason"] for x in letters) == ["empty", "empty", "index_jump", "key_mismatch", "oversize", "schema"]
    assert published(log)[0]["kind"] == "scored"
    ends = {n: log.bounds("ecg.chunks", n)[1] for n in range(2)}
    assert committed(log) == ends


async def test_every_kind_of_bad_message_between_good_ones_is_a_dead_letter_and_nothing_else() -> None:
    log, bad = MemoryLog(TOPICS), refused()
    for code, key, value in bad:
        log.append("ecg.chunks", key, value)
        log.append("ecg.chunks", *message(L, 0, X[:, :500], f"beside {code}"))
    for first in range(500, 5000, 500):
        for code in {code for code, _, _ in bad}:
            log.append("ecg.chunks", *message(L, first, X[:, first : first + 500], f"beside {code}"))
    async with running(pipeline(log)) as p:
        await until(lambda: len(published(log)) == len({code for code, _, _ in bad}))
        assert p.ready() == []
    letters = published(log, "ecg.dead-letters")
    assert Counter(x["reason"] for x in letters) == Counter(code for code, _, _ in bad)
    assert {(x["stream"], x["kind"]) for x in published(log)} == {(f"beside {code}", "scored") for code, _, _ in bad}
    assert committed(log) == {n: log.bounds("ecg.chunks", n)[1] for n in range(2)}


async def test_nothing_of_the_waveform_is_logged() -> None:
    log = MemoryLog(TOPICS)
    text = message(L, 0, X[:, :100])[1]
    log.append("ecg.chunks", b"other", text)
    log.append("ecg.chunks", b"s", text[:-7])
    with structlog.testing.capture_logs() as logs:
        async with running(pipeline(log)):
            await until(lambda: len(published(log, "ecg.dead-letters")) == 2)
    told = repr(logs) + repr(published(log, "ecg.dead-letters"))
    assert text[60:80].hex() not in told
    assert repr(text[60:80]) not in told


async def test_a_restart_goes_on_where_findings_end_and_invents_nothing() -> None:
    """The log is fed and read by a series of workers that stop at any point; one worker over the same log is the truth."""
    messages = list(fleet(6, 47, chunk_ms=500, drop=0.02, duplicate=0.05, reorder=0.05, seed=3))
    truth, log = MemoryLog(TOPICS), MemoryLog(TOPICS)
    for key, value, second in messages:
        truth.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
    async with running(pipeline(truth)) as p:
        await until(lambda: sum(committed(truth).values()) == len(messages) and p.publisher.published > 0)
    expected = {x["id"]: x["window_digest"] for x in published(truth) if "window_digest" in x}
    for part in range(9):
        for key, value, second in messages[len(messages) * part // 9 : len(messages) * (part + 1) // 9]:
            log.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
        async with running(pipeline(log)):
            await asyncio.sleep(0.05 * part)
    async with running(pipeline(log)):
        await until(lambda: sum(committed(log).values()) == len(messages))
    found = published(log)
    assert {x["id"]: x["window_digest"] for x in found if "window_digest" in x} == expected
    assert sorted(x["id"] for x in found) == sorted(x["id"] for x in published(truth))
    reasons = sorted((x["reason"], x["partition"], x["offset"]) for x in published(log, "ecg.dead-letters"))
    assert reasons == sorted((x["reason"], x["partition"], x["offset"]) for x in published(truth, "ecg.dead-letters"))


async def test_a_crash_between_publishing_and_committing_doubles_nothing_with_another_id() -> None:
    log = MemoryLog(TOPICS)
    for i in range(0, 12_000, 500):
        send(log, i, i + 500)
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 2)
    log.commits = {key: position._replace(offset=0, metadata="") for key, position in log.commits.items()}
    async with running(pipeline(log)) as p:
        await until(lambda: not p.ready())
        for i in range(12_000, 15_000, 500):
            send(log, i, i + 500)
        await until(lambda: len(published(log)) == 3)
    assert [x["first_sample"] for x in published(log)] == [0, 5000, 10_000]


async def test_a_first_position_is_committed_before_the_first_finding() -> None:
    log = MemoryLog(TOPICS)
    send(log, 0, 500)
    async with running(pipeline(log, start="latest")):
        await until(lambda: len(committed(log)) == 2)
    send(log, 0, 5000, "new")
    async with running(pipeline(log, start="latest")):
        await until(lambda: len(published(log)) == 1)


async def test_a_worker_that_dies_while_it_recovers_loses_nothing() -> None:
    """Between the commit and the first records read again nothing is known of the open windows: W must not move."""
    log = MemoryLog({name: 1 for name in TOPICS})
    for i in range(0, 4000, 500):
        send(log, i, i + 500)
    async with running(pipeline(log)):
        await until(lambda: any(position.metadata.startswith('{"v":1,"P":8') for position in log.commits.values()))
    for _ in range(3):
        broker = MemoryBroker(log)
        deaf = pipeline(log)
        deaf.broker = broker
        deaf.publisher._broker = broker
        polled = broker.poll

        async def late(timeout_ms: int, max_records: int, polled: Any = polled) -> Any:
            await asyncio.sleep(0.15)  # commits come sooner than the first records
            return {} if max_records else await polled(timeout_ms, max_records)

        broker.poll = late  # type: ignore[method-assign]
        async with running(deaf):
            await asyncio.sleep(0.3)
        assert committed(log) == {0: 0}
    send(log, 4000, 5000)
    async with running(pipeline(log)):
        await until(lambda: bool(log.read("ecg.findings", 0, 0)))
    (record, _), *more = log.read("ecg.findings", 0, 0)
    assert json.loads(record.value or b"")["kind"] == "scored"
    assert more == []


async def test_an_old_commit_of_a_coordinator_that_has_just_come_back_is_not_believed() -> None:
    """By its first commit a group would read everything again and refuse it as late."""
    log = MemoryLog({name: 1 for name in TOPICS})
    send(log, 0, 500)
    async with running(pipeline(log)):
        await until(lambda: bool(log.commits))
    old = next(iter(log.commits.values()))
    log.append("ecg.chunks", b"key", b"no chunk")
    for i in range(500, 12_000, 500):
        send(log, i, i + 500)
    async with running(pipeline(log)):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 2)
    letters = len(log.read("ecg.dead-letters", 0, 0))
    late = pipeline(log)
    told = late.broker.committed
    answers = [old, old]

    async def committed_of_before(partition: int) -> Any:
        return answers.pop() if answers else await told(partition)

    late.broker.committed = committed_of_before  # type: ignore[method-assign]
    async with running(late):
        await until(lambda: not late.ready() and not answers)
        send(log, 12_000, 15_000)
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 3)
    assert letters == 1
    assert len(log.read("ecg.dead-letters", 0, 0)) == letters


async def test_a_late_write_of_a_former_owner_moves_no_frontier_back() -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    for i in range(0, 12_000, 750):
        send(log, i, i + 750)
    async with running(pipeline(log)):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 2)
    record, headers = log.read("ecg.findings", 0, 0)[0]
    log.append_to("ecg.findings", 0, record.key, record.value, headers=headers)
    async with running(pipeline(log)) as p:
        await until(lambda: not p.ready())
        send(log, 12_000, 15_000)
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 4)
    bodies = [json.loads(r.value or b"") for r, _ in log.read("ecg.findings", 0, 0)]
    assert [(b["kind"], b["first_sample"]) for b in bodies] == [("scored", s) for s in (0, 5000, 0, 10_000)]


async def test_a_jump_refused_once_is_refused_when_it_is_read_again() -> None:
    """Stream a holds the commit below a chunk of b that lay 64.8 s ahead, and after the restart lies 59.8 s ahead."""
    log = MemoryLog(TOPICS)

    def put(stream: str, at: int, ts: int, n: int = 500) -> None:
        log.append_to("ecg.chunks", 0, *message(L, at, X[:, :n], stream), timestamp_ms=ts)

    put("b", 0, 1000, 2500)
    put("a", 0, 1000)
    put("b", 34_900, 1001)
    for at in range(2500, 6000, 500):
        put("b", at, 1000 + at)
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 1)
    for at in range(6000, 20_000, 500):
        put("b", at, 1000 + at)
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 4)
    assert [x["first_sample"] for x in published(log)] == [0, 5000, 10_000, 15_000]
    assert [x["reason"] for x in published(log, "ecg.dead-letters")] == ["index_jump"]


@pytest.mark.parametrize("spoil", [{"input": None}, {"next": "x"}, {"session_start_ns": "abc"}, {"layout": {}}, {"layout": 3}])
async def test_what_is_no_finding_in_the_findings_topic_stops_nobody(spoil: dict[str, Any]) -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    send(log, 0, 5000)
    async with running(pipeline(log)):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 1)
    body = json.loads(log.read("ecg.findings", 0, 0)[0][0].value or b"")
    log.append_to("ecg.findings", 0, b"s", json.dumps(body | spoil).encode())
    log.append_to("ecg.findings", 0, b"s", b"no json")
    send(log, 5000, 10_000)
    async with running(pipeline(log)):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 4)


async def test_a_log_made_anew_is_read_from_its_beginning() -> None:
    old, new = MemoryLog({name: 1 for name in TOPICS}), MemoryLog({name: 1 for name in TOPICS})
    for i in range(0, 4000, 100):
        send(old, i, i + 100)
    async with running(pipeline(old)):
        await until(lambda: any('"P":40' in position.metadata for position in old.commits.values()))
    new.commits = {key: position._replace(offset=40) for key, position in old.commits.items()}
    send(new, 0, 5000)
    new.append("ecg.chunks", b"s", b"noise")
    async with running(pipeline(new)):
        await until(lambda: bool(new.read("ecg.findings", 0, 0)) and bool(new.read("ecg.dead-letters", 0, 0)))
    assert committed(new) == {0: 2}


async def test_start_settings() -> None:
    assert Settings(_env_file=None).start == "latest"
    for start, count in (("earliest", 2), ("1970-01-01T00:00:50", 1), ("latest", 0)):
        log = MemoryLog(TOPICS)
        send(log, 0, 5000, ts=1_000)
        send(log, 10_000, 15_000, ts=60_000)
        with structlog.testing.capture_logs() as logs:
            async with running(pipeline(log, start=start)):
                await until(lambda log=log: sum(committed(log).values()) == 2)  # type: ignore[misc]
        told = [line for line in logs if line["event"] == "no committed offset"]
        assert [line["start"] for line in told] == [start] * len(told) != []
        scored = [x for x in published(log) if x["kind"] == "scored"]
        assert len(scored) == count, start


async def test_a_range_lost_to_retention_is_reported_and_reading_goes_on_at_the_earliest() -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    for i in range(0, 4000, 500):
        send(log, i, i + 500)
    async with running(pipeline(log)):
        await until(lambda: committed(log) != {})
    for i in range(4000, 12_000, 500):
        send(log, i, i + 500)
    log.trim("ecg.chunks", 0, 10)
    with structlog.testing.capture_logs() as logs:
        async with running(pipeline(log)) as p:
            await until(lambda: bool(log.read("ecg.dead-letters", 0, 0)))
            await until(lambda: bool(log.read("ecg.findings", 0, 0)))
    letter = json.loads(log.read("ecg.dead-letters", 0, 0)[0][0].value or b"")
    jsonschema.validate(letter, schema("dead-letter"))
    assert (letter["reason"], letter["offset"], letter["lost_until"]) == ("lost_range", 0, 10)
    assert p.metrics.registry.get_sample_value("ecg_lost_records_total") == 10
    assert any(entry["event"] == "records lost to retention before they were read" for entry in logs)
    bodies = [json.loads(r.value or b"") for r, _ in log.read("ecg.findings", 0, 0)]
    assert [(b["kind"], b["first_sample"]) for b in bodies] == [("scored", 5000)]  # samples 5000 and up were not lost


async def test_a_range_that_retention_takes_under_a_worker_is_reported_too() -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    async with running(pipeline(log)) as p:
        for i in range(0, 2000, 500):
            send(log, i, i + 500)
        await until(lambda: p.metrics.registry.get_sample_value("ecg_chunks_total") == 4)
        for i in range(2000, 10_000, 500):
            send(log, i, i + 500)
        log.trim("ecg.chunks", 0, 7)  # before the reader, which stands at 4, has its turn
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 2)
        assert p.ready() == []
    (letter,) = [json.loads(r.value or b"") for r, _ in log.read("ecg.dead-letters", 0, 0)]
    assert (letter["reason"], letter["offset"], letter["lost_until"]) == ("lost_range", 4, 7)
    assert p.metrics.registry.get_sample_value("ecg_lost_records_total") == 3
    bodies = [json.loads(r.value or b"") for r, _ in log.read("ecg.findings", 0, 0)]
    assert [(b["kind"], b["first_sample"]) for b in bodies] == [("unscorable", 0), ("scored", 5000)]
    assert (bodies[0]["reason"], bodies[0]["input"]["first"]) == ("gap", 0)


async def test_a_silent_stream_is_closed_when_another_record_shows_the_time() -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    send(log, 0, 7500, "quiet", ts=1_000)
    send(log, 0, 500, "other", ts=40_000)
    async with running(pipeline(log)):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 2)
    bodies = [json.loads(r.value or b"") for r, _ in log.read("ecg.findings", 0, 0)]
    assert [(b["kind"], b["closed"], b["first_sample"]) for b in bodies] == [("scored", None, 0), ("scored", "idle", 5000)]


async def test_a_reader_at_the_end_for_35_s_closes_silent_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog({name: 1 for name in TOPICS})
    send(log, 0, 7500, ts=1_000)
    encoder, jump = ProjectionEncoder(), [0.0]
    labels = FixedBank(bank(encoder))
    p = Pipeline(
        MemoryBroker(log),
        lambda: Scorer(encoder, bank(encoder)),
        settings(),
        Metrics(),
        labels,
        clock=lambda: time.monotonic() + jump[0],
    )
    async with running(p):
        await until(lambda: len(log.read("ecg.findings", 0, 0)) == 1)
        await asyncio.sleep(0.5)
        assert len(log.read("ecg.findings", 0, 0)) == 1
        jump[0] = 36.0  # a process that was stopped for 36 s was not at the end of the partition, it was away
        await asyncio.sleep(1.0)
        assert len(log.read("ecg.findings", 0, 0)) == 1
        while len(log.read("ecg.findings", 0, 0)) == 1:
            assert jump[0] < 36.0 + 120.0
            jump[0] += 1.0
            await asyncio.sleep(0.25)
        assert jump[0] > 36.0 + 25.0
    assert json.loads(log.read("ecg.findings", 0, 1)[0][0].value or b"")["closed"] == "idle"


async def test_labels_are_swapped_between_batches() -> None:
    log, encoder = MemoryLog(TOPICS), ProjectionEncoder()
    labels = FixedBank(bank(encoder, seed=1))
    send(log, 0, 5000)
    async with running(pipeline(log, encoder, labels)):
        await until(lambda: len(published(log)) == 1)
        labels.bank = other = bank(encoder, seed=2)
        send(log, 5000, 10_000)
        await until(lambda: len(published(log)) == 2)
    banks = [x["bank"] for x in published(log)]
    assert banks[0] != banks[1] == other.digest


async def test_an_outage_pauses_and_nothing_is_lost() -> None:
    log = MemoryLog(TOPICS)
    async with running(pipeline(log)) as p:
        await until(lambda: p.ready() == [])
        send(log, 0, 2500)
        log.available = False
        await until(lambda: p.ready() != [])
        assert p.ready() == ["kafka does not answer"]
        send(log, 2500, 5000)
        await asyncio.sleep(0.3)
        log.available = True
        await until(lambda: len(published(log)) == 1)
        assert p.ready() == []


async def test_an_outage_beyond_the_limit_ends_the_worker_with_a_clear_error() -> None:
    log = MemoryLog(TOPICS)
    p = pipeline(log, outage_limit_s=0.3)
    task = asyncio.create_task(p.run())
    await until(lambda: p.ready() == [])
    log.available = False
    with pytest.raises(BrokerUnavailable, match="has not answered for"):
        async with asyncio.timeout(20):
            await task


async def test_a_slow_encoder_pauses_reading_and_bounds_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_worker.pipeline.PATIENCE_S", 0.02)

    class Slow(ProjectionEncoder):
        def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            time.sleep(0.02)
            return super().encode(x)

    log = MemoryLog(TOPICS)
    depth, paused = [0], [0]
    p = pipeline(log, Slow(), queue_windows=8, batch_size=2)
    async with running(p):
        await until(lambda: p.ready() == [])
        for stream in range(200):
            for i in range(0, 10_000, 2500):
                send(log, i, i + 2500, f"s{stream}")
        while len(published(log)) < 400:
            await asyncio.sleep(0.005)
            depth[0] = max(depth[0], p.scoring.waiting)
            paused[0] += p._crowded
    assert paused[0] > 0
    assert depth[0] <= 2 * 8 + 64  # twice the limit, and one slice of 64 records
    for stream in range(200):
        mine = [x["first_sample"] for x in published(log) if x["stream"] == f"s{stream}"]
        assert mine == [0, 5000]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_worker_that_is_stopped_while_the_engine_stands_ends_in_order(delivery: str) -> None:
    class Standing(ProjectionEncoder):
        go = threading.Event()

        def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            assert self.go.wait(60)
            return super().encode(x)

    log, encoder = MemoryLog(TOPICS), Standing()
    send(log, 0, 5000)
    p = pipeline(log, encoder, drain_s=0.2, delivery=delivery)
    task = asyncio.create_task(p.run())
    await until(lambda: p.scoring.waiting == 1)
    began = time.monotonic()
    p.stop()
    await task  # neither raises nor takes as long as it likes
    assert time.monotonic() - began < 5
    assert published(log) == []
    encoder.go.set()
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 1)


async def test_a_flood_of_bad_records_is_bounded_too() -> None:
    log = MemoryLog(TOPICS)
    for i in range(3000):
        log.append("ecg.chunks", f"k{i % 7}".encode(), b"noise")
    depth = 0
    async with running(pipeline(log, queue_windows=64)) as p:
        while len(published(log, "ecg.dead-letters")) < 3000:
            depth = max(depth, p.scoring.waiting)
            await asyncio.sleep(0.005)
    assert depth <= 2 * 64 + 64  # twice the limit, and one slice of 64 records
    assert sum(committed(log).values()) == 3000


async def test_metrics_show_what_an_operator_needs() -> None:
    log = MemoryLog(TOPICS)
    send(log, 0, 7500)
    gap = X[:, :5000].copy()
    gap[:, 1000:2500] = -32768
    log.append("ecg.chunks", *message(L, 0, gap, "gappy"))
    log.append("ecg.chunks", *message(L, 0, X[:, :1000], "brief", last=True))  # 2 s, and no more
    log.append("ecg.chunks", b"gappy", b"no chunk")
    async with running(pipeline(log)) as p:
        await until(lambda: len(published(log)) == 3)
        await asyncio.sleep(1.2)
        text = p.metrics.text().decode()
    for name in (
        'ecg_lag_records{partition="0"} 0.0',
        'ecg_windows_total{outcome="scored"} 1.0',
        'ecg_windows_total{outcome="unscorable"} 1.0',
        'ecg_queue_depth{stage="score"} 0.0',
        'ecg_queue_depth{stage="publish"} 0.0',
        'ecg_windows_total{outcome="closed"} 1.0',
        "ecg_dropped_tails_total 1.0",
        'ecg_dead_letters_total{reason="schema"} 1.0',
        "ecg_open_runs 2.0",
        "ecg_oldest_unscored_seconds",
    ):
        assert name in text, name


async def test_12_leads_through_the_whole_chain() -> None:
    twelve = layout(leads=LEADS)
    x = signal(twelve, 5000)
    log = MemoryLog(TOPICS)
    log.append("ecg.chunks", *message(twelve, 0, x))
    async with running(pipeline(log)):
        await until(lambda: len(published(log)) == 1)
    assert published(log)[0]["lead_mask"] == 4095


def test_one_deadline_for_all_steps() -> None:
    now = [0.0]
    deadline = Deadline(5.0, lambda: now[0])
    now[0] = 3.0
    assert deadline.left() == 2.0
    now[0] = 9.0
    assert deadline.left() == 0.0


async def test_a_full_partition_lets_the_others_have_their_turn() -> None:
    log = MemoryLog(TOPICS)
    for partition, count in ((0, 640), (1, 64)):
        for _ in range(count):
            log.append_to("ecg.chunks", partition, b"key", b"no chunk")
    p, turns = pipeline(log), list[int]()
    submit = p.scoring.submit

    def seen(work: Any) -> None:
        turns.append(work.part.number)
        submit(work)

    p.scoring.submit = seen  # type: ignore[method-assign]
    async with running(p):
        await until(lambda: len(turns) == 11)
    assert turns.index(1) < 2
