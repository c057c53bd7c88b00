"""Workers, and everything that is done to them and to what they need. Each fault is undone before the next."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from deploy.local import LocalServices
from encoders.artifact import Artifact
from stream_worker.errors import BrokerUnavailable
from stream_worker.labels import publish_bank
from tests.faults.proxy import Proxy
from tests.processes import Worker, World

__all__ = ["Crew"]

RECOVER_LIMIT_S = 90.0
LONG_S = 14.0  # longer than the session: the group goes on without a worker that is stopped for so long
WARM_S = 30.0  # memory is compared with what it was after this long


class Crew:
    """`size` workers on one consumer group behind a proxy. `died`: workers that ended unasked, with the end of their log; but
    one that found no broker for a minute may say so and leave (`gave_up`)."""

    def __init__(self, services: LocalServices, proxy: Proxy, world: World, artifact: Artifact, size: int, seed: int) -> None:
        self.services, self.proxy, self.world, self.size = services, proxy, world, size
        self.workers: list[Worker] = []
        self.died: list[str] = []
        self.gave_up = 0
        self.growth = 0.0  # of the resident memory of a worker since it was warm, the largest share
        self._bank = artifact.bank()
        self._rng = np.random.default_rng([seed, 23])
        self._began: dict[Worker, float] = {}
        self._warm: dict[Worker, int] = {}
        self.publish_bank()
        for _ in range(size):
            self.hire()
        self.faults: dict[str, Callable[[], None]] = {
            "worker killed": lambda: self._end(signal.SIGKILL),
            "worker ended": lambda: self._end(signal.SIGTERM),
            "worker asleep": lambda: self._asleep(3.0),
            "worker taken for dead": lambda: self._asleep(LONG_S),
            "worker added": self.hire,
            "worker gone": self._leave,
            "all workers killed": self._all_killed,
            "broker restarted": lambda: self._broker(self.services.stop_kafka),
            "broker killed": lambda: self._broker(self.services.kill_kafka),
            "network cut": lambda: self._network(self.proxy.cut, 4.0),
            "network silent": lambda: self._network(self.proxy.stall, 5.0),
            "network slow": lambda: self._network(lambda: self.proxy.delay(0.1), 6.0),
            "answer cut short": lambda: self._network(lambda: self.proxy.truncate(2000), 2.0),
            "request cut short": lambda: self._network(lambda: self.proxy.truncate(500, towards="server"), 2.0),
            "redis lost": self._redis,
            "labels swapped": self.publish_bank,
        }

    def hire(self) -> None:
        worker = Worker(self.world, ())
        self.workers.append(worker)
        self._began[worker] = time.monotonic()

    def publish_bank(self) -> None:
        """The same labels with another scale: another digest."""
        asyncio.run(
            publish_bank(self.services.redis, replace(self._bank, scale=self._bank.scale * self._rng.uniform(0.9, 1.1)))
        )

    def _one(self) -> Worker:
        return self.workers[self._rng.integers(len(self.workers))]

    def _end(self, how: signal.Signals) -> None:
        worker = self._one()
        self.workers.remove(worker)
        self._ended(worker, how)
        time.sleep(self._rng.uniform(0, 3))
        self.hire()

    def _ended(self, worker: Worker, how: signal.Signals) -> None:
        self._note(worker, worker.stop(how), (0, -signal.SIGKILL))

    def _note(self, worker: Worker, code: int, good: tuple[int, ...]) -> None:
        self.gave_up += code == BrokerUnavailable.exit_code
        if code not in (*good, BrokerUnavailable.exit_code):
            self.died.append(f"exit {code}: {worker.log[-1500:]}")

    def _asleep(self, seconds: float) -> None:
        worker = self._one()
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        worker.process.send_signal(signal.SIGCONT)

    def _leave(self) -> None:
        if len(self.workers) > 1:
            worker = self._one()
            self.workers.remove(worker)
            self._ended(worker, signal.SIGTERM)

    def _all_killed(self) -> None:
        for worker in self.workers:
            self._ended(worker, signal.SIGKILL)
        self.workers.clear()
        for _ in range(self.size):
            self.hire()

    def _broker(self, end: Callable[[], None]) -> None:
        end()
        time.sleep(self._rng.uniform(0, 4))
        self.services.start_kafka()

    def _network(self, fault: Callable[[], None], seconds: float) -> None:
        fault()
        time.sleep(seconds)
        self.proxy.heal()

    def _redis(self) -> None:
        self.services.stop_redis()
        time.sleep(3)
        self.services.start_redis()  # empty
        self.publish_bank()

    def recovered(self, partitions: int) -> float:
        """Seconds until all partitions are owned, recovered and read on."""
        began = time.monotonic()
        while time.monotonic() - began < RECOVER_LIMIT_S:
            self.look_after()
            told = [worker.get("/metrics")[1] for worker in self.workers]
            if (
                all(w.get("/readyz")[0] == 200 for w in self.workers)
                and sum(t.count("\necg_lag_records{") for t in told) == partitions
            ):
                return time.monotonic() - began
            time.sleep(0.1)
        raise AssertionError(f"not recovered within {RECOVER_LIMIT_S:g} s: {[w.get('/readyz') for w in self.workers]}")

    def look_after(self) -> None:
        """Replace who ended unasked, weigh the others."""
        for worker in list(self.workers):
            code = worker.process.poll()
            if code is not None:
                self._note(worker, code, ())
                self.workers.remove(worker)
                self.hire()
            elif time.monotonic() - self._began[worker] > WARM_S:
                now = _resident(worker)
                self.growth = max(self.growth, now / self._warm.setdefault(worker, now) - 1)

    def dismiss(self) -> None:
        """All of them, in order."""
        for worker in self.workers:
            self._ended(worker, signal.SIGTERM)
        self.workers.clear()


def _resident(worker: Worker) -> int:
    """Bytes."""
    with open(f"/proc/{worker.process.pid}/statm") as held:
        return int(held.read().split()[1]) * 4096
