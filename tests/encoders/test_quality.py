"""Each issue is made on purpose on a clean simulated window and must be named on that lead alone; then real recordings."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.preprocess import calibrate, prepare
from encoders.quality import ISSUES, Quality, assess
from encoders.recordings import read_recording
from encoders.signal import ABSENT, LEADS, Layout, lead_bits
from stream_worker.devices.heart import beat_times
from stream_worker.devices.simulator import Device, synthesize

CLEAN = Device("d", "sinus", LEADS, 500_000, 1000.0, 72.0, 0.01, None, seed=3)
V3 = LEADS.index("V3")


def grade(samples: np.ndarray, layout: Layout) -> Quality:
    calibrated = calibrate(samples, layout)
    return assess(calibrated, prepare(calibrated, layout), layout)


def window(device: Device = CLEAN, first: int = 0) -> np.ndarray:
    return synthesize(device, device.layout.window, first).copy()


def hum(hz: float, mv: float) -> np.ndarray:
    return np.rint(1000 * mv * np.sin(2 * np.pi * hz * np.arange(5000) / 500)).astype(np.int16)


def test_a_clean_window_has_no_issue() -> None:
    quality = grade(window(), CLEAN.layout)
    assert quality.leads == {}
    assert quality.good == 0xFFF
    assert quality.amplitude == "mV"
    assert not quality.pacing


@pytest.mark.parametrize("fs_mhz", [100_000, 250_000, 333_333, 500_000, 1_000_000])
@pytest.mark.parametrize(
    ("rhythm", "rate"), [("sinus", 45.0), ("sinus", 72.0), ("sinus", 150.0), ("af", 100.0), ("paced", 60.0)]
)
def test_heart_rate_of_simulated_rhythms(rhythm: str, rate: float, fs_mhz: int) -> None:
    device = replace(CLEAN, rhythm=rhythm, heart_rate=rate, fs_mhz=fs_mhz)
    for minute in range(3):
        beats = beat_times(rhythm, rate, device.seed, 60.0 * minute, 60.0 * minute + 10)
        expected = 60 * (len(beats) - 1) / (beats[-1] - beats[0])
        found = grade(window(device, 60 * minute * fs_mhz // 1000), device.layout).heart_rate
        # a beat cut by the window's edge may count or not; the rate hardly changes by it
        assert found == pytest.approx(expected, rel=0.06)


def test_bigeminy_counts_both_kinds_of_beat() -> None:
    device = replace(CLEAN, rhythm="bigeminy", heart_rate=74.0)
    assert grade(window(device), device.layout).heart_rate == pytest.approx(74, rel=0.1)


def spoil(kind: str, x: np.ndarray) -> None:
    """x: (T,) counts of one lead, changed in place."""
    t = np.arange(len(x)) / 500
    if kind == "flat":
        x[:] = 7
    elif kind == "flat for a while":
        x[1000:2600] = x[1000]
    elif kind == "gap":
        x[300:380] = ABSENT
    elif kind == "long gap":
        x[300:600] = ABSENT
    elif kind == "rail":
        x[2000:3500] = 32_000
    elif kind == "wander":
        x += np.rint(900 * np.sin(2 * np.pi * 0.15 * t)).astype(np.int16)
    elif kind == "noise":
        x[:] = np.random.default_rng(0).normal(0, 300, len(x))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("flat", {"flat"}),
        ("flat for a while", {"flat"}),
        ("gap", {"gap_filled"}),
        ("long gap", {"unusable"}),
        ("rail", {"flat", "saturated", "baseline"}),
        ("wander", {"baseline"}),
        ("noise", {"no_qrs"}),
    ],
)
def test_a_spoiled_lead_is_named_and_no_other(kind: str, words: set[str]) -> None:
    samples = window()
    spoil(kind, samples[V3])
    quality = grade(samples, CLEAN.layout)
    assert set(quality.leads) == {"V3"}
    assert words <= set(quality.leads["V3"]) <= set(ISSUES)
    if kind != "rail":  # a jump of 30 mV spoils the QRS too
        assert set(quality.leads["V3"]) == words
    expected = 0xFFF if kind == "gap" else 0xFFF & ~lead_bits(["V3"])
    assert quality.good == expected
    assert quality.heart_rate == pytest.approx(72, rel=0.05)


@pytest.mark.parametrize("hz", [49.8, 50.0, 60.0])
def test_mains(hz: float) -> None:
    samples = window()
    samples[V3] += hum(hz, 0.4)
    assert grade(samples, CLEAN.layout).leads == {"V3": ("mains",)}
    samples = window()
    samples[V3] += hum(55, 0.4)  # no mains of this world
    assert "mains" not in grade(samples, CLEAN.layout).leads.get("V3", ())


def test_mains_needs_a_rate_that_can_show_it() -> None:
    device = replace(CLEAN, fs_mhz=125_000, mains_mv=0.5)
    assert not any("mains" in words for words in grade(window(device), device.layout).leads.values())


def test_lost_amplitude_has_no_gate_in_millivolts() -> None:
    samples = window()
    spoil("wander", samples[V3])
    layout = replace(CLEAN.layout, unit="NU")
    quality = grade(samples, layout)
    assert quality.amplitude == "lost"
    assert quality.leads == {}
    paced = replace(CLEAN, rhythm="paced")
    assert not grade(window(paced), replace(paced.layout, unit="NU")).pacing


def test_nothing_usable_gives_a_grade_all_the_same() -> None:
    quality = grade(np.full((12, 5000), ABSENT, np.int16), CLEAN.layout)
    assert quality.good == 0
    assert quality.heart_rate is None
    assert quality.leads == {lead: ("unusable",) for lead in LEADS}


@pytest.mark.parametrize("n", [1, 40, 99, 150, 499, 700])
def test_short_windows_are_graded(n: int) -> None:
    assert grade(window()[:, :n], CLEAN.layout).amplitude == "mV"


@pytest.mark.parametrize("fs_mhz", [250_000, 500_000, 1_000_000])
@pytest.mark.parametrize("leads", [LEADS, ("II",)])
def test_pacing_spikes_of_simulated_devices(leads: tuple[str, ...], fs_mhz: int) -> None:
    for rhythm in ("paced", "sinus", "af", "bigeminy"):
        device = replace(CLEAN, rhythm=rhythm, leads=leads, fs_mhz=fs_mhz)
        assert grade(window(device), device.layout).pacing == (rhythm == "paced")


def test_spikes_are_not_looked_for_below_250_hz() -> None:
    device = replace(CLEAN, rhythm="paced", fs_mhz=200_000)
    assert not grade(window(device), device.layout).pacing


@pytest.mark.parametrize("name", ["100", "101", "103", "105", "112", "119", "203", "222"])
def test_heart_rate_agrees_with_annotated_beats(mitdb: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what pandas deprecates
        import wfdb

        notes = wfdb.rdann(str(mitdb / name), "atr")
    recording = read_recording(mitdb / name)
    beats = np.array([s for s, symbol in zip(notes.sample, notes.symbol, strict=True) if symbol in "NLRBAaJSVrFejnE/fQ"])
    errors, spikes = [], 0
    for k in range(0, 180, 6):
        quality = grade(recording.samples[:, k * 3600 : (k + 1) * 3600], recording.layout)
        inside = beats[(beats >= k * 3600) & (beats < (k + 1) * 3600)]
        assert quality.heart_rate is not None
        errors.append(abs(quality.heart_rate - 60 * (len(inside) - 1) / (inside[-1] - inside[0]) * 360))
        spikes += quality.pacing
    assert np.median(errors) < 0.5
    assert np.quantile(errors, 0.8) < 5
    assert spikes <= 1  # nobody here is paced
