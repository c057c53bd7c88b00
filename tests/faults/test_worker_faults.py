"""The worker process under kill -9, lost services and wrong labels, on a real Kafka and a real Redis."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.local import LocalServices
from encoders.artifact import Artifact
from encoders.bank import LabelBank
from stream_worker.devices.simulator import fleet
from stream_worker.kafka.clients import DeviceProducer
from stream_worker.labels import FixedBank, publish_bank
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.score import Scorer
from stream_worker.settings import load_settings
from stream_worker.telemetry import Metrics
from tests.processes import World


@pytest.fixture(scope="module")
def own() -> Iterator[LocalServices]:
    """Services that these tests may break."""
    with LocalServices() as started:
        yield started


@pytest.fixture(scope="module")
def shipped() -> Artifact:
    return Artifact.load(load_settings().artifact_dir())


def send(world: World, messages: Sequence[tuple[bytes, bytes]], pause_s: float = 0.0) -> None:
    async def publish() -> None:
        async with DeviceProducer(world.env["ECG_KAFKA"], {}) as producer:
            for at in range(0, len(messages), 12):
                await producer.send(world.env["ECG_CHUNKS_TOPIC"], messages[at : at + 12])
                await asyncio.sleep(pause_s)

    asyncio.run(publish())


def expected_ids(messages: Sequence[tuple[bytes, bytes]], shipped: Artifact, partitions: int) -> set[str]:
    """What one undisturbed worker publishes for these messages."""
    log = MemoryLog(dict.fromkeys(("ecg.chunks", "ecg.findings", "ecg.dead-letters"), partitions))
    for key, value in messages:
        log.append("ecg.chunks", key, value, timestamp_ms=0)

    async def run() -> None:
        with shipped.open() as encoder:
            bank = shipped.bank()
            settings = load_settings(start="earliest", commit_interval_ms=50, shed_after_s=3600)
            pipeline = Pipeline(MemoryBroker(log), lambda: Scorer(encoder, bank), settings, Metrics(), FixedBank(bank))
            task = asyncio.create_task(pipeline.run())
            while sum(position.offset for position in log.commits.values()) < len(messages):
                await asyncio.sleep(0.05)
            pipeline.stop()
            await task

    asyncio.run(run())
    return {json.loads(r.value or b"")["id"] for p in range(partitions) for r, _ in log.read("ecg.findings", p, 0)}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("client", ["aiokafka", "confluent"])
def test_kill_9_in_the_middle_of_12_streams_loses_no_finding(
    own: LocalServices, shipped: Artifact, client: str, delivery: str
) -> None:
    messages = [(key, value) for key, value, _ in fleet(12, 90, chunk_ms=1000, drop=0.01, duplicate=0.02, reorder=0.02, seed=5)]
    expected = expected_ids(messages, shipped, partitions=3)
    world = World(own.kafka, ECG_CLIENT=client, ECG_DELIVERY=delivery)
    world.command("topics", "--apply", "--partitions", "3")
    for part in range(4):
        with world.worker() as worker:
            worker.wait_ready()
            send(world, messages[len(messages) * part // 4 : len(messages) * (part + 1) // 4], pause_s=0.01)
            if part < 3:
                time.sleep(0.1 * part)
                assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
            else:
                worker.until(lambda: len(expected - {x["id"] for x in world.findings(quiet_s=1.0)}) == 0, 60)
                assert worker.stop() == 0
    found = [x["id"] for x in world.findings()]
    assert set(found) == expected  # none lost, none that an undisturbed worker would not publish
    assert delivery == "at_least_once" or len(found) == len(expected)


def test_a_worker_that_wakes_when_its_partitions_are_anothers_doubles_nothing(own: LocalServices, shipped: Artifact) -> None:
    """Stopped in the middle of its work, taken for dead, and gone on: it is fenced, starts over, and both share again."""
    messages = [(key, value) for key, value, _ in fleet(12, 60, drop=0.01, reorder=0.02, seed=11)]
    expected = expected_ids(messages, shipped, partitions=2)
    world = World(own.kafka, ECG_DELIVERY="exactly_once")
    world.command("topics", "--apply", "--partitions", "2")
    third = len(messages) // 3
    with world.worker() as one, world.worker() as two:
        one.wait_ready()
        two.until(lambda: two.get("/metrics")[1].count("ecg_lag_records{") == 1)
        send(world, messages[:third])
        one.process.send_signal(signal.SIGSTOP)
        send(world, messages[third : 2 * third])
        two.until(lambda: two.get("/metrics")[1].count("ecg_lag_records{") == 2, 90)  # it owns both
        one.process.send_signal(signal.SIGCONT)
        send(world, messages[2 * third :])
        two.until(lambda: {x["id"] for x in world.findings(quiet_s=1.0)} >= expected, 90)
        assert one.stop() == 0
        assert two.stop() == 0
    found = [x["id"] for x in world.findings()]
    assert sorted(found) == sorted(expected)


def test_workers_that_come_and_go_share_the_partitions_and_lose_nothing(own: LocalServices, shipped: Artifact) -> None:
    messages = [(key, value) for key, value, _ in fleet(12, 60, drop=0.01, reorder=0.02, seed=9)]
    expected = expected_ids(messages, shipped, partitions=4)
    world = World(own.kafka, ECG_COMMIT_INTERVAL_MS="60000")
    world.command("topics", "--apply", "--partitions", "4")
    third = len(messages) // 3
    with world.worker() as one:
        one.wait_ready()
        send(world, messages[:third], pause_s=0.01)
        one.until(lambda: one.metric("ecg_chunks_total") == third)
        world.env["ECG_COMMIT_INTERVAL_MS"] = "200"
        with world.worker() as two:
            two.wait_ready()
            two.until(lambda: two.get("/metrics")[1].count("ecg_lag_records{") == 2)  # it owns half
            kept = [len(json.loads(line)["kept"]) for line in one.log.splitlines() if "partitions assigned" in line]
            assert kept == [0, 2]  # the half that stayed was not read again
            out = {x["stream"] for x in world.findings(quiet_s=1.0) if x["first_sample"] == 0}
            assert len(out) == 12  # long before its next commit
            send(world, messages[third : 2 * third], pause_s=0.01)
            assert one.stop() == 0
            send(world, messages[2 * third :], pause_s=0.01)
            two.until(lambda: {x["id"] for x in world.findings(quiet_s=1.0)} >= expected)
            assert two.stop() == 0
    found = [x["id"] for x in world.findings()]
    assert set(found) == expected
    assert len(found) == len(expected)  # an orderly hand-over doubles nothing either


def test_a_broker_that_goes_and_comes_back(own: LocalServices, shipped: Artifact) -> None:
    messages = [(key, value) for key, value, _ in fleet(4, 40, seed=6)]
    expected = expected_ids(messages, shipped, partitions=2)
    world = World(own.kafka)
    world.command("topics", "--apply", "--partitions", "2")
    with world.worker() as worker:
        worker.wait_ready()
        send(world, messages[:80])
        own.stop_kafka()
        try:
            worker.until(lambda: worker.get("/readyz")[0] == 503, 30)
            assert "kafka does not answer" in worker.get("/readyz")[1]
            assert worker.get("/livez")[0] == 200
            worker.until(lambda: worker.metric("ecg_broker_up") == 0, 5)
        finally:
            own.start_kafka()
        worker.wait_ready(60)
        send(world, messages[80:])
        worker.until(lambda: {x["id"] for x in world.findings(quiet_s=1.0)} >= expected, 60)
        assert worker.stop() == 0
    assert {x["id"] for x in world.findings()} == expected


def test_a_broker_that_stays_away_ends_the_worker(own: LocalServices) -> None:
    world = World(own.kafka, ECG_OUTAGE_LIMIT_S="4")
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.wait_ready()
        own.stop_kafka()
        try:
            assert worker.process.wait(60) == 4
            worker.stop()
            assert "has not answered for 4 s" in worker.log
        finally:
            own.start_kafka()


def test_redis_absent_then_there_then_lost_then_with_other_labels(own: LocalServices, shipped: Artifact) -> None:
    messages = [(key, value) for key, value, _ in fleet(2, 60, seed=7, last=False)]
    third = len(messages) // 3
    bank = shipped.bank()
    own.stop_redis()
    world = World(own.kafka, own.redis)
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.until(lambda: "no label bank yet" in worker.get("/readyz")[1])
        assert worker.get("/readyz")[0] == 503
        own.start_redis()
        time.sleep(1.0)
        assert worker.get("/readyz")[0] == 503  # Redis is there, a bank is not
        asyncio.run(publish_bank(own.redis, bank))
        worker.wait_ready(30)
        send(world, messages[:third])
        worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 2)
        own.stop_redis()
        worker.until(lambda: worker.metric("ecg_redis_up") == 0)
        assert worker.get("/readyz")[0] == 200
        send(world, messages[third : 2 * third])  # labels are frozen, scoring goes on
        worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 6)
        own.start_redis()  # it kept nothing
        worker.until(lambda: worker.metric("ecg_bank_missing") == 1)
        assert worker.get("/readyz")[0] == 200
        other = replace(bank, scale=bank.scale / 2)
        asyncio.run(publish_bank(own.redis, other))
        worker.until(lambda: worker.metric("ecg_redis_up") == 1 and worker.metric("ecg_bank_missing") == 0)
        worker.until(lambda: f'digest="{other.digest[:16]}"' in worker.get("/metrics")[1])
        send(world, messages[2 * third :])
        worker.until(lambda: worker.metric('ecg_windows_total{outcome="scored"}') >= 10)
        wrong = LabelBank(bank.labels, bank.matrix, bank.scale, "0" * 64, bank.text)
        asyncio.run(publish_bank(own.redis, wrong))
        worker.until(lambda: worker.metric("ecg_bank_refused_total") == 1)
        assert worker.get("/readyz")[0] == 200
        assert worker.stop() == 0
    banks = [x["bank"] for x in sorted(world.findings(), key=lambda x: x["input"]["first"])]
    assert set(banks) == {bank.digest, other.digest}
    assert banks == sorted(banks, key=[bank.digest, other.digest].index)
    assert "0" * 64 in worker.log
    assert shipped.encoder_digest in worker.log
    told = [line for line in worker.log.splitlines() if "redis holds no active label bank" in line]
    assert [("frozen" in line, "ecg-train publish" in line) for line in told] == [(False, True), (True, True)]  # once each time


def test_a_bank_for_another_encoder_is_refused_at_start_with_both_values(own: LocalServices, shipped: Artifact) -> None:
    bank = shipped.bank()
    wrong = LabelBank(bank.labels, bank.matrix, bank.scale, "f" * 64, bank.text)
    asyncio.run(publish_bank(own.redis, wrong))
    done = World(own.kafka, own.redis).command("run", "--http-port", "0", check=False)
    assert done.returncode == 3
    assert "f" * 64 in done.stderr
    assert shipped.encoder_digest in done.stderr


def test_an_altered_model_is_refused_at_start(shipped: Artifact, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(shipped.directory, copy)
    data = bytearray((copy / "encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "encoder.onnx").write_bytes(bytes(data))
    done = World("127.0.0.1:1").command("run", "--artifact", str(copy), check=False)
    assert done.returncode == 3
    assert shipped.encoder_digest in done.stderr
    (copy / "encoder.onnx").unlink()
    assert World("127.0.0.1:1").command("run", "--artifact", str(copy), check=False).returncode == 3


def test_sigterm_drains_what_was_read(own: LocalServices) -> None:
    world = World(own.kafka, ECG_BATCH_DEADLINE_MS="3000", ECG_BATCH_SIZE="512")
    world.command("topics", "--apply", "--partitions", "1")
    with world.worker() as worker:
        worker.wait_ready()
        send(world, [(key, value) for key, value, _ in fleet(3, 12, seed=8, last=False)])
        worker.until(lambda: worker.metric("ecg_chunks_total") == 36)
        assert worker.stop() == 0
    found: list[dict[str, Any]] = world.findings()
    assert len(found) == 3
    with world.worker() as worker:  # and it was committed: a second worker publishes nothing again
        worker.wait_ready()
        time.sleep(2)
        assert worker.stop() == 0
    assert len(world.findings()) == 3
