"""Simulated devices: a moving heart dipole seen by twelve leads.

The heart vector (Frank X left, Y foot, Z back; mV) is a sum of Gaussians over the time around each beat (McSharry et al. 2003,
Sameni et al. 2007); the leads are Dower's (1980) projections of it, so limb leads satisfy Einthoven and Goldberger exactly.
Everything is a function of (device, sample index): no state, no clock, no broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.signal import ABSENT, LEADS, Layout

__all__ = ["RHYTHMS", "Device", "demo_devices", "synthesize"]

RHYTHMS = ("sinus", "af", "bigeminy", "paced")
BLOCK = 2048  # samples made at a time: any cut of a signal slices the same blocks
BEATS = 32  # beats whose intervals are drawn together; they last exactly BEATS * 60 / heart_rate seconds
OFF_SECONDS = (20, 40)  # of every minute in which a lead that is off gives nothing

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
class Device:
    """One device. gain: counts per mV. heart_rate: beats per minute on average. noise_mv: SD of the white noise of each lead.

    rhythm: sinus | af | bigeminy | paced. lead_off: a lead that gives no samples from second 20 to 40 of each minute ("V5"),
    or stays flat then ("V5:flat"). wander_mv, mains_mv: amplitudes of slow drift and of mains hum on each electrode.
    """

    stream_id: str
    rhythm: str
    leads: tuple[str, ...]
    fs_mhz: int
    gain: float
    heart_rate: float
    noise_mv: float
    lead_off: str | None
    seed: int
    session_id: str = "1"
    session_start_ns: int = 0
    wander_mv: float = 0.08
    mains_mv: float = 0.0
    mains_hz: float = 50.0

    def __post_init__(self) -> None:
        if self.rhythm not in RHYTHMS:
            raise ValueError(f"rhythm must be one of {', '.join(RHYTHMS)}, got {self.rhythm!r}")
        if not 20 <= self.heart_rate <= 250:
            raise ValueError(f"heart rate must be 20 to 250 per minute, got {self.heart_rate}")
        if self.lead_off is not None and self.lead_off.removesuffix(":flat") not in self.leads:
            raise ValueError(f"the lead that is off, {self.lead_off!r}, is none of {', '.join(self.leads)}")

    @property
    def layout(self) -> Layout:
        n = len(self.leads)
        return Layout(self.fs_mhz, self.leads, (self.gain,) * n, (0.0,) * n)


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
    _Wave(-0.026, 0.008, -0.14, -0.08, -0.26),  # septum, to the right and forward: q in I and V6, r in V1
    _Wave(0.000, 0.011, 1.05, 0.98, 0.15),  # free walls, to the left and down
    _Wave(0.028, 0.012, -0.25, -0.18, 0.60),  # base, up and back: S in V1 to V4
)
_T = (_Wave(0.270, 0.060, 0.20, 0.18, -0.10), _Wave(0.310, 0.036, 0.12, 0.11, -0.07))  # slow up, fast down; at RR = 1 s
_PVC = (_Wave(-0.005, 0.026, 0.40, 1.25, 0.60), _Wave(0.050, 0.034, 0.35, 0.80, 0.95))
_PVC_T = (_Wave(0.290, 0.075, -0.40, -0.75, -0.65),)
_PACED = (_Wave(0.010, 0.030, 0.65, -0.80, 0.55), _Wave(0.065, 0.032, 0.45, -0.75, 0.80))
_PACED_T = (_Wave(0.310, 0.080, -0.35, 0.65, -0.70),)
_SPIKE_AT, _SPIKE_S, _SPIKE = -0.055, 0.002, np.array([0.9, -2.0, 0.9])  # s before R, s long, mV
_AF_WAVE = np.array([0.018, 0.045, -0.065])  # mV, mostly seen in V1 and II


def synthesize(device: Device, n_samples: int, first_sample: int = 0) -> NDArray[np.int16]:
    """int16 (C, n_samples) from sample `first_sample` of the session on; the same samples however the signal is cut."""
    if n_samples < 0 or first_sample < 0:
        raise ValueError("a session has no samples before 0")
    out = np.empty((len(device.leads), n_samples), dtype=np.int16)
    done = 0
    while done < n_samples:
        index, offset = divmod(first_sample + done, BLOCK)
        n = min(BLOCK - offset, n_samples - done)
        out[:, done : done + n] = _block(device, index)[:, offset : offset + n]
        done += n
    return out


@lru_cache(maxsize=128)
def _block(device: Device, index: int) -> NDArray[np.int16]:
    """int16 (C, BLOCK): samples index * BLOCK and following."""
    fs = device.fs_mhz / 1000
    t = (np.arange(BLOCK) + index * BLOCK) / fs  # s since sample 0
    mv = _DOWER @ (_turned(device) @ _heart(device, t)) + _disturbance(device, index, t)  # (8, BLOCK)
    counts = np.rint(mv * device.gain)
    one, two = counts[0], counts[1]
    limb = [one, two, two - one, np.rint(-(one + two) / 2), np.rint(one - two / 2), np.rint(two - one / 2)]
    every = np.concatenate([np.stack(limb), counts[2:]])  # (12, BLOCK)
    samples = np.clip(every[[LEADS.index(lead) for lead in device.leads]], -32767, 32767).astype(np.int16)
    if device.lead_off is not None:
        lead, _, how = device.lead_off.partition(":")
        off = (t % 60 >= OFF_SECONDS[0]) & (t % 60 < OFF_SECONDS[1])
        samples[device.leads.index(lead), off] = 0 if how == "flat" else ABSENT
    samples.flags.writeable = False
    return samples


def _turned(device: Device) -> Signal:
    """(3, 3): every heart has its own size and electrical axis."""
    rng = np.random.default_rng([device.seed, 1])
    angle, size = np.radians(rng.uniform(-12, 12)), rng.uniform(0.85, 1.15)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]  # in the frontal plane
    return size * turn


def _heart(device: Device, t: Signal) -> Signal:
    """The heart vector (3, T) in mV at times t (T,)."""
    heart = np.zeros((3, len(t)))
    for k, at, before in _beats(device, t[0] - 1.0, t[-1] + 1.0):
        strength = 1 + 0.04 * np.sin(2 * np.pi * 0.25 * at)  # breathing
        for wave in _waves(device.rhythm, k, before):
            _add(heart, t, at, wave, strength)
        if device.rhythm == "paced":
            # what a converter sees of a short pulse is its mean over the sample
            step = t[1] - t[0]
            covered = np.minimum(t + step, at + _SPIKE_AT + _SPIKE_S) - np.maximum(t, at + _SPIKE_AT)
            heart += _SPIKE[:, None] * np.maximum(covered, 0) / max(step, _SPIKE_S)
    if device.rhythm == "af":
        phase = 2 * np.pi * 6.3 * t + 1.5 * np.sin(2 * np.pi * 0.31 * t) + 0.8 * np.sin(2 * np.pi * 0.83 * t + device.seed)
        flutter = (np.sin(phase) + 0.35 * np.sin(2 * phase + 0.6)) * (1 + 0.4 * np.sin(2 * np.pi * 0.23 * t))
        heart += _AF_WAVE[:, None] * flutter
    if device.rhythm == "paced":  # atria beat on their own, faster than the ventricles
        cycle = 60 / device.heart_rate * 0.81
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


def _beats(device: Device, start: float, end: float) -> list[tuple[int, float, float]]:
    """(number, time of R in s, interval before it in s) of the beats between two times; sample 0 lies mid-cycle."""
    cycle = 60 / device.heart_rate
    length = BEATS * cycle
    found = []
    for group in range(int(start // length), int(end // length) + 1):
        intervals = _intervals(device.rhythm, device.seed, group) * cycle  # (BEATS,), before each beat; they sum to length
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
        intervals += np.tile([0.40, -0.40], BEATS // 2)
    return np.asarray(intervals * (BEATS / intervals.sum()))


def _disturbance(device: Device, index: int, t: Signal) -> Signal:
    """Noise, drift and mains hum (8, T) in mV of the leads I, II, V1..V6."""
    rng = np.random.default_rng([device.seed, 3, index])
    out = device.noise_mv * rng.standard_normal((8, len(t)))
    fixed = np.random.default_rng([device.seed, 4])
    phases = fixed.uniform(0, 2 * np.pi, (8, 3))
    for j, (hz, share) in enumerate(((0.07, 0.5), (0.19, 0.35), (0.27, 0.25))):
        out += device.wander_mv * share * np.sin(2 * np.pi * hz * t + phases[:, j : j + 1])
    if device.mains_mv:
        out += device.mains_mv * fixed.uniform(0.5, 1.0, (8, 1)) * np.sin(2 * np.pi * device.mains_hz * t)
    return out


def demo_devices(seed: int = 0) -> tuple[Device, ...]:
    """Six devices of different rhythms, lead sets and rates."""
    limb = LEADS[:6]
    return (
        Device("bed-01", "sinus", LEADS, 500_000, 1000.0, 72, 0.010, None, seed * 100 + 1),
        Device("bed-02", "af", LEADS, 500_000, 1000.0, 96, 0.012, None, seed * 100 + 2, mains_mv=0.02),
        Device("holter-03", "bigeminy", ("II", "V5"), 360_000, 200.0, 74, 0.015, None, seed * 100 + 3, wander_mv=0.15),
        Device("bed-04", "paced", LEADS, 1_000_000, 400.0, 68, 0.010, None, seed * 100 + 4),
        Device("phone-05", "af", ("I",), 300_000, 1000.0, 118, 0.025, None, seed * 100 + 5, wander_mv=0.2),
        Device("patch-06", "sinus", limb, 250_000, 500.0, 104, 0.015, "aVF", seed * 100 + 6, wander_mv=0.15),
    )
