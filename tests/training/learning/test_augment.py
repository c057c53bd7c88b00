"""Disturbances are what the filters leave of them, padding is what serving does, and what is off draws nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders import preprocess as chain
from encoders.filters import bandpass
from encoders.signal import FS
from training.config import TrainConfig
from training.data.dataset import DataSet, batches
from training.learning.augment import MAINS_HZ, crop, disturb, filter_gain, pad
from training.release.golden import golden_recording
from training.vocabulary import Statement, select

OFF = TrainConfig(noise=0.0, gain_jitter=0.0, lead_sets=("12",), full_share=1.0)
WHOLE = np.full(6, 5000)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_filter_gain_is_what_a_long_sine_loses() -> None:
    gain = filter_gain((0.2, 0.5, 1.0, 10.0, 50.0))
    assert gain[0] == pytest.approx(0.045, abs=0.005)
    assert gain[1] == pytest.approx(0.5, abs=0.02)
    assert gain[2:4] == pytest.approx([1, 1], abs=0.01)
    assert gain[4] < 0.002
    t = np.arange(40 * FS) / FS
    left = bandpass(np.sin(2 * np.pi * 0.6 * t)[None].astype(np.float32))[0, 10 * FS : 30 * FS]
    assert left.std() * 2**0.5 == pytest.approx(float(filter_gain((0.6,))[0]), rel=0.02)


def test_wander_is_slow_and_weakened() -> None:
    x = np.zeros((6, 12, 5000), dtype=np.float32)
    disturb(x, WHOLE, replace(OFF, wander=2.0), rng())
    assert 0.2 < np.abs(x).max() <= 2.0 * 1.01
    t = np.arange(5000) / FS
    for record in x:
        _, singular, waves = np.linalg.svd(record, full_matrices=False)
        assert singular[2] < 1e-4 * singular[0]  # one frequency: sine and cosine span all leads
        fitted = max(
            (np.linalg.norm(np.linalg.qr(np.stack([np.sin(w), np.cos(w)]).T)[0].T @ waves[0]), hz)
            for hz in np.geomspace(0.09, 1.1, 200)
            for w in [2 * np.pi * hz * t]
        )
        assert fitted[1] * 1.02 >= 0.1
        assert fitted[1] * 0.98 <= 1.0
        assert np.abs(record).max() <= 2.0 * filter_gain((fitted[1] * 1.02,))[0] * 1.02


def test_mains_is_all_but_gone() -> None:
    x = np.zeros((6, 12, 5000), dtype=np.float32)
    disturb(x, WHOLE, replace(OFF, mains=50.0), rng())
    peak = np.abs(np.fft.rfft(x, axis=2)).argmax(axis=2) / 10  # Hz
    assert set(np.unique(peak)) == set(MAINS_HZ)
    assert 0.01 < np.abs(x).max() <= 50 * filter_gain(MAINS_HZ).max() < 0.06


def test_padding_stays_silent() -> None:
    x = np.zeros((6, 12, 1250), dtype=np.float32)
    n_valid = np.array([1250, 1250, 1000, 1250, 0, 1])
    disturb(x, n_valid, replace(OFF, noise=0.5, wander=1.0, mains=9.0), rng())
    for record, n in zip(x, n_valid, strict=True):
        assert not record[:, n:].any()
        assert record[:, :n].all()


def test_what_is_off_changes_and_draws_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((6, 12, 5000)).astype(np.float32)
    before, chance = x.copy(), rng()
    disturb(x, WHOLE, OFF, chance)
    np.testing.assert_array_equal(x, before)
    assert chance.random() == rng().random()


def test_crops_lie_within_the_recording() -> None:
    x = np.broadcast_to(np.arange(5000, dtype=np.float32), (200, 12, 5000))
    n_valid = np.array([5000] * 100 + [1300] * 99 + [700])
    out, left = crop(x, n_valid, 1250, rng())
    first = out[:, 0, 0]
    assert out.shape == (200, 12, 1250)
    assert (first + 1250 <= np.maximum(n_valid, 1250)).all()
    assert first[:100].min() < 300
    assert first[:100].max() > 3450
    assert left.tolist() == [1250] * 199 + [700]


def test_a_window_that_ends_early_is_as_serving_would_feed_it() -> None:
    samples, layout = golden_recording()
    x = chain.preprocess(samples, layout).x[None].repeat(40, axis=0)
    x[:, 3] = 0  # a lead that is off
    whole = x.copy()
    n_valid = pad(x, np.full(40, 5000), 0.5, rng())
    short = np.flatnonzero(n_valid < 5000)
    assert 10 <= len(short) <= 30
    assert n_valid.min() >= 2500
    np.testing.assert_array_equal(np.delete(x, short, axis=0), np.delete(whole, short, axis=0))
    for k in short:
        n = int(n_valid[k])
        served = chain.preprocess(samples[:, :n], layout)
        assert served.n_valid == n
        assert not x[k, :, n:].any()
        assert not x[k, 3].any()
        others = np.delete(np.arange(12), 3)
        np.testing.assert_allclose((x[k, others, :n] ** 2).mean(axis=1), 1, atol=1e-3)
        middle = slice(1000, n - 1000)  # the filters' own ends are not imitated
        np.testing.assert_allclose(x[k, others, middle], served.x[others, middle], atol=0.12)


def test_batches_with_everything_on_repeat(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    data = DataSet(prepared, select(vocabulary, "core98"), (1, 2, 3, 4, 5, 6, 7))
    config = TrainConfig(epochs=2, finish_epochs=1, warmup_epochs=0.0, batch=16, wander=1.0, mains=5.0, padding=1.0)
    for epoch, length in ((0, 1250), (1, 5000)):
        one, again = (next(iter(batches(data, config, epoch))) for _ in range(2))
        assert one.x.shape == (16, 12, length)
        np.testing.assert_array_equal(one.x, again.x)
    assert (one.x[:, :, -1] == 0).all(axis=1).sum() >= 15  # whole windows end early, crops do not
    assert not np.array_equal(next(iter(batches(data, replace(config, seed=2), 1))).x, one.x)
