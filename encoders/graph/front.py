"""The preprocessing of a whole window at one rate as matrices, from centred counts to what the encoder's network takes.

All of it but the scale of a lead is linear. Unit impulses pushed through `filters` give the matrices, so that no filter is
designed a second time. For an encoder that begins with a fixed decimation the band is made at 100 Hz from the start, and what
its decimation would give is made from that. Knows no graph format.

    counts - mean -> below 40 Hz --------> minus drift = band -> scaled (-> decimated) = what the encoder's network takes
                  -> 20 Hz -> drift ----------^
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders import filters
from encoders.filters import DECIMATION, MARGIN, resample, resampler
from encoders.graph.local import LocalError, LocalOperator, responses
from encoders.signal import FS, WINDOW, WINDOW_MS

__all__ = ["SLOW_FS", "Front", "FrontError", "front_of"]

Floats = NDArray[np.float32]
SLOW_FS = 100  # Hz, of the band-passed signal that quality and scale are taken from
STEP = FS // SLOW_FS
REACH = 12  # samples of either rate that the resampler sees to one side, and some more
SHORT, SPAN, NEAR, AHEAD, SEEN = 1500, 50, 16, 24, 64  # of `_decimation`: samples of a short signal at 500 Hz; at 100 Hz, those
#   of a block, to each side that an output sees, before the first output of the middle, and that the outputs near an end see
SMALL = 1e-6  # singular values, of the largest, that are taken for rounding
MIRRORED = 1500  # samples at 500 Hz that a signal must have to be mirrored as a long one is
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
    of `low`. decimation: of low less back, or None. weights: (outputs of low,), of their squares in the mean square of the 5000
    samples at 500 Hz. low and slow cut the samples into the same blocks.
    """

    fs_mhz: int
    samples: int
    step: int
    low: LocalOperator
    slow: LocalOperator
    right: Floats
    drift: Floats
    back: LocalOperator
    decimation: LocalOperator | None
    weights: Floats


