"""The training loop, from prepared shards to the moving average, against bare forward and backward passes of the same model."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import training
from encoders.bank import TextModel
from encoders.recordings import Recording
from encoders.signal import FS, LEADS, WINDOW, Layout
from training.config import TrainConfig, read_config
from training.data.dataset import DataSet, batches
from training.data.prepare import prepare
from training.learning.loop import Progress, train
from training.learning.trainee import build_trainee, record_tensors
from training.sources.annotated import Annotated, Source
from training.text.labels import TextBank, build
from training.vocabulary import PROMPT, read_vocabulary, select

RECORDS = 1536  # 48 steps of 32 an epoch: the few batches read before the first is timed hardly count
ROUNDS = 5
BARE_STEPS = 16
STATED = ("NORM", "SR", "AFIB", "CLBBB", "CRBBB", "IMI", "AMI", "LVH")


def measure() -> dict[str, float]:
    """Records/s of `train` with the shipped recipe over those of forward and backward passes alone."""
    with tempfile.TemporaryDirectory() as folder:
        data, text = made(Path(folder))
        config = read_config(Path(training.__file__).parent / "configs" / "default.toml")
        return {"training_vs_bare": against_bare(replace(config, epochs=ROUNDS, finish_epochs=0), data, text, Path(folder))}


def made(folder: Path) -> tuple[DataSet, TextBank]:
    """A prepared data set of noise in 12 leads, and random embeddings: speed does not depend on what they say."""
    layout = Layout(FS * 1000, LEADS, (1000.0,) * len(LEADS), (0.0,) * len(LEADS))

    def noise(k: int) -> Callable[[], Recording]:
        samples = np.random.default_rng(k).integers(-1000, 1000, (len(LEADS), WINDOW), dtype=np.int16)
        return lambda: Recording(str(k), samples, layout, None, (), ())

    labels = [(STATED[k % len(STATED)], STATED[(k // 3) % len(STATED)]) for k in range(RECORDS)]
    records = tuple(
        Annotated(folder, f"r{k}", f"p{k}", 1 + k % 7, tuple(dict.fromkeys(pair)), (), "noise", read=noise(k))
        for k, pair in enumerate(labels)
    )
    vocabulary = read_vocabulary()
    statements = select(vocabulary, "core98")
    prepare([Source("noise", "noise", records, {"noise": tuple(s.id for s in statements)}, ())], folder / "data", "")
    build(_Random(), TextModel(model="none", pooling="mean", prompt=PROMPT, language="en"), statements, folder / "text")
    return DataSet(folder / "data", statements, range(1, 8)), TextBank.load(folder / "text")


class _Random:
    def embed(
        self, sentences: Sequence[str], batch: int = 32, advance: Callable[[int], None] = lambda n: None
    ) -> NDArray[np.float32]:
        rows = np.random.default_rng(0).standard_normal((len(sentences), 384)).astype(np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def against_bare(config: TrainConfig, data: DataSet, text: TextBank, folder: Path) -> float:
    """Median over epochs: bare time a step, measured straight after each, over the loop's. Checkpoints are not counted."""
    model = build_trainee(config, data, text, data.labels).train()
    batch = next(batches(data, config, 0))  # for the shapes; the signal is noise
    x, y, known = torch.randn(batch.x.shape), torch.from_numpy(batch.y), torch.from_numpy(batch.known)
    extra = {name: rows[torch.from_numpy(batch.rows)] for name, rows in record_tensors(data, text, config).items()}
    ratios: list[float] = []
    began = first = 0.0

    def bare() -> float:
        start = time.perf_counter()
        for _ in range(BARE_STEPS):
            model.loss_of(model.embed(x), y, known, extra).backward()
        return (time.perf_counter() - start) / BARE_STEPS

    def tick(p: Progress) -> None:
        nonlocal began, first
        per_epoch = p.steps // config.epochs
        if p.step % per_epoch == 1:
            began, first = time.perf_counter(), p.step
        elif p.step % per_epoch == 0:
            loop = (time.perf_counter() - began) / (p.step - first)
            ratios.append(bare() / loop)

    bare()
    train(config, data, text, folder / "run", report=tick)
    return statistics.median(ratios)
