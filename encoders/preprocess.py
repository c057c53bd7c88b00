"""From recorded counts to the encoder's input: the one copy that training and serving use.

    int16 (C, T) at any rate -> mV, short gaps filled -> 500 Hz, 0.5-40 Hz -> limb leads derived -> per-lead scale -> (12, 5000)

Every filter is a linear-phase FIR run as a strided convolution (`BlockFir`), so that the chain can be exported as one graph
with the encoder. The high-pass is: decimate 25 x, short FIR, interpolate, subtract. Nothing here knows files or streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.filters import Floats, to_band
from encoders.signal import ABSENT, LEADS, WINDOW, Layout, SignalError, lead_bits

__all__ = [
    "FLOOR",
    "LARGEST_MV",
    "VERSION",
    "Calibrated",
    "Prepared",
    "calibrate",
    "mixing",
    "prepare",
    "preprocess",
    "sizes",
    "stack",
]

VERSION = "2"  # written into manifest and finding; a change of any number here or in `filters` changes it

GAP_MS = 200  # the longest stretch that a straight line may fill
GAP_SHARE = 0.05  # the largest share of a window that may be filled
FLAT_MV = 0.005  # a lead that moves less than this all window long carries no ECG
LARGEST_MV = 20.0  # no heart moves a lead this far within a second; an ECG in uV taken for mV always does
FLOOR = {"mV": FLAT_MV / 10, "NU": 1e-6}  # the least scale of a lead


@dataclass(frozen=True)
class Calibrated:
    """Recorded leads in mV (or NU), gaps filled. mv: (C, T). usable, filled, flat: bool (C,). reason: why none is usable
    (missing_head, gap, sparse, flat, amplitude).
    """

    mv: Floats
    usable: NDArray[np.bool_]
    filled: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    reason: str | None


@dataclass(frozen=True)
class Prepared:
    """The encoder's input. x: (12, 5000) float32, zero where no lead or no sample. mask, derived: 12-bit lead masks.

    reason: None, or why the window cannot be scored, as in Calibrated. n_valid: 500 Hz samples before padding.
    """

    x: Floats
    mask: int
    derived: int
    n_valid: int
    reason: str | None


def calibrate(samples: NDArray[np.int16], layout: Layout) -> Calibrated:
    """samples: int16 (C, T), ABSENT where a lead has none -> mV with gaps up to 200 ms filled by a straight line.

    A lead with a longer gap, or more than 5 % missing, or no movement, is not usable; none is where most are too large to be
    in mV. Raises SignalError("shape").
    """
    if samples.ndim != 2 or samples.shape[0] != len(layout.leads) or samples.shape[1] == 0:
        raise SignalError(
            "shape", f"{len(layout.leads)} leads need samples (C, T) with C = {len(layout.leads)}, got {samples.shape}"
        )
    gain = np.asarray(layout.gain, dtype=np.float32)[:, None]
    mv = samples.astype(np.float32)  # (C, T)
    if any(layout.baseline):
        mv -= np.asarray(layout.baseline, dtype=np.float32)[:, None]
    mv *= 1 / gain if len(set(layout.gain)) > 1 else 1 / gain[0]
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
    if span.max() > LARGEST_MV and usable.any() and _too_large(samples, layout, span):
        return Calibrated(mv, np.zeros(n, dtype=bool), filled, flat, "amplitude")
    order = ("missing_head", "gap", "sparse")
    why = None if usable.any() else next((r for r in order if r in reasons), "flat")
    return Calibrated(mv, usable, filled, flat, why)


def sizes(samples: NDArray[np.int16], layout: Layout) -> Floats:
    """How large each lead is, (C,) mV: the median of its peak-to-peak over the whole seconds of the first 10 s, so that wander
    and single artefacts do not count. Negative where it has no sample, empty where there is no second.
    """
    n = int(layout.fs)
    seconds = min(samples.shape[1], layout.window) // n
    if seconds == 0:
        return np.empty(0, dtype=np.float32)
    x = samples[:, : seconds * n].reshape(len(layout.leads), seconds, n).astype(np.int32)  # (C, seconds, fs)
    absent = x == ABSENT
    span = np.where(absent, ABSENT, x).max(axis=2) - np.where(absent, -ABSENT, x).min(axis=2)
    return np.asarray(np.median(span, axis=1) / np.array(layout.gain), dtype=np.float32)


def _too_large(samples: NDArray[np.int16], layout: Layout, span: Floats) -> bool:
    """Whether most recorded leads are too large to be in mV. span: (C,) over the whole window; a second pass over the samples
    only where that allows it.
    """
    recorded = 0.5 * (samples.max(axis=1) > ABSENT).sum()
    if layout.unit != "mV" or (span > LARGEST_MV).sum() <= recorded:
        return False
    return bool((sizes(samples, layout) > LARGEST_MV).sum() > recorded)


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


@lru_cache(maxsize=256)
def _places(leads: tuple[str, ...]) -> tuple[list[int], int]:
    """Rows of the encoder's input and their mask."""
    return [LEADS.index(lead) for lead in leads], lead_bits(leads)


