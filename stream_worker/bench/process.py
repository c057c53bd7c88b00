"""One `ecg-worker run` as a process of its own, told by its environment, watched by its port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from stream_worker.errors import WorkerError
from stream_worker.settings import Settings

__all__ = ["BenchFailed", "WorkerProcess", "worker_process"]

READY_S = 60.0
STOP_S = 30.0


class BenchFailed(WorkerError):
    """The worker under measurement ended or fell silent; the text has its last words."""


class WorkerProcess:
    """started: wall time, s, of its start."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self._process, self._url, self._log = process, url, log
        self.started = time.time()

    async def ready(self) -> None:
        """Wait until /readyz says so. Raises BenchFailed."""
        end = time.monotonic() + READY_S
        while True:
            if self._process.returncode is not None or time.monotonic() > end:
                raise BenchFailed(f"the worker did not become ready: {self.last_words()}")
            with contextlib.suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as session, session.get(f"{self._url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)

    async def metrics(self) -> dict[str, float]:
        """Samples without labels, by name."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name.isidentifier()}

    def rss_mb(self) -> float | None:
        """The most memory that it held so far."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return lines[-1][:500] if lines else "it wrote no log"


@contextlib.asynccontextmanager
async def worker_process(settings: Settings) -> AsyncIterator[WorkerProcess]:
    """`ecg-worker run` with these settings until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    here = settings.model_copy(update={"http_host": "127.0.0.1", "http_port": port})
    with tempfile.TemporaryDirectory(prefix="ecg-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "stream_worker", "run", stdout=out, stderr=out, env={**_others(), **_environment(here)}
            )
        worker = WorkerProcess(process, f"http://127.0.0.1:{port}", log)
        try:
            yield worker
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _others() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ECG_")}


def _environment(settings: Settings) -> dict[str, str]:
    """Every setting that has a value, as ECG_*."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    told = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}
    return {f"ECG_{name.upper()}": str(value) for name, value in told.items() if value is not None}
