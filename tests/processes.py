"""The real command line against the real services, each test with topics and a group of its own."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORKER = [sys.executable, "-m", "stream_worker"]
ROOT = Path(__file__).resolve().parents[1]


class World:
    """Topics, group and environment of one test."""

    def __init__(self, kafka: str, redis: str | None = None, **env: str) -> None:
        name = uuid.uuid4().hex[:8]
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ECG_") or k == "ECG_ARTIFACT"},
            "PYTHONWARNINGS": "default",
            "ECG_KAFKA": kafka,
            "ECG_GROUP": f"group-{name}",
            "ECG_CHUNKS_TOPIC": f"chunks-{name}",
            "ECG_FINDINGS_TOPIC": f"findings-{name}",
            "ECG_DEAD_LETTERS_TOPIC": f"dead-{name}",
            "ECG_ALERTS_TOPIC": f"alerts-{name}",
            "ECG_HTTP_HOST": "127.0.0.1",
            "ECG_START": "earliest",
            "ECG_COMMIT_INTERVAL_MS": "200",
            "ECG_SHED_AFTER_S": "3600",  # signal comes faster here than it was recorded
            **({"ECG_REDIS": redis} if redis else {}),
            **env,
        }

    def command(self, *args: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*WORKER, *args], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, (
            f"{args}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def findings(self, quiet_s: float = 3.0, topic: str | None = None) -> list[dict[str, Any]]:
        """Every record of the findings topic, doubles included."""
        import asyncio

        from stream_worker.kafka.clients import follow

        async def read() -> list[dict[str, Any]]:
            records = follow(
                self.env["ECG_KAFKA"], topic or self.env["ECG_FINDINGS_TOPIC"], {}, from_beginning=True, quiet_s=quiet_s
            )
            return [json.loads(r.value or b"") async for r in records]

        return asyncio.run(read())

    @contextmanager
    def worker(self, *args: str) -> Iterator[Worker]:
        worker = Worker(self, args)
        try:
            yield worker
        finally:
            worker.stop()


class Worker:
    """One `ecg-worker run`. Its log is kept for the assertion that fails."""

    def __init__(self, world: World, args: tuple[str, ...]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        descriptor, path = tempfile.mkstemp(prefix="ecg-worker-", suffix=".log")  # a pipe that nobody reads would fill up
        self._log = Path(path)
        atexit.register(self._log.unlink, missing_ok=True)
        with open(descriptor, "wb") as out:
            self.process = subprocess.Popen(
                [*WORKER, "run", "--http-port", str(port), *args],
                cwd=ROOT, env=world.env, stderr=out, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text("utf-8", errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310 - a fixed http address
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self, seconds: float = 60) -> None:
        self.until(lambda: self.get("/readyz")[0] == 200, seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop(signal.SIGKILL)
                raise AssertionError(
                    f"worker: exit {self.process.returncode}, last readyz {self.get('/readyz')}\n{self.log[-4000:]}"
                )
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return float("nan")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send `how` and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=40)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
