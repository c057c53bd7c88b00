"""Error against coverage by small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.abstention import abstention

NONE: list[str | None] = [None] * 10


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_error_among_the_kept_and_the_area_by_hand() -> None:
    # the most confident first: right, right, right, right, right, right, right, wrong (missed), right (found), wrong (false)
    margin = column(-10, -9, -8, 7, -6, -5, -4, -3, 2, 1)
    y = column(0, 0, 0, 1, 0, 0, 0, 1, 1, 0).astype(bool)
    known = np.ones_like(y)
    out = abstention(margin, y, known, known, NONE, np.ones((2, 10)))
    assert out is not None
    assert (out["decisions"], out["findings"], out["quality"]) == (10, 3, {})
    at = out["coverage"]
    assert at["1"] == {
        "error": pytest.approx(2 / 10), "error_interval": pytest.approx([0.2, 0.2]), "wrong_of_said": pytest.approx(1 / 3),
        "findings_said": pytest.approx(2 / 3), "findings_missed": pytest.approx(1 / 3), "findings_withheld": 0,
    }  # fmt: skip
    assert at["0.95"]["error"] == pytest.approx(1.5 / 9.5)  # half of the last decision
    assert at["0.9"] == {
        "error": pytest.approx(1 / 9), "error_interval": pytest.approx([1 / 9, 1 / 9]), "wrong_of_said": 0,
        "findings_said": pytest.approx(2 / 3), "findings_missed": pytest.approx(1 / 3), "findings_withheld": 0,
    }  # fmt: skip
    assert at["0.8"]["error"] == pytest.approx(1 / 8)
    assert at["0.8"]["findings_withheld"] == pytest.approx(1 / 3)  # the one found close to its threshold
    assert out["area"] == pytest.approx((1 / 8 + 1 / 9 + 2 / 10) / 10)  # 0 among the first seven


def test_what_is_equally_confident_is_kept_in_part_whatever_its_order() -> None:
    y = column(0, 0, 0, 0, 0, 0, 0, 0, 0, 1).astype(bool)
    known = np.ones_like(y)
    tied = abstention(np.full((10, 1), -1.0), y, known, known, NONE, np.ones((1, 10)))
    back = abstention(np.full((10, 1), -1.0), y[::-1], known, known, NONE, np.ones((1, 10)))
    assert tied is not None
    assert back == tied
    assert [at["error"] for at in tied["coverage"].values()] == pytest.approx([0.1] * 4)  # no skill: nothing is gained
    assert tied["area"] == pytest.approx(0.1)
    assert tied["coverage"]["0.8"]["findings_missed"] == pytest.approx(0.8)
    assert tied["coverage"]["1"]["wrong_of_said"] is None  # nothing is said


def test_only_known_decisions_with_a_threshold_are_judged() -> None:
    margin = np.array([[2.0, np.nan], [-1.0, np.nan], [5.0, np.nan], [-np.inf, np.nan]])  # a threshold of 1 is never reached
    y = np.array([[True, True], [False, True], [False, True], [False, True]])
    known = np.array([[True, True], [True, True], [False, True], [True, True]])
    out = abstention(margin, y, known, known, [None] * 4, np.ones((1, 4)))
    assert out is not None
    assert (out["decisions"], out["coverage"]["1"]["error"]) == (3, 0)
    assert abstention(margin, y, np.zeros_like(known), known, [None] * 4, np.ones((1, 4))) is None


def test_intervals_draw_whole_patients_and_cut_each_draw_anew() -> None:
    margin, y = column(-4, -3, -2, -1), column(0, 1, 0, 1).astype(bool)
    known = np.ones_like(y)
    weights = np.array([[1.0, 1, 1, 1], [2.0, 0, 2, 0], [0.0, 2, 0, 2], [0.0, 0, 0, 0]])  # the last draws none of them
    out = abstention(margin, y, known, known, [None] * 4, weights)
    assert out is not None
    assert out["coverage"]["1"]["error_interval"] == pytest.approx([0.025, 0.975])  # of 0 and 1
    # area: (0 + 1/2 + 1/3 + 1/2) / 4; 0 where both are right, 1 where both are wrong
    assert (out["area"], out["area_interval"]) == (pytest.approx(1 / 3), pytest.approx([0.025, 0.975]))


def test_a_grade_tells_what_the_cut_withholds_of_it_whether_or_not_the_truth_is_known() -> None:
    margin = np.concatenate([np.arange(10, 0, -1), [0.5, 0.5, 1.5, 20.0, 0.1]])[:, None]
    y = np.ones((15, 1), dtype=bool)
    known = np.arange(15)[:, None] < 10
    shown = np.arange(15)[:, None] < 14  # the leads of the last do not show the label
    out = abstention(margin, y, known, shown, [None] * 10 + ["noisy"] * 5, np.ones((1, 15)))
    assert out is not None
    assert out["decisions"] == 10
    # 95 % keeps what is at 1 and above (9.5 of 10), 90 % at 2, 80 % at 3
    assert out["quality"] == {
        "noisy": {"records": 5, "decisions": 4, "withheld": {"0.95": 0.5, "0.9": 0.75, "0.8": 0.75}},
        "not graded": {"records": 10, "decisions": 10, "withheld": {"0.95": 0.0, "0.9": 0.1, "0.8": 0.2}},
    }
