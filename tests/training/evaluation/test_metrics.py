"""Metrics and calibration by small cases worked out by hand, and by data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from training.evaluation.bootstrap import resamples
from training.evaluation.calibration import apply_platt, best_threshold, fit_platt, fit_platt_all
from training.evaluation.metrics import decisions, enough, label_metrics, macro_auroc, predictive_values, summary, top_k
from training.evaluation.reliability import reliability


def test_rank_leaves_out_the_records_other_true_labels() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    y = np.array([[True, True, False, False], [False, True, False, False]])
    known = np.ones_like(y)
    assert top_k(scores, y, known, 1).tolist() == [1, 3]  # first record: label 0 is above it, but true too
    known[1, 3] = False
    assert top_k(scores, y, known, 1).tolist() == [1, 2]  # nobody looked for label 3: it may be true
    known[1, 1] = False
    assert top_k(scores, y, known, 1).tolist() == [1]


def test_label_metrics_count_known_entries_only() -> None:
    rng = np.random.default_rng(0)
    y = np.zeros((60, 3), dtype=bool)
    y[:20, 0] = y[20:29, 1] = y[:30, 2] = True
    scores = rng.standard_normal((60, 3))
    scores[:, 0] = np.where(y[:, 0], 5, 0) + 0.1 * rng.standard_normal(60)
    scores[40:, 0] = 9  # wrong, but unknown there
    known = np.ones_like(y)
    known[40:, 0] = False
    weights = resamples([str(i) for i in range(60)], 200)
    out, values = label_metrics(scores, y, known, ["A", "B", "C"], np.array([True, True, True]), weights)
    assert set(out) == {"A", "C"}  # B has 9 positives
    assert out["A"]["auroc"] == out["A"]["auprc"] == out["A"]["top1"] == 1.0
    assert (out["A"]["positives"], out["A"]["negatives"]) == (20, 20)
    assert out["A"]["auroc_interval"] == [1.0, 1.0]
    low, high = out["C"]["auroc_interval"]
    assert low < out["C"]["auroc"] < high
    told = summary(out, values)
    assert told["macro_auroc"] == pytest.approx((1 + out["C"]["auroc"]) / 2)
    assert told["macro_auroc"] == pytest.approx(macro_auroc(scores, y, known, weights)[0])
    assert told["macro_auroc_interval"] == pytest.approx([(1 + low) / 2, (1 + high) / 2])
    assert summary({}) == {"labels": 0, "macro_auroc": None, "macro_auprc": None, "top1": None, "top5": None}


def test_windows_of_one_heart_are_not_enough() -> None:
    y = np.zeros((60, 2), dtype=bool)
    y[:20] = True
    known = np.ones_like(y)
    windows = np.concatenate([np.full(11, 0), np.arange(1, 50)])  # the first 11 of 20 positives are of one recording
    assert enough(y, known).tolist() == [True, True]
    assert enough(y, known, windows).tolist() == [True, True]  # 1 + 9
    known[11, 1] = False
    assert enough(y, known, windows).tolist() == [True, False]  # 1 + 8, though 19 windows
    weights = resamples([str(i) for i in windows], 20)
    scores = np.where(y, 1.0, 0.0)
    assert set(label_metrics(scores, y, known, ["A", "B"], np.array([True, True]), weights)[0]) == {"A", "B"}
    assert set(label_metrics(scores, y, known, ["A", "B"], np.array([True, True]), weights, windows)[0]) == {"A"}
    p = np.where(y, 0.9, 0.1)
    assert set(reliability(p, y, known, ["A", "B"], weights, windows)["per_label"]) == {"A"}


def test_records_of_which_little_is_known_have_no_rank() -> None:
    y = np.zeros((40, 8), dtype=bool)
    y[:20, 0] = True
    known = np.ones_like(y)
    known[:10, 2:] = False  # only labels 0 and 1 were looked for: at worst second of two
    scores = np.tile(np.arange(8.0), (40, 1))  # label 0 is last everywhere
    weights, every = np.ones((1, 40)), np.ones(8, dtype=bool)
    out = label_metrics(scores, y, known, list("ABCDEFGH"), every, weights)[0]["A"]
    assert (out["positives"], out["ranked"], out["top1"], out["top5"]) == (20, 10, 0.0, 0.0)
    y[10:20, 0] = False
    told = label_metrics(scores, y, known, list("ABCDEFGH"), every, weights)[0]
    assert (told["A"]["ranked"], told["A"]["top5"], summary(told)["top5"]) == (0, None, None)
    assert summary(told)["macro_auroc"] == 0.5


def test_few_ranked_cases_give_no_figure() -> None:
    y = np.zeros((60, 8), dtype=bool)
    y[:20, 0] = y[40:52, 1] = True
    known = np.ones_like(y)
    known[:11, 2:] = False  # 9 of 20 are ranked
    scores = np.tile(np.arange(8.0)[::-1], (60, 1))  # label 0 is first everywhere, 1 second
    every, weights = np.ones(8, dtype=bool), np.ones((1, 60))
    told = label_metrics(scores, y, known, list("ABCDEFGH"), every, weights)[0]
    assert (told["A"]["ranked"], told["A"]["top1"], told["A"]["top5"], told["A"]["auroc"]) == (9, None, None, 0.5)
    assert (told["B"]["ranked"], told["B"]["top1"], told["B"]["top5"]) == (12, 0.0, 1.0)
    assert (summary(told)["top1"], summary(told)["top5"]) == (0.0, 1.0)  # of B alone
    known[10, 2:] = True  # one more
    assert label_metrics(scores, y, known, list("ABCDEFGH"), every, weights)[0]["A"]["top1"] == 1.0
    windows = np.arange(60)
    windows[18:20] = 18  # two of the ten are of one recording
    one = label_metrics(scores, y, known, list("ABCDEFGH"), every, weights, windows)[0]["A"]
    assert (one["ranked"], one["top1"]) == (10, None)


def test_labels_without_evidence_take_no_rank() -> None:
    y = np.zeros((30, 2), dtype=bool)
    y[:15, 0] = True
    scores = np.tile([1.0, 2.0], (30, 1))
    weights = np.ones((2, 30))
    both, one = (
        label_metrics(scores, y, np.ones_like(y), ["A", "B"], np.array([True, b]), weights)[0]["A"] for b in (True, False)
    )
    assert (both["top1"], one["top1"]) == (0.0, 1.0)


def test_micro_f1_and_jaccard_by_hand() -> None:
    p = np.array([[0.9, 0.2, 0.9], [0.8, 0.7, 0.9], [0.1, 0.1, 0.9], [0.1, 0.9, 0.9]])
    y = np.array([[True, True, True], [True, False, True], [False, False, True], [False, True, True]])
    known = np.ones_like(y)
    known[3, 1] = False
    out = decisions(p, np.array([0.5, 0.5, np.nan]), y, known)
    # said: (1 0), (1 1), (0 0), (0 -); true: (1 1), (1 0), (0 0), (0 -): 2 hits of 3 said and 3 true; records: 1/2, 1/2
    assert out == {"labels": 2, "micro_f1": pytest.approx(2 * 2 / 6), "jaccard": pytest.approx(0.5)}
    assert decisions(p, np.full(3, np.nan), y, known) == {"labels": 0, "micro_f1": None, "jaccard": None}


def test_predictive_values_by_bayes() -> None:
    p = np.array([0.9] * 8 + [0.1] * 2 + [0.9] * 5 + [0.1] * 45)
    y = np.arange(60) < 10
    out = predictive_values(p, 0.5, y, np.ones_like(y), resamples([str(i) for i in range(60)], 300), (0.01, 0.5))
    assert (out["sensitivity"]["value"], out["specificity"]["value"]) == (0.8, 0.9)
    assert out["at"]["0.01"]["ppv"]["value"] == pytest.approx(0.008 / (0.008 + 0.099))
    assert out["at"]["0.01"]["npv"]["value"] == pytest.approx(0.891 / (0.891 + 0.002))
    assert out["at"]["0.5"]["ppv"]["value"] == pytest.approx(8 / 9)
    low, high = out["at"]["0.01"]["ppv"]["interval"]
    assert low < 0.0748 < high
    nothing = predictive_values(np.zeros(60), 0.5, y, np.ones_like(y), np.ones((2, 60)), (0.01,))
    assert nothing["at"]["0.01"]["ppv"]["value"] is None
    assert nothing["at"]["0.01"]["npv"]["value"] == pytest.approx(0.99)


def test_platt_finds_the_line_it_was_made_with() -> None:
    rng = np.random.default_rng(1)
    z = 3 * rng.standard_normal(40_000)
    y = rng.random(40_000) < expit(0.5 * z - 1.0)
    a, b = fit_platt(z, y)
    assert (a, b) == pytest.approx((0.5, -1.0), abs=0.05)
    np.testing.assert_allclose(apply_platt(np.array([2.0]), (0.5, -1.0)), [0.5])


def test_platt_of_separable_data_stays_finite_and_rising() -> None:
    z = np.array([-3.0, -2.0, 2.0, 3.0])
    a, b = fit_platt(z, z > 0)
    assert 0 < a < 20
    assert np.isfinite(b)
    a, _ = fit_platt(z, z < 0)  # a model that is wrong: the slope stays positive, so that ranks are kept
    assert a > 0


def test_labels_without_held_out_positives_take_the_pooled_fit() -> None:
    rng = np.random.default_rng(2)
    z = 2 * rng.standard_normal((3000, 3))
    y = rng.random((3000, 3)) < expit(0.7 * z - 1)
    y[:, 1] = False
    known = np.ones_like(y)
    known[:, 1] = False
    fits = fit_platt_all(z, y, known, np.array([True, True, False]))
    assert fits[2] is None
    assert fits[1] == pytest.approx(fit_platt(z[:, 0], y[:, 0]), abs=0.02)
    assert fits[0] == pytest.approx((0.7, -1), abs=0.15)


def test_threshold_of_highest_f1_by_hand() -> None:
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    y = np.array([1, 1, 1, 0, 1, 1, 0], dtype=bool)
    assert best_threshold(p, y) == pytest.approx(0.35)  # 5 of 6, all found: F1 = 10/11
    y = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert best_threshold(p, y) == pytest.approx(0.45)
    assert best_threshold(p, np.array([1, 1, 1, 1, 0, 0, 0], dtype=bool)) is None  # four positives choose nothing


def test_ties_are_not_split() -> None:
    p = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1])
    y = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert best_threshold(p, y) == pytest.approx(0.3)
    assert logit(0.5) == 0
