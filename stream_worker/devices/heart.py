"""The simulated heart: a moving dipole seen by the electrodes.

The heart vector (Frank X left, Y foot, Z back; mV) is a sum of Gaussians over the time around each beat (McSharry et al. 2003,
Sameni et al. 2007); Dower's (1980) coefficients project it to I, II, V1..V6. Everything is a function of rhythm, rate, seed and
time: no state, no clock; any stretch of time can be made alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["RHYTHMS", "beat_times", "independent_leads"]

RHYTHMS = ("sinus", "af", "bigeminy", "paced")
BEATS = 32  # beats whose intervals are drawn together; they last exactly BEATS * 60 / heart_rate seconds

Signal = NDArray[np.float64]

# (8, 3): I, II, V1..V6 from X, Y, Z
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)


@dataclass(frozen=True)
class _Wave:
    """One Gaussian of the heart vector: centre and width in s, seen from the R peak; amplitude (X, Y, Z) in mV."""

    at: float
    width: float
    x: float
    y: float
    z: float


_P = (_Wave(-0.170, 0.020, 0.05, 0.09, -0.06), _Wave(-0.145, 0.020, 0.04, 0.07, 0.05))
_NARROW = (
    _Wave(-0.026, 0.009, -0.10, -0.08, -0.28),  # septum, to the right and forward: q in I and V6, r in V1
    _Wave(0.000, 0.011, 1.05, 0.98, 0.15),  # free walls, to the left and down
    _Wave(0.026, 0.014, -0.27, -0.18, 0.44),  # base, up and back: S in V1 to V4
)
_T = (_Wave(0.270, 0.060, 0.20, 0.18, -0.10), _Wave(0.310, 0.036, 0.12, 0.11, -0.07))  # slow up, fast down; at RR = 1 s
_PVC = (_Wave(0.000, 0.023, 0.40, 1.30, 0.60), _Wave(0.045, 0.028, 0.35, 0.80, 0.95))
_PVC_T = (_Wave(0.290, 0.075, -0.40, -0.75, -0.65),)
_PACED = (_Wave(0.005, 0.022, 0.65, -0.90, 0.55), _Wave(0.048, 0.026, 0.45, -0.75, 0.80))
_PACED_T = (_Wave(0.310, 0.080, -0.28, 0.50, -0.55),)
_SPIKE_AT, _SPIKE_S, _SPIKE = -0.055, 0.002, np.array([0.9, -2.0, 0.9])  # s before R, s long, mV
_AF_WAVE = np.array([0.018, 0.045, -0.065])  # mV, mostly seen in V1 and II


def independent_leads(rhythm: str, heart_rate: float, seed: int, t: Signal) -> Signal:
    """t: (T,) s -> the leads I, II, V1..V6 (8, T) in mV; the other limb leads follow from I and II."""
    return np.asarray(_DOWER @ (_turned(seed) @ _heart(rhythm, heart_rate, seed, t)))


def beat_times(rhythm: str, heart_rate: float, seed: int, start: float, end: float) -> list[float]:
    """Times of the R peaks (centres of wide beats) in s between two times."""
    return [at for _, at, _ in _beats(rhythm, heart_rate, seed, start, end)]


def _turned(seed: int) -> Signal:
    """(3, 3): every heart has its own size and electrical axis."""
    rng = np.random.default_rng([seed, 1])
    angle, size = np.radians(rng.uniform(-12, 12)), rng.uniform(0.85, 1.15)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]  # in the frontal plane
    return size * turn


def _heart(rhythm: str, heart_rate: float, seed: int, t: Signal) -> Signal:
    """The heart vector (3, T) in mV at times t (T,)."""
    heart = np.zeros((3, len(t)))
    for k, at, before in _beats(rhythm, heart_rate, seed, t[0] - 1.0, t[-1] + 1.0):
        strength = 1 + 0.04 * np.sin(2 * np.pi * 0.25 * at)  # breathing
        for wave in _waves(rhythm, k, before):
            _add(heart, t, at, wave, strength)
        if rhythm == "paced":
            # what a converter sees of a short pulse is its mean over the sample
            step = t[1] - t[0]
            covered = np.minimum(t + step, at + _SPIKE_AT + _SPIKE_S) - np.maximum(t, at + _SPIKE_AT)
            heart += _SPIKE[:, None] * np.maximum(covered, 0) / max(step, _SPIKE_S)
    if rhythm == "af":
        phase = 2 * np.pi * 6.3 * t + 1.5 * np.sin(2 * np.pi * 0.31 * t) + 0.8 * np.sin(2 * np.pi * 0.83 * t + seed)
        flutter = (np.sin(phase) + 0.35 * np.sin(2 * phase + 0.6)) * (1 + 0.4 * np.sin(2 * np.pi * 0.23 * t))
        heart += _AF_WAVE[:, None] * flutter
    if rhythm == "paced":  # complete block: the atria beat on their own, faster
        cycle = 60 / heart_rate * 0.81
        for k in range(int((t[0] - 1) // cycle), int((t[-1] + 1) // cycle) + 1):
            for wave in _P:
                _add(heart, t, k * cycle, wave, 1.0)
    return heart


def _waves(rhythm: str, k: int, before: float) -> list[_Wave]:
    """The waves of beat k; the T wave comes sooner after a shorter interval (s) before the beat."""
    odd = rhythm == "bigeminy" and k % 2 == 1
    shape = _PVC if odd else _PACED if rhythm == "paced" else _NARROW
    late = _PVC_T if odd else _PACED_T if rhythm == "paced" else _T
    stretch = float(np.sqrt(np.clip(before, 0.36, 1.3)))
    repolarisation = [_Wave(w.at * stretch, w.width * stretch, w.x, w.y, w.z) for w in late]
    return [*(() if odd or rhythm in ("af", "paced") else _P), *shape, *repolarisation]


def _add(heart: Signal, t: Signal, beat: float, wave: _Wave, strength: float) -> None:
    """Add one Gaussian to heart (3, T) in place."""
    centre = beat + wave.at
    low, high = np.searchsorted(t, (centre - 5 * wave.width, centre + 5 * wave.width))
    if low < high:
        bump = strength * np.exp(-0.5 * ((t[low:high] - centre) / wave.width) ** 2)
        heart[:, low:high] += np.array([[wave.x], [wave.y], [wave.z]]) * bump


def _beats(rhythm: str, heart_rate: float, seed: int, start: float, end: float) -> list[tuple[int, float, float]]:
    """(number, time of R in s, interval before it in s) of the beats between two times; sample 0 lies mid-cycle."""
    cycle = 60 / heart_rate
    length = BEATS * cycle
    found = []
    for group in range(int(start // length), int(end // length) + 1):
        intervals = _intervals(rhythm, seed, group) * cycle  # (BEATS,), before each beat; they sum to length
        times = group * length + np.cumsum(intervals) - cycle / 2
        numbers = group * BEATS + np.arange(BEATS)
        inside = (times >= start) & (times <= end)
        found += list(zip(numbers[inside].tolist(), times[inside].tolist(), intervals[inside].tolist(), strict=True))
    return found


@lru_cache(maxsize=512)
def _intervals(rhythm: str, seed: int, group: int) -> Signal:
    """(BEATS,) RR intervals in mean cycles, each before its beat."""
    rng = np.random.default_rng([seed, 2, group + 2])  # group is -1 before sample 0
    if rhythm == "paced":
        return np.ones(BEATS)
    if rhythm == "af":
        intervals = np.clip(rng.gamma(18.0, 1 / 18, BEATS), 0.55, 1.8)
    else:
        intervals = 1 + 0.03 * np.sin(2 * np.pi * 8 * np.arange(BEATS) / BEATS) + 0.008 * rng.standard_normal(BEATS)
    if rhythm == "bigeminy":  # early beat, full compensatory pause
        intervals += np.tile([0.37, -0.37], BEATS // 2)
    return np.asarray(intervals * (BEATS / intervals.sum()))
