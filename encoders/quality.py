"""How far each lead of a window can be trusted, the heart rate, and pacing spikes.

Looks at the calibrated signal (before the band-pass: rails, drift, mains, spikes) and at the prepared one (QRS). It runs on
every window, so it makes few passes over the samples and does the rest on 200 ms blocks. It decides nothing: a window with
poor leads is scored all the same, and its finding says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from encoders.preprocess import FLAT_MV, Calibrated, Floats, Prepared
from encoders.signal import LEADS, Layout, lead_bits

__all__ = ["ISSUES", "Quality", "assess"]

ISSUES = ("unusable", "flat", "gap_filled", "saturated", "baseline", "mains", "no_qrs")
HARMLESS = {"gap_filled"}  # a lead with nothing worse still counts as good

BLOCK_MS = 200
STUCK_SHARE = 0.2  # of the blocks without movement: the lead was off for that long
RAIL_MV = 1.0  # a block stuck at the lead's extreme, this far from its middle, is saturation
BASELINE_MV = 1.0  # range of the 1 s means
MAINS_HZ, MAINS_SHARE, MAINS_MV = (50.0, 60.0), 0.10, 0.02  # share of the power without drift; smallest RMS that matters
SPIKE_MV, SPIKE_NARROW, SPIKE_NOISE = 0.15, 0.5, 8.0  # see `_paced`
SPIKE_FS, SPIKE_LEADS = 250.0, 4
STEP = 5  # 100 Hz holds the 40 Hz that the filter left
QRS_STEP, QRS_REACH = 0.02, 10  # s, of the envelope; samples of it either way that hold one beat
QRS_LEVEL, QRS_PEAKED = 0.35, 2.2  # threshold in usual peak heights; least ratio of usual peak to mean
RATE_RANGE = (20.0, 300.0)  # beats per minute that can be believed


@dataclass(frozen=True)
class Quality:
    """leads: issue words of the leads that have any (see ISSUES). good: 12-bit mask of recorded leads without a harmful one.

    heart_rate: beats per minute, None where no QRS can be believed. pacing: narrow spikes were seen before the filter; on
    signals sampled or filtered too slowly for them it stays False. amplitude: "lost" for unit NU, else "mV".
    """

    leads: dict[str, tuple[str, ...]]
    good: int
    heart_rate: float | None
    pacing: bool
    amplitude: str


def assess(calibrated: Calibrated, prepared: Prepared, layout: Layout) -> Quality:
    """One window before and after the band-pass -> its quality. Gates in mV do not apply to unit NU."""
    found = np.zeros((len(ISSUES), len(layout.leads)), dtype=bool)
    found[ISSUES.index("unusable")] = ~(calibrated.usable | calibrated.flat)
    found[ISSUES.index("flat")] = calibrated.flat
    found[ISSUES.index("gap_filled")] = calibrated.filled
    rows = np.flatnonzero(calibrated.usable)
    rate, pacing = None, False
    if len(rows):
        mv = calibrated.mv if len(rows) == len(calibrated.mv) else calibrated.mv[rows]  # (C', T)
        slow = np.ascontiguousarray(prepared.x[:, : prepared.n_valid : STEP])
        plausible, rate = _qrs(slow[[LEADS.index(layout.leads[c]) for c in rows]])
        seen = np.zeros((len(ISSUES), len(rows)), dtype=bool)
        for word, there in {**_before_filter(mv, layout), "no_qrs": ~plausible}.items():
            seen[ISSUES.index(word)] = there
        found[:, rows] |= seen
        pacing = layout.unit == "mV" and layout.fs >= SPIKE_FS and _paced(mv, layout)
    issues = {layout.leads[c]: tuple(ISSUES[i] for i in np.flatnonzero(found[:, c])) for c in np.flatnonzero(found.any(axis=0))}
    good = lead_bits([lead for lead in layout.leads if set(issues.get(lead, ())) <= HARMLESS])
    return Quality(issues, good, rate, pacing, "mV" if layout.unit == "mV" else "lost")


def _before_filter(mv: Floats, layout: Layout) -> dict[str, NDArray[np.bool_]]:
    """mv: (C, T) -> issue word -> bool (C,)."""
    block = layout.samples(BLOCK_MS)
    n_blocks = mv.shape[1] // block
    if n_blocks == 0:
        return {}
    step = max(1, block // 25)  # 125 Hz shows well enough whether anything moves
    some = np.ascontiguousarray(mv[:, ::step])
    starts = np.arange(n_blocks) * block // step  # what is over at the end goes with the last block
    high, low = np.maximum.reduceat(some, starts, axis=1), np.minimum.reduceat(some, starts, axis=1)  # (C, N)
    mean = mv[:, : n_blocks * block].reshape(len(mv), n_blocks, block) @ np.full(block, 1 / block, dtype=np.float32)
    in_mv = layout.unit == "mV"
    stuck = high - low <= (FLAT_MV if in_mv else 0.0)
    issues = {}
    if stuck.any():
        issues["flat"] = stuck.mean(axis=1) >= STUCK_SHARE
        if in_mv:
            top, bottom, middle = high.max(axis=1)[:, None], low.min(axis=1)[:, None], mean.mean(axis=1)[:, None]
            rail = ((high >= top) & (top - middle > RAIL_MV)) | ((low <= bottom) & (middle - bottom > RAIL_MV))
            issues["saturated"] = (rail & stuck).any(axis=1)
    if in_mv:
        second = min(1000 // BLOCK_MS, n_blocks)
        slow = np.add.reduce([mean[:, k : n_blocks - second + 1 + k] for k in range(second)]) / second
        issues["baseline"] = slow.max(axis=1) - slow.min(axis=1) > BASELINE_MV
    if layout.fs >= 2.5 * max(MAINS_HZ):
        issues["mains"] = _mains(mv, mean, block, layout)
    return issues


@lru_cache(maxsize=32)
def _mains_kernel(n: int, fs_mhz: int) -> Floats:
    """(n, 2 * frequencies): Hann-weighted cosines and sines without mean; a line of RMS r gives r as the length of its pair."""
    t = np.arange(n) / (fs_mhz / 1000)
    columns = [f(2 * np.pi * hz * t) * np.hanning(n) for hz in MAINS_HZ for f in (np.cos, np.sin)]
    kernel = np.stack(columns, axis=1) * np.sqrt(2) / np.hanning(n).sum()
    return np.asarray(kernel - kernel.mean(axis=0), dtype=np.float32)


def _mains(mv: Floats, mean: Floats, block: int, layout: Layout) -> NDArray[np.bool_]:
    """Whether half of the seconds or more carry a line at 50 or 60 Hz that matters. mean: (C, N) of the blocks."""
    n = 5 * block  # a second; mains drifts by less than the resolution
    n_seconds = mv.shape[1] // n
    if n_seconds == 0:
        return np.zeros(len(mv), dtype=bool)
    seconds = mv[:, : n_seconds * n].reshape(len(mv) * n_seconds, n)
    pairs = (seconds @ _mains_kernel(n, layout.fs_mhz)).reshape(len(mv), n_seconds, -1)
    power = pairs * pairs
    power = np.sort(power[:, :, 0::2] + power[:, :, 1::2], axis=1)[:, n_seconds // 2].max(axis=1)  # the median second's; (C,)
    whole = (mv[:, None, :] @ mv[:, :, None])[:, 0, 0] / mv.shape[1] - (mean * mean).mean(axis=1)
    least = MAINS_MV**2 if layout.unit == "mV" else 0.0
    return np.asarray((power > MAINS_SHARE * whole) & (power > least))


def _paced(mv: Floats, layout: Layout) -> bool:
    """Whether narrow spikes recur, in two of up to four leads (or in the only one).

    A spike bends within 2 ms about as much as within 8 ms; a QRS, wider, bends by the square of the distance.
    """
    near, far = max(1, round(layout.fs * 0.002)), round(layout.fs * 0.008)
    x = mv[:: -(-len(mv) // SPIKE_LEADS)]  # of 12 leads I, aVR, V1, V4
    bend = np.abs(x[:, near:-near] - 0.5 * (x[:, : -2 * near] + x[:, 2 * near :]))
    seconds = mv.shape[1] / layout.fs
    with_spikes = 0
    for c in np.flatnonzero(bend.max(axis=1) > SPIKE_MV):
        lead, bends = x[c], bend[c]
        at = np.flatnonzero(bends > SPIKE_MV) + near
        at = at[(at >= far) & (at < len(lead) - far)]
        wide = np.abs(lead[at] - 0.5 * (lead[at - far] + lead[at + far]))
        tall = bends[at - near]
        at = at[(tall > SPIKE_NARROW * wide) & (tall > SPIKE_NOISE * np.median(bends[::16]))] if len(at) else at
        count = 1 + int((np.diff(at) > 0.02 * layout.fs).sum()) if len(at) else 0
        with_spikes += 0.3 * seconds <= count <= 3.5 * seconds
    return with_spikes >= min(2, len(x))


def _qrs(x: Floats) -> tuple[NDArray[np.bool_], float | None]:
    """x: (C, T) prepared, at 100 Hz -> (which leads show plausible QRS complexes, beats per minute from the clearest)."""
    peaks, peaked = _peaks(x)
    seconds = x.shape[1] / 100
    rates = peaks.sum(axis=1) * 60 / seconds
    plausible = (peaked >= QRS_PEAKED) & (rates >= RATE_RANGE[0]) & (rates <= RATE_RANGE[1])
    if not plausible.any():
        return plausible, None
    at = np.flatnonzero(peaks[np.argmax(np.where(plausible, peaked, 0.0))])
    if len(at) < 2:
        return plausible, None
    rate = 60 * (len(at) - 1) / ((at[-1] - at[0]) * QRS_STEP)
    return plausible, round(float(rate), 1) if RATE_RANGE[0] <= rate <= RATE_RANGE[1] else None


def _peaks(x: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """x: (C, T) at 100 Hz, a second or more -> (beats: bool (C, N) at 50 Hz; usual peak over mean (C,))."""
    if x.shape[1] < 100:
        return np.zeros((len(x), 1), dtype=bool), np.zeros(len(x), dtype=np.float32)
    rows, n = len(x), x.shape[1] // 2
    wide = n + 2 * QRS_REACH  # silence after each row, so that all rows can be worked on as one: fewer, longer operations
    flat = np.ascontiguousarray(x[:, : 2 * n]).reshape(-1)
    slope = np.zeros_like(flat)
    np.subtract(flat[2:], flat[:-2], out=slope[:-2])
    slope.reshape(rows, 2 * n)[:, -2:] = 0
    slope *= slope
    energy = np.zeros((rows, wide), dtype=np.float32)  # 50 Hz
    np.add(slope[::2].reshape(rows, n), slope[1::2].reshape(rows, n), out=energy[:, :n])
    run = energy.reshape(-1)
    run = run[:-1] + run[1:]
    padded = np.zeros(2 * QRS_REACH + rows * wide, dtype=np.float32)
    envelope = padded[QRS_REACH : QRS_REACH + rows * wide]
    np.sqrt(run[:-2] + run[2:], out=envelope[:-3])  # RMS slope over 80 ms
    highest = padded
    for step in (1, 2, 4, 8, 5):  # running maximum of 2, 4, 8, 16, 21 samples
        highest = np.maximum(highest[:-step], highest[step:])
    here, around = envelope.reshape(rows, wide)[:, :n], highest.reshape(rows, wide)[:, :n]  # (C, N) each
    eighths = np.sort(np.maximum.reduceat(here, np.arange(8) * n // 8, axis=1), axis=1)
    level = 0.5 * (eighths[:, 3] + eighths[:, 4])  # the usual beat: median of the highest in eighths of the window; (C,)
    peaks = (here >= around) & (here > QRS_LEVEL * level[:, None])
    return peaks, level / np.maximum(np.add.reduce(here, axis=1) / n, 1e-9)
