"""Weighted AUROC and AUPRC against scikit-learn; resamples draw whole patients; intervals cover what they should."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from training.evaluation.bootstrap import bootstrap, interval, macro, paired, resamples
from training.evaluation.metrics import aurocs, average_precisions, macro_auroc


@pytest.mark.parametrize("levels", [4, 1000])
def test_weighted_auroc_and_auprc_are_scikit_learns(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (80, 3)) / levels  # four levels: ties everywhere
    y = rng.random((80, 3)) < 0.3
    known = rng.random((80, 3)) < 0.8
    weights = resamples([str(i // 2) for i in range(80)], 20)
    area, precision = aurocs(scores, y, known, weights), average_precisions(scores, y, known, weights)
    for r, w in enumerate(weights):
        for j in range(3):
            k = known[:, j]
            assert area[r, j] == pytest.approx(roc_auc_score(y[k, j], scores[k, j], sample_weight=w[k]), abs=1e-12)
            expected = average_precision_score(y[k, j], scores[k, j], sample_weight=w[k])
            assert precision[r, j] == pytest.approx(expected, abs=1e-12)


def test_auroc_by_hand() -> None:
    scores = np.array([[3.0], [2.0], [2.0], [1.0]])
    y = np.array([[True], [True], [False], [False]])
    known = np.ones_like(y)
    # pairs: 3 above 2 and 1, 2 above 1 and tied with 2: 3.5 of 4; with the tied negative twice 3 + 1 + 1 of 6; no negative
    weights = np.array([[1.0, 1, 1, 1], [1, 1, 2, 1], [1, 1, 0, 0]])
    np.testing.assert_allclose(aurocs(scores, y, known, weights)[:, 0], [3.5 / 4, 5 / 6, np.nan])


def test_patients_are_drawn_whole_and_as_often_as_there_are() -> None:
    patients = ["a", "b", "b", "c", "c", "c"]
    weights = resamples(patients, 200)
    assert weights.shape == (201, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[1:, [0, 1, 3]].sum(axis=1) == 3).all()
    np.testing.assert_array_equal(weights, resamples(patients, 200))
    assert (weights != resamples(patients, 200, seed=1)).any()


def test_records_of_one_patient_are_no_more_evidence_than_one() -> None:
    rng = np.random.default_rng(0)
    scores, y = rng.standard_normal((60, 1)), np.arange(60)[:, None] % 2 == 0
    scores += y
    once = bootstrap(macro_auroc, scores, y, np.ones_like(y), resamples([str(i) for i in range(60)]))
    five = [np.repeat(a, 5, axis=0) for a in (scores, y, np.ones_like(y))]
    again = bootstrap(macro_auroc, *five, resamples([str(i // 5) for i in range(300)]))  # type: ignore[arg-type]
    assert once[1] is not None
    assert again[1] is not None
    assert again[0] == pytest.approx(once[0])
    assert again[1][1] - again[1][0] == pytest.approx(once[1][1] - once[1][0], rel=0.15)


def test_the_interval_is_percentiles_of_the_resamples_only() -> None:
    values = np.concatenate([[999.0], np.arange(1001.0), [np.nan]])
    assert interval(values) == pytest.approx([25.0, 975.0])
    assert interval(np.array([1.0, np.nan])) is None
    np.testing.assert_allclose(macro(np.array([[0.5, np.nan], [1.0, 0.0], [np.nan, np.nan]])), [0.5, 0.5, np.nan])


def test_paired_differences_are_narrower_than_the_scores_own_intervals() -> None:
    rng = np.random.default_rng(3)
    y = rng.random((300, 2)) < 0.3
    a = y + rng.standard_normal((300, 2))
    b = a + 0.05 * rng.standard_normal((300, 2))
    known, weights = np.ones_like(y), resamples([str(i) for i in range(300)])
    value, low_high = paired(macro_auroc, a, b, y, known, weights)
    assert value == pytest.approx(macro_auroc(a, y, known, weights)[0] - macro_auroc(b, y, known, weights)[0])
    assert paired(macro_auroc, a, a, y, known, weights) == (0.0, [0.0, 0.0])
    single = bootstrap(macro_auroc, a, y, known, weights)[1]
    assert low_high is not None
    assert single is not None
    assert low_high[0] < value < low_high[1]
    assert low_high[1] - low_high[0] < (single[1] - single[0]) / 3


def test_a_thousand_resamples_take_seconds() -> None:
    rng = np.random.default_rng(0)
    y = rng.random((400, 30)) < 0.1
    start = time.perf_counter()
    bootstrap(macro_auroc, rng.standard_normal((400, 30)), y, np.ones_like(y), resamples([str(i) for i in range(400)]))
    assert time.perf_counter() - start < 5
