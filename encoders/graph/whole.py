"""Whole windows scored from their counts: what a batch of them is, and the check of a graph against the step-by-step path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoders.base import WholeEncoder
from encoders.preprocess import FLOOR, Calibrated, mixing, preprocess, stack
from encoders.signal import Layout

__all__ = ["FUSED_COSINE", "can_be_whole", "check_whole"]

FUSED_COSINE = 0.9999  # unless a manifest says otherwise: least cosine of a fused graph with the step-by-step path


def can_be_whole(calibrated: Calibrated, layout: Layout) -> bool:
    """Whether the counts alone say all: 10 s, a usable lead, and no sample that was filled in."""
    return calibrated.mv.shape[1] == layout.window and bool(calibrated.usable.any()) and not calibrated.filled.any()


def check_whole(encoder: WholeEncoder, fs_mhz: int, least_cosine: float = FUSED_COSINE) -> None:
    """Raises ValueError where the graph of a rate gives other embeddings than the steps."""
    layout = Layout(fs_mhz, ("I", "II", "V2"), (200.0, 100.0, 300.0), (0.0, 10.0, -5.0))
    counts = np.stack([_beats(layout, seed) for seed in range(2)])
    wanted = encoder.encode(stack([preprocess(x, layout) for x in counts]))
    mix = np.stack([mixing(layout, (True,) * 3)[0]] * 2)
    least = np.full((2, 1, 1), FLOOR[layout.unit], dtype=np.float32)
    labels, bias = np.eye(2, encoder.dim, dtype=np.float32), np.zeros(2, dtype=np.float32)
    found = encoder.score(fs_mhz, counts, mix, least, labels, bias).embedding
    cosine = float((found * wanted).sum(axis=1).min())
    if not cosine >= least_cosine:
        raise ValueError(f"{layout.fs:g} Hz: cosine of {least_cosine} with the step-by-step path expected, found {cosine:.6f}")


def _beats(layout: Layout, seed: int) -> NDArray[np.int16]:
    """(3, T) counts: narrow beats on drift and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(layout.window) / layout.fs
    beat = np.exp(-(((t % (0.8 + 0.1 * seed) - 0.3) / 0.015) ** 2))
    wave = np.outer((180.0, 120.0, -250.0), beat) + np.outer((30.0, 60.0, 20.0), np.sin(1.3 * t + seed)) + 900 * seed
    return np.asarray(np.rint(wave + rng.normal(0, 4, wave.shape)), dtype=np.int16)