@lru_cache(maxsize=8)
def _front(fs_mhz: int, taps: bytes) -> Front:
    ratio = resampler(fs_mhz)[1]
    samples = WINDOW_MS * fs_mhz // 1_000_000
    if -(-samples * ratio.numerator // ratio.denominator) != WINDOW:
        raise FrontError(f"{samples} samples at {fs_mhz / 1000:g} Hz are not {WINDOW} at {FS} Hz")
    step = STEP if taps else 1

    def low_pass(x: Floats) -> Floats:
        return filters.low_pass(resample(x, fs_mhz))

    def slow(x: Floats) -> Floats:
        return filters.slow(low_pass(x))

    again = 0 if step == 1 else ENDS

    def operator(function: Callable[[Floats], Floats], rate: int, **more: int) -> LocalOperator:
        """rate: Hz, of its outputs."""
        grid = ratio * rate / FS
        return LocalOperator.of(function, samples, grid.denominator, grid.numerator, **more)

    def returned(function: Callable[[Floats], Floats], rate: int, again: int = 0) -> LocalOperator:
        """From the drift."""
        return LocalOperator.of(
            lambda w: function(np.pad(w, ((0, 0), (MARGIN - EDGE, MARGIN - EDGE)))),
            N_SLOW + 2 * EDGE,
            1,
            rate * DECIMATION // FS,
            again=again,
            shortest=N_SLOW + 2 * EDGE,
        )

    try:
        pace = (ratio / DECIMATION).denominator  # samples to a whole number of those at 20 Hz
        low = operator(lambda x: _grid(low_pass(x), step), FS // step, multiple=pace, again=again)
        least = -(-MIRRORED * samples // WINDOW)
        return Front(
            fs_mhz,
            samples,
            step,
            low,
            operator(lambda x: slow(x)[:, MARGIN:-MARGIN], FS // DECIMATION, stride=low.stride, shortest=least),
            *_drift(slow, samples, pace),
            returned(lambda w: _grid(filters.interpolate(w, WINDOW), step), FS // step, again),
            _decimation(taps) if taps else None,
            _weights(step),
        )
    except LocalError as error:
        raise FrontError(f"{fs_mhz / 1000:g} Hz: {error}") from None


def front_of(fs_mhz: int, taps: Floats | None) -> Front:
    """taps: (K,) of the 5 x decimation that the encoder begins with, None where it takes 500 Hz. Raises FrontError."""
    return _front(fs_mhz, b"" if taps is None else np.ascontiguousarray(taps, dtype=np.float32).tobytes())


def _drift(slow: Callable[[Floats], Floats], samples: int, step: int) -> tuple[Floats, Floats]:
    """-> (right, drift), see Front."""
    at = np.arange(-MARGIN, N_SLOW + MARGIN)
    drift = filters.drift(np.eye(N_SLOW + MARGIN, dtype=np.float32)[:, np.abs(at)])[:, MARGIN - EDGE : MARGIN + N_SLOW + EDGE]
    beyond = int(np.flatnonzero(drift.any(axis=1))[-1]) + 1 - N_SLOW
    seen = DECIMATION * (beyond + 1) + filters.DECIMATION_TAPS // 2 + filters.LOW_PASS_TAPS // 2 + REACH  # at 500 Hz
    last = min(samples, REACH + seen * samples // WINDOW)
    short = min(samples, -(-max(last, MIRRORED * samples // WINDOW) // step) * step + samples % step)
    right = responses(slow, short, short - last, short)[:, -MARGIN:][:, :beyond]
    return right[np.flatnonzero(right.any(axis=1))[0] :], drift[: N_SLOW + beyond]


@lru_cache(maxsize=4)
def _decimation(taps: bytes) -> LocalOperator:
    """From the band, as `_grid` samples it, to the encoder's decimation of it, whose taps these are.

    A signal below 47 Hz is known from 100 samples a second, so its decimated form is a filter of these: the one that agrees
    best on all that the low-pass lets through, by least squares from impulses, near the ends too. In the band its error is
    below 2e-5; of what the low-pass was to remove, at most 8e-4 comes through.
    """
    n = SHORT // STEP
    y = filters.low_pass(np.eye(SHORT, dtype=np.float32))
    grid, wanted = _grid(y, STEP), _decimate(y, np.frombuffer(taps, dtype=np.float32))
    inner = _fit(grid[:, n // 2 - NEAR : n // 2 + NEAR + 1], wanted[:, n // 2, None])[:, 0]
    at = np.arange(SPAN)[:, None] - np.arange(2 * SPAN)[None, :] + SPAN - (AHEAD - NEAR)
    middle = np.where((at >= 0) & (at < len(inner)), inner[np.clip(at, 0, len(inner) - 1)], 0)
    behind = AHEAD + SPAN * (WINDOW // STEP // SPAN - 1) - WINDOW // STEP  # the last outputs, counted from the end
    return LocalOperator(
        n_in=WINDOW // STEP + ENDS,
        n_out=WINDOW // STEP,
        stride=SPAN,
        spans=2,
        blocks=WINDOW // STEP // SPAN,
        first=AHEAD,
        begin=AHEAD,
        end=WINDOW // STEP + behind,
        middle=middle.astype(np.float32),
        head=_fit(grid[:, :SEEN], wanted[:, :AHEAD]),
        tail=_fit(grid[:, n - SEEN :], wanted[:, behind:]),
    )


def _fit(x: Floats, y: Floats) -> Floats:
    """(C, N): the smallest w with x @ w nearest y."""
    return np.asarray(np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=SMALL)[0], dtype=np.float32)


def _decimate(y: Floats, kernel: Floats) -> Floats:
    """y: (R, 5000) -> (R, 1000), with zeros beyond the ends, as the encoder does it."""
    half = len(kernel) // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, ((0, 0), (half, half))), len(kernel), axis=1)[:, ::STEP]
    return np.ascontiguousarray(windows @ kernel)


def _grid(y: Floats, step: int) -> Floats:
    """y: (R, 5000) -> every step-th sample, and where these are few ENDS more up to the last one: what `_weights` weighs."""
    return y if step == 1 else np.concatenate([y[:, ::step], y[:, y.shape[1] - step * (ENDS - 1) - 1 :: step]], axis=1)


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
