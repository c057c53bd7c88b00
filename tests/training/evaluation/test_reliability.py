"""Calibration figures by hand and on data made with known probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from training.evaluation.bootstrap import resamples
from training.evaluation.reliability import brier_skills, calibration_error, recalibration, reliability


def test_slope_and_intercept_of_a_distortion_are_found() -> None:
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal(60_000) - 1
    y = rng.random(60_000) < expit(z)
    assert recalibration(expit(z), y) == pytest.approx((1, 0), abs=0.03)
    assert recalibration(expit(2 * z + 1), y) == pytest.approx((0.5, -0.5), abs=0.03)  # z = (said - 1) / 2


def test_weights_of_the_slope_repeat_records() -> None:
    p, y = np.array([0.2, 0.4, 0.6, 0.8, 0.3]), np.array([False, True, False, True, True])
    w = np.array([3.0, 1, 2, 0, 1])
    again = np.repeat(np.arange(5), w.astype(int))
    assert recalibration(p, y, w) == pytest.approx(recalibration(p[again], y[again]), abs=1e-3)


def test_brier_skill_by_hand() -> None:
    p = np.array([[0.8, 0.5], [0.2, 0.5], [0.4, 0.5], [0.9, np.nan]])
    y = np.array([[True, True], [False, False], [False, False], [True, True]])
    known = np.array([[True, True], [True, True], [True, False], [False, False]])
    # column 0: errors 0.04 + 0.04 + 0.16 = 0.24; prevalence 1/3: reference 3 * 2/9 = 2/3; column 1 says the prevalence
    np.testing.assert_allclose(brier_skills(p, y, known, np.ones((1, 4))), [[1 - 0.24 * 3 / 2, 0]])


def test_equal_mass_error_by_hand() -> None:
    p, y = np.array([0.1, 0.9, 0.3, 0.7]), np.array([False, True, True, True])
    assert calibration_error(p, y, bins=2)[0] == pytest.approx((abs(1 - 0.4) + abs(2 - 1.6)) / 4)


def test_the_floor_is_what_a_perfect_model_shows() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 2, 600)
    shown = [calibration_error(p, rng.random(600) < p, seed=i) for i in range(30)]
    assert np.mean([e for e, _ in shown]) == pytest.approx(np.mean([f for _, f in shown]), rel=0.12)
    ece, floor = calibration_error(expit(2 * logit(p)), rng.random(600) < p)
    assert ece > 1.5 * floor


def test_what_is_told_of_a_good_a_useless_and_a_bad_label() -> None:
    rng = np.random.default_rng(2)
    z = 2 * rng.standard_normal((500, 4))
    y = rng.random((500, 4)) < expit(z)
    p = expit(z)
    p[:, 1] = rng.random(500)
    p[:, 2] = np.nan
    p[:, 3] = 1 - p[:, 3]
    out = reliability(p, y, np.ones_like(y), ["GOOD", "USELESS", "NONE", "BAD"], resamples([str(i) for i in range(500)], 200))
    assert set(out["per_label"]) == {"GOOD", "USELESS", "BAD"}
    assert out["entries"] == 1500
    assert out["brier_skill_below_0"] == ["USELESS", "BAD"]
    good = out["per_label"]["GOOD"]
    assert good["brier_skill_interval"][0] < good["brier_skill"] < good["brier_skill_interval"][1]
    assert good["ece"] < 2 * good["ece_floor"]
    assert out["per_label"]["BAD"]["ece"] > 5 * out["per_label"]["BAD"]["ece_floor"]
    alone = reliability(p[:, :1], y[:, :1], np.ones_like(y[:, :1]), ["GOOD"], resamples([str(i) for i in range(500)], 200))
    assert alone["slope_interval"][0] < 1 < alone["slope_interval"][1]
    assert reliability(p[:, 2:3], y[:, 2:3], np.ones_like(y[:, 2:3]), ["NONE"], np.ones((2, 500))) == {"entries": 0}
