"""From a real Kafka: the windows that a real worker scored, cut again from the chunks, reviewed, prepared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from encoders.recordings import read_recording
from encoders.signal import Layout
from stream_worker.devices.encode import encode_chunk
from stream_worker.kafka.admin import create_topics
from stream_worker.proto import ecg_chunk_pb2
from stream_worker.seam import TopicState
from tests.processes import World
from training.__main__ import app
from training.collect.choose import Rule
from training.collect.chunk_wire import ChunkError, decode, message_class
from training.collect.windows import CollectError, collect
from training.data.prepare import prepare
from training.sources.folders import read_source
from training.vocabulary import Statement


def test_the_schema_is_the_workers() -> None:
    for name in ("Layout", "ChunkRecord"):
        ours, theirs = message_class(name).DESCRIPTOR, getattr(ecg_chunk_pb2, name).DESCRIPTOR
        assert {f.name: (f.number, f.is_repeated) for f in ours.fields} == {
            f.name: (f.number, f.is_repeated) for f in theirs.fields
        }
        for field in theirs.fields:
            if field.enum_type is None:
                assert ours.fields_by_name[field.name].type == field.type, field.name


def test_a_chunk_comes_back_as_it_was_sent() -> None:
    layout = Layout.of(250_000, ["I", "II"], [200.0, 100.0], [10.0], "NU")
    samples = np.arange(20, dtype=np.int16).reshape(2, 10)
    value = encode_chunk("s", "t", 5, layout, 77, samples)
    chunk = decode(value)
    assert chunk.run == ("s", "t", 5, layout.digest)
    assert chunk.first == 77
    assert np.array_equal(chunk.samples, samples)
    message = ecg_chunk_pb2.Chunk.FromString(value)
    message.order, message.samples = ecg_chunk_pb2.INTERLEAVED, samples.T.tobytes()
    assert np.array_equal(decode(message.SerializeToString()).samples, samples)
    for wrong in (b"\xff\xff", value[:-3], b""):
        with pytest.raises(ChunkError):
            decode(wrong)


class Scored:
    """A recording that went through Kafka and the worker."""

    def __init__(self, world: World, record: Path, findings: list[dict[str, Any]]) -> None:
        self.world, self.record, self.findings = world, record, findings

    def collect(self, out: Path, rule: Rule, findings: str = "", **more: Any) -> Any:
        env = self.world.env
        topic = findings or env["ECG_FINDINGS_TOPIC"]
        return asyncio.run(collect(env["ECG_KAFKA"], topic, env["ECG_CHUNKS_TOPIC"], out, rule, **more))

    def produce(self, topic: str, values: list[bytes]) -> None:
        """Into a new topic of one partition."""

        async def send() -> None:
            await create_topics(self.world.env["ECG_KAFKA"], [TopicState(topic, 1, 1, {})])
            async with AIOKafkaProducer(bootstrap_servers=self.world.env["ECG_KAFKA"]) as producer:
                for value in values:
                    await producer.send_and_wait(topic, value, b"p1")

        asyncio.run(send())


@pytest.fixture(scope="module")
def scored(services: Any, shared: Path) -> Scored:
    world = World(services.kafka)
    record = shared / "ecg" / "long" / "af" / "data_92_12"  # 48.9 s, 200 Hz
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.wait_ready()
        for stream in ("p1", "p2"):
            world.command(
                "publish", str(record), "--stream-id", stream, "--session-id", "1", "--speed", "0", "--chunk-ms", "700"
            )
        worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 10)
        assert worker.stop() == 0
    findings = [f for f in world.findings() if f["kind"] == "scored"]
    assert len(findings) == 10
    return Scored(world, record, findings)


def test_every_window_is_what_the_worker_scored(scored: Scored, tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    told: list[int] = []
    made = scored.collect(tmp_path / "got", Rule(share=1.0), advance=told.append)
    assert (made.matched, made.written, made.missing, sum(told)) == (10, 10, (), 10)
    rows = {r["id"]: r for r in pq.read_table(tmp_path / "got" / "collected-00000.parquet").to_pylist()}
    whole = read_recording(scored.record)
    for f in scored.findings:
        row = rows[f["id"]]
        expected = whole.samples[:, f["first_sample"] : f["first_sample"] + f["samples"]]
        assert np.array_equal(np.frombuffer(row["samples"], "<i2").reshape(2, -1), expected)
        assert json.loads(row["finding"]) == f
        assert row["leads"] == ["I", "II"]
        assert row["why"] == "share 1"
    table = tmp_path / "got" / "labels.csv"  # what a reviewer writes
    reviewed = [f"{f['id']},{'AFIB' if f['first_sample'] == 4000 else 'SR'}" for f in scored.findings]
    table.write_text("record,labels\n" + "\n".join(reviewed) + "\n")
    source = read_source(tmp_path / "got", vocabulary)
    assert {r.patient for r in source.records} == {"got:p1", "got:p2"}  # the stream
    manifest = prepare([source], tmp_path / "data")
    index = pq.read_table(tmp_path / "data" / "index.parquet").to_pylist()
    left = [entry["reason"] for entry in manifest["skipped"]]
    assert len(index) + len(left) == 10
    assert all(reason.startswith("same signal as got/") for reason in left)  # two streams of one recording
    assert {r["fs"] for r in index} == {200.0}
    assert "AFIB" in manifest["positives"]


def test_a_limit_and_labels(scored: Scored, tmp_path: Path) -> None:
    assert scored.collect(tmp_path / "few", Rule(share=1.0), limit=3).written == 3
    positive = sorted({x["id"] for f in scored.findings for x in f["labels"] if x["positive"]})
    stated = [f for f in scored.findings if any(x["id"] == positive[0] and x["positive"] for x in f["labels"])]
    assert scored.collect(tmp_path / "some", Rule(frozenset(positive[:1]))).written == len(stated)
    with pytest.raises(CollectError, match=r"none of \d+ findings in .* is chosen by the rule"):
        scored.collect(tmp_path / "none", Rule(frozenset({"NOT_A_LABEL"})))
    assert not (tmp_path / "none").exists()
    with pytest.raises(CollectError, match="few is not empty"):
        scored.collect(tmp_path / "few", Rule(share=1.0))


def test_what_cannot_be_rebuilt_is_listed_never_written(scored: Scored, tmp_path: Path) -> None:
    wrong = {**scored.findings[0], "id": "1" * 32, "window_digest": "0" * 64}
    later = {**scored.findings[0], "id": "2" * 32, "input": {**wrong["input"], "first": 10**6, "last": 10**6 + 5}}
    elsewhere = {**scored.findings[0], "id": "3" * 32, "input": {**wrong["input"], "partition": 7}}
    topic = scored.world.env["ECG_FINDINGS_TOPIC"] + "-made"
    scored.produce(topic, [*(json.dumps(body).encode() for body in (wrong, later, elsewhere)), b"no JSON"])
    made = scored.collect(tmp_path / "got", Rule(share=1.0), topic)
    assert (made.matched, made.written) == (3, 0)
    reasons = dict(made.missing)
    assert "differ from those that were scored" in reasons[wrong["id"]]
    assert "gave no record up to offset 1000005" in reasons[later["id"]]
    assert "has no partition 7" in reasons[elsewhere["id"]]
    assert json.loads((tmp_path / "got" / "collect.json").read_text())["missing"]


def test_the_command(scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("ECG_KAFKA", "ECG_FINDINGS_TOPIC", "ECG_CHUNKS_TOPIC"):
        monkeypatch.setenv(key, scored.world.env[key])
    done = CliRunner().invoke(app, ["collect", "--out", str(tmp_path / "a"), "--share", "1", "--limit", "2"])
    assert done.exit_code == 0, done.output
    assert "2 windows of" in done.output
    assert "nothing would be chosen" in CliRunner().invoke(app, ["collect", "--out", str(tmp_path / "b")]).output
    wrong = CliRunner().invoke(app, ["collect", "--out", str(tmp_path / "b"), "--share", "1", "--findings", "none"])
    assert "topic none does not exist" in wrong.output
    gone = CliRunner().invoke(app, ["collect", "--out", str(tmp_path / "b"), "--share", "1", "--kafka", "127.0.0.1:1"])
    assert gone.exit_code == 2
    assert "does not answer" in gone.output
    secret = ["collect", "--out", str(tmp_path / "b"), "--share", "1", "--protocol", "SASL_SSL"]
    assert "SASL_SSL needs a user name and a password" in CliRunner().invoke(app, secret).output
