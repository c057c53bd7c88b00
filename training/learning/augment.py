"""What training does to the encoder's input so that it meets what serving will: crops, noise, hum, wander, gain, short windows.

Windows come here band-passed and scaled, so a disturbance is added as what the filters leave of it: `filter_gain` measures that
on the filters themselves. Of a wander of 0.2 Hz 4 % remain, of 0.5 Hz half, of 1 Hz all; of mains hum a thousandth, which
matters only where the hum is many times the ECG. Amplitudes are in standard deviations of the lead.

Nothing here knows records or labels. All chance comes from the generator given; what is switched off draws nothing from it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.filters import bandpass
from encoders.signal import FS, WINDOW
from training.config import TrainConfig

__all__ = ["crop", "disturb", "filter_gain", "pad"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
WANDER_HZ = (0.1, 1.0)  # breathing and movement; drawn evenly on a logarithmic scale
GRID_HZ = tuple(float(f) for f in np.geomspace(*WANDER_HZ, 25))
MAINS_HZ = (50.0, 60.0)
TAIL = WINDOW // 2  # serving scores the last window of a stream from 5 s on


@lru_cache(maxsize=8)
def filter_gain(hz: tuple[float, ...]) -> Floats:
    """What `encoders.filters.bandpass` leaves of a steady sine of each frequency: (F,), measured far from both ends."""
    t = np.arange(60 * FS) / FS
    angle = 2 * np.pi * np.array(hz)[:, None] * t  # (F, T)
    middle = slice(20 * FS, 40 * FS)
    parts = [bandpass(wave.astype(np.float32))[:, middle] for wave in (np.sin(angle), np.cos(angle))]
    return np.asarray(np.hypot(*parts).mean(axis=1), dtype=np.float32)


def crop(x: Floats, n_valid: Ints, length: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """x: (B, 12, 5000), n_valid: (B,) samples before padding -> (B, 12, length) at random places, valid samples of each."""
    out = np.empty((*x.shape[:2], length), dtype=np.float32)
    for k, valid in enumerate(n_valid):
        start = int(rng.integers(0, max(1, int(valid) - length + 1)))
        out[k] = x[k, :, start : start + length]
    return out, np.minimum(n_valid, length)


def disturb(x: Floats, n_valid: Ints, config: TrainConfig, rng: np.random.Generator) -> None:
    """Gain, white noise, wander and hum by the config's strengths, in place. x: (B, 12, T); padding stays zero."""
    if config.gain_jitter:
        x *= np.exp(config.gain_jitter * rng.standard_normal((*x.shape[:2], 1), dtype=np.float32))
    if config.noise:
        level = rng.uniform(0, config.noise, (len(x), 1, 1)).astype(np.float32)
        x += level * rng.standard_normal(x.shape, dtype=np.float32)
    if config.wander:
        low, high = WANDER_HZ
        hz = low * (high / low) ** rng.random(len(x))
        x += _sines(x, hz, np.asarray(np.interp(hz, GRID_HZ, filter_gain(GRID_HZ))) * config.wander, rng)
    if config.mains:
        which = rng.integers(0, len(MAINS_HZ), len(x))
        x += _sines(x, np.array(MAINS_HZ)[which], filter_gain(MAINS_HZ)[which] * config.mains, rng)
    for k in np.flatnonzero(n_valid < x.shape[2]):
        x[k, :, n_valid[k] :] = 0


def _sines(x: Floats, hz: NDArray[np.float64], highest: NDArray[Any], rng: np.random.Generator) -> Floats:
    """hz, highest: (B,) -> (B, 12, T), one frequency a record, amplitude up to `highest` and phase by lead."""
    shape = x.shape[:2]
    level = (rng.uniform(0, 1, shape) * highest[:, None]).astype(np.float32)
    start = rng.uniform(0, 2 * np.pi, shape)
    angle = (2 * np.pi / FS) * hz[:, None] * np.arange(x.shape[2])  # (B, T)
    sine, cosine = np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
    a, b = level * np.cos(start).astype(np.float32), level * np.sin(start).astype(np.float32)
    return np.asarray(a[:, :, None] * sine[:, None] + b[:, :, None] * cosine[:, None])


def pad(x: Floats, n_valid: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Let about `share` of the windows end early, in place, at 5 s or later -> (B,) valid samples now.

    As in `encoders.preprocess` each lead is scaled by its own standard deviation over what is left, then zeros follow. What a
    filter does at the new end is not imitated.
    """
    out = n_valid.copy()
    for k in np.flatnonzero(rng.random(len(x)) < share):
        end = int(rng.integers(min(TAIL, int(n_valid[k])), int(n_valid[k]) + 1))
        left = x[k, :, :end]
        left /= np.maximum(np.sqrt((left**2).mean(axis=1, keepdims=True)), 1e-6)  # an absent lead stays zero
        x[k, :, end:] = 0
        out[k] = end
    return out
