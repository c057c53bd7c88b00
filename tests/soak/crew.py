"""Workers, and everything that is done to them and to what they need. Each fault is undone before the next."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np

from deploy.local import LocalServices
from encoders.artifact import Artifact
from stream_worker.labels import publish_bank
from tests.faults.proxy import Proxy
from tests.processes import Worker, World

__all__ = ["Crew"]

RECOVER_LIMIT_S = 240.0
COORDINATOR_S = 45.0  # without recovery, until Kafka is looked into
LONG_S = 14.0  # longer than the session: the group goes on without a worker that is stopped for so long
WARM_S, WEIGHED_S = 120, 60  # a worker has met every stream and a full batch by then; memory is that of the middle of a minute


class Crew:
    """`size` workers on one consumer group behind a proxy, and a witness: a worker of a group of its own that is never killed,
    and meets all other faults. `died`: workers that ended unasked, with the end of their log. `reloads`: how often Kafka had to
    be started once more, since it could not load its groups.
    """

    def __init__(
        self, services: LocalServices, proxy: Proxy, world: World, aside: World, artifact: Artifact, size: int, seed: int
    ) -> None:
        self.services, self.proxy, self.world, self.size = services, proxy, world, size
        self.workers: list[Worker] = []
        self.died: list[str] = []
        self.reloads = self._log_seen = 0
        self._bank = artifact.bank()
        self._rng = np.random.default_rng([seed, 23])
        self._weights: dict[Worker, list[int]] = {}
        self.publish_bank()
        self.witness = self._started(aside)
        threading.Thread(target=self._weigh, name="scales", daemon=True).start()
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
        self.workers.append(self._started(self.world))

    def _started(self, world: World) -> Worker:
        worker = Worker(world, ())
        self._weights[worker] = []
        return worker

    def _weigh(self) -> None:
        """Every worker once a second."""
        while True:
            for worker, weights in list(self._weights.items()):
                with contextlib.suppress(OSError, StopIteration):  # it has ended
                    weights.append(_resident_kb(worker))
            time.sleep(1)

    def grown(self) -> list[tuple[int, float]]:
        """(seconds lived, growth) of each worker that lived on for a minute, the witness first: what was resident in the middle
        of its last minute over what was in its first minute as a warm one, less 1."""
        lived = [weights for weights in self._weights.values() if len(weights) > WARM_S + 2 * WEIGHED_S]
        warm = [median(weights[WARM_S : WARM_S + WEIGHED_S]) for weights in lived]
        return [(len(w), median(w[-WEIGHED_S:]) / first - 1) for w, first in zip(lived, warm, strict=True)]

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
        if code not in good:
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
            if time.monotonic() - began > COORDINATOR_S and self._coordinator_failed():
                self.reloads += 1
                self._broker(self.services.stop_kafka)
            if all(sum(map(_read, group)) == partitions for group in (self.workers, [self.witness])):
                return time.monotonic() - began
            time.sleep(0.1)
        why = [worker.get("/readyz") for worker in (self.witness, *self.workers)]
        raise AssertionError(f"not recovered within {RECOVER_LIMIT_S:g} s: {why}")

    def _coordinator_failed(self) -> bool:
        """Whether Kafka has said, since it was asked last, that it could not load what its groups had committed. A node that is
        alone does not try again before it is started anew."""
        with (self.services.directory / "kafka" / "kafka.log").open() as log:
            log.seek(self._log_seen)
            told = log.read()
            self._log_seen = log.tell()
        return "Failed to load metadata from __consumer_offsets" in told

    def look_after(self) -> None:
        """Replace who ended unasked."""
        for worker in list(self.workers):
            code = worker.process.poll()
            if code is not None:
                self._note(worker, code, ())
                self.workers.remove(worker)
                self.hire()
        if self.witness.process.poll() is not None:
            raise AssertionError(f"the witness ended: {self.witness.log[-1500:]}")

    def dismiss(self) -> None:
        """All of them, in order."""
        for worker in (*self.workers, self.witness):
            self._ended(worker, signal.SIGTERM)
        self.workers.clear()


def _read(worker: Worker) -> int:
    """Partitions that it owns, has recovered and reads."""
    return worker.get("/metrics")[1].count("\necg_lag_records{") if worker.get("/readyz")[0] == 200 else -1000


def _resident_kb(worker: Worker) -> int:
    with open(f"/proc/{worker.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
