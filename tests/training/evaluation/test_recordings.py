"""Long recordings one by one: figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation.bootstrap import resamples
from training.evaluation.recordings import by_recording

CUT = np.array([0.5, np.nan])


def windows(recordings: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """(recording, patient, windows) of each."""
    return [
        {"record": f"long/{name}@{k * 3600}", "patient": patient, "window": k * 3600, "positive": [], "unknown": []}
        for name, patient, n in recordings
        for k in range(n)
    ]


def judged(index: list[dict[str, Any]], p: list[float], y: list[int], known: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Label A as given; B has no threshold and is stated nowhere. The index says what y says."""
    stated = np.array([y, [0] * len(y)], dtype=bool).T
    index = [{**row, "positive": [*row["positive"], *["A"] * there]} for row, there in zip(index, y, strict=True)]
    both = np.array([p, [0.9] * len(p)]).T
    sure = np.ones_like(stated) if known is None else known
    weights = resamples([row["patient"] for row in index], 200)
    out = by_recording(both, CUT, stated, sure, index, ["A", "B"], weights)
    assert out is not None
    return out


def test_counts_shares_and_auroc_within_each_recording() -> None:
    index = windows([("a", "p", 4), ("b", "p", 4), ("c", "q", 2), ("d", "r", 2)])
    index.append({"record": "ptbxl/1", "patient": "s", "window": None, "positive": ["A"], "unknown": []})
    p = [0.9, 0.4, 0.6, 0.1, 0.8, 0.7, 0.3, 0.2, 0.9, 0.8, 0.1, 0.6, 0.0]
    y = [1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1]
    known = np.ones((13, 2), dtype=bool)
    known[11, 0] = False  # of d one window is undecided
    out = judged(index, p, y, known)
    assert (out["recordings"], out["patients"], out["windows"]) == (4, 3, 12)
    a = out["per_label"].pop("A")
    assert (a["windows"], a["without"], a["recordings"], a["patients"], a["patients_without"]) == (7, 4, 3, 2, 2)
    assert a["per_recording"] == {
        "long/a": {"windows": 2, "found": 1, "without": 2, "wrong": 1},
        "long/b": {"windows": 3, "found": 2, "without": 1, "wrong": 0},
        "long/c": {"windows": 2, "found": 2, "without": 0, "wrong": 0},
        "long/d": {"windows": 0, "found": 0, "without": 1, "wrong": 0},
    }
    assert a["sensitivity"] == pytest.approx(5 / 7)
    assert a["said_wrongly"] == pytest.approx(1 / 4)
    # within a: .9 above .6 and .1, .4 above .1: 3 of 4; within b: 3 of 3; c and d hold one kind
    assert (a["within_recordings"], a["within_auroc_median"]) == (2, pytest.approx((0.75 + 1) / 2))
    assert (a["few_patients_auroc"], a["few_patients_auroc_interval"]) == (None, None)  # two patients have it
    assert (out["per_label"], out["unsupported"], out["not_shown"]) == ({}, {}, {})


def test_three_patients_with_and_three_without_have_a_common_auroc() -> None:
    index = windows([(name, name, 2) for name in "abc"])
    p, y = [0.9, 0.4, 0.8, 0.6, 0.3, 0.35], [1, 0, 1, 0, 1, 0]
    a = judged(index, p, y)["per_label"]["A"]
    # .9 and .8 above .4, .6 and .35, .3 above none: 6 of 9; c drawn three times (1 of 27) gives 0, a and b alone 1
    assert a["few_patients_auroc"] == pytest.approx(6 / 9)
    assert a["few_patients_auroc_interval"] == [0, 1]
    assert a["within_auroc_median"] == 1
    one = [{**row, "patient": "a" if row["patient"] == "b" else row["patient"]} for row in index]
    assert judged(one, p, y)["per_label"]["A"]["few_patients_auroc"] is None


def test_what_is_stated_and_cannot_be_said_is_listed() -> None:
    index = windows([("a", "p", 4)])
    for row in index[:3]:
        row["positive"] = ["JRHY", "B"]
    index[3]["positive"] = ["JRHY"]
    known = np.ones((4, 2), dtype=bool)
    known[:2, 0] = False  # lead I alone
    out = judged(index, [0.9] * 4, [1, 1, 1, 0], known)
    assert list(out["unsupported"].items()) == [("JRHY", 4), ("B", 3)]  # one no label of the model, the other without threshold
    assert out["not_shown"] == {"A": 2}
    assert out["per_label"]["A"]["windows"] == 1
    known[:, 0] = False
    assert judged(index, [0.9] * 4, [1, 1, 1, 0], known) | {"unsupported": 0} == {
        "recordings": 1, "patients": 1, "windows": 4, "per_label": {}, "not_shown": {"A": 3}, "unsupported": 0
    }  # fmt: skip


def test_without_long_recordings_there_is_nothing_to_tell() -> None:
    index = [{"record": "ptbxl/1", "patient": "s", "window": None, "positive": ["A"]}, {"record": "ptbxl/2", "patient": "t"}]
    some = np.ones((2, 2), dtype=bool)
    assert by_recording(np.ones((2, 2)), CUT, some, some, index, ["A", "B"], np.ones((2, 2))) is None
