"""The linear filters of the preprocessing: any rate -> 500 Hz -> 0.5 to 40 Hz, zero phase, reflected at both ends.

`resample` and `bandpass` say what is computed, as linear-phase FIR stages. `to_band` computes bandpass(resample(x)) faster, by
folding neighbouring stages into one kernel, and agrees with it to rounding. Nothing here knows leads, units or gaps.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.signal import FS

__all__ = ["BlockFir", "bandpass", "resample", "resampler", "to_band"]

LOW_PASS_HZ, LOW_PASS_TAPS = 40.0, 125  # -6 dB at 40 Hz, 13 Hz transition (Hamming)
HIGH_PASS_HZ, HIGH_PASS_TAPS = 0.5, 81  # at 20 Hz: -6 dB at 0.5 Hz, 4 s long
DECIMATION, DECIMATION_TAPS = 25, 151  # 500 -> 20 Hz; stop band from 10 Hz
MAX_TERM = 1000  # of the fraction 500 Hz / fs: exact for usual rates, else off by up to 5e-4 (5 ms at the end of a window)
FUSED_FROM = 2100  # samples at 500 Hz; in less than 4.2 s each half of the drift would see both ends
FUSED_FS_MHZ = 1_000_000  # above, one kernel for both stages would be longer than the two
ONE_THREAD = (1 << 19) - 1  # multiply-adds up to which OpenBLAS stays in one thread; on a busy machine two are slower

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


def _lowpass(n_taps: int, cutoff_hz: float, fs: float) -> NDArray[np.float64]:
    """Hamming-windowed sinc of unit gain at 0 Hz (scipy.signal.firwin without its import)."""
    t = np.arange(n_taps) - (n_taps - 1) / 2
    taps = np.sinc(2 * cutoff_hz / fs * t) * np.hamming(n_taps)
    return np.asarray(taps / taps.sum())


@lru_cache(maxsize=16)
def resampler(fs_mhz: int) -> tuple[BlockFir, Fraction]:
    """The filter from a rate in mHz to 500 Hz, equal to scipy.signal.resample_poly's (Kaiser 5.0, 10 zero crossings)."""
    exact = Fraction(FS * 1000, fs_mhz)
    ratio = exact.limit_denominator(MAX_TERM) if exact <= 1 else 1 / (1 / exact).limit_denominator(MAX_TERM)
    up, down = ratio.numerator, ratio.denominator
    return BlockFir(_resampling_taps(ratio), up, down, block=max(1, 48 // up)), ratio


def _resampling_taps(ratio: Fraction) -> NDArray[np.float64]:
    """At up times the input rate; a single 1 where nothing is to be done."""
    longest = max(ratio.numerator, ratio.denominator)
    half = 10 * longest if ratio != 1 else 0
    taps = np.sinc(np.arange(-half, half + 1) / longest) * np.kaiser(2 * half + 1, 5.0)
    return np.asarray(ratio.numerator * taps / taps.sum())


def resample(x: Floats, fs_mhz: int) -> Floats:
    """x: (C, T) at fs_mhz -> (C, ceil(T * 500 / fs)) at 500 Hz."""
    fir, ratio = resampler(fs_mhz)
    if ratio == 1:
        return x
    return fir(x, -(-x.shape[-1] * ratio.numerator // ratio.denominator))


def _interpolating_taps() -> NDArray[np.float64]:
    """20 -> 500 Hz. Each of the 25 phases has unit gain at 0 Hz: otherwise a constant would come out as a 20 Hz comb."""
    taps = _lowpass(DECIMATION_TAPS, 5.0, FS)
    phase = (np.arange(DECIMATION_TAPS) - DECIMATION_TAPS // 2) % DECIMATION
    return np.asarray(taps / np.bincount(phase, weights=taps)[phase])


_LOW = BlockFir(_lowpass(LOW_PASS_TAPS, LOW_PASS_HZ, FS), block=64)
_DOWN = BlockFir(_lowpass(DECIMATION_TAPS, 5.0, FS), down=DECIMATION)
_DRIFT = BlockFir(_lowpass(HIGH_PASS_TAPS, HIGH_PASS_HZ, FS / DECIMATION), block=16)
_UP = BlockFir(_interpolating_taps(), up=DECIMATION)
MARGIN = 50  # decimated samples (2.5 s) of reflected signal on each side of the high-pass


def bandpass(x: Floats) -> Floats:
    """x: (C, T) at 500 Hz -> 0.5 to 40 Hz, zero phase, same shape."""
    y = low_pass(x)
    y -= interpolate(drift(slow(y)), y.shape[-1])
    return y


def low_pass(x: Floats) -> Floats:
    """x: (C, T) at 500 Hz -> below 40 Hz, same shape."""
    return _LOW(x, x.shape[-1])


def slow(y: Floats) -> Floats:
    """y: (C, T) at 500 Hz -> (C, N) at 20 Hz, from MARGIN samples before sample 0 to as many after the end: mirrored signal."""
    n = y.shape[-1]
    n_slow = -(-n // DECIMATION) + 2 * MARGIN
    return _DOWN(reflect(y, MARGIN * DECIMATION, (n_slow - MARGIN) * DECIMATION - n), n_slow)


def drift(w: Floats) -> Floats:
    """w: (C, N) as `slow` gives it -> what of it lies below 0.5 Hz, same shape."""
    return _DRIFT(w, w.shape[-1])


def interpolate(w: Floats, n: int) -> Floats:
    """w: (C, N) as `drift` gives it -> (C, n) at 500 Hz."""
    return _UP(w, MARGIN * DECIMATION + n)[..., MARGIN * DECIMATION :]


_HALF_LOW, _HALF_SLOW, _HALF_DRIFT = LOW_PASS_TAPS // 2, DECIMATION_TAPS // DECIMATION // 2, HIGH_PASS_TAPS // 2
_EDGE = _HALF_SLOW * DECIMATION  # samples beyond an end that the slow signal sees
_DOWN_8 = BlockFir(_lowpass(DECIMATION_TAPS, 5.0, FS), down=DECIMATION, block=8)


_UP_4 = BlockFir(_interpolating_taps(), up=DECIMATION, block=4)


def to_band(x: Floats, fs_mhz: int) -> Floats:
    """x: (C, T) at fs_mhz -> (C, ceil(T * 500 / fs)) at 500 Hz, 0.5 to 40 Hz: bandpass(resample(x, fs_mhz))."""
    if fs_mhz > FUSED_FS_MHZ:
        x, fs_mhz = resample(x, fs_mhz), FS * 1000
    if x.shape[-1] * resampler(fs_mhz)[1] < FUSED_FROM:
        return bandpass(resample(x, fs_mhz))
    fused = _fused(fs_mhz, x.shape[-1])
    if fused.width > 2 * fused.n:  # a block longer than the signal: its mirrored end would reach beyond the other
        return bandpass(resample(x, fs_mhz))
    return fused(x)


class _Fused:
    """bandpass(resample(x)) for one rate and length, in four products.

    1. Resampler and low-pass as one FIR from the recorded rate. On the left, reflecting before the one and between the two is
       the same; on the right 500 Hz may miss the last sample, so the last outputs come from a matrix of their own.
    2. The slow signal (20 Hz), eight samples at a time; beyond the right end it is the one mirrored there, read backwards.
    3. The high-pass filter of the slow signal, reflected ends included: one matrix, in halves.
    4. Its interpolation, which is subtracted.
    """

    def __init__(self, fs_mhz: int, n_in: int) -> None:
        ratio = resampler(fs_mhz)[1]
        self.n = -(-n_in * ratio.numerator // ratio.denominator)
        self.tail_from, self.tail = _tail(fs_mhz, n_in)
        self.n_slow = -(-self.n // DECIMATION)  # at samples 0, 25, 50, ...
        self.n_right = _HALF_DRIFT + _HALF_SLOW  # slow samples beyond the right end
        self.main, self.right = (-(-k // _DOWN_8.outputs) for k in (self.n_slow, self.n_right))  # blocks
        self.right_from = 2 * (self.n - 1) - DECIMATION * (self.n_slow + self.right * _DOWN_8.outputs - 1)  # the last, mirrored
        self.up = -(-self.n_slow // _UP_4.stride)  # blocks
        self.drift = self._drift_matrix()
        self.fir = _joined(fs_mhz)
        self.apart = -(-self.fir.width // self.fir.stride)
        beyond = max(2 * _EDGE, (self.apart - 1) * self.fir.outputs)
        width = max(self.n + beyond, _DOWN_8.stride * (self.main - 1) + _DOWN_8.width)
        self.pitch = -(-width // self.fir.outputs)  # blocks to a lead
        self.width = self.pitch * self.fir.outputs

    def _drift_matrix(self) -> Floats:
        """(2, slow samples that a half sees, half of the drift samples from -3 on): inputs as they come from the blocks."""
        taps = _lowpass(HIGH_PASS_TAPS, HIGH_PASS_HZ, FS / DECIMATION)
        n_in, half = (self.main + self.right) * _DOWN_8.outputs, self.up * _UP_4.stride // 2 + _HALF_SLOW
        row = np.concatenate([np.arange(self.n_slow), n_in - 1 - np.arange(self.n_right)])
        matrix = np.zeros((n_in, 2 * half))
        for out in range(self.n_slow + 2 * _HALF_SLOW):
            at = np.abs(out - _HALF_SLOW + np.arange(-_HALF_DRIFT, _HALF_DRIFT + 1))
            np.add.at(matrix[:, out], row[at], taps)
        unseen = half - _HALF_SLOW - _HALF_DRIFT  # of the first slow samples by the second half
        return np.stack([matrix[: n_in - unseen, :half], matrix[unseen:, half:]]).astype(np.float32)

    def __call__(self, x: Floats) -> Floats:
        y = self._low_pass(x)
        slow = np.concatenate([_blocks(_DOWN_8, y, self.main), _blocks(_DOWN_8, y, self.right, self.right_from)], axis=1)
        first, second = self.drift
        drift = np.concatenate([slow[:, : len(first)] @ first, slow[:, -len(second) :] @ second], axis=1)
        band = _blocks(_UP_4, drift, self.up)[:, : self.n]
        return np.subtract(y[:, _EDGE : _EDGE + self.n], band, out=band)

    def _low_pass(self, x: Floats) -> Floats:
        """x: (C, T) -> (C, n and more), from sample -75 on, mirrored beyond both ends.

        The leads lie end to end, `pitch` blocks each. What neighbouring blocks see overlaps, but what every `apart`-th one sees
        does not: rows of a matrix where they lie, so that none is copied. What a block across two leads gives is overwritten.
        """
        fir, apart, leads = self.fir, self.apart, len(x)
        rows = -(-leads * self.pitch // apart)
        parts = -(-rows // max(12, ONE_THREAD // fir.kernel.size))
        rows = -(-rows // (4 * parts)) * 4  # of each part; BLAS takes four at a time
        flat = np.empty((parts * rows + 1) * apart * fir.stride, dtype=np.float32)
        wide, end = flat[: leads * self.pitch * fir.stride].reshape(leads, -1), fir.left + x.shape[1]
        flat[wide.size :] = 0
        wide[:, fir.left : end] = x
        _mirror(wide, fir.left, end)
        far = 4 * apart * fir.stride  # bytes
        windows = np.ndarray((parts, apart, rows, fir.width), np.float32, flat, 0, (rows * far, 4 * fir.stride, far, 4))
        out = np.empty(_EDGE + parts * rows * apart * fir.outputs, dtype=np.float32)
        np.matmul(windows, fir.kernel, out=out[_EDGE:].reshape(parts, rows, apart, -1).transpose(0, 2, 1, 3))
        y, end = out[: leads * self.width].reshape(leads, -1), _EDGE + self.n
        if self.tail is not None:
            y[:, end - self.tail.shape[1] : end] = x[:, self.tail_from :] @ self.tail
        _mirror(y, _EDGE, end)
        return y


_fused = lru_cache(maxsize=16)(_Fused)


def _mirror(x: Floats, begin: int, end: int) -> None:
    """x: (C, T), in place: before `begin` and from `end` on comes what is mirrored there."""
    x[:, :begin] = x[:, 2 * begin : begin : -1]
    x[:, end:] = x[:, end - 2 : 2 * end - 2 - x.shape[1] : -1]


def _blocks(fir: BlockFir, x: Floats, n: int, begin: int = 0) -> Floats:
    """x: (C, T) -> (C, n * outputs), from `n` blocks of which the first sees the samples from `begin` on."""
    row, step = x.strides
    windows = np.ndarray((len(x), n, fir.width), np.float32, x, step * begin, (row, step * fir.stride, step))
    out = np.empty((len(x), n, fir.outputs), dtype=np.float32)
    some = max(1, ONE_THREAD // (n * fir.kernel.size))  # leads
    for c in range(0, len(x), some):
        rows = np.ascontiguousarray(windows[c : c + some]).reshape(-1, fir.width)
        np.matmul(rows, fir.kernel, out=out[c : c + some].reshape(-1, fir.outputs))
    return out.reshape(len(x), -1)


@lru_cache(maxsize=16)
def _joined(fs_mhz: int) -> BlockFir:
    """Resampler and low-pass as one filter."""
    ratio = resampler(fs_mhz)[1]
    up, down = ratio.numerator, ratio.denominator
    spread = np.zeros((LOW_PASS_TAPS - 1) * down + 1)
    spread[::down] = _lowpass(LOW_PASS_TAPS, LOW_PASS_HZ, FS)
    return BlockFir(np.convolve(_resampling_taps(ratio), spread), up, down, block=max(1, 32 // max(up, down)))


def _tail(fs_mhz: int, n_in: int) -> tuple[int, Floats | None]:
    """(where the inputs of the last outputs begin, (inputs, outputs)), none where 500 Hz ends on the last sample anyway."""
    fir, ratio = resampler(fs_mhz)
    if ratio == 1:
        return n_in, None
    up, down = ratio.numerator, ratio.denominator
    need = (LOW_PASS_TAPS + 1) * down // up + 2 * fir.left + down + 2
    first = max(0, (n_in - need) // down * down)  # a sample that 500 Hz hits
    unit = np.eye(n_in - first, dtype=np.float32)
    y = _LOW(resample(unit, fs_mhz), -(-n_in * up // down) - first * up // down)
    return first, np.ascontiguousarray(y[:, -_HALF_LOW:])
