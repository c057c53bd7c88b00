"""What each stage of the worker costs on this machine, without Kafka: CPU time and wall time of one chunk or window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from encoders.base import WholeEncoder
from encoders.preprocess import FLOOR, preprocess, stack
from encoders.signal import LEADS
from stream_worker.devices.simulator import Device, fleet
from stream_worker.records import Window
from stream_worker.replay import findings
from stream_worker.run import Rules
from stream_worker.score import Scorer, Whole
from stream_worker.window import Windower
from stream_worker.wire import Decoder

__all__ = ["LANES", "Cost", "Lane", "Stages", "measure_stages"]

CHUNK_MS = 1000
STREAMS, SECONDS = 16, 50  # 80 windows: enough to time, little enough to hold
LEAST_S = 0.8  # each stage is repeated for as long


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
    """decode: Protobuf bytes to windows, a chunk. The others, a window: prepare: what the host does before the engine. engine:
    the encoder alone on prepared windows. fused: counts to logits by the encoder's own graph; None where it has none for these
    windows, which are then prepared here. score: a window to a finding as in the worker, two batches at once."""

    decode: Cost
    prepare: Cost
    engine: Cost
    fused: Cost | None
    score: Cost

    @property
    def scoring(self) -> Cost:
        """What the worker gives its windows to: the fused graph, or the encoder alone."""
        return self.fused or self.engine


def measure_stages(lane: Lane, scorer: Scorer, batch: int) -> Stages:
    """Each stage alone on the same windows of simulated devices. Takes about six seconds."""
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

    whole = _fused(windows, scorer, batch)
    return Stages(
        _cost(cut, len(log)),
        _cost(lambda: [scorer.prepare(window) for window in windows], len(windows)),
        _cost(encode, len(windows)),
        _cost(whole, len(windows)) if whole is not None else None,
        _cost(lambda: list(findings(windows, scorer, batch)), len(windows)),
    )


def _fused(windows: Sequence[Window], scorer: Scorer, batch: int) -> Callable[[], None] | None:
    """Windows of one rate and its leads through the encoder's own graph; None unless the scorer gives it all of them."""
    encoder, layout = scorer.encoder, windows[0].layout
    ready = [one for one in map(scorer.prepare, windows) if isinstance(one, Whole)]
    if not isinstance(encoder, WholeEncoder) or len(ready) < len(windows):
        return None
    counts, mix = np.stack([window.samples for window in windows]), np.stack([one.mix for one in ready])
    least = np.full((len(windows), 1, 1), FLOOR[layout.unit], dtype=np.float32)

    def score() -> None:
        for at in range(0, len(windows), batch):
            part = slice(at, at + batch)
            encoder.score(layout.fs_mhz, counts[part], mix[part], least[part], *scorer.bank.weights)

    return score


def _cost(work: Callable[[], object], items: int) -> Cost:
    """Of one of `items`, over LEAST_S or more after one turn to warm up."""
    work()
    rounds, cpu, wall = 0, time.process_time(), time.perf_counter()
    while not rounds or time.perf_counter() - wall < LEAST_S:
        work()
        rounds += 1
    done = rounds * items
    return Cost((time.process_time() - cpu) / done, (time.perf_counter() - wall) / done)
