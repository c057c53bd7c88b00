"""Whether windows that see the same heart seconds say the same: windows of long recordings, cut 5 s apart, no label needed.

At places spread evenly over a recording, three windows of 10 s begin 5 s apart. The first and the second share 5 s; the first
and the third share none and are the reference: what changes between them is the heart as well as the model. Windows are cut
from the counts and preprocessed each by itself, as the worker does with a hop of 5 s. This is an evaluation: overlapping
windows never reach a data set. W window, L label, R resample (whole recordings are drawn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from encoders.preprocess import Prepared, preprocess, stack
from encoders.recordings import Recording, RecordingError, find_recordings, read_recording
from encoders.signal import SignalError
from training.data.targets import LOST, assessable_from
from training.evaluation.bootstrap import interval, resamples
from training.evaluation.evaluate import Evidence, Scorer
from training.vocabulary import Statement

__all__ = ["KINDS", "AgreementError", "agreement", "compare_windows", "places"]

HOP_MS = 5_000
KINDS = {"overlapping": 1, "apart": 2}  # hops between the two windows of a pair
BATCH = 64  # windows
PAIRS, DIFFERENCE, DECIDED, EQUAL, EITHER, BOTH = range(6)

Weights = NDArray[np.float64]


class AgreementError(ValueError):
    """Recordings of which no two windows can be compared; the text names the folder and the remedy."""


def places(windows: int, most: int) -> list[int]:
    """Which of so many windows, 5 s apart, are scored: all, or at most `most` (3 or more) in threes spread evenly."""
    if windows <= most:
        return list(range(windows))
    first = np.linspace(0, windows - 3, most // 3).round().astype(int)
    return np.unique(first[:, None] + np.arange(3)).tolist()  # type: ignore[no-any-return]


def compare_windows(at: NDArray[np.int64], p: Weights, there: NDArray[np.bool_], thresholds: Weights) -> Weights:
    """-> (2, 6, L) sums over pairs of one recording, overlapping and apart; a first window counts where it has both partners.

    at: (W,) hops, rising. p: (W, L). there: bool (W, L); only labels that both windows may say count. thresholds: (L,), NaN
    without one. The six: pairs; sum of |p - p'|; pairs that decide; equal decisions; said by either; said by both.
    """
    place = {int(hop): i for i, hop in enumerate(at)}
    threes = [[place[hop + k] for k in range(3)] for hop in place if hop + 1 in place and hop + 2 in place]
    out = np.zeros((len(KINDS), 6, p.shape[1]))
    said = p >= thresholds  # False without a threshold
    for kind, hops in enumerate(KINDS.values()):
        a, b = (np.array([three[k] for three in threes], dtype=int) for k in (0, hops))
        both = there[a] & there[b]
        decided = both & np.isfinite(thresholds)
        out[kind] = [
            both.sum(axis=0),
            np.where(both, np.abs(p[a] - p[b]), 0).sum(axis=0),
            decided.sum(axis=0),
            (decided & (said[a] == said[b])).sum(axis=0),
            (decided & (said[a] | said[b])).sum(axis=0),
            (decided & said[a] & said[b]).sum(axis=0),
        ]
    return out


def agreement(
    score: Scorer,
    labels: Sequence[Statement],
    evidence: Evidence,
    folder: Path,
    most: int,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """All recordings in and below `folder`, at most `most` windows of each -> figures by label, and of all together.

    A run before export has no calibration: its logits stand for log odds, and it decides nothing. Recordings that cannot be
    read or are too short are listed, windows that cannot be scored counted. advance is told each recording. Raises
    AgreementError, RecordingError.
    """
    if most < 3:
        raise AgreementError(f"{most} windows a recording: 3 or more are needed to compare")
    sums, skipped, windows, unscored = [], [], 0, 0
    for path in find_recordings(folder):
        advance(1)
        name = str(path.relative_to(folder)) if path != folder else path.name
        try:
            recording = read_recording(path)
            cut = _cut(recording, most)
        except (RecordingError, SignalError) as error:
            skipped.append({"record": name, "reason": str(error).replace(str(path), name)})
            continue
        good = [(hop, window) for hop, window in cut if window.reason is None]
        unscored += len(cut) - len(good)
        if not good:
            reason = "shorter than 20 s" if not cut else f"no window can be scored: {cut[0][1].reason}"
            skipped.append({"record": name, "reason": reason})
            continue
        windows += len(good)
        p, there = _scored(score, labels, evidence, [window for _, window in good], recording.layout.unit)
        sums.append(compare_windows(np.array([hop for hop, _ in good]), p, there, evidence.thresholds))
    if not sums:
        first = f"{skipped[0]['record']}: {skipped[0]['reason']}"
        raise AgreementError(f"{folder}: no recording gives windows to compare ({first}); give recordings of 20 s or more")
    told = {"recordings": len(sums), "windows": windows, "not_scored": unscored, "skipped": skipped, "shift_s": HOP_MS / 1000}
    return told | _told(np.stack(sums), [s.id for s in labels])


def _cut(recording: Recording, most: int) -> list[tuple[int, Prepared]]:
    """(hop, window) at its places; nothing where there are no three windows."""
    layout, total = recording.layout, recording.samples.shape[1]
    count = 0
    while layout.samples(count * HOP_MS) + layout.window <= total:
        count += 1
    if count < 3:
        return []
    starts = {hop: layout.samples(hop * HOP_MS) for hop in places(count, most)}
    return [(hop, preprocess(recording.samples[:, at : at + layout.window], layout)) for hop, at in starts.items()]


def _scored(
    score: Scorer, labels: Sequence[Statement], evidence: Evidence, windows: Sequence[Prepared], unit: str
) -> tuple[Weights, NDArray[np.bool_]]:
    """-> p (W, L), and where a label may be said: it has evidence, and the leads and the unit show it."""
    logits = np.concatenate([score(stack(windows[i : i + BATCH])) for i in range(0, len(windows), BATCH)])
    lost = np.array([unit == LOST and s.rests_on_amplitude for s in labels])
    shown = assessable_from(np.array([window.mask for window in windows], dtype=np.int64), labels)
    return np.asarray(expit(evidence.log_odds(logits))), shown & evidence.candidates & ~lost


def _told(sums: Weights, ids: Sequence[str]) -> dict[str, Any]:
    """sums: (recordings, 2, 6, L)."""
    weights = resamples([str(i) for i in range(len(sums))])
    out: dict[str, Any] = {}
    for kind, name in enumerate(KINDS):
        out[name] = _figures(sums[:, kind].sum(axis=2, keepdims=True), weights)
    out["per_label"] = {
        label: {name: _figures(sums[:, kind, :, j : j + 1], weights) for kind, name in enumerate(KINDS)}
        for j, label in enumerate(ids)
        if sums[:, 0, PAIRS, j].any()
    }
    return out


def _figures(sums: Weights, weights: Weights) -> dict[str, Any]:
    """sums: (recordings, 6, 1) -> shares and means over pairs, with intervals over recordings; None where nothing counts."""
    total = weights @ sums[:, :, 0]  # (R, 6)
    out: dict[str, Any] = {"pairs": int(total[0, PAIRS]), "said": int(total[0, EITHER])}
    for name, part, whole in (("difference", DIFFERENCE, PAIRS), ("equal", EQUAL, DECIDED), ("said_by_both", BOTH, EITHER)):
        values = np.divide(total[:, part], total[:, whole], out=np.full(len(total), np.nan), where=total[:, whole] > 0)
        out[name] = float(values[0]) if np.isfinite(values[0]) else None
        out[f"{name}_interval"] = interval(values)
    return out
