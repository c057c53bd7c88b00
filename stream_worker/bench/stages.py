"""What each stage of the worker costs on this machine, without Kafka: CPU time and wall time of one chunk or window."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from encoders.preprocess import preprocess, stack
from encoders.signal import LEADS
from stream_worker.devices.simulator import Device, fleet
from stream_worker.records import Window
from stream_worker.replay import findings
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.window import Windower
from stream_worker.wire import Decoder

__all__ = ["LANES", "Cost", "Lane", "Stages", "measure_stages"]

CHUNK_MS = 1000
STREAMS, SECONDS = 16, 50  # 80 windows: enough to time, little enough to hold
LEAST_S = 1.0  # each stage is repeated for as long


@dataclass(frozen=True)
class Lane:
    """A kind of stream. name: for people. leads, fs_mhz: what it sends."""

    name: str
    leads: tuple[str, ...]
    fs_mhz: int

    def device(self) -> Device:
        """A simulated one: the cost of a window does not depend on the heart in it."""
        return Device(self.name, "sinus", self.leads, self.fs_mhz, 1000.0, 72, 0.01, None, 1)


LANES = (
    Lane("12 leads 500 Hz", LEADS, 500_000),
    Lane("6 leads 250 Hz", LEADS[:6], 250_000),
    Lane("II,V5 360 Hz", ("II", "V5"), 360_000),
    Lane("I 300 Hz", ("I",), 300_000),
)


@dataclass(frozen=True)
class Cost:
    """Of one item. cpu_s: processor time of all threads. wall_s: time that passed."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Stages:
    """decode: Protobuf bytes to windows, a chunk. prepare: what the host does before the engine, a window. engine: the encoder
    alone on prepared windows, a window. score: a window to a finding, the two overlapped as in the worker."""

    decode: Cost
    prepare: Cost
    engine: Cost
    score: Cost


def measure_stages(lane: Lane, scorer: Scorer, batch: int) -> Stages:
    """Each stage alone on the same windows of simulated devices. Takes about five seconds."""
    log = [(key, value) for key, value, _ in fleet(STREAMS, SECONDS, CHUNK_MS, devices=[lane.device()], last=False)]

    def cut() -> list[Window]:
        decode, windower = Decoder(), Windower(0, Rules())
        events = [e for i, (key, value) in enumerate(log) for e in windower.push(decode(key, value), i, i // STREAMS * 1000)]
        return [e for e in events if isinstance(e, Window)]

    windows = cut()
    x = stack([preprocess(window.samples, window.layout) for window in windows])

    def encode() -> None:
        for at in range(0, len(x), batch):
            scorer.encoder.encode(x[at : at + batch])

    return Stages(
        _cost(cut, len(log)),
        _cost(lambda: [scorer.prepare(window) for window in windows], len(windows)),
        _cost(encode, len(windows)),
        _cost(lambda: list(findings(windows, scorer, batch)), len(windows)),
    )


def _cost(work: Callable[[], object], items: int) -> Cost:
    """Of one of `items`, over at least a second after one turn to warm up."""
    work()
    rounds, cpu, wall = 0, time.process_time(), time.perf_counter()
    while not rounds or time.perf_counter() - wall < LEAST_S:
        work()
        rounds += 1
    done = rounds * items
    return Cost((time.process_time() - cpu) / done, (time.perf_counter() - wall) / done)
