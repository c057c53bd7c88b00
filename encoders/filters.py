"""The linear filters of the preprocessing: any rate -> 500 Hz -> 0.5 to 40 Hz, zero phase, reflected at both ends.

`resample` and `bandpass` say what is computed, as linear-phase FIR stages. `to_band` computes bandpass(resample(x)) faster, by
folding neighbouring stages into one kernel, and agrees with it to rounding. Nothing here knows leads, units or gaps.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from encoders.signal import FS

__all__ = ["BlockFir", "bandpass", "resample", "resampler", "to_band"]

LOW_PASS_HZ, LOW_PASS_TAPS = 40.0, 125  # -6 dB at 40 Hz, 13 Hz transition (Hamming)
HIGH_PASS_HZ, HIGH_PASS_TAPS = 0.5, 81  # at 20 Hz: -6 dB at 0.5 Hz, 4 s long
DECIMATION, DECIMATION_TAPS = 25, 151  # 500 -> 20 Hz; stop band from 10 Hz
MAX_TERM = 1000  # of the fraction 500 Hz / fs: exact for usual rates, else off by up to 5e-4 (5 ms at the end of a window)
FUSED_FROM = 2000  # samples at 500 Hz; in less than 4 s the ends would meet
FUSED_FS_MHZ = 1_000_000  # above, one kernel for both stages would be longer than the two
LEADS_AT_ONCE = 3  # of the low-pass
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


_HALF_LOW, _HALF_SLOW, _HALF_DRIFT = LOW_PASS_TAPS // 2, DECIMATION_TAPS // DECIMATION // 2, HIGH_PASS_TAPS // 2
_EDGE = _HALF_SLOW * DECIMATION  # samples beyond an end that the slow signal sees
_DOWN_8 = BlockFir(_lowpass(DECIMATION_TAPS, 5.0, FS), down=DECIMATION, block=8)


def _pair(fir: BlockFir) -> Floats:
    """(stride, 2 * outputs): what a block of samples adds to its own outputs, and to those of the block before."""
    own, after = np.split(fir.kernel, [fir.stride])
    return np.concatenate([own, np.pad(after, [(0, fir.stride - len(after)), (0, 0)])], axis=1)


_DOWN_PAIR = _pair(_DOWN_8)
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
        self.fir = _joined(fs_mhz)
        n_blocks = -(-self.n // self.fir.outputs)
        most = max(12, ONE_THREAD // self.fir.kernel.size)
        self.parts = -(-n_blocks // most)
        self.per_part = -(-n_blocks // self.parts)
        self.tail_from, self.tail = _tail(fs_mhz, n_in)
        self.n_slow = -(-self.n // DECIMATION)  # at samples 0, 25, 50, ...
        self.n_right = _HALF_DRIFT + _HALF_SLOW  # slow samples beyond the right end
        self.right_from = 2 * (self.n - 1) - DECIMATION * (self.n_slow + self.n_right - 1)  # where the last one is mirrored to
        self.main, self.right = (-(-k // _DOWN_8.outputs) for k in (self.n_slow, self.n_right))  # blocks
        self.drift = self._drift_matrix()
        ends = (_DOWN_8.stride * (self.main - 1), self.right_from + _DOWN_8.stride * (self.right - 1))
        width = max(_EDGE + self.parts * self.per_part * self.fir.outputs, max(ends) + 2 * _DOWN_8.stride)
        self.width = -(-width // _DOWN_8.stride) * _DOWN_8.stride

    def _drift_matrix(self) -> Floats:
        """(2, slow samples, half of the drift samples from -3 on): inputs as they come from the blocks."""
        taps = _lowpass(HIGH_PASS_TAPS, HIGH_PASS_HZ, FS / DECIMATION)
        n_out = -(-self.n_slow // _UP_4.stride) * _UP_4.stride + 2 * _HALF_SLOW
        mirrored = self.main * _DOWN_8.outputs + np.arange(self.n_right)[::-1]
        row = np.concatenate([np.arange(self.n_slow), mirrored])
        matrix = np.zeros((2, (self.main + self.right) * _DOWN_8.outputs, -(-n_out // 2)))
        for out in range(self.n_slow + 2 * _HALF_SLOW):
            at = np.abs(out - _HALF_SLOW + np.arange(-_HALF_DRIFT, _HALF_DRIFT + 1))
            np.add.at(matrix[out // matrix.shape[2], :, out % matrix.shape[2]], row[at], taps)
        return matrix.astype(np.float32)

    def __call__(self, x: Floats) -> Floats:
        leads, n = len(x), self.n
        y = np.empty((leads, self.width), dtype=np.float32)
        self._low_pass(x, y[:, _EDGE : _EDGE + self.parts * self.per_part * self.fir.outputs])
        y[:, :_EDGE] = y[:, 2 * _EDGE : _EDGE : -1]
        end, beyond = _EDGE + n, self.width - _EDGE - n
        y[:, end:] = y[:, end - 2 : end - 2 - beyond : -1]
        slow = np.empty((leads, self.main + self.right, _DOWN_8.outputs), dtype=np.float32)
        own_and_before = (y.reshape(-1, _DOWN_8.stride) @ _DOWN_PAIR).reshape(leads, -1, 2, _DOWN_8.outputs)
        np.add(own_and_before[:, : self.main, 0], own_and_before[:, 1 : self.main + 1, 1], out=slow[:, : self.main])
        mirrored = np.ascontiguousarray(_windows(y[:, self.right_from :], self.right, _DOWN_8))
        np.matmul(mirrored, _DOWN_8.kernel, out=slow[:, self.main :])
        half = self.drift.shape[2]
        drift = np.empty((leads, 2 * half), dtype=np.float32)
        np.matmul(slow.reshape(leads, -1), self.drift, out=drift.reshape(leads, 2, half).transpose(1, 0, 2))
        wave = np.ascontiguousarray(_windows(drift, -(-self.n_slow // _UP_4.stride), _UP_4)) @ _UP_4.kernel
        band = wave.reshape(leads, -1)[:, :n]
        np.subtract(y[:, _EDGE:end], band, out=band)
        return band

    def _low_pass(self, x: Floats, y: Floats) -> None:
        """x: (C, T) -> y: (C, n or a little more), in place."""
        fir, blocks = self.fir, self.parts * self.per_part
        right = (blocks - 1) * fir.stride + fir.width - fir.left - x.shape[-1]
        windows = _windows(reflect(x, fir.left, max(right, 0)), blocks, fir)
        out = y.reshape(len(x), self.parts, self.per_part, fir.outputs)
        cut = np.empty((LEADS_AT_ONCE, self.parts, self.per_part, fir.width), dtype=np.float32)  # fits the cache
        for c in range(0, len(x), LEADS_AT_ONCE):
            some = windows[c : c + LEADS_AT_ONCE]
            part = cut[: len(some)]
            np.copyto(part.reshape(some.shape), some)
            np.matmul(part, fir.kernel, out=out[c : c + LEADS_AT_ONCE])
        if self.tail is not None:
            y[:, self.n - self.tail.shape[1] : self.n] = x[:, self.tail_from :] @ self.tail


_fused = lru_cache(maxsize=16)(_Fused)


def _windows(x: Floats, n: int, fir: BlockFir) -> Floats:
    """x: (C, T) -> a view (C, n, width) of what each block of `fir` sees."""
    row, step = x.strides
    return as_strided(x, (len(x), n, fir.width), (row, fir.stride * step, step), writeable=False)


@lru_cache(maxsize=16)
def _joined(fs_mhz: int) -> BlockFir:
    """Resampler and low-pass as one filter."""
    ratio = resampler(fs_mhz)[1]
    up, down = ratio.numerator, ratio.denominator
    spread = np.zeros((LOW_PASS_TAPS - 1) * down + 1)
    spread[::down] = _lowpass(LOW_PASS_TAPS, LOW_PASS_HZ, FS)
    return BlockFir(np.convolve(_resampling_taps(ratio), spread), up, down, block=max(1, 32 // up))


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
