"""How a figure is taken: candidates in turn in one run, so that a noisy machine disturbs all alike; median of the ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(ours: Callable[[], object], reference: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over `rounds` of time(ours) / time(reference), after one warm-up of each."""
    ours(), reference()
    return statistics.median(seconds(ours) / seconds(reference) for _ in range(rounds))
