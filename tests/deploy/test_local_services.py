"""The local Kafka and Redis: they start, survive outages with their data, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.local import LocalServiceError, LocalServices, fetch, kafka, redis
from deploy.local.processes import Server, birth, end_group, reap, spawn

ROOT = Path(__file__).resolve().parents[2]


def run_cli(action: str, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.local", action, "--dir", str(directory), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def port(address: str) -> int:
    return int(address.rpartition(":")[2].split("/")[0])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Services of this module alone, since it breaks them."""
    with LocalServices(tmp_path_factory.mktemp("services")) as services:
        yield services


def test_kafka_comes_back_on_its_port_with_its_data(own: LocalServices) -> None:
    cluster = own.directory / "kafka" / "data" / "meta.properties"
    before, address, first = cluster.read_text(), own.kafka, own.servers["kafka"]
    for end in (own.stop_kafka, own.kill_kafka):
        assert kafka.answers(port(own.kafka))
        end()
        assert not kafka.answers(port(own.kafka))
        assert own.kafka == address
        own.start_kafka()
    assert kafka.answers(port(address))
    assert not first.alive
    assert cluster.read_text() == before


def test_redis_stops_and_comes_back_on_its_port(own: LocalServices) -> None:
    assert redis.answers(port(own.redis))
    own.stop_redis()
    assert not redis.answers(port(own.redis))
    own.start_redis()
    assert redis.answers(port(own.redis))


def test_temporary_folder_goes_with_the_services() -> None:
    with LocalServices() as services:
        folder, servers = services.directory, dict(services.servers)
        assert folder.is_dir()
        assert all(server.alive for server in servers.values())
    assert not folder.exists()
    assert not any(server.alive for server in servers.values())


def test_a_killed_parent_leaves_no_server(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from deploy.local import redis\n"
        "from deploy.local.processes import free_port\n"
        "server, _ = redis.launch(Path(sys.argv[1]), free_port(), watched=True)\n"
        "print(server.pid, server.address, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid, address = parent.stdout.readline().split()
        assert redis.answers(port(address))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while birth(int(pid)) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert birth(int(pid)) is None


def test_command_line_starts_reports_and_stops(tmp_path: Path) -> None:
    assert run_cli("status", tmp_path).returncode == 3
    try:
        started = run_cli("start", tmp_path)
        assert started.returncode == 0, started.stderr
        addresses = dict(line.split("=", 1) for line in started.stdout.splitlines())
        assert kafka.answers(port(addresses["ECG_KAFKA"]))
        assert redis.answers(port(addresses["ECG_REDIS"]))
        again = run_cli("start", tmp_path, "--json")
        assert "already running" in again.stderr
        assert json.loads(again.stdout) == {"kafka": addresses["ECG_KAFKA"], "redis": addresses["ECG_REDIS"]}
        assert run_cli("status", tmp_path).returncode == 0
    finally:
        stopped = run_cli("stop", tmp_path)
    assert stopped.returncode == 0
    assert not kafka.answers(port(addresses["ECG_KAFKA"]))
    assert not redis.answers(port(addresses["ECG_REDIS"]))
    assert run_cli("status", tmp_path).returncode == 3


def test_end_group_spares_a_later_process_of_the_same_number(tmp_path: Path) -> None:
    server, children = spawn(["sleep", "60"], "nowhere", tmp_path / "log", tmp_path, watched=False)
    try:
        end_group(Server(server.pid, "another birth", "nowhere"), 1)
        assert server.alive
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        reap(children)


def test_a_server_that_dies_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(redis, "redis_server", lambda: str(fake))
    with pytest.raises(LocalServiceError, match="out of luck"):
        redis.launch(tmp_path / "data", 1, watched=False)


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LocalServiceError, match="Java 17"):
        fetch.java()
    with pytest.raises(LocalServiceError, match="Maven"):
        fetch.kafka_jars(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LocalServiceError, match="redis-server"):
        redis.redis_server()


def test_compose_offers_the_same_two_services() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert set(compose["services"]) == {"kafka", "redis"}
    node = compose["services"]["kafka"]
    assert node["image"] == f"apache/kafka:{fetch.KAFKA_VERSION}"
    assert node["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    for service in compose["services"].values():
        assert all(published.startswith("127.0.0.1:") for published in service["ports"])
    pom = (ROOT / "deploy" / "local" / "pom.xml").read_text()
    assert f"<version>{fetch.KAFKA_VERSION}</version>" in pom
