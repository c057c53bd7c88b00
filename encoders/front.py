"""The preprocessing of a whole window at one rate as matrices, from centred counts to what the encoder's network takes.

All of it but the scale of a lead is linear. Unit impulses pushed through `filters` give the matrices, so that no filter is
designed a second time. An encoder that begins with a fixed decimation gets the decimated signal at once, by one matrix from the
recorded rate; its other samples are never made. Knows no graph format.

    counts - mean -> below 40 Hz ---------------------------> minus drift -> band
                  -> below 40 Hz, decimated (if it is) -----> minus drift, decimated -> signal
                  -> 20 Hz -> drift ----------------------------^
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from encoders import filters
from encoders.filters import DECIMATION, MARGIN, resample, resampler
from encoders.local import LocalError, LocalOperator, responses
from encoders.signal import FS, WINDOW, WINDOW_MS

__all__ = ["SLOW_FS", "Front", "FrontError", "front_of"]

Floats = NDArray[np.float32]
SLOW_FS = 100  # Hz, of the band-passed signal that quality and scale are taken from
STEP = FS // SLOW_FS
REACH = 12  # samples of either rate that the resampler sees to one side, and some more
REACH = 12  # samples of either rate that the resampler sees to one side, and some more
N_SLOW = WINDOW // DECIMATION
ENDS, FADE = 40, 0.9  # samples at 100 Hz that end on the last one, and over how much of them they take the place of the others
EDGE = 4  # samples of the drift at 20 Hz beyond either end that its interpolation sees


class FrontError(ValueError):
    """This rate is too odd for matrices; the step-by-step path serves it."""


@dataclass(frozen=True)
class Front:
    """fs_mhz, samples: of the window. step: 5 where the signal is decimated, else 1.

    low: samples -> below 40 Hz at 100 Hz (500 Hz where nothing decimates). slow: -> 20 Hz. right: (t, M), the last samples to
    the 20 Hz signal mirrored beyond the end. drift: (slow + M, N), to what lies below 0.5 Hz, at 20 Hz. back: that to the rate
    of `low`. signal, signal_back: as `low` and `back`, decimated, or None. weights: (outputs of low,), of their squares in the
    mean square of the 5000 samples at 500 Hz.
    """

    fs_mhz: int
    samples: int
    step: int
    low: LocalOperator
    slow: LocalOperator
    right: Floats
    drift: Floats
    back: LocalOperator
    signal: LocalOperator | None
    signal_back: LocalOperator | None
    weights: Floats


@lru_cache(maxsize=8)
def _front(fs_mhz: int, taps: bytes) -> Front:
    ratio = resampler(fs_mhz)[1]
    samples = WINDOW_MS * fs_mhz // 1_000_000
    if -(-samples * ratio.numerator // ratio.denominator) != WINDOW:
        raise FrontError(f"{samples} samples at {fs_mhz / 1000:g} Hz are not {WINDOW} at {FS} Hz")
    kernel = np.frombuffer(taps, dtype=np.float32)
    step = STEP if len(kernel) else 1

    def low_pass(x: Floats) -> Floats:
        return filters.low_pass(resample(x, fs_mhz))

    def decimated(y: Floats) -> Floats:
        return _decimate(y, kernel)

    def slow(x: Floats) -> Floats:
        return filters.slow(low_pass(x))

    def back(w: Floats) -> Floats:
        return filters.interpolate(w, WINDOW)

    again = 0 if step == 1 else ENDS

    def operator(function: Callable[[Floats], Floats], rate: int, again: int = 0) -> LocalOperator:
        """rate: Hz, of its outputs."""
        up, down = ratio.numerator * rate, ratio.denominator * FS
        common = gcd(up, down)
        return LocalOperator.of(function, samples, down // common, up // common, again)

    def returned(function: Callable[[Floats], Floats], rate: int, again: int = 0) -> LocalOperator:
        """From the drift."""
        return LocalOperator.of(
            lambda w: function(np.pad(w, ((0, 0), (MARGIN - EDGE, MARGIN - EDGE)))),
            N_SLOW + 2 * EDGE,
            1,
            rate * DECIMATION // FS,
            again,
        )

    try:
        low = operator(lambda x: _grid(low_pass(x), step), FS // step, again)
        return Front(
            fs_mhz,
            samples,
            step,
            low,
            operator(lambda x: slow(x)[:, MARGIN : MARGIN + N_SLOW], FS // DECIMATION),
            *_drift(slow, samples),
            returned(lambda w: _grid(back(w), step), FS // step, again),
            operator(lambda x: decimated(low_pass(x)), SLOW_FS) if len(kernel) else None,
            returned(lambda w: decimated(back(w)), SLOW_FS) if len(kernel) else None,
            _weights(step),
        )
    except LocalError as error:
        raise FrontError(f"{fs_mhz / 1000:g} Hz: {error}") from None


def front_of(fs_mhz: int, taps: Floats | None) -> Front:
    """taps: (K,) of the 5 x decimation that the encoder begins with, None where it takes 500 Hz. Raises FrontError."""
    return _front(fs_mhz, b"" if taps is None else np.ascontiguousarray(taps, dtype=np.float32).tobytes())


def _drift(slow: Callable[[Floats], Floats], samples: int) -> tuple[Floats, Floats]:
    """-> (right, drift), see Front."""
    at = np.arange(-MARGIN, N_SLOW + MARGIN)
    drift = filters.drift(np.eye(N_SLOW + MARGIN, dtype=np.float32)[:, np.abs(at)])[:, MARGIN - EDGE : MARGIN + N_SLOW + EDGE]
    beyond = int(np.flatnonzero(drift.any(axis=1))[-1]) + 1 - N_SLOW
    seen = DECIMATION * (beyond + 1) + filters.DECIMATION_TAPS // 2 + filters.LOW_PASS_TAPS // 2 + REACH  # at 500 Hz
    last = max(0, samples - REACH - seen * samples // WINDOW)
    right = responses(slow, samples, last, samples)[:, MARGIN + N_SLOW :][:, :beyond]
    return right[np.flatnonzero(right.any(axis=1))[0] :], drift[: N_SLOW + beyond]


def _decimate(y: Floats, kernel: Floats) -> Floats:
    """y: (R, 5000) -> (R, 1000), with zeros beyond the ends, as the encoder does it."""
    half = len(kernel) // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, ((0, 0), (half, half))), len(kernel), axis=1)[:, ::STEP]
    return np.ascontiguousarray(windows @ kernel)


def _grid(y: Floats, step: int) -> Floats:
    """y: (R, 5000) -> every step-th sample, and where these are few ENDS more up to the last one: what `_weights` weighs."""
    return y if step == 1 else np.concatenate([y[:, ::step], y[:, WINDOW - step * (ENDS - 1) - 1 :: step]], axis=1)


def _weights(step: int) -> Floats:
    """(outputs of _grid,) that give the mean of 5000 squares.

    Squares of a signal below 47 Hz hold nothing from 94 Hz on, so 100 Hz keep their sum, if the mirrored signal is sampled
    evenly too: about sample 0 it is. Towards the end, which is mirrored about sample 4999, the samples 0, 5, ... give way to
    ..., 4994, 4999.
    """
    if step == 1:
        return np.full(WINDOW, 1 / WINDOW, dtype=np.float32)
    first, second = np.arange(0, WINDOW, step), np.arange(WINDOW - step * (ENDS - 1) - 1, WINDOW, step)
    begin = second[0]

    def share(t: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(np.sin(np.pi / 2 * np.clip((t - begin) / (FADE * (WINDOW - 1 - begin)), 0, 1)) ** 2)

    weights = step * np.concatenate([1 - share(first), share(second)])
    weights[[0, -1]] = (step + 1) / 2
    return np.asarray(weights / WINDOW, dtype=np.float32)
