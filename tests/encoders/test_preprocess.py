"""What preprocessing promises: scipy's resampling, a zero-phase 0.5-40 Hz band, gap rules, derived leads, scale, padding."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import signal as sps

from encoders.filters import bandpass, resample, resampler, to_band
from encoders.preprocess import VERSION, calibrate, prepare, preprocess, stack
from encoders.signal import ABSENT, FS, LEADS, WINDOW, Layout, SignalError, lead_bits

RATES = (
    50_000,
    100_000,
    128_000,
    200_000,
    250_000,
    257_000,
    300_000,
    333_333,
    360_000,
    400_000,
    500_000,
    512_000,
    1_000_000,
    2_000_000,
)


def layout(leads: tuple[str, ...] = LEADS, fs_mhz: int = 500_000, unit: str = "mV") -> Layout:
    return Layout(fs_mhz, leads, (200.0,) * len(leads), (0.0,) * len(leads), unit)


def noise(leads: int = 12, n: int = 5000, seed: int = 0) -> np.ndarray:
    """(C, T) int16 counts with power at all frequencies and a little drift."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 150, (leads, n)) + 5 * np.cumsum(rng.normal(0, 1, (leads, n)), axis=1)).astype(np.int16)


@pytest.mark.parametrize("fs_mhz", RATES)
def test_resampling_is_scipys(fs_mhz: int) -> None:
    ratio = Fraction(500_000, fs_mhz).limit_denominator(1000)
    x = noise(2, fs_mhz // 100).astype(np.float32)
    ours, scipys = resample(x, fs_mhz), sps.resample_poly(x.astype(float), ratio.numerator, ratio.denominator, axis=1)
    assert ours.shape == scipys.shape
    inner = slice(200, -200)
    assert np.abs(ours - scipys)[:, inner].max() <= 1e-5 * np.abs(x).max()


@pytest.mark.parametrize("seconds", [0.2, 2.0, 3.99, 4.01, 7.3, 10.0])
@pytest.mark.parametrize("fs_mhz", RATES)
def test_the_fused_filters_are_the_stages(fs_mhz: int, seconds: float) -> None:
    x = noise(3, max(1, int(fs_mhz / 1000 * seconds))).astype(np.float32)
    reference = bandpass(resample(x, fs_mhz))
    fused = to_band(x, fs_mhz)
    assert fused.shape == reference.shape
    assert np.abs(fused - reference).max() <= 2e-6 * np.abs(x).max()


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from((*RATES, 60_010, 125_000, 350_000, 499_000, 501_500, 600_000, 751_000)),
    st.integers(4_000, 12_000),
    st.integers(0, 40),
    st.integers(1, 12),
)
@example(250_000, 4_200, 0, 12)  # the shortest that is fused; 500 Hz goes on for half a sample after the last one
@example(360_000, 10_000, 1, 12)
@example(360_000, 10_000, 17, 5)
@example(300_000, 4_300, 1, 7)
def test_no_lead_and_no_end_sees_another(fs_mhz: int, ms: int, more: int, leads: int) -> None:
    """The fused leads lie end to end: next to one a thousand times larger, each is what the stages make of it alone."""
    x = noise(leads, fs_mhz * ms // 1_000_000 + more, ms).astype(np.float32)
    x[::2] *= 1000
    reference = np.concatenate([bandpass(resample(lead[None], fs_mhz)) for lead in x])
    fused = to_band(x, fs_mhz)
    assert fused.shape == reference.shape
    assert (np.abs(fused - reference).max(axis=1) <= 2e-6 * np.abs(x).max(axis=1)).all()


def response(hz: float, fs_mhz: int = 500_000) -> complex:
    """Gain and phase at one frequency, from the middle of 10 s."""
    t = np.arange(fs_mhz // 100) / (fs_mhz / 1000)
    y = to_band(np.cos(2 * np.pi * hz * t, dtype=np.float32)[None], fs_mhz)[0]
    at = np.arange(WINDOW) / FS
    middle = slice(1000, 4000)  # 6 s: whole periods of all that is asked
    return complex(2 * np.mean(y[middle] * np.exp(-2j * np.pi * hz * at[middle])))


@pytest.mark.parametrize("fs_mhz", [250_000, 360_000, 500_000])
def test_frequency_response_and_zero_phase(fs_mhz: int) -> None:
    for hz in (0.5, 40.0):
        assert abs(response(hz, fs_mhz)) == pytest.approx(0.5, abs=0.06)
    for hz in (1.0, 2.0, 5.0, 10.0, 20.0, 30.0):
        assert response(hz, fs_mhz) == pytest.approx(1.0, abs=0.01)  # complex: the phase is 0 too
    for hz in (50.0, 60.0, 100.0):
        assert abs(response(hz, fs_mhz)) < 0.01
    assert abs(response(1 / 6, fs_mhz)) < 0.03  # drift


def test_a_constant_nearly_vanishes_and_a_peak_stays_where_it_is() -> None:
    x = np.full((1, 3600), 5.0, dtype=np.float32)
    assert np.abs(to_band(x, 360_000)).max() < 1e-4 * 5.0
    t = np.arange(3600) / 360
    y = to_band(np.exp(-(((t - 4.0) / 0.02) ** 2), dtype=np.float32)[None], 360_000)[0]
    assert np.argmax(y) == 2000
    assert np.abs(y[1500:2000] - y[2500:2000:-1]).max() < 1e-3  # symmetric


@pytest.mark.parametrize("fs_mhz", [250_000, 360_000, 500_000])
def test_an_electrode_offset_of_100_mv_changes_nothing(fs_mhz: int) -> None:
    plain = Layout(fs_mhz, LEADS, (200.0,) * 12, (0.0,) * 12)
    offset = Layout(fs_mhz, LEADS, (200.0,) * 12, (-20_000.0,) * 12)
    samples = np.random.default_rng(4).integers(-300, 300, (12, plain.window)).astype(np.int16)
    assert np.abs(preprocess(samples, plain).x - preprocess(samples, offset).x).max() < 2e-4


def test_every_lead_has_unit_power_before_padding() -> None:
    prepared = preprocess(noise(n=3600), layout(fs_mhz=360_000))
    assert prepared.x.shape == (12, WINDOW)
    assert prepared.x.dtype == np.float32
    assert prepared.mask == 0xFFF
    assert (prepared.derived, prepared.n_valid, prepared.reason) == (0, WINDOW, None)
    np.testing.assert_allclose((prepared.x.astype(float) ** 2).mean(axis=1), 1, rtol=1e-4)


def test_padding_comes_last() -> None:
    samples = noise(n=3000)  # 6 s
    short = preprocess(samples, layout())
    assert short.n_valid == 3000
    assert not short.x[:, 3000:].any()
    np.testing.assert_allclose((short.x[:, :3000].astype(float) ** 2).mean(axis=1), 1, rtol=1e-4)
    y = bandpass(samples.astype(np.float32) / 200)
    np.testing.assert_allclose(short.x[:, :3000], y / np.sqrt((y.astype(float) ** 2).mean(axis=1))[:, None], atol=1e-4)


def test_a_longer_signal_is_cut_to_its_first_window() -> None:
    samples = noise(n=6000)
    assert np.array_equal(preprocess(samples, layout()).x, preprocess(samples[:, :5000], layout()).x)


def test_missing_leads_are_zero_and_masked() -> None:
    prepared = preprocess(noise(2), layout(("II", "V5")))
    assert prepared.mask == lead_bits(["II", "V5"])
    assert prepared.derived == 0
    empty = [i for i, lead in enumerate(LEADS) if lead not in ("II", "V5")]
    assert not prepared.x[empty].any()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100), st.floats(0.2, 5.0), st.sampled_from([250_000, 360_000, 500_000]))
