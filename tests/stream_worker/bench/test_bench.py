"""`ecg-worker bench`: its load is what it says, its sums are right, its figures come from a real worker on a real Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from numpy.typing import NDArray

from encoders.base import Floats, Scored
from stream_worker.bench import through_kafka
from stream_worker.bench.process import BenchFailed, worker_process
from stream_worker.bench.report import Capacity, Carried, draw, latency_table, streams_table
from stream_worker.bench.stages import LANES, Cost, Stages, measure_stages
from stream_worker.bench.through_kafka import Latency, Saturated, latency, saturate
from stream_worker.bench.traffic import Sent, backlog, play, real_time
from stream_worker.records import Window
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.seam import OnPartitions
from stream_worker.settings import Settings
from stream_worker.window import Windower
from stream_worker.wire import Decoder
from tests.processes import World
from tests.support import ProjectionEncoder, bank

TWELVE, ONE = LANES[0], LANES[-1]
STAGES = Stages(Cost(0.0001, 0.0001), Cost(0.002, 0.002), Cost(0.006, 0.003), None, Cost(0.009, 0.005))
WHOLE = replace(STAGES, fused=Cost(0.007, 0.004))


def test_streams_in_real_time_close_as_many_windows_in_every_second() -> None:
    decode, windower, closed = Decoder(), Windower(0, Rules()), Counter[int]()
    for offset, (key, value, at) in enumerate(real_time(ONE, 3, 12)):
        for event in windower.push(decode(key, value), offset, max(0, int(at * 1000))):
            assert isinstance(event, Window)
            closed[int(at)] += 1
    assert [closed[second] for second in range(1, 12)] == [3] * 11


def test_a_backlog_holds_the_windows_asked_for() -> None:
    decode, windower = Decoder(), Windower(0, Rules())
    log = list(backlog(TWELVE, 20, 4))
    assert sum(len(windower.push(decode(key, value), i, 0)) for i, (key, value, _) in enumerate(log)) == 20
    assert len({key for key, _, _ in log}) == 4


async def test_the_sender_keeps_the_time_and_the_order() -> None:
    handed: list[tuple[float, bytes]] = []

    class Producer:
        async def send(self, topic: str, messages: list[tuple[bytes, bytes]]) -> None:
            handed.extend((asyncio.get_running_loop().time(), value) for _, value in messages)

    sent = Sent()
    messages = [(b"s", b"0", -1.0), (b"s", b"1", 0.0), (b"t", b"2", 0.1), (b"s", b"3", 0.3)]
    await play(iter(messages), Producer(), "topic", sent)  # type: ignore[arg-type]
    assert [value for _, value in handed] == [b"0", b"1", b"2", b"3"]
    assert handed[3][0] - handed[1][0] >= 0.29
    assert sent.at("s", 0) is None, "what was there before the clock started has no time"
    assert sent.at("s", 2) == pytest.approx(handed[3][0], abs=0.05)
    assert sent.begun() == sent.at("s", 1)


def test_each_stage_costs_something_and_the_scorer_at_least_its_parts() -> None:
    encoder = ProjectionEncoder()
    found = measure_stages(ONE, Scorer(encoder, bank(encoder)), 8)
    for cost in (found.decode, found.prepare, found.engine, found.score):
        assert 0 < cost.cpu_s < 1
        assert 0 < cost.wall_s < 1
    assert found.score.wall_s > found.prepare.wall_s * 0.5
    assert found.fused is None, "a projection takes prepared windows only"
    assert found.scoring is found.engine


class WholeProjection(ProjectionEncoder):
    """Takes counts at one rate. given: (windows, leads) of each call."""

    def __init__(self, fs_mhz: int) -> None:
        super().__init__()
        self.fs_mhz, self.given = fs_mhz, list[tuple[int, int]]()

    def serves(self, fs_mhz: int) -> bool:
        return fs_mhz == self.fs_mhz

    def score(self, fs_mhz: int, counts: NDArray[np.int16], mix: Floats, least: Floats, labels: Floats, bias: Floats) -> Scored:
        assert (fs_mhz, mix.shape, least.shape) == (self.fs_mhz, (len(counts), 12, counts.shape[1]), (len(counts), 1, 1))
        self.given.append((len(counts), counts.shape[1]))
        embedding = self.encode(np.asarray(mix @ counts, dtype=np.float32)[:, :, :1].repeat(5000, axis=2))
        return Scored(embedding, embedding @ labels.T + bias, counts[:, :, :1000].astype(np.float32))


def test_the_fused_graph_is_a_stage_where_it_serves_the_rate() -> None:
    encoder = WholeProjection(ONE.fs_mhz)
    scorer = Scorer(encoder, bank(encoder))
    found = measure_stages(ONE, scorer, 32)
    assert found.fused is not None
    assert found.scoring is found.fused
    assert {leads for _, leads in encoder.given} == {1}
    assert max(windows for windows, _ in encoder.given) == 32, "as many at once as the worker gives it"
    assert measure_stages(TWELVE, scorer, 32).fused is None, "another rate"


def _capacity(*carried: Carried, latencies: tuple[Latency, ...] = ()) -> Capacity:
    return Capacity(2, "onnxruntime", "ab" * 8, 10_000, 32, 100, 500, carried, latencies)


def test_streams_follow_from_the_rate_and_the_limit_from_the_cost() -> None:
    alone = Carried(TWELVE, STAGES)
    assert alone.windows_per_s == pytest.approx(200)
    assert alone.streams(10_000) == 2000
    assert alone.streams(5_000) == 1000
    assert alone.limit == "engine"
    assert "client" not in alone.parts()
    through = Carried(TWELVE, STAGES, Saturated(150.0, 0.002, 3.0, 210.0))
    assert through.streams(10_000) == 1500
    assert through.parts() == pytest.approx({"client": 0.02, "decode": 0.001, "prepare": 0.002, "engine": 0.006})
    assert through.limit == "client"


def test_the_engine_is_the_fused_graph_where_it_serves() -> None:
    whole = Carried(TWELVE, WHOLE)
    assert whole.parts() == pytest.approx({"decode": 0.001, "prepare": 0.002, "engine": 0.007})
    lanes = _capacity(Carried(TWELVE, STAGES), whole).as_json()["lanes"]
    assert [lane["fused_windows_per_s"] for lane in lanes] == [None, 250.0]
    assert [lane["engine_windows_per_s"] for lane in lanes] == [333.3, 333.3]


def test_what_is_allowed_is_deadline_three_batches_and_a_commit() -> None:
    found = Latency("exactly_once", 100.0, 0.3, 0.6, 0.05, 0.01, 0.0, 0)
    told = _capacity(Carried(TWELVE, STAGES), latencies=(found,))
    assert told.allowed_s(found) == pytest.approx(0.1 + 0.5 + 0.15)
    as_json = json.loads(json.dumps(told.as_json()))
    assert as_json["latency"][0]["allowed_s"] == pytest.approx(0.75)
    assert as_json["latency"][0]["p50_waiting_s"] == pytest.approx(0.3 - 0.06)
    assert as_json["latency"][0]["p99_waiting_s"] == pytest.approx(0.6 - 0.06), "the parts add up to the whole"
    assert as_json["lanes"][0]["streams"] == 2000
    assert as_json["lanes"][0]["through_kafka"] is False
    assert streams_table(told).row_count == 1
    rows = {str(column.header): list(column.cells) for column in latency_table(told).columns}
    assert [rows[name] for name in ("p99", "scoring", "publishing", "waiting, p99")] == [
        ["600 ms"],
        ["50 ms"],
        ["10 ms"],
        ["540 ms"],
    ]


def test_the_picture_is_drawn_with_and_without_kafka(tmp_path: Path) -> None:
    rates = tuple(Latency("exactly_once", 50.0 * i, 0.3, 0.6, 0.05, 0.01, 0.0, 0) for i in (1, 2, 3))
    draw(_capacity(Carried(TWELVE, STAGES), latencies=rates), tmp_path / "a.png")
    draw(_capacity(Carried(TWELVE, STAGES)), tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()


async def test_the_client_s_cost_is_that_of_the_client_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, str]] = []

    class Full:
        def __init__(self, settings: Settings) -> None:
            used.append((settings.client, settings.group))
            self.sought = False

        async def start(self, assigned: OnPartitions, revoked: OnPartitions) -> None:
            await assigned(frozenset({0}))

        def seek(self, partition: int, offset: int) -> None:
            self.sought = (partition, offset) == (0, 0)

        async def poll(self, timeout_ms: int, max_records: int) -> dict[int, list[int]]:
            until = time.process_time() + 0.005
            while time.process_time() < until:
                pass
            return {0: [0] * 10} if self.sought else {}

        async def stop(self) -> None:
            used.append(("stopped", ""))

    monkeypatch.setattr(through_kafka, "kafka_broker", Full)
    cost = await through_kafka._client_cost(Settings(client="confluent", group="mine", _env_file=None), 100)
    assert cost == pytest.approx(0.0005, rel=0.5)
    assert used == [("confluent", "mine.client"), ("stopped", "")]


async def test_a_worker_through_kafka_and_nothing_is_left_behind(kafka: str) -> None:
    settings = Settings(kafka=kafka, _env_file=None)
    most = await saturate(settings, ONE, 100)
    assert most.windows_per_s > 1
    assert 0 < most.client_s < 0.1
    assert 0 < most.first_s < 60
    assert most.rss_mb is None or 50 < most.rss_mb < 2000
    found = await latency(settings, ONE, 2, 8, "at_least_once")
    assert found.missing == 0
    assert 0 < found.p50_s <= found.p99_s < 10
    assert 0 < found.scoring_s < 5
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        left = [name for name in await admin.list_topics() if name.startswith("ecg-bench-")]
    finally:
        await admin.close()
    assert left == []


async def test_a_worker_that_does_not_start_is_said_with_its_last_words() -> None:
    settings = Settings(kafka="127.0.0.1:1", outage_limit_s=0.5, _env_file=None)
    with pytest.raises(BenchFailed, match=r"127\.0\.0\.1:1"):
        async with worker_process(settings) as worker:
            await worker.ready()


def test_without_kafka_the_stages_are_measured_and_it_says_so() -> None:
    world = World("127.0.0.1:1", ECG_OUTAGE_LIMIT_S="0.5")
    done = world.command("bench", "--json", timeout=250)
    assert "not measured through Kafka" in done.stderr
    told = json.loads(done.stdout)
    assert [lane["lane"] for lane in told["lanes"]] == [lane.name for lane in LANES]
    assert all(lane["streams"] > 0 and lane["limit"] == "engine" for lane in told["lanes"])
    assert all(lane["fused_windows_per_s"] > 0 for lane in told["lanes"])
    assert told["latency"] == []


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path: Path) -> None:
    done = World("127.0.0.1:1").command("bench", "--plot", str(tmp_path / "no" / "x.png"), check=False)
    assert done.returncode == 1
    assert "there is no folder" in done.stderr
