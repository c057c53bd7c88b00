"""How far each lead of a window can be trusted, the heart rate, and pacing spikes.

Looks at the calibrated signal (before the band-pass: rails, drift, mains, spikes) and at the prepared one (QRS). It runs on
every window, so it makes few passes over the samples and does the rest on blocks of half a second. It decides nothing: a
window with poor leads is scored all the same, and its finding says so.

Measured: the count of good leads tells the acceptable from the unacceptable records of the CinC 2011 challenge with an AUROC of
0.96. Heart rate against the annotated beats of MIT-BIH: median error 0.1 per minute. Pacing spikes: found in 6 of 6 paced
PTB-XL records (500 Hz) and 0 of 500 others; in none of the MIT-BIH tapes (0.1-100 Hz, 360 Hz), whose spikes are smeared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from encoders.filters import Floats
from encoders.preprocess import FLAT_MV, Calibrated, Prepared
from encoders.signal import LEADS, Layout, lead_bits

__all__ = ["ISSUES", "Looked", "Quality", "assess", "look"]

ISSUES = ("unusable", "flat", "gap_filled", "saturated", "baseline", "mains", "no_qrs")
HARMLESS = {"gap_filled"}  # a lead with nothing worse still counts as good

BLOCK_MS = 500
STUCK_SHARE = 0.2  # of the blocks without movement: the lead was off for that long
RAIL_MV = 1.0  # a block stuck at the lead's extreme, this far from its middle, is saturation
BASELINE_MV = 1.0  # range of the 1 s means
MAINS_HZ, MAINS_SHARE, MAINS_MV = (50.0, 60.0), 0.10, 0.02  # share of the power without drift; smallest RMS that matters
SPIKE_MV, SPIKE_NARROW, SPIKE_NOISE = 0.2, 0.5, 8.0  # see `_paced`
SPIKE_FS, SPIKE_LEADS, SPIKE_COMMON = 250.0, 6, 0.7
STEP = 5  # 100 Hz holds the 40 Hz that the filter left
QRS_SHARP = 2  # how much more the clearer leads count
QRS_STEP, QRS_REACH = 0.02, 10  # s, of the envelope; samples of it either way that hold one beat
QRS_LEVEL, QRS_PEAKED, QRS_CAP = 0.35, 2.2, 1.5  # threshold in usual peaks; least usual peak over mean; most a lead adds
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


@dataclass(frozen=True)
class Looked:
    """What is known of a window before its band-pass. found: bool (issue, C). usable: bool (C,)."""

    found: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    pacing: bool
    layout: Layout

    def with_band(self, slow: Floats) -> Quality:
        """slow: (usable leads, T) band-passed, at 100 Hz, each lead in any unit."""
        found, rate, layout = self.found, None, self.layout
        if self.usable.any():
            plausible, rate = _qrs(slow)
            found = found.copy()
            found[ISSUES.index("no_qrs"), self.usable] = ~plausible
        columns = np.flatnonzero(found.any(axis=0))
        issues = {layout.leads[c]: tuple(ISSUES[i] for i in np.flatnonzero(found[:, c])) for c in columns}
        good = lead_bits([lead for lead in layout.leads if set(issues.get(lead, ())) <= HARMLESS])
        return Quality(issues, good, rate, self.pacing, "mV" if layout.unit == "mV" else "lost")


def assess(calibrated: Calibrated, prepared: Prepared, layout: Layout) -> Quality:
    """One window before and after the band-pass -> its quality. Gates in mV do not apply to unit NU."""
    rows = [LEADS.index(layout.leads[c]) for c in np.flatnonzero(calibrated.usable)]
    return look(calibrated, layout).with_band(np.ascontiguousarray(prepared.x[:, : prepared.n_valid : STEP])[rows])


def look(calibrated: Calibrated, layout: Layout) -> Looked:
    """One window before the band-pass."""
    found = np.zeros((len(ISSUES), len(layout.leads)), dtype=bool)
    found[ISSUES.index("unusable")] = ~(calibrated.usable | calibrated.flat)
    found[ISSUES.index("flat")] = calibrated.flat
    found[ISSUES.index("gap_filled")] = calibrated.filled
    rows = np.flatnonzero(calibrated.usable)
    pacing = False
    if len(rows):
        mv = calibrated.mv if len(rows) == len(calibrated.mv) else calibrated.mv[rows]  # (C', T)
        seen = np.zeros((len(ISSUES), len(rows)), dtype=bool)
        for word, there in _before_filter(mv, layout).items():
            seen[ISSUES.index(word)] = there
        found[:, rows] |= seen
        steady = ~seen[[ISSUES.index(word) for word in ("flat", "saturated", "baseline")]].any(
            axis=0
        )  # others jump by themselves
        if layout.unit == "mV" and layout.fs >= SPIKE_FS and steady.any():
            pacing = _paced(mv if steady.all() else mv[steady], layout)
    return Looked(found, calibrated.usable, pacing, layout)


def _before_filter(mv: Floats, layout: Layout) -> dict[str, NDArray[np.bool_]]:
    """mv: (C, T) -> issue word -> bool (C,)."""
    block = layout.samples(BLOCK_MS)
    n_blocks = mv.shape[1] // block
    if n_blocks == 0:
        return {}
    step = max(1, block // 50)  # 100 Hz shows well enough whether anything moves
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
        slow = mean if n_blocks == 1 else 0.5 * (mean[:, :-1] + mean[:, 1:])
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
    n = 2 * block  # a second; mains drifts by less than the resolution
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
    """Whether narrow spikes recur, at the same times in two of up to six leads (or in the only one).

    A spike bends within 2 ms about as much as within 8 ms; a QRS, wider, bends by the square of the distance.
    """
    near, far = max(1, round(layout.fs * 0.002)), round(layout.fs * 0.008)
    if mv.shape[1] <= 2 * far:
        return False
    step = -(-len(mv) // SPIKE_LEADS)
    x = mv[step // 2 :: step]  # of 12 leads II, aVR, aVF, V2, V4, V6
    bend = np.abs(x[:, near:-near] - 0.5 * (x[:, : -2 * near] + x[:, 2 * near :]))
    seconds = mv.shape[1] / layout.fs
    spikes = []
    for c in np.flatnonzero(bend.max(axis=1) > SPIKE_MV):
        lead, bends = x[c], bend[c]
        at = np.flatnonzero(bends > SPIKE_MV) + near
        at = at[(at >= far) & (at < len(lead) - far)]
        wide = np.abs(lead[at] - 0.5 * (lead[at - far] + lead[at + far]))
        tall = bends[at - near]
        at = at[(tall > SPIKE_NARROW * wide) & (tall > SPIKE_NOISE * np.median(bends[::16]))] if len(at) else at
        at = at[np.diff(at, prepend=-len(lead)) > 0.02 * layout.fs]
        if 0.3 * seconds <= len(at) <= 3.5 * seconds:
            spikes.append(at)
    if len(x) == 1:
        return len(spikes) == 1
    return any(_together(a, b, far) for a, b in combinations(spikes, 2))


def _together(a: NDArray[np.intp], b: NDArray[np.intp], within: int) -> bool:
    """Whether most of the times in each are also in the other."""
    common = int((np.abs(a[:, None] - b[None, :]) <= within).any(axis=1).sum())
    return common >= SPIKE_COMMON * max(len(a), len(b))


def _qrs(x: Floats) -> tuple[NDArray[np.bool_], float | None]:
    """x: (C, T) prepared, at 100 Hz -> (which leads show plausible QRS complexes, beats per minute from these together)."""
    if x.shape[1] < 100:
        return np.zeros(len(x), dtype=bool), None
    slopes = _slopes(x)  # (C, N)
    n = slopes.shape[1]
    usual = np.maximum(_usual(slopes), 1e-9)[:, None]  # (C, 1)
    peaked = usual * n / np.maximum(np.add.reduce(slopes, axis=1, keepdims=True), 1e-9)
    plausible = peaked[:, 0] >= QRS_PEAKED
    if not plausible.any():
        return plausible, None
    weight = np.where(plausible[:, None], (peaked - 1) ** QRS_SHARP, 0)
    together = np.zeros(n + 2 * QRS_REACH, dtype=np.float32)
    here = together[QRS_REACH:-QRS_REACH]
    here += np.add.reduce(np.minimum(slopes / usual, QRS_CAP) * (weight / weight.sum()), axis=0)
    highest = together
    for step in (1, 2, 4, 8, 5):  # running maximum of 2, 4, 8, 16, 21 samples
        highest = np.maximum(highest[:-step], highest[step:])
    at = np.flatnonzero((here >= highest) & (here > QRS_LEVEL * _usual(here[None])))
    if len(at) < 2:
        return plausible, None
    rate = 60 * (len(at) - 1) / ((at[-1] - at[0]) * QRS_STEP)
    return plausible, round(float(rate), 1) if RATE_RANGE[0] <= rate <= RATE_RANGE[1] else None


def _slopes(x: Floats) -> Floats:
    """x: (C, T) at 100 Hz -> RMS slope over 80 ms (C, N) at 50 Hz."""
    rows, n = len(x), x.shape[1] // 2
    flat = np.ascontiguousarray(x[:, : 2 * n]).reshape(-1)  # the rows as one: fewer, longer operations
    slope = np.zeros_like(flat)
    np.subtract(flat[2:], flat[:-2], out=slope[:-2])
    slope.reshape(rows, 2 * n)[:, -2:] = 0
    slope *= slope
    energy = np.zeros((rows, n + 3), dtype=np.float32)  # a little silence after each row
    np.add(slope[::2].reshape(rows, n), slope[1::2].reshape(rows, n), out=energy[:, :n])
    run = energy.reshape(-1)
    run = run[:-1] + run[1:]
    out = np.zeros((rows, n + 3), dtype=np.float32)
    np.sqrt(run[:-2] + run[2:], out=out.reshape(-1)[:-3])
    return out[:, :n]


def _usual(slopes: Floats) -> Floats:
    """(C, N) -> the usual beat's height (C,): median of the highest in eighths of the window."""
    n = slopes.shape[1]
    highest = np.sort(np.maximum.reduceat(slopes, np.arange(8) * n // 8, axis=1), axis=1)
    return np.asarray(0.5 * (highest[:, 3] + highest[:, 4]))
