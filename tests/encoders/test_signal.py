"""Lead names as vendors spell them, and every way in which a layout can be wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from encoders.signal import LEADS, Layout, SignalError, canonical_lead, lead_bits, lead_names

GOOD = Layout(500_000, ("I", "II"), (1000.0, 1000.0), (0.0, 0.0))


@pytest.mark.parametrize("lead", LEADS)
def test_every_lead_in_the_usual_spellings(lead: str) -> None:
    for pattern in (
        "{}",
        " {} ",
        "ECG {}",
        "ecg_{}",
        "Lead {}",
        "ECG Lead {}",
        "lead-{}",
        "MDC_ECG_LEAD_{}",
        "{} (mV)",
        "{} (uV)",
    ):
        for name in (lead, lead.upper(), lead.lower()):
            assert canonical_lead(pattern.format(name)) == lead


@pytest.mark.parametrize(
    ("name", "lead"),
    [("MLII", "II"), ("ML2", None), ("DI", "I"), ("D2", "II"), ("LIII", "III"), ("1", None),
     ("ECG 1", None), ("CH 2", None), ("aVR-", None), ("L3", "III"), ("C1", "V1"),
     ("MV6", "V6"), ("MCL1", "V1"), ("CM5", "V5"), ("aR", "aVR"), ("AF", "aVF"), ("mdc_ecg_lead_avl", "aVL")],
)  # fmt: skip
def test_aliases(name: str, lead: str | None) -> None:
    if lead is None:
        with pytest.raises(SignalError):
            canonical_lead(name)
    else:
        assert canonical_lead(name) == lead


@pytest.mark.parametrize("name", ["", "ECG", "ECGI", "V7", "V0", "-aVR", "IV", "RESP", "aVRR", "V1-V2", "x" * 10_000])
def test_what_is_no_lead(name: str) -> None:
    with pytest.raises(SignalError) as caught:
        canonical_lead(name)
    assert caught.value.code == "unknown_lead"
    assert len(str(caught.value)) < 200


def test_bits_and_names() -> None:
    assert lead_bits(LEADS) == 0xFFF
    assert lead_bits(["I", "V6"]) == 0b1000_0000_0001
    assert lead_names(lead_bits(["V1", "aVR"])) == ("aVR", "V1")
    assert lead_names(0) == ()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"leads": (), "gain": (), "baseline": ()}, "no_lead"),
        ({"leads": ("I", "I")}, "doubled_lead"),
        ({"leads": ("I", "MLII")}, "unknown_lead"),
        ({"gain": (1000.0,)}, "layout_shape"),
        ({"baseline": (0.0, 0.0, 0.0)}, "layout_shape"),
        ({"fs_mhz": 49_999}, "fs_range"),
        ({"fs_mhz": 2_000_001}, "fs_range"),
        ({"fs_mhz": 0}, "fs_range"),
        ({"gain": (1000.0, 0.0)}, "gain_range"),
        ({"gain": (1000.0, -1000.0)}, "gain_range"),
        ({"gain": (1000.0, math.nan)}, "gain_range"),
        ({"gain": (1000.0, math.inf)}, "gain_range"),
        ({"baseline": (0.0, math.nan)}, "baseline_range"),
        ({"baseline": (0.0, 1e9)}, "baseline_range"),
        ({"unit": "furlong"}, "unknown_unit"),
    ],
)
def test_a_wrong_layout_is_refused_with_its_code(change: dict[str, object], code: str) -> None:
    with pytest.raises(SignalError) as caught:
        replace(GOOD, **change)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_of_spreads_one_value_over_all_leads() -> None:
    layout = Layout.of(360_000, ["MLII", "v1"], [200], [1024])
    assert layout == Layout(360_000, ("II", "V1"), (200.0, 200.0), (1024.0, 1024.0))
    assert Layout.of(360_000, ["MLII", "v1"], [200, 100]).baseline == (0.0, 0.0)
    with pytest.raises(SignalError) as caught:
        Layout.of(360_000, ["II", "MLII"], [200])  # two spellings of one lead
    assert caught.value.code == "doubled_lead"


@pytest.mark.parametrize(("fs_mhz", "window"), [(500_000, 5000), (360_000, 3600), (333_333, 3333), (50_000, 500)])
def test_windows_in_integers(fs_mhz: int, window: int) -> None:
    layout = replace(GOOD, fs_mhz=fs_mhz)
    assert layout.window == window
    assert layout.fs == fs_mhz / 1000
    assert layout.samples(200) == fs_mhz // 5000


def test_the_digest_stands_for_all_that_says_how_to_read_samples() -> None:
    changes = (
        {},
        {"fs_mhz": 500_001},
        {"leads": ("II", "I")},
        {"gain": (1000.0, 1000.5)},
        {"baseline": (0.0, 1.0)},
        {"unit": "NU"},
        {"leads": ("I",), "gain": (1000.0,), "baseline": (0.0,)},
    )
    digests = [replace(GOOD, **change).digest for change in changes]  # type: ignore[arg-type]
    assert len(set(digests)) == len(changes)
    assert all(len(digest) == 16 for digest in digests)
    assert replace(GOOD).digest == GOOD.digest
    assert GOOD.digest.hex() == "f780705da45fc2b70e9e086210f28294"  # identities of findings rest on it
