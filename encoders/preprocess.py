"""From recorded counts to the encoder's input: the one copy that training and serving use.

    int16 (C, T) at any rate -> mV, short gaps filled -> limb leads derived -> 500 Hz -> 0.5-40 Hz -> per-lead scale -> (12, 5000)

Every filter is a linear-phase FIR run as a strided convolution (`BlockFir`), so that the chain can be exported as one graph
with the encoder. The high-pass is: decimate 25 x, short FIR, interpolate, subtract. Nothing here knows files or streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.signal import ABSENT, FS, LEADS, WINDOW, Layout, SignalError, lead_bits

__all__ = ["VERSION", "BlockFir", "Calibrated", "Prepared", "bandpass", "calibrate", "prepare", "preprocess", "resample"]

VERSION = "1"  # written into manifest and finding; a change of any number below changes it

GAP_MS = 200  # the longest stretch that a straight line may fill
GAP_SHARE = 0.05  # the largest share of a window that may be filled
FLAT_MV = 0.005  # a lead that moves less than this all window long carries no ECG
LOW_PASS_HZ, LOW_PASS_TAPS = 40.0, 125  # -6 dB at 40 Hz, 13 Hz transition (Hamming)
HIGH_PASS_HZ, HIGH_PASS_TAPS = 0.5, 81  # at 20 Hz: -6 dB at 0.5 Hz, 4 s long
DECIMATION, DECIMATION_TAPS = 25, 151  # 500 -> 20 Hz; stop band from 10 Hz
MAX_DENOMINATOR = 1000  # of 500 Hz / fs; for odd rates the error stays under 1e-6, 10 microseconds in a window

Floats = NDArray[np.float32]


class BlockFir:
    """Zero-phase FIR resampling by up/down as a strided convolution: `outputs` new samples from each `stride` old ones.

    taps: odd-length linear-phase prototype at `up` times the input rate, centred, gain `up` included. y[m] = sum over n of
    taps[centre + m * down - n * up] * x[n]: what scipy.signal.upfirdn computes, less its zeros.
    """

    def __init__(self, taps: NDArray[np.float64], up: int = 1, down: int = 1, block: int = 1) -> None:
        half = len(taps) // 2
        self.stride, self.outputs = down * block, up * block
        self.left = half // up  # inputs needed before the first
        self.width = (half + (self.outputs - 1) * down) // up + self.left + 1
        index = half + np.arange(self.outputs)[:, None] * down - (np.arange(self.width) - self.left)[None, :] * up
        inside = (index >= 0) & (index < len(taps))
        kernel = np.where(inside, taps[np.clip(index, 0, len(taps) - 1)], 0.0)
        self.kernel: Floats = np.ascontiguousarray(kernel.T, dtype=np.float32)  # (width, outputs)

    def __call__(self, x: Floats, n_out: int) -> Floats:
        """x: (..., T), reflected at both ends -> (..., n_out)."""
        blocks = -(-n_out // self.outputs)
        right = (blocks - 1) * self.stride + self.width - self.left - x.shape[-1]
        padded = reflect(x, self.left, max(right, 0))
        view = np.lib.stride_tricks.sliding_window_view(padded, self.width, axis=-1)[..., :: self.stride, :][..., :blocks, :]
        flat = np.ascontiguousarray(view).reshape(-1, self.width)
        return (flat @ self.kernel).reshape(*x.shape[:-1], blocks * self.outputs)[..., :n_out]


def reflect(x: Floats, left: int, right: int) -> Floats:
    """x: (..., T) mirrored about its first and last sample."""
    n = x.shape[-1]
    if max(left, right) >= n:
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(left, right)], mode="reflect")
    return np.concatenate([x[..., left:0:-1], x, x[..., n - 2 : n - 2 - right : -1] if right else x[..., :0]], axis=-1)


def _lowpass(n_taps: int, cutoff_hz: float, fs: float, gain: float = 1.0) -> NDArray[np.float64]:
    """Hamming-windowed sinc of unit gain at 0 Hz times `gain` (scipy.signal.firwin without its import)."""
    t = np.arange(n_taps) - (n_taps - 1) / 2
    taps = np.sinc(2 * cutoff_hz / fs * t) * np.hamming(n_taps)
    return np.asarray(gain * taps / taps.sum())


@lru_cache(maxsize=64)
def resampler(fs_mhz: int) -> tuple[BlockFir, Fraction]:
    """The filter from a rate in mHz to 500 Hz, equal to scipy.signal.resample_poly's (Kaiser 5.0, 10 zero crossings)."""
    ratio = Fraction(FS * 1000, fs_mhz).limit_denominator(MAX_DENOMINATOR)
    up, down = ratio.numerator, ratio.denominator
    longest = max(up, down)
    half = 10 * longest
    t = np.arange(-half, half + 1)
    taps = np.sinc(t / longest) * np.kaiser(2 * half + 1, 5.0)
    return BlockFir(up * taps / taps.sum(), up, down, block=max(1, 48 // up)), ratio


def resample(x: Floats, fs_mhz: int) -> Floats:
    """x: (C, T) at fs_mhz -> (C, ceil(T * 500 / fs)) at 500 Hz."""
    fir, ratio = resampler(fs_mhz)
    if ratio == 1:
        return x
    return fir(x, -(-x.shape[-1] * ratio.numerator // ratio.denominator))


_LOW = BlockFir(_lowpass(LOW_PASS_TAPS, LOW_PASS_HZ, FS), block=64)
_DOWN = BlockFir(_lowpass(DECIMATION_TAPS, 5.0, FS), down=DECIMATION)
_DRIFT = BlockFir(_lowpass(HIGH_PASS_TAPS, HIGH_PASS_HZ, FS / DECIMATION), block=16)
_UP = BlockFir(_lowpass(DECIMATION_TAPS, 5.0, FS, gain=DECIMATION), up=DECIMATION)
_MARGIN = 50  # decimated samples (2.5 s) of reflected signal on each side of the high-pass


def bandpass(x: Floats) -> Floats:
    """x: (C, T) at 500 Hz -> 0.5 to 40 Hz, zero phase, same shape."""
    n = x.shape[-1]
    y = _LOW(x, n)
    n_slow = -(-n // DECIMATION) + 2 * _MARGIN
    wide = reflect(y, _MARGIN * DECIMATION, n_slow * DECIMATION - _MARGIN * DECIMATION - n)
    drift = _DRIFT(_DOWN(wide, n_slow), n_slow)
    y -= _UP(drift, _MARGIN * DECIMATION + n)[..., _MARGIN * DECIMATION :]
    return y


@dataclass(frozen=True)
class Calibrated:
    """Recorded leads in mV (or NU), gaps filled. mv: (C, T). usable, filled, flat: bool (C,). reason: why none is usable."""

    mv: Floats
    usable: NDArray[np.bool_]
    filled: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    reason: str | None


@dataclass(frozen=True)
class Prepared:
    """The encoder's input. x: (12, 5000) float32, zero where no lead or no sample. mask, derived: 12-bit lead masks.

    reason: None, or why the window cannot be scored (missing_head, gap, sparse, flat). n_valid: samples at 500 Hz before padding.
    """

    x: Floats
    mask: int
    derived: int
    n_valid: int
    reason: str | None


def calibrate(samples: NDArray[np.int16], layout: Layout) -> Calibrated:
    """samples: int16 (C, T), ABSENT where a lead has none -> mV with gaps up to 200 ms filled by a straight line.

    A lead with a longer gap, or more than 5 % missing, or no movement, is not usable. Raises SignalError("shape").
    """
    if samples.ndim != 2 or samples.shape[0] != len(layout.leads) or samples.shape[1] == 0:
        raise SignalError("shape", f"{len(layout.leads)} leads need samples (C, T) with C = {len(layout.leads)}, got {samples.shape}")
    gain = np.asarray(layout.gain, dtype=np.float32)[:, None]
    mv = (samples - np.asarray(layout.baseline, dtype=np.float32)[:, None]) / gain  # (C, T)
    n = samples.shape[0]
    usable, filled = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    reasons: set[str] = set()
    lowest, highest = samples.min(axis=1), samples.max(axis=1)
    for c in np.flatnonzero(lowest == ABSENT):
        reason = _fill(mv[c], samples[c] == ABSENT, layout.samples(GAP_MS))
        usable[c], filled[c] = reason is None, reason is None
        if reason:
            mv[c] = 0.0
            reasons.add(reason)
        else:
            lowest[c] = samples[c][samples[c] != ABSENT].min()
    span = (highest.astype(np.float32) - lowest) / gain[:, 0]
    flat = usable & (span <= (FLAT_MV if layout.unit == "mV" else 0.0))
    usable &= ~flat
    order = ("missing_head", "gap", "sparse")
    why = None if usable.any() else next((r for r in order if r in reasons), "flat")
    return Calibrated(mv, usable, filled, flat, why)


def _fill(lead: Floats, absent: NDArray[np.bool_], longest: int) -> str | None:
    """Fill one lead (T,) in place, or say why not."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], absent, [False]])))
    starts, ends = edges[::2], edges[1::2]
    if starts[0] == 0 and ends[0] > longest:
        return "missing_head"
    if (ends - starts).max() > longest:
        return "gap"
    if absent.sum() > GAP_SHARE * len(absent):
        return "sparse"
    present = np.flatnonzero(~absent)
    if not len(present):
        return "gap"
    lead[absent] = np.interp(np.flatnonzero(absent), present, lead[present])
    return None


def derive(x: Floats, mask: int) -> int:
    """x: (12, T), leads of `mask` filled in. Adds the limb leads that two of I, II, III determine; returns their bits.

    Einthoven: I + III = II. Goldberger: aVR = -(I + II) / 2, aVL = (I - III) / 2, aVF = (II + III) / 2.
    """
    one, two, three = (bool(mask >> i & 1) for i in range(3))
    if one + two + three < 2:
        return 0
    if not one:
        x[0] = x[1] - x[2]
    elif not two:
        x[1] = x[0] + x[2]
    elif not three:
        x[2] = x[1] - x[0]
    derived = lead_bits(LEADS[:3]) & ~mask
    for i, (a, b, sign) in {3: (0, 1, -0.5), 4: (0, 2, 0.5), 5: (1, 2, 0.5)}.items():
        if not mask >> i & 1:
            x[i] = sign * (x[a] - x[b] if i == 4 else x[a] + x[b])
            derived |= 1 << i
    return derived


def prepare(calibrated: Calibrated, layout: Layout) -> Prepared:
    """Calibrated leads -> Prepared. Scale: each lead by its standard deviation over valid samples; zeros are appended last."""
    out = np.zeros((len(LEADS), WINDOW), dtype=np.float32)
    used = np.flatnonzero(calibrated.usable)
    if not len(used):
        return Prepared(out, 0, 0, 0, calibrated.reason)
    y = bandpass(resample(calibrated.mv[used] if len(used) < len(calibrated.mv) else calibrated.mv, layout.fs_mhz))
    rows = [LEADS.index(layout.leads[c]) for c in used]
    n = min(y.shape[-1], WINDOW)
    out[rows, :n] = y[:, :n]
    mask = lead_bits([layout.leads[c] for c in used])
    derived = derive(out[:, :n], mask) if layout.unit == "mV" else 0  # filters are linear: deriving after them is the same
    mask |= derived
    valid = out[:, :n]
    scale = np.sqrt(np.einsum("ct,ct->c", valid, valid) / n)  # (12,), the band-passed mean is 0
    floor = FLAT_MV / 10 if layout.unit == "mV" else 1e-6
    valid /= np.maximum(scale, floor)[:, None]
    return Prepared(out, mask, derived, n, None)


def preprocess(samples: NDArray[np.int16], layout: Layout) -> Prepared:
    """int16 counts (C, T) of one window or shorter -> Prepared. A longer signal is cut to its first 10 s."""
    return prepare(calibrate(samples[:, : layout.window], layout), layout)


def stack(windows: Sequence[Prepared]) -> Floats:
    """(B, 12, 5000) of prepared windows."""
    return np.stack([w.x for w in windows])
