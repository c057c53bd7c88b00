"""Metrics and calibration by small cases worked out by hand, and by data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from training.calibration import apply_platt, best_threshold, fit_platt, fit_platt_all
from training.metrics import label_metrics, summary, top_k


def test_rank_leaves_out_the_records_other_true_labels() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    y = np.array([[True, True, False, False], [False, True, False, False]])
    assert top_k(scores, y, 1).tolist() == [1, 3]  # first record: label 0 is above it, but true too


def test_label_metrics_count_known_entries_only() -> None:
    rng = np.random.default_rng(0)
    y = np.zeros((60, 3), dtype=bool)
    y[:20, 0] = y[20:29, 1] = y[:30, 2] = True
    scores = rng.standard_normal((60, 3))
    scores[:, 0] = np.where(y[:, 0], 5, 0) + 0.1 * rng.standard_normal(60)
    scores[40:, 0] = 9  # wrong, but unknown there
    known = np.ones_like(y)
    known[40:, 0] = False
    out = label_metrics(scores, y, known, ["A", "B", "C"], np.array([True, True, True]))
    assert set(out) == {"A", "C"}  # B has 9 positives
    assert out["A"]["auroc"] == out["A"]["auprc"] == out["A"]["top1"] == 1.0
    assert (out["A"]["positives"], out["A"]["negatives"]) == (20, 20)
    assert summary(out)["macro_auroc"] == pytest.approx((1 + out["C"]["auroc"]) / 2)
    assert summary({}) == {"labels": 0, "macro_auroc": None, "macro_auprc": None, "top1": None, "top5": None}


def test_labels_without_evidence_take_no_rank() -> None:
    y = np.zeros((30, 2), dtype=bool)
    y[:15, 0] = True
    scores = np.tile([1.0, 2.0], (30, 1))
    both, one = (label_metrics(scores, y, np.ones_like(y), ["A", "B"], np.array([True, b]))["A"] for b in (True, False))
    assert (both["top1"], one["top1"]) == (0.0, 1.0)


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
