"""One redis-server that keeps nothing on disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from deploy.local.processes import Children, LocalServiceError, Server, spawn, wait_ready

__all__ = ["answers", "launch"]

_INSTALL = ["apt-get", "install", "-y", "-q", "redis-server"]


def redis_server() -> str:
    """The path of redis-server; on Debian as root it is installed when missing, elsewhere the error says how."""
    path = shutil.which("redis-server")
    if path is None and Path("/etc/debian_version").exists() and os.geteuid() == 0:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        print("Installing redis-server ...", flush=True)
        for command in (["apt-get", "update", "-q"], _INSTALL):
            done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
            if done.returncode != 0:
                raise LocalServiceError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        path = shutil.which("redis-server")
    if path is None:
        raise LocalServiceError("no redis-server found (Debian: apt-get install redis-server; macOS: brew install redis)")
    return path


def launch(folder: Path, port: int, *, watched: bool, limit_s: float = 15.0) -> tuple[Server, Children]:
    """Start redis-server on 127.0.0.1:`port` and wait for its PONG."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        redis_server(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    log = folder / "redis.out"
    server, children = spawn(command, f"redis://127.0.0.1:{port}/0", log, folder, watched=watched)
    wait_ready(server, children, lambda: answers(port), log, limit_s)
    return server, children


def answers(port: int) -> bool:
    """True when the server at `port` answers PING."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as link:
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith(b"+PONG")
    except OSError:
        return False
