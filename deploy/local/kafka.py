"""One Kafka node, broker and controller in one process (KRaft), with its data under a folder.

Settings are those of a test broker: one copy of everything, small internal topics, no waiting for a group to gather.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from deploy.local.fetch import java, kafka_jars
from deploy.local.processes import Children, LocalServiceError, Server, spawn, wait_ready

__all__ = ["answers", "launch", "prepare", "proxied"]

_LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {folder}/kafka.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{{1}} %m%n
"""


def _settings(folder: Path, port: int, controller_port: int) -> dict[str, str]:
    one_copy = ("default.replication.factor", "offsets.topic.replication.factor", "transaction.state.log.replication.factor",
                "transaction.state.log.min.isr", "share.coordinator.state.topic.replication.factor",
                "share.coordinator.state.topic.min.isr")  # fmt: skip
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        **dict.fromkeys(one_copy, "1"),
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.num.partitions": "3",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        # A killed node comes back when its old session has run out: 4.7 s to the first answer instead of 12.9 s.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        "group.min.session.timeout.ms": "1000",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # A topic that appears by itself has the wrong timestamp type and partition count: better an error.
        "auto.create.topics.enable": "false",
        "log.cleaner.dedupe.buffer.size": "16777216",
        "num.network.threads": "2",
        "num.io.threads": "4",
    }


def proxied(port: int, controller_port: int, behind_port: int, proxy: str) -> dict[str, str]:
    """Settings of a node that also listens on `behind_port` and sends the clients that come there on to `proxy`."""
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://{proxy}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
    }


def prepare(folder: Path, port: int, controller_port: int, extra: Mapping[str, str]) -> None:
    """Write the node's settings; format its storage unless it holds data already."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**_settings(folder, port, controller_port), **extra}
    properties = folder / "server.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    (folder / "log4j2.properties").write_text(_LOG4J.format(folder=folder))
    if (folder / "data" / "meta.properties").exists():
        return
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a")
    done = subprocess.run(
        [*_java(folder, heap="128m"), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode != 0:
        raise LocalServiceError(f"Kafka could not format {folder / 'data'}:\n{(done.stdout + done.stderr)[-2000:]}")


def launch(folder: Path, port: int, *, watched: bool, limit_s: float = 60.0) -> tuple[Server, Children]:
    """Start the node in `folder` (see `prepare`) and wait until it answers a metadata request with itself."""
    command = [*_java(folder, heap="512m"), "kafka.Kafka", str(folder / "server.properties")]
    log = folder / "kafka.out"
    server, children = spawn(command, f"127.0.0.1:{port}", log, folder, watched=watched)
    wait_ready(server, children, lambda: answers(port), log, limit_s)
    return server, children


def _java(folder: Path, heap: str) -> list[str]:
    # The serial collector and the first compiler only: a node of one machine starts sooner and takes less of it.
    flags = [
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
    ]
    return [java(), *flags, "-cp", f"{kafka_jars()}/*"]


def answers(port: int) -> bool:
    """True when the broker at `port` lists at least one live node: Metadata request, version 4 of the Kafka protocol."""
    body = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">i?", 0, False)  # no topics asked for, none to be created
    with contextlib.suppress(OSError, struct.error), socket.create_connection(("127.0.0.1", port), timeout=1.0) as link:
        link.settimeout(2.0)
        link.sendall(struct.pack(">i", len(body)) + body)
        reply = b""
        while len(reply) < 16:
            part = link.recv(4096)
            if not part:
                return False
            reply += part
        nodes: int = struct.unpack(">iiii", reply[:16])[3]  # length, correlation, throttle ms, number of brokers
        return nodes > 0
    return False
