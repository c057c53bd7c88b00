"""The alert stage as a process of its own, against a real cluster: findings in, alerts out, through aborts and kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from stream_worker.alerting.episodes import Policy, step
from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.topics import apply
from stream_worker.seam import partition_for
from stream_worker.settings import Settings
from stream_worker.wire import to_json
from tests.stream_worker.findings_made import finding, label

ROOT = Path(__file__).resolve().parents[3]
RUN = "from stream_worker.alerting.alerts import run; from stream_worker.settings import load_settings; run(load_settings())"
PARTITIONS = 3


@pytest.fixture
async def settings(kafka: str) -> Settings:
    mark = uuid.uuid4().hex[:8]
    made = Settings(
        kafka=kafka,
        group=f"worker-{mark}",
        chunks_topic=f"chunks-{mark}",
        findings_topic=f"findings-{mark}",
        dead_letters_topic=f"dead-{mark}",
        alerts_topic=f"alerts-{mark}",
        start="earliest",
    )
    await apply(made, None, PARTITIONS, 1)
    return made


class Stage:
    """`ecg-worker alerts` in a process; its log is shown when a test fails."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        names = ("kafka", "group", "chunks_topic", "findings_topic", "dead_letters_topic", "alerts_topic", "start")
        given = {f"ECG_{name.upper()}": str(getattr(settings, name)) for name in names}
        (folder / "cwd").mkdir(exist_ok=True)
        self.log = folder / f"alerts-{uuid.uuid4().hex[:4]}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error::ResourceWarning", "-c", RUN],
                cwd=folder / "cwd", stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **given, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def end(self, number: signal.Signals, limit_s: float = 30.0) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(limit_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            print(self.log.read_text())


async def publish(settings: Settings, findings: Sequence[dict[str, Any]], *, commit: bool | None = None) -> None:
    """Publish by stream; `commit` None without a transaction, else in one that is committed or aborted."""
    name = None if commit is None else f"tx-{uuid.uuid4().hex}"
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka, transactional_id=name, acks="all") as producer:
        if commit is not None:
            await producer.begin_transaction()
        for one in findings:
            key = one["stream"].encode()
            await producer.send_and_wait(
                settings.findings_topic, to_json(one), key=key, partition=partition_for(key, PARTITIONS)
            )
        if commit is not None:
            await (producer.commit_transaction() if commit else producer.abort_transaction())


async def alerts_of(stage: Stage, settings: Settings, count: int, limit_s: float = 60.0, linger_s: float = 1.0) -> list[Any]:
    """The first `count` alert messages, and what comes within `linger_s` after them."""
    found: list[Any] = []
    deadline = time.monotonic() + limit_s
    async with AIOKafkaConsumer(
        settings.alerts_topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest", isolation_level="read_committed"
    ) as consumer:
        while len(found) < count:
            assert stage.process.poll() is None, "the stage ended by itself"
            assert time.monotonic() < deadline, f"{len(found)} of {count} alerts within {limit_s} s"
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        for records in (await consumer.getmany(timeout_ms=int(linger_s * 1000))).values():
            found += records
    return found


