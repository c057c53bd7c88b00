"""Starting a server process, knowing it again later, and ending it: what Kafka and Redis have in common."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Children", "LocalServiceError", "Server", "birth", "end_group", "free_port", "reap", "spawn", "wait_ready"]

# Ends the server's process group when the pipe to its parent closes, so that a killed test run leaves nothing behind.
_WATCH = "import os,sys,signal\nsys.stdin.read()\ntry: os.killpg(int(sys.argv[1]), signal.SIGKILL)\nexcept OSError: pass"


Children = list[subprocess.Popen[bytes]]


class LocalServiceError(RuntimeError):
    """A local service cannot start; the text says what to install or where to look."""


@dataclass(frozen=True, slots=True)
class Server:
    """One running process. `pid` is its group too; `born` tells it from a later process of the same number."""

    pid: int
    born: str
    address: str

    @property
    def alive(self) -> bool:
        return birth(self.pid) == self.born


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def birth(pid: int) -> str | None:
    """When the process started, as text; None when there is no such process (or only its unreaped rest)."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def spawn(command: Sequence[str], address: str, log: Path, cwd: Path, *, watched: bool) -> tuple[Server, Children]:
    """Start `command` in a process group of its own, output to `log`.

    `watched`: it also ends when this process does, however that ends. Returns the server and the children to `reap`.
    """
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, start_new_session=True)
    children = [child]
    if watched:
        watch = [sys.executable, "-I", "-S", "-c", _WATCH, str(child.pid)]
        children.append(subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True))
    return Server(child.pid, birth(child.pid) or "", address), children


def reap(children: Children) -> None:
    """Collect the ended server and let its watcher end, whose pipe this closes."""
    for child in children:
        if child.stdin is not None:
            child.stdin.close()
        child.wait(timeout=5)


def wait_ready(server: Server, children: Children, answers: Callable[[], bool], log: Path, limit_s: float) -> None:
    """Wait until `answers()`; raise LocalServiceError with the end of its log when it died or took longer."""
    deadline = time.monotonic() + limit_s
    while not answers():
        if not server.alive or time.monotonic() > deadline:
            end_group(server, 0)
            reap(children)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise LocalServiceError(f"no answer from {server.address} within {limit_s:.0f} s; the end of {log}:\n{tail}")
        time.sleep(0.05)


def end_group(server: Server, grace_s: float) -> None:
    """SIGTERM to the server's group, SIGKILL after `grace_s` seconds (0: at once). Ends only the process it knows."""
    deadline = time.monotonic() + grace_s
    if grace_s > 0 and server.alive:
        _signal(server, signal.SIGTERM)
        while server.alive and time.monotonic() < deadline:
            time.sleep(0.02)
    if server.alive:
        _signal(server, signal.SIGKILL)
        while server.alive and time.monotonic() < deadline + 5:
            time.sleep(0.02)


def _signal(server: Server, number: signal.Signals) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return  # it ended between the look and the signal
