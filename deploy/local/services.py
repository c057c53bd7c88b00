"""Kafka and Redis as one context manager; each can be stopped, killed and started again in between."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from deploy.local import kafka, redis
from deploy.local.processes import Children, Server, end_group, free_port, reap

__all__ = ["LocalServices"]

_KAFKA_GRACE_S = 20.0
_REDIS_GRACE_S = 5.0


class LocalServices:
    """A Kafka node and a Redis on free ports of 127.0.0.1.

    `directory`: where data and logs go; None: a temporary folder, removed at the end. `keep`: the services outlive the
    process (the command line uses this). `kafka_settings`: broker properties on top of those of a test broker.
    `kafka_proxy`: "host:port" of a proxy in front of `kafka_behind_proxy`; clients that come through it stay with it.

        with LocalServices() as services:
            services.kafka            # "127.0.0.1:40001"
            services.redis            # "redis://127.0.0.1:40003/0"
            services.kill_kafka()     # SIGKILL; start_kafka() brings it back on the same port with the same data

    Raises LocalServiceError when something is missing on this machine; the text says what to install.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        keep: bool = False,
        kafka_settings: Mapping[str, str] | None = None,
        kafka_proxy: str | None = None,
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="ecg-services-"))
        self._keep = keep
        self._ports = {name: free_port() for name in ("kafka", "controller", "behind", "redis")}
        ports = self._ports["kafka"], self._ports["controller"], self._ports["behind"]
        self._settings = {**(kafka.proxied(*ports, kafka_proxy) if kafka_proxy else {}), **(kafka_settings or {})}
        self.servers: dict[str, Server] = {}
        self._children: dict[str, Children] = {}

    @property
    def kafka(self) -> str:
        """Bootstrap address, whether the node runs or not."""
        return f"127.0.0.1:{self._ports['kafka']}"

    @property
    def kafka_behind_proxy(self) -> str:
        """Where the proxy given as `kafka_proxy` has to connect to."""
        return f"127.0.0.1:{self._ports['behind']}"

    @property
    def redis(self) -> str:
        """URL of database 0, whether the server runs or not."""
        return f"redis://127.0.0.1:{self._ports['redis']}/0"

    def start(self) -> LocalServices:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._keep:
            atexit.register(self.stop)
        try:
            self.start_redis()
            self.start_kafka()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End what was started here, and nothing else."""
        self._end("redis", _REDIS_GRACE_S)
        self._end("kafka", _KAFKA_GRACE_S if not self._temporary else 0)  # nobody reads a temporary log again
        atexit.unregister(self.stop)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def start_kafka(self) -> None:
        """Start the node, the first time on empty storage, later with the data it had."""
        folder = self.directory / "kafka"
        kafka.prepare(folder, self._ports["kafka"], self._ports["controller"], self._settings)
        self._started("kafka", kafka.launch(folder, self._ports["kafka"], watched=not self._keep))

    def start_redis(self) -> None:
        """Start Redis, always empty."""
        self._started("redis", redis.launch(self.directory / "redis", self._ports["redis"], watched=not self._keep))

    def stop_kafka(self) -> None:
        """An orderly end, as of a rolling restart."""
        self._end("kafka", _KAFKA_GRACE_S)

    def kill_kafka(self) -> None:
        """SIGKILL, as of a lost machine."""
        self._end("kafka", 0)

    def stop_redis(self) -> None:
        self._end("redis", _REDIS_GRACE_S)

    def _started(self, name: str, begun: tuple[Server, Children]) -> None:
        self.servers[name], self._children[name] = begun

    def _end(self, name: str, grace_s: float) -> None:
        server = self.servers.pop(name, None)
        if server is None:
            return
        end_group(server, grace_s)
        reap(self._children.pop(name))

    def __enter__(self) -> LocalServices:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
