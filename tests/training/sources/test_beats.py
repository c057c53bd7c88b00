"""What ten seconds of beats and rhythm notes say, by hand. A beat every 0.8 s (75 a minute) unless told otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from training.sources.beats import NOTES, TYPED, Annotations, Span, says
from training.vocabulary import Statement

FS = 100.0
N = 1000  # samples of a window


def annotations(beats: str, *notes: tuple[float, str], rr_s: float = 0.8, typed: bool = True) -> Annotations:
    """A character a beat, the first at half an interval; notes: (from second, note), the first from 0."""
    at = np.array([round((i + 0.5) * rr_s * FS) for i in range(len(beats))], dtype=np.int64)
    length = max(N, round(len(beats) * rr_s * FS))
    starts = [round(s * FS) for s, _ in notes] + [length]
    spans = tuple(Span(a, b, note) for a, b, (_, note) in zip(starts, starts[1:], notes, strict=False))
    return Annotations(at, list(beats), spans, FS, typed)


def said(beats: str, *notes: tuple[float, str], rr_s: float = 0.8) -> tuple[set[str], set[str]]:
    return says(annotations(beats, *(notes or ((0, "(N"),)), rr_s=rr_s), 0, N)


@pytest.mark.parametrize(
    ("beats", "positive", "unknown"),
    [
        ("NNNNNNNNNNNN", set(), set()),
        ("NNNVNNNNNNNN", {"PVC"}, set()),
        ("NNNVVNNNNNNN", {"PVC", "PVC_COUP"}, set()),
        ("NNVVNNVNNNNN", {"PVC", "PVC_COUP"}, set()),
        ("NVNVNNNNNNNN", {"PVC"}, {"VBIG"}),  # two are not yet bigeminy, nor none
        ("NVNVNVNNNNNN", {"PVC", "VBIG"}, set()),
        ("NVNVNNVNVNNN", {"PVC"}, {"VBIG", "VTRIG"}),  # broken by a third beat, which for once makes a three
        ("NNVNNVNNVNNN", {"PVC", "VTRIG"}, set()),
        ("NNVNNVNNNNNN", {"PVC"}, {"VTRIG"}),
        ("NNNNVVNVVNNN", {"PVC", "PVC_COUP"}, set()),  # couplets are no bigeminy
        ("NNNANNNNNNNN", {"SVPC"}, set()),
        ("NNNaNNNNNNNN", {"SVPC"}, set()),
        ("NNNAANNNNNNN", {"SVPC", "SVPC_COUP"}, set()),
        ("NNNAAANNNNNN", {"SVPC_RUN"}, {"SVPC"}),
        ("NANANANNNNNN", {"SVPC", "SVBIG"}, set()),
        ("NNANNANNANNN", {"SVPC", "SVTRIG"}, set()),
        ("NNNJNNNNNNNN", {"JPC"}, {"SVPC"}),
        ("NNNjNNNNNNNN", {"JESC"}, set()),
        ("NNNeNNENNNNN", {"AESC", "VESC"}, set()),
        ("NNNFNNNNNNNN", {"FUSION"}, {"PVC"}),
        ("NNNFNVNNNNNN", {"FUSION", "PVC"}, set()),
        ("NNNNNNNNxNNN", {"SVPC_BLK"}, set()),
        ("LLLLLLLLLLLL", {"CLBBB"}, set()),
        ("RRRVRRRRRRRR", {"CRBBB", "PVC"}, set()),
        ("NNNNNNNNRRRR", set(), {"CRBBB"}),
        ("NNNNNN/NNNNN", set(), {"PACE"}),
    ],
)
def test_beats_in_sinus_rhythm(beats: str, positive: set[str], unknown: set[str]) -> None:
    assert said(beats) == ({"SR", *positive}, unknown)


def test_a_run_of_ventricular_beats_is_tachycardia_only_when_fast() -> None:
    assert "NSVT" in said("NNNNVVVNNNNNNNNNNNNN", rr_s=0.5)[0]
    slow = said("NNNVVVNNNNNN")  # 75 a minute: an idioventricular rhythm by rate
    assert "NSVT" not in slow[0]
    assert {"NSVT", "PVC"} <= slow[1]


def test_a_run_that_the_window_cuts_is_not_counted_as_what_is_left_of_it() -> None:
    beats = "NNNNNNNNNNNVVVNNNNNNNNNNN"  # the window ends after 12.5 beats
    a = annotations(beats, (0, "(N"), rr_s=0.79)
    positive, unknown = says(a, 0, N)
    assert sum(a.beats[0] < N) == 13  # two of the three
    assert not positive & {"NSVT", "PVC_COUP", "PVC"}
    assert {"NSVT", "PVC_COUP", "PVC"} <= unknown
    couplet = says(annotations("NNNNNNNNNNNNVVNNNNNNNNNN", (0, "(N"), rr_s=0.79), 0, N)
    assert "PVC" in couplet[0]
    assert "PVC_COUP" in couplet[1]


@pytest.mark.parametrize(
    ("rr_s", "positive", "unknown"), [(0.8, {"SR"}, set()), (1.2, set(), {"SR", "SBRAD"}), (0.5, set(), {"SR"})]
)
def test_sinus_rhythm_is_stated_only_at_its_usual_rate(rr_s: float, positive: set[str], unknown: set[str]) -> None:
    assert said("N" * round(10 / rr_s), rr_s=rr_s) == (positive, unknown)


@pytest.mark.parametrize("note", sorted(set(NOTES) - {"(N"}))
def test_a_rhythm_that_fills_the_window_is_stated(note: str) -> None:
    positive, unknown = said("N" * 12, (0, note))
    assert NOTES[note] in positive
    assert ("AFIB" in unknown) == (note in ("(P", "(PREX", "(BII", "(B", "(T", "(AB", "(VT"))  # is there, or not: not said


def test_a_rhythm_change_in_the_window() -> None:
    fibrillation = said("N" * 12, (0, "(N"), (4, "(AFIB"))
    assert fibrillation == ({"AFIB"}, {"SR"})  # 6 s and 4 s
    assert said("N" * 12, (0, "(N"), (6, "(AFIB")) == ({"SR"}, {"AFIB"})
    assert said("N" * 12, (0, "(N"), (5, "(AFIB"))[0] == {"SR", "AFIB"}
    a = annotations("N" * 24, (0, "(N"), (4, "(AFIB"), (12, "(AFL"))
    assert says(a, 0, N) == ({"AFIB"}, {"SR", "AFLT"})  # a change: the recording's other rhythms are unknown
    assert "AFLT" not in says(a, 0, 300)[1]  # no change: denied


def test_notes_that_nobody_knows_leave_every_rhythm_open() -> None:
    assert said("N" * 12, (0, "(XYZ")) == (set(), set(NOTES.values()))
    assert said("N" * 12, (0, "")) == (set(), set(NOTES.values()))


def test_without_typed_beats_only_rhythms_count() -> None:
    assert says(annotations("NNVNANVVNNNN", (0, "(N"), typed=False), 0, N) == (set(), set())
    assert says(annotations("N" * 12, (0, "(N"), (4, "(AFIB"), typed=False), 0, N) == ({"AFIB"}, {"SR"})


def test_pacing_says_nothing_of_conduction() -> None:
    positive, unknown = said("////////////", (0, "(P"))
    assert positive == {"PACE"}
    assert {"CLBBB", "CRBBB", "SR"} <= unknown


def test_every_label_exists(vocabulary: tuple[Statement, ...]) -> None:
    assert {s.id for s in vocabulary} >= TYPED