def prepare(calibrated: Calibrated, layout: Layout) -> Prepared:
    """Calibrated leads -> Prepared. Scale: each lead by its standard deviation over valid samples; zeros are appended last."""
    used = np.flatnonzero(calibrated.usable)
    if not len(used):
        return Prepared(np.zeros((len(LEADS), WINDOW), dtype=np.float32), 0, 0, 0, calibrated.reason)
    mv = calibrated.mv[used] if len(used) < len(calibrated.mv) else calibrated.mv
    mean = mv @ np.full(mv.shape[1], 1 / mv.shape[1], dtype=np.float32)
    y = to_band(mv - mean[:, None], layout.fs_mhz)  # float32 filters keep no offset of 100 mV apart
    rows, mask = _places(layout.leads if len(used) == len(layout.leads) else tuple(layout.leads[c] for c in used))
    n = min(y.shape[-1], WINDOW)
    if y.shape == (len(LEADS), WINDOW) and rows == list(range(len(LEADS))):
        out = y
    else:
        out = np.zeros((len(LEADS), WINDOW), dtype=np.float32)
        out[rows, :n] = y[:, :n]
    valid = out[:, :n]
    derived = derive(valid, mask) if layout.unit == "mV" else 0  # filters are linear: deriving after them is the same
    scale = np.sqrt((valid[:, None, :] @ valid[:, :, None])[:, 0, 0] / n)  # (12,), the band-passed mean is 0
    valid *= 1 / np.maximum(scale, FLOOR[layout.unit])[:, None]
    return Prepared(out, mask | derived, derived, n, None)


@lru_cache(maxsize=4096)
def mixing(layout: Layout, usable: tuple[bool, ...]) -> tuple[Floats, int, int]:
    """What `prepare` does across leads, for a graph: (12, C) from counts to the encoder's leads, their mask, derived ones."""
    rows, mask = _places(tuple(lead for lead, use in zip(layout.leads, usable, strict=True) if use))
    mix = np.zeros((len(LEADS), len(layout.leads)), dtype=np.float32)
    mix[rows, np.flatnonzero(usable)] = 1 / np.asarray(layout.gain, dtype=np.float32)[np.array(usable)]
    derived = derive(mix, mask) if layout.unit == "mV" else 0
    mix.flags.writeable = False
    return mix, mask | derived, derived


def preprocess(samples: NDArray[np.int16], layout: Layout) -> Prepared:
    """int16 counts (C, T) of one window or shorter -> Prepared. A longer signal is cut to its first 10 s."""
    return prepare(calibrate(samples[:, : layout.window], layout), layout)


def stack(windows: Sequence[Prepared]) -> Floats:
    """(B, 12, 5000) of prepared windows."""
    return np.stack([w.x for w in windows])
