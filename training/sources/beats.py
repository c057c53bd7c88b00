"""Beat symbols and rhythm notes of PhysioBank annotations -> what can be said of ten seconds of them. Pure: knows no files.

Beats: N normal, L and R bundle branch block, A a S supraventricular, J junctional premature, V ventricular, F fusion, e j E
escape, / paced, f fusion of paced, Q ? unclassified; x a blocked premature P wave. Rhythm notes hold until the next one. (Moody
and Mark, MIT-BIH Arrhythmia Database directory.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOTES", "TYPED", "Annotations", "Span", "says"]

NOTES = {  # exact note -> label
    "(N": "SR",
    "(SBR": "SBRAD",
    "(AFIB": "AFIB",
    "(AFL": "AFLT",
    "(SVTA": "SVT",
    "(NOD": "JRHY",
    "(IVR": "IVR",
    "(VT": "VT",
    "(VFL": "VFL",
    "(P": "PACE",
    "(PREX": "WPW",
    "(BII": "AVB2",
    "(B": "VBIG",
    "(T": "VTRIG",
    "(AB": "SVBIG",
}
SINUS_OR_ATRIAL = frozenset(("SR", "SBRAD", "AFIB", "AFLT"))
NAMES_NO_RHYTHM_BELOW = frozenset(("(P", "(PREX", "(BII", "(B", "(T", "(AB", "(VT"))  # these stand on some basic rhythm
FROM_BEATS = ("PVC", "PVC_COUP", "NSVT", "SVPC", "SVPC_COUP", "SVPC_RUN", "SVPC_BLK", "JPC", "JESC", "AESC", "VESC", "FUSION")
TYPED = frozenset((*NOTES.values(), *FROM_BEATS, "SVTRIG", "CLBBB", "CRBBB"))  # what annotators of beats and rhythms annotate

BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
VENTRICULAR, SUPRAVENTRICULAR = frozenset("V"), frozenset("AaS")
HOLDS_S = 5.0  # a rhythm is stated of a window when it fills as much of it
SLOW, FAST = 60.0, 100.0  # beats a minute: sinus rhythm beyond them is a bradycardia or tachycardia that the note does not name
CHAIN = 3  # ectopic beats, evenly spaced by normal ones, that make bigeminy or trigeminy


@dataclass(frozen=True)
class Span:
    """A rhythm: samples [start, end), the note, "" where none has been given yet."""

    start: int
    end: int
    note: str


@dataclass(frozen=True)
class _Run:
    """Consecutive beats of one kind: positions [first, last] among the beats."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Annotations:
    """One recording's. at: int64 (N,) samples, rising. symbols: N characters, those that are no beats too. fs: Hz.

    typed: whether beats are told apart; otherwise only rhythms count, and "(N" says only "none of the others".
    """

    at: NDArray[np.int64]
    symbols: Sequence[str]
    spans: tuple[Span, ...]
    fs: float
    typed: bool = True

    @cached_property
    def beats(self) -> tuple[NDArray[np.int64], list[str]]:
        """Samples and symbols of the beats alone."""
        keep = [i for i, s in enumerate(self.symbols) if s in BEATS]
        return self.at[keep], [self.symbols[i] for i in keep]

    @cached_property
    def rhythms(self) -> frozenset[str]:
        """Labels of all rhythms that the recording's notes name."""
        return frozenset(NOTES[s.note] for s in self.spans if s.note in NOTES)

    def runs(self, kind: frozenset[str]) -> list[_Run]:
        """Maximal runs of beats of `kind`, single beats too, in the whole recording."""
        cache: dict[frozenset[str], list[_Run]] = self.__dict__.setdefault("_runs", {})
        if kind not in cache:
            is_kind = np.array([False, *(s in kind for s in self.beats[1]), False])
            edges = np.flatnonzero(np.diff(is_kind.astype(np.int8)))
            cache[kind] = [_Run(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return cache[kind]


@dataclass
class _Said:
    positive: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def decide(self, label: str, yes: bool, maybe: bool) -> None:
        if yes:
            self.positive.add(label)
        elif maybe:
            self.unknown.add(label)


def says(a: Annotations, first: int, n: int) -> tuple[set[str], set[str]]:
    """Labels positive and unknown in the samples [first, first + n); disjoint. What is in neither is denied."""
    said = _Said()
    at, symbols = a.beats
    low, high = np.searchsorted(at, (first, first + n))
    inside = symbols[low:high]
    notes = _rhythms(a, first, n, at[low:high], said)
    if a.typed:
        _ectopy(a, int(low), int(high), said)
        _single(a, first, n, inside, notes, said)
        _bundle(inside, said)
        if "/" in inside or "f" in inside:
            said.decide("PACE", False, True)
    return said.positive, said.unknown - said.positive


def _rhythms(a: Annotations, first: int, n: int, at: NDArray[np.int64], said: _Said) -> set[str]:
    """What the notes say -> the notes that hold anywhere in the window."""
    seconds: dict[str, float] = {}
    for span in a.spans:
        overlap = min(span.end, first + n) - max(span.start, first)
        if overlap > 0:
            seconds[span.note] = seconds.get(span.note, 0.0) + overlap / a.fs
    for note, held in seconds.items():
        if note not in NOTES:
            said.unknown |= set(NOTES.values())
        elif note == "(N":
            if a.typed:
                _sinus(held >= HOLDS_S, at, a.fs, said)
        else:
            said.decide(NOTES[note], held >= HOLDS_S, True)
        if note in NAMES_NO_RHYTHM_BELOW:
            said.unknown |= SINUS_OR_ATRIAL
        if note == "(SBR":
            said.unknown.add("SR")
    if len(seconds) > 1:  # a rhythm changes here
        said.unknown |= a.rhythms
    return set(seconds)


def _sinus(holds: bool, at: NDArray[np.int64], fs: float, said: _Said) -> None:
    rate = 60 * fs / float(np.median(np.diff(at))) if len(at) > 2 else 0.0
    said.decide("SR", holds and SLOW <= rate <= FAST, True)
    if rate < SLOW:
        said.unknown.add("SBRAD")


def _ectopy(a: Annotations, low: int, high: int, said: _Said) -> None:
    """Single premature beats, couplets, runs, bigeminy and trigeminy among the beats [low, high)."""
    at = a.beats[0]
    for kind, single, couplet, run, every2, every3 in (
        (VENTRICULAR, "PVC", "PVC_COUP", "NSVT", "VBIG", "VTRIG"),
        (SUPRAVENTRICULAR, "SVPC", "SVPC_COUP", "SVPC_RUN", "SVBIG", "SVTRIG"),
    ):
        alone: list[int] = []
        for r in a.runs(kind):
            k = min(r.last, high - 1) - max(r.first, low) + 1  # beats of it in the window
            if k <= 0:
                continue
            said.decide(single, r.length <= 2, True)
            if r.length == 1:
                alone.append(r.first)
            elif r.length == 2:
                said.decide(couplet, k == 2, True)
            else:
                fast = kind != VENTRICULAR or (at[r.last] - at[r.first]) / (r.length - 1) < 60 / FAST * a.fs
                said.decide(run, k >= 3 and fast, True)
                if k < 3:
                    said.unknown.add(couplet)
        for label, step in ((every2, 2), (every3, 3)):
            longest = _chain(alone, step)
            said.decide(label, longest >= CHAIN, longest == CHAIN - 1)


def _chain(alone: Sequence[int], step: int) -> int:
    """Most single ectopic beats in a row that stand `step` beats apart."""
    longest = here = min(1, len(alone))
    for before, now in pairwise(alone):
        here = here + 1 if now - before == step else 1
        longest = max(longest, here)
    return longest


def _single(a: Annotations, first: int, n: int, inside: Sequence[str], notes: set[str], said: _Said) -> None:
    """Labels that one beat makes."""
    low, high = np.searchsorted(a.at, (first, first + n))
    if "x" in a.symbols[low:high]:
        said.positive.add("SVPC_BLK")
    if "J" in inside:
        said.positive.add("JPC")
        said.unknown.add("SVPC")
    said.decide("JESC", "j" in inside and "(NOD" not in notes, "j" in inside)
    for symbol, label in (("e", "AESC"), ("E", "VESC")):
        said.decide(label, symbol in inside, False)
    said.decide("FUSION", "F" in inside, "f" in inside)
    if "F" in inside:
        said.unknown.add("PVC")


def _bundle(inside: Sequence[str], said: _Said) -> None:
    """Bundle branch block when half of the conducted beats have it."""
    conducted = sum(s in "NLR" for s in inside)
    for symbol, label in (("L", "CLBBB"), ("R", "CRBBB")):
        count = sum(s == symbol for s in inside)
        said.decide(label, conducted > 0 and 2 * count >= conducted, count > 0 or conducted == 0)
