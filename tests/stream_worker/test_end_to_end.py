"""A recording through `publish` -> Kafka -> `run` -> `tail` gives what `replay` gives; every command on real services."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from encoders.artifact import Artifact
from stream_worker.labels import publish_bank
from stream_worker.settings import load_settings
from stream_worker.wire import schema
from tests.processes import ROOT, WORKER, World


@pytest.fixture(scope="module")
def replayed(mitdb: Path) -> list[dict[str, Any]]:
    done = World("127.0.0.1:1").command("replay", str(mitdb / "100"), "--json", "--scores", "all")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_replay_gives_180_full_windows_and_a_padded_tail_with_ids_that_repeat(
    mitdb: Path, replayed: list[dict[str, Any]]
) -> None:
    assert len(replayed) == 181
    assert [x["tail"] for x in replayed] == [False] * 180 + [True]
    assert {x["stream"] for x in replayed} == {"100"}
    for body in replayed:
        jsonschema.validate(body, schema("finding"))
    again = World("127.0.0.1:1").command("replay", str(mitdb / "100"), "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in again] == [x["id"] for x in replayed]
    assert len({x["id"] for x in replayed}) == 181


def test_replay_tells_the_alerts_that_a_person_would_have_had(mitdb: Path) -> None:
    """Half an hour of atrial fibrillation: one episode, told of every five minutes, that ends with the recording."""
    nowhere = World("127.0.0.1:1")
    alerts = [json.loads(x) for x in nowhere.command("replay", str(mitdb / "203"), "--alerts", "--json").stdout.splitlines()]
    for alert in alerts:
        jsonschema.validate(alert, schema("alert"))
    fibrillation = [a for a in alerts if a["label"]["id"] == "AFIB"]
    assert [a["kind"] for a in fibrillation] == ["onset", *["update"] * 5, "offset"]
    assert len({a["episode"] for a in fibrillation}) == 1
    times = [datetime.fromisoformat(a["time"]) for a in fibrillation]
    assert [b - a for a, b in pairwise(times[:-1])] == [timedelta(minutes=5)] * 5
    assert fibrillation[-1]["reason"] == "blind"
    shown = nowhere.command("replay", str(mitdb / "203"), "--alerts").stdout
    assert "203          1970-01-01T00:00:20Z  onset   心房細動 Atrial fibrillation" in shown


def test_the_same_recording_through_kafka_gives_the_same_windows_ids_and_scores(
    mitdb: Path, kafka: str, redis_url: str, replayed: list[dict[str, Any]]
) -> None:
    world = World(kafka, redis_url, ECG_TOP="98")
    world.command("topics", "--apply", "--partitions", "2")
    _publish_shipped_bank(redis_url)
    with world.worker() as worker:
        worker.wait_ready()
        world.command("publish", str(mitdb / "100"), "--stream-id", "100", "--session-id", "1", "--speed", "0")
        tailed = world.command("tail", "--json", "--from-beginning", "--count", "181", "--timeout", "60")
        text = worker.get("/metrics")[1]
        assert worker.get("/livez")[0] == 200
        assert worker.stop() == 0
    found = sorted((json.loads(line) for line in tailed.stdout.splitlines()), key=lambda x: x["first_sample"])
    assert [x["id"] for x in found] == [x["id"] for x in replayed]
    assert [x["window_digest"] for x in found] == [x["window_digest"] for x in replayed]
    for one, other in zip(found, replayed, strict=True):
        for label in one["labels"]:
            assert label["probability"] == pytest.approx(other["scores"][label["id"]], abs=1e-4)
    for name in (
        "ecg_lag_records",
        "ecg_oldest_unscored_seconds",
        'ecg_windows_total{outcome="scored"} 181.0',
        "ecg_queue_depth",
    ):
        assert name in text


def _publish_shipped_bank(redis_url: str) -> None:
    import asyncio

    from stream_worker.labels import publish_bank

    asyncio.run(publish_bank(redis_url, Artifact.load(load_settings().artifact_dir()).bank()))


def test_demo_prints_findings_of_every_device_and_exits_0() -> None:
    done = World("127.0.0.1:1").command("demo", "--seconds", "20", "--speed", "0", "--json")
    bodies = [json.loads(line) for line in done.stdout.splitlines()]
    for body in bodies:
        jsonschema.validate(body, schema("finding"))
    assert len({x["stream"] for x in bodies}) == 6
    assert len([x for x in bodies if x["kind"] == "scored"]) == 12
    served = Artifact.load(load_settings().artifact_dir())
    assert f"serving {served.directory}, digest {served.digest}, labels: " in done.stderr
    tiers = Counter(label.tier for label in served.bank().labels)
    assert f"{tiers['evaluated']} evaluated, {tiers['trained']} trained, {tiers['unsupported']} unsupported" in done.stderr
    assert "next: recordings of your own, `ecg-worker replay RECORDING`" in done.stderr


def test_the_packages_of_the_base_install_are_enough_for_the_demo() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "base.txt").read_text("utf-8"), re.MULTILINE)
    code = f"""
