"""How a figure is taken: candidates in turn in one run, so that a noisy machine disturbs all alike; median of the ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

ROUNDS = 5


class Ratios(NamedTuple):
    """Of the time that passed, and of the processor's in all threads: what other work on the machine disturbs less."""

    wall: float
    cpu: float

    def rates(self, name: str) -> dict[str, float]:
        """`name`: work done in a second, ours over the reference's; `name`_cpu: in a second of CPU time."""
        return {name: 1 / self.wall, f"{name}_cpu": 1 / self.cpu}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(ours: Callable[[], object], reference: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over `rounds` of time(ours) / time(reference), after one warm-up of each."""
    return ratios(ours, reference, rounds).wall


def ratios(ours: Callable[[], object], reference: Callable[[], object], rounds: int = ROUNDS) -> Ratios:
    """The same by both clocks."""
    ours(), reference()
    taken = [(_both(ours), _both(reference)) for _ in range(rounds)]
    return Ratios(*(statistics.median(mine[i] / theirs[i] for mine, theirs in taken) for i in range(2)))


def _both(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    began = time.process_time()
    wall = seconds(work)
    return wall, time.process_time() - began