def test_gain_and_baseline_of_a_lead_change_nothing(seed: int, factor: float, fs_mhz: int) -> None:
    samples = noise(3, fs_mhz // 100, seed)
    plain = Layout(fs_mhz, ("I", "V1", "V2"), (1000.0,) * 3, (0.0,) * 3)
    scaled = samples.copy()
    scaled[1] = np.rint(samples[1] * factor + 700).clip(-32767, 32767)
    other = replace(plain, gain=(1000.0, 1000.0 * factor, 1000.0), baseline=(0.0, 700.0, 0.0))
    one, two = preprocess(samples, plain), preprocess(scaled, other)
    assert one.mask == two.mask
    np.testing.assert_allclose(two.x, one.x, atol=0.05)  # counts are whole numbers
    assert np.array_equal(one.x[[0, 7]], two.x[[0, 7]])


LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")


@pytest.mark.parametrize("pair", [("I", "II"), ("I", "III"), ("II", "III"), ("III", "I")])
def test_limb_leads_follow_from_any_two(pair: tuple[str, str]) -> None:
    one, two = noise(2).astype(int)
    doubled = {"I": 2 * one, "II": 2 * two, "III": 2 * (two - one)}  # so that Goldberger's halves are whole counts
    doubled |= {"aVR": -one - two, "aVL": 2 * one - two, "aVF": 2 * two - one}
    whole = preprocess(np.stack([doubled[lead] for lead in LIMB]).astype(np.int16), layout(LIMB))
    half = preprocess(np.stack([doubled[lead] for lead in pair]).astype(np.int16), layout(pair))
    assert whole.derived == 0
    assert half.derived == lead_bits([lead for lead in LIMB if lead not in pair])
    assert half.mask == whole.mask == lead_bits(LIMB)
    np.testing.assert_allclose(half.x, whole.x, atol=2e-5)


def test_nothing_is_derived_where_amplitude_is_lost_or_one_limb_lead_is_there() -> None:
    assert preprocess(noise(2), layout(("I", "II"), unit="NU")).derived == 0
    assert preprocess(noise(3), layout(("I", "aVF", "V1"))).derived == 0


def test_a_recorded_lead_is_not_replaced_by_a_derived_one() -> None:
    samples = noise(3)
    prepared = preprocess(samples, layout(("I", "II", "aVR")))
    assert prepared.derived == lead_bits(["III", "aVL", "aVF"])
    alone = preprocess(samples[2:], layout(("aVR",)))
    np.testing.assert_allclose(prepared.x[3], alone.x[3], atol=1e-5)


def with_gap(start: int, end: int, lead: int = 1) -> np.ndarray:
    samples = noise()
    samples[lead, start:end] = ABSENT
    return samples


def test_a_short_gap_is_filled_by_a_straight_line_and_flagged() -> None:
    samples = with_gap(1000, 1100)  # 200 ms
    calibrated = calibrate(samples, layout())
    assert calibrated.usable.all()
    assert np.flatnonzero(calibrated.filled).tolist() == [1]
    line = np.linspace(samples[1, 999], samples[1, 1100], 102)[1:-1] / 200
    np.testing.assert_allclose(calibrated.mv[1, 1000:1100], line, atol=1e-5)
    assert preprocess(samples, layout()).mask == 0xFFF


@pytest.mark.parametrize(("start", "end", "edge"), [(0, 100, 100), (4900, 5000, 4899)])
def test_at_the_edge_the_nearest_sample_holds(start: int, end: int, edge: int) -> None:
    calibrated = calibrate(with_gap(start, end), layout())
    assert calibrated.filled[1]
    np.testing.assert_allclose(calibrated.mv[1, start:end], calibrated.mv[1, edge])


@pytest.mark.parametrize(
    "spans", [[(1000, 1101)], [(0, 101)], [(4800, 5000)], [(k, k + 90) for k in (500, 1500, 2500)], [(0, 5000)]]
)
def test_a_lead_with_more_missing_is_left_out(spans: list[tuple[int, int]]) -> None:
    samples = noise()
    for start, end in spans:
        samples[7, start:end] = ABSENT
    prepared = preprocess(samples, layout())
    assert prepared.mask == 0xFFF & ~lead_bits(["V2"])
    assert not prepared.x[7].any()
    assert prepared.reason is None


def test_a_lost_limb_lead_is_derived_from_the_others() -> None:
    prepared = preprocess(with_gap(1000, 2000), layout())
    assert prepared.derived == lead_bits(["II"])
    assert prepared.mask == 0xFFF


@pytest.mark.parametrize(
    ("spans", "reason"),
    [([(0, 101)], "missing_head"), ([(1000, 1101)], "gap"), ([(k, k + 90) for k in (500, 1500, 2500)], "sparse")],
)
def test_a_window_without_a_usable_lead_says_why(spans: list[tuple[int, int]], reason: str) -> None:
    samples = noise(2)
    for start, end in spans:
        samples[:, start:end] = ABSENT
    prepared = preprocess(samples, layout(("II", "V1")))
    assert prepared.reason == reason
    assert (prepared.mask, prepared.n_valid) == (0, 0)
    assert not prepared.x.any()


def test_flat_leads_carry_no_ecg() -> None:
    samples = noise(3)
    samples[0] = 40
    samples[1] = 40 + np.arange(5000) % 2  # 5 microvolts
    calibrated = calibrate(samples, layout(("V1", "V2", "V3")))
    assert calibrated.flat.tolist() == [True, True, False]
    assert calibrated.usable.tolist() == [False, False, True]
    assert preprocess(samples[:2], layout(("V1", "V2"))).reason == "flat"
    lost = calibrate(samples, layout(("V1", "V2", "V3"), unit="NU"))  # no millivolts: only no movement at all is flat
    assert lost.flat.tolist() == [True, False, False]


def test_a_flat_lead_with_gaps_is_flat() -> None:
    samples = np.full((1, 5000), 7, dtype=np.int16)
    samples[0, 100:150] = ABSENT
    assert preprocess(samples, layout(("II",))).reason == "flat"


@pytest.mark.parametrize(("huge", "leads", "refused"), [(12, 12, True), (7, 12, True), (6, 12, False), (1, 1, True)])
def test_leads_too_large_for_mv_are_no_ecg(huge: int, leads: int, refused: bool) -> None:
    of, samples = layout(LEADS[:leads]), noise(leads)
    samples[:huge] = np.sin(np.arange(5000) / 20)[None] * 2500  # 25 mV peak to peak
    assert preprocess(samples, of).reason == ("amplitude" if refused else None)
    assert calibrate(samples, of).usable.any() != refused
    assert preprocess(samples, replace(of, unit="NU")).reason is None  # no unit, no expectation
    assert preprocess(np.asarray(samples * 0.7, dtype=np.int16), of).reason is None


def test_wander_and_artefacts_are_no_amplitude() -> None:
    samples = noise(2)
    samples += np.linspace(0, 30_000, 5000).astype(np.int16)  # 150 mV in all, 15 mV in a second
    samples[:, ::2000] = 32_000
    assert preprocess(samples, layout(("I", "II"))).reason is None


def test_a_lead_without_a_sample_has_no_say_in_amplitude() -> None:
    samples = noise(3)
    samples[0] = np.sin(np.arange(5000) / 20) * 2500
    samples[1:] = ABSENT
    assert preprocess(samples, layout(LEADS[:3])).reason == "amplitude"
    samples[:, :] = noise(3)
    samples[:, ::500] = ABSENT  # filled: what is absent is not small
    assert preprocess(samples, layout(LEADS[:3])).reason is None


@pytest.mark.parametrize("shape", [(11, 5000), (12, 0), (5000,)])
def test_samples_must_fit_the_layout(shape: tuple[int, ...]) -> None:
    with pytest.raises(SignalError) as caught:
        calibrate(np.zeros(shape, dtype=np.int16), layout())
    assert caught.value.code == "shape"


def test_the_samples_given_are_not_changed() -> None:
    samples = with_gap(1000, 1050)
    before = samples.copy()
    preprocess(samples, layout())
    assert np.array_equal(samples, before)


def test_stack() -> None:
    one = prepare(calibrate(noise(), layout()), layout())
    assert stack([one, one, one]).shape == (3, 12, WINDOW)


@pytest.mark.parametrize("fs_mhz", [50_050, 60_010, 51_001, 499_000, 500_250, 1_500_750])
@pytest.mark.parametrize("seconds", [5.0, 7.3, 9.0, 10.0])
def test_odd_rates_and_tails_pass(fs_mhz: int, seconds: float) -> None:
    odd = layout(fs_mhz=fs_mhz)
    n = int(seconds * fs_mhz / 1000)
    prepared = preprocess(noise(n=n), odd)
    assert prepared.reason is None
    assert abs(prepared.n_valid - min(WINDOW, seconds * 500)) <= 0.0005 * seconds * 500 + 500_000 / fs_mhz + 1
    assert np.isfinite(prepared.x).all()


def test_the_fraction_of_any_rate_is_near_and_its_filter_small() -> None:
    for fs_mhz in range(50_000, 2_000_001, 9_973):
        ratio = resampler(fs_mhz)[1]
        assert abs(float(ratio) * fs_mhz / 500_000 - 1) <= 5e-4
        assert max(ratio.numerator, ratio.denominator) <= 1000


def test_the_version_stands_for_these_numbers() -> None:
    """Mean absolute output of a fixed signal at three rates. When this fails, raise VERSION: old artifacts no longer fit."""
    found = []
    for fs_mhz in (250_000, 360_000, 500_000):
        t = np.arange(fs_mhz // 100) / (fs_mhz / 1000)
        beats = 1000 * np.exp(-(((t % 0.8 - 0.4) / 0.015) ** 2))
        beats += 150 * np.sin(2 * np.pi * 0.2 * t) + 30 * np.sin(2 * np.pi * 50 * t)
        x = preprocess(np.tile(np.rint(beats), (2, 1)).astype(np.int16), layout(fs_mhz=fs_mhz, leads=("I", "II"))).x
        found.append(float(np.abs(x[:2]).mean()))
    assert VERSION == "2"
    assert found == pytest.approx([0.408985, 0.408871, 0.408936], abs=2e-5)
