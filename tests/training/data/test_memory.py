"""Batches are read as they are asked for: neither training nor evaluation holds the set in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from encoders.signal import LEADS, WINDOW
from training.config import TrainConfig
from training.data.dataset import Batch, DataSet, batches
from training.learning.augment import disturb
from training.vocabulary import Statement, select

BATCH = 8
BYTES = BATCH * len(LEADS) * WINDOW * 4  # of one batch: 1.9 MB
MOST = 10  # four read ahead, one in use, the copies made of one


@pytest.fixture
def data(prepared: Path, vocabulary: tuple[Statement, ...]) -> DataSet:
    """672 rows of 224 real records."""
    out = DataSet(prepared, select(vocabulary, "SR,AFIB"), range(1, 10))
    out.index *= 3
    out.mask = np.tile(out.mask, 3)
    assert len(out) // 3 * BYTES // BATCH > 2 * MOST * BYTES  # to hold each record once would take twice as much
    assert out.targets[0].shape == (len(out), 2)  # small, and kept on purpose
    return out


class AtOnce:
    """An executor that has done its work when it is given: the thread that reads ahead of the slowest training."""

    def __init__(self, threads: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[[int], Batch], number: int) -> Future[Batch]:
        done: Future[Batch] = Future()
        done.set_result(work(number))
        return done


def peak(read: Callable[[], Iterator[Batch]]) -> tuple[int, int]:
    """-> (records read, most bytes held at a time)."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        records = sum(len(batch.x) for batch in read())
        return records, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_evaluation_holds_a_few_batches(data: DataSet) -> None:
    records, held = peak(lambda: data.plain("I+II", BATCH))
    assert records == len(data)
    assert held < 5 * BYTES


@pytest.mark.parametrize("epoch", [0, 1])  # crops, then whole windows
def test_training_holds_a_few_batches(data: DataSet, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.dataset.ThreadPoolExecutor", AtOnce)
    config = TrainConfig.of({"batch": BATCH, "epochs": 2, "finish_epochs": 1, "wander": 1.0, "mains": 20.0})
    one = np.zeros((1, len(LEADS), WINDOW), dtype=np.float32)
    disturb(one, np.array([WINDOW]), config, np.random.default_rng(0))  # what it makes once is none of the set
    records, held = peak(lambda: batches(data, config, epoch))
    assert records == len(data)
    assert held < MOST * BYTES