import re, sys
from importlib.metadata import packages_distributions
base = {{"ecg-stream-worker", *{pinned!r}}}
found = packages_distributions().items()
others = {{name for name, given in found if not base & {{re.sub("[-_.]+", "-", d).lower() for d in given}}}}
assert {{"torch", "transformers", "wfdb", "confluent_kafka"}} <= others
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"not in the base install: {{name}}", name=name)
sys.meta_path.insert(0, Absent())
from stream_worker.__main__ import app
app(["demo", "--seconds", "10", "--speed", "0", "--json"])
"""
    done = subprocess.run([WORKER[0], "-c", code], cwd=ROOT, env=World("").env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} >= {"scored"}


def test_demo_on_a_terminal_shows_a_table_that_lives() -> None:
    ours, theirs = pty.openpty()
    env = {**World("").env, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*WORKER, "demo", "--seconds", "20", "--speed", "5"], cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how a terminal ends
        pass
    assert process.wait(60) == 0
    text = shown.decode()
    assert "20 s of signal sent" in text
    assert "洞調律" in text
    assert text.count("bed-01") > 1  # drawn while it goes, two seconds between its windows, and at the end


def test_demo_of_a_recording_over_real_services(mitdb: Path, kafka: str, redis_url: str) -> None:
    world, empty, other = World(kafka), *(redis_url.removesuffix("/0") + f"/{n}" for n in (5, 6))
    for name in [name for name in world.env if name.endswith("_TOPIC")]:
        del world.env[name]
    given = ("demo", "--record", str(mitdb / "208"), "--seconds", "25", "--speed", "0", "--json", "--kafka", kafka, "--redis")
    done = world.command(*given, empty)
    assert [json.loads(line)["first_sample"] for line in done.stdout.splitlines()] == [0, 3600, 7200]
    assert "in ecg.demo.chunks and ecg.demo.findings" in done.stderr  # not among real patients
    shipped = Artifact.load(load_settings().artifact_dir()).bank()
    active = replace(shipped, scale=shipped.scale / 2)
    asyncio.run(publish_bank(other, active))
    refused = world.command(*given, other, check=False)
    assert refused.returncode == 2
    assert f"another active label bank, {active.digest[:16]}" in refused.stderr


def test_check_says_what_is_wrong_and_what_to_do(kafka: str, redis_url: str) -> None:
    world = World(kafka, redis_url)
    before = world.command("check", check=False)
    assert before.returncode == 2
    assert "ecg-worker topics --apply" in before.stdout
    world.command("topics", "--apply", "--partitions", "2")
    _publish_shipped_bank(redis_url)
    after = world.command("check", "--json")
    assert all(json.loads(line)["ok"] for line in after.stdout.splitlines())


def test_help_is_fast_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, stream_worker.__main__ as m\n"
        "try: m.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'aiokafka', 'confluent_kafka', 'onnxruntime', 'faust', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([WORKER[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("demo", "replay", "publish", "run", "tail", "topics", "check", "alerts"):
        assert command in done.stdout


def test_errors_are_one_line_with_a_remedy_and_their_exit_code(tmp_path: Path) -> None:
    world = World("127.0.0.1:1", ECG_OUTAGE_LIMIT_S="2")
    missing = world.command("replay", str(tmp_path / "nothing"), check=False)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    model = world.command("replay", str(tmp_path), "--artifact", str(tmp_path / "none"), check=False)
    assert model.returncode in (2, 3)
    assert "Traceback" not in model.stderr
    with World("127.0.0.1:1", ECG_OUTAGE_LIMIT_S="6").worker() as worker:
        worker.until(lambda: worker.get("/livez")[0] == 200)
        assert worker.get("/readyz")[0] == 503
        assert worker.process.wait(60) == 4
        assert "127.0.0.1:1" in worker.log
    world.env["ECG_HOP_MS"] = "50"
    wrong = world.command("run", check=False)
    assert wrong.returncode == 2
    assert "ECG_HOP_MS" in wrong.stderr
