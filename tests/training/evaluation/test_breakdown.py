"""Parts of the data, tasks of one source and PTB-XL's groups, by small cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.evaluation.bootstrap import resamples
from training.evaluation.breakdown import Task, false_positives, subgroups, task_metrics
from training.evaluation.ptbxl_groups import CODES, FORM, RHYTHM, SUBCLASS, SUPERCLASS, group_metrics, missing
from training.vocabulary import Statement, read_vocabulary, select


def rows(n: int, **columns: list[Any]) -> list[dict[str, Any]]:
    return [{"source": "ptbxl", "patient": str(i // 2)} | {k: v[i] for k, v in columns.items()} for i in range(n)]


def test_each_part_is_measured_on_its_own_records() -> None:
    y = np.tile([[True], [False]], (40, 1))
    scores = np.where(y, 1.0, 0.0)
    scores[40:] = 1 - scores[40:]  # right in the first half, wrong in the second
    index = rows(80, sex=["F"] * 40 + ["M"] * 39 + [None], age=[39.0] * 20 + [40.0] * 20 + [300.0] * 40, unit=["mV"] * 80)
    out = subgroups(scores, y, np.ones_like(y), index, ["A"], resamples([r["patient"] for r in index], 50))
    assert set(out) == {"sex", "age", "unit", "source"}  # no column of quality
    assert out["sex"]["F"]["per_label"]["A"] | {"auroc_interval": 0} == {
        "positives": 20, "patients_stating": 20, "auroc": 1.0, "auroc_interval": 0
    }  # fmt: skip
    assert out["sex"]["F"]["same_labels_all_records"] == 0.5
    assert (out["sex"]["M"]["records"], out["sex"]["M"]["macro_auroc"]) == (39, 0.0)
    assert {k: v["records"] for k, v in out["age"].items()} == {"0-39": 20, "40-64": 20, "80+": 40}
    assert out["unit"]["mV"]["patients"] == 40


def test_the_grade_of_the_signal_is_a_part_beside_the_annotators() -> None:
    y = np.tile([[True], [False]], (20, 1))
    grades = ["all leads good"] * 24 + ["most leads poor"] * 16
    index = rows(40, signal_grade=grades, signal=["digest"] * 40, quality=[None] * 39 + ["noisy"])
    out = subgroups(np.where(y, 1.0, 0.0), y, np.ones_like(y), index, ["A"], np.ones((2, 40)))
    assert {k: (v["records"], v["labels"]) for k, v in out["signal"].items()} == {
        "all leads good": (24, 1),
        "most leads poor": (16, 0),
    }
    assert set(out["quality"]) == {"noisy"}


def test_false_positives_are_counted_an_hour_of_long_signal_without_the_finding() -> None:
    index = [{"patient": f"p{i // 360}", "window": i, "n_valid": 5000} for i in range(720)]  # two hours, an hour a patient
    index += [{"patient": "q", "window": None, "n_valid": 5000}] * 10
    p, y, known = np.zeros((730, 2)), np.zeros((730, 2), dtype=bool), np.ones((730, 2), dtype=bool)
    p[:12, 0] = 0.9
    p[360:364, 0] = 0.9
    p[720:, 0] = 0.9  # wrong too, but no long recording
    y[:2, 0] = True  # right
    known[2:6, 0] = False  # nobody knows
    weights = np.array([np.ones(730), np.repeat([2.0, 0.0, 0.0], [360, 360, 10]), np.repeat([0.0, 2.0, 0.0], [360, 360, 10])])
    out = false_positives(p, np.array([0.5, np.nan]), y, known, index, ["A", "B"], weights)
    assert out is not None
    assert (out["hours"], out["patients"], set(out["per_label"])) == (pytest.approx(2), 2, {"A"})
    a = out["per_label"]["A"]
    assert (a["windows"], a["patients"]) == (6 + 4, 2)
    assert a["hours"] == pytest.approx(714 / 360)
    assert a["per_hour"] == pytest.approx(10 * 360 / 714)
    assert a["per_hour_interval"] == pytest.approx(np.percentile([6 * 360 / 354, 4.0], (2.5, 97.5)).tolist())
    assert (
        false_positives(p[720:], np.array([0.5, 0.5]), y[720:], known[720:], index[720:], ["A", "B"], weights[:, 720:]) is None
    )


def test_a_part_without_cases_has_no_figure() -> None:
    y = np.zeros((30, 1), dtype=bool)
    out = subgroups(np.zeros((30, 1)), y, np.ones_like(y), rows(30), ["A"], np.ones((2, 30)))
    assert out["source"]["ptbxl"] | {"records": 0} == {
        "records": 0, "patients": 15, "labels": 0, "macro_auroc": None, "macro_auroc_interval": None,
        "same_labels_all_records": None, "per_label": {},
    }  # fmt: skip


def test_a_task_takes_two_kinds_of_records_of_one_source() -> None:
    y = np.zeros((60, 2), dtype=bool)
    y[:12, 0] = y[12:30, 1] = True
    scores = np.zeros((60, 2))
    scores[:12, 0], scores[30:45, 0] = 1, 2
    index = rows(60, source=["cinc2017"] * 45 + ["ptbxl"] * 15, quality=[None] * 30 + ["noisy"] * 15 + [None] * 15)
    tasks = [Task("normal", "cinc2017", "AFIB", "SR"), Task("noisy", "cinc2017", "AFIB", "noisy"), Task("x", "y", "AFIB", "SR")]
    out = task_metrics(scores, y, np.ones_like(y), index, ["AFIB", "SR"], resamples([r["patient"] for r in index], 50), tasks)
    assert {k: (v["positives"], v["negatives"], v["auroc"]) for k, v in out.items()} == {
        "normal": (12, 18, 1.0),
        "noisy": (12, 15, 0.0),
    }
    assert task_metrics(scores, y, np.ones_like(y), index, ["A", "B"], np.ones((2, 60)), tasks) == {}


def test_ptbxls_groups_have_its_numbers_of_statements() -> None:
    assert (len(SUPERCLASS), len(FORM), len(RHYTHM), len(CODES)) == (44, 19, 12, 71)
    assert (len(set(SUBCLASS.values())), len(set(SUPERCLASS.values()))) == (23, 5)
    absent = missing(select(read_vocabulary(), "core98"))
    assert "PRC(S)" in absent
    assert not {"NDT", "SR", "IMI"} & set(absent)


def test_a_class_is_true_when_one_of_its_labels_is_and_as_likely_as_the_likeliest() -> None:
    def statement(name: str, code: str, order: int) -> Statement:
        return Statement(name, name, name, (code,), (), "routine", "12", True, order)

    labels = [statement("MI_INF", "IMI", 0), statement("MI_LAT", "LMI", 1), statement("SR", "SR", 2)]
    y = np.zeros((60, 3), dtype=bool)
    y[:12, 0] = y[12:24, 1] = y[:, 2] = True
    odds = np.where(y, 1.0, 0.0)
    odds[24, 1] = 2  # a false one
    known = np.ones_like(y)
    known[40:, 1] = False  # neither true nor known to be false
    out = group_metrics(odds, y, known, labels, np.array([True, True, True]), np.ones((2, 60)))
    assert (out["super"]["labels"], out["sub"]["labels"], out["diag"]["labels"], out["rhythm"]["labels"]) == (1, 2, 2, 0)
    assert out["super"]["macro_auroc"] == pytest.approx(15 / 16)  # 24 true against 16 known to be free, one of them above
    assert out["form"] == {"labels": 0, "macro_auroc": None, "macro_auroc_interval": None}
    alone = group_metrics(odds, y, known, labels, np.array([True, False, True]), np.ones((2, 60)))
    assert alone["super"] == {"labels": 1, "macro_auroc": 1.0, "macro_auroc_interval": [1.0, 1.0]}


def test_windows_of_one_recording_are_one_case_of_a_part() -> None:
    y = np.tile([[True], [False]], (20, 1))
    index = rows(40, sex=["F"] * 40, window=list(range(40)), patient=[f"p{i // 4}" for i in range(40)])  # 10 patients
    out = subgroups(np.where(y, 1.0, 0.0), y, np.ones_like(y), index, ["A"], np.ones((2, 40)))
    assert out["sex"]["F"]["labels"] == 1
    fewer = [{**row, "patient": "p0" if row["patient"] == "p1" else row["patient"]} for row in index]  # 9
    assert subgroups(np.where(y, 1.0, 0.0), y, np.ones_like(y), fewer, ["A"], np.ones((2, 40)))["sex"]["F"]["labels"] == 0