def expected(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    state, alerts = None, []
    for one in findings:
        state, raised = step(state, one, Policy())
        alerts += raised
    return alerts


def course(stream: str, probabilities: Sequence[float], begin: int = 0) -> list[dict[str, Any]]:
    return [finding(begin + n, [label("AF", p)], stream=stream) for n, p in enumerate(probabilities)]


async def test_findings_become_alerts_and_aborted_ones_do_not(settings: Settings, tmp_path: Path) -> None:
    af = course("bed-7", [0.9] * 5 + [0.1] * 4)
    vf = [finding(n, [label("VF", 0.99, "critical")], stream="bed-7", session="aborted") for n in range(4)]
    late = course("bed-7", [0.2], begin=9)
    await publish(settings, vf, commit=False)
    await publish(settings, af[:4], commit=True)
    stage = Stage(settings, tmp_path)
    try:
        await alerts_of(stage, settings, 1, linger_s=0.1)
        await publish(settings, vf, commit=False)
        await publish(settings, [{"v": 1, "kind": "scored", "stream": "bed-7"}, {**af[4], "id": 7}])  # by their first look only
        await publish(settings, [*af[2:], *late])  # two of them again
        records = await alerts_of(stage, settings, 2)
    finally:
        code = await asyncio.to_thread(stage.end, signal.SIGTERM)
    assert code == 0
    told = [json.loads(record.value) for record in records]
    assert told == expected([*af, *late])
    assert [alert["kind"] for alert in told] == ["onset", "offset"]
    for record, alert in zip(records, told, strict=True):
        assert record.key == b"bed-7"
        assert record.partition == partition_for(b"bed-7", PARTITIONS)
        assert dict(record.headers)["ce_id"].decode() == alert["id"]
        assert dict(record.headers)["ce_type"].decode() == f"ecg.alert.{alert['kind']}.v1"
    assert os.listdir(tmp_path / "cwd") == [], "it writes where it was started"


async def test_a_killed_stage_goes_on_with_the_episodes_it_had(settings: Settings, tmp_path: Path) -> None:
    streams = [f"bed-{n}" for n in range(6)]
    before = {stream: course(stream, [0.9] * 4) for stream in streams}
    after = {stream: course(stream, [0.9] + [0.1] * 3, begin=4) for stream in streams}
    first = Stage(settings, tmp_path)
    try:
        await publish(settings, [one for findings in before.values() for one in findings])
        await alerts_of(first, settings, len(streams))
    finally:
        await asyncio.to_thread(first.end, signal.SIGKILL)
    await publish(settings, [one for findings in after.values() for one in findings])
    second = Stage(settings, tmp_path)
    try:
        records = await alerts_of(second, settings, 2 * len(streams))
    finally:
        code = await asyncio.to_thread(second.end, signal.SIGTERM)
    assert code == 0
    told = {alert["id"]: alert for alert in (json.loads(record.value) for record in records)}
    assert told == {alert["id"]: alert for stream in streams for alert in expected(before[stream] + after[stream])}
    assert sum(alert["kind"] == "offset" for alert in told.values()) == len(streams)
    assert "the episodes are there" in second.log.read_text(), "Faust ends its recovery in another way"


async def test_no_finding_flows_while_the_recovery_ends(tmp_path: Path) -> None:
    from stream_worker.alerting.alerts import build_app

    app = build_app(Settings(_env_file=None), partitions=1, folder=tmp_path)
    seen: list[tuple[str, bool]] = []

    class Consumer:
        """Notes what is asked of it, and whether Faust's queues are open then."""

        def __getattr__(self, name: str) -> Any:
            def note(*given: object) -> Any:
                seen.append((name, app.flow_control.is_active()))
                return set() if name == "assignment" else done() if name in ("wait_for_stopped_flow", "perform_seek") else None

            return note

    async def done() -> None:
        """Nothing to wait for."""

    app.flow_control.resume()
    app.consumer = Consumer()
    app.consumer_generation_id = 7
    await app.tables.recovery.on_recovery_completed(8)  # a rebalance came in between: Faust does nothing more
    assert seen[:2] == [("stop_flow", False), ("wait_for_stopped_flow", False)]
    assert not app.flow_control.is_active()


async def test_missing_topics_are_named(kafka: str) -> None:
    from stream_worker.alerting.alerts import run

    nowhere = Settings(kafka=kafka, findings_topic="nowhere", alerts_topic="nowhere-either")
    with pytest.raises(ConfigError, match="topic nowhere does not exist"):
        await asyncio.to_thread(run, nowhere)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_every_way_of_connecting_can_be_configured(mechanism: Any, tmp_path: Path) -> None:
    from stream_worker.alerting.alerts import build_app

    given = {"kafka": "a:1, b:2", "kafka_username": "me", "kafka_password": "secret", "kafka_sasl_mechanism": mechanism}
    app = build_app(Settings(kafka_security="SASL_SSL", **given), partitions=4, folder=tmp_path)
    assert [str(url) for url in app.conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert app.conf.broker_credentials.mechanism.value == mechanism
    assert "secret" not in repr(app.conf.broker_credentials)
    assert app.conf.topic_partitions == 4
    assert app.conf.web_enabled is False
    assert build_app(Settings(), partitions=4, folder=tmp_path, web_port=6100).conf.web_port == 6100


@pytest.mark.parametrize("in_recovery", [True, False])
async def test_a_recovery_that_stands_still_ends_the_process(in_recovery: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_worker.alerting import alerts

    class App:
        should_stop = False
        crashed: BaseException | None = None
        tables = SimpleNamespace(recovery=SimpleNamespace(in_recovery=in_recovery, active_offsets={"changelog-0": 7}))

        async def crash(self, error: BaseException) -> None:
            self.crashed = error

    monkeypatch.setattr(alerts, "_STUCK_S", 0.5)
    app = App()
    watching = asyncio.create_task(alerts._end_when_stuck(app)())
    await asyncio.wait({watching}, timeout=4)
    watching.cancel()
    assert isinstance(app.crashed, BrokerUnavailable) is in_recovery
