"""Simulated devices: pure functions of (device, sample index) whose waveforms obey what the leads must obey."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.signal import ABSENT, LEADS, Layout
from stream_worker.devices.encode import encode_chunk
from stream_worker.devices.heart import beat_times
from stream_worker.devices.simulator import RHYTHMS, Device, demo_devices, fleet, synthesize
from stream_worker.proto.ecg_chunk_pb2 import NO_UNIT, Chunk


def device(rhythm: str = "sinus", **more: object) -> Device:
    plain = Device("s", rhythm, LEADS, 500_000, 1000.0, 75.0, 0.01, None, seed=7)
    return replace(plain, **more)  # type: ignore[arg-type]


def test_a_device_gives_the_same_samples_each_time_and_another_seed_others() -> None:
    first, again, other = (synthesize(device(seed=s), 5000) for s in (7, 7, 8))
    assert first.dtype == np.int16
    assert first.shape == (12, 5000)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(RHYTHMS), st.integers(0, 10**9), st.lists(st.integers(0, 3000), min_size=1, max_size=6))
def test_any_cut_gives_the_same_samples(rhythm: str, first: int, lengths: list[int]) -> None:
    one = device(rhythm, leads=("II", "V1"), lead_off="V1")
    pieces, at = [], first
    for n in lengths:
        pieces.append(synthesize(one, n, at))
        at += n
    assert np.array_equal(np.concatenate(pieces, axis=1), synthesize(one, sum(lengths), first))


@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_limb_leads_obey_einthoven_and_goldberger(rhythm: str) -> None:
    x = synthesize(device(rhythm, noise_mv=0.05, mains_mv=0.1), 5000).astype(int)
    one, two, three, avr, avl, avf = x[:6]
    assert np.array_equal(one + three, two)
    for augmented, twice in ((avr, -one - two), (avl, one - three), (avf, two + three)):
        assert np.abs(2 * augmented - twice).max() <= 1  # half a count


@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_heart_rate_is_as_asked(rhythm: str) -> None:
    beats = beat_times(rhythm, 75.0, 7, 0.0, 600.0)
    assert abs(len(beats) - 750) <= 8


def test_rhythms_differ_in_their_intervals() -> None:
    spread = {r: np.diff(beat_times(r, 75.0, 7, 0.0, 120.0)) for r in RHYTHMS}
    assert spread["paced"].std() < 1e-9
    assert 0.005 < spread["sinus"].std() < 0.05
    assert spread["af"].std() > 0.1
    lag = np.corrcoef(spread["af"][:-1], spread["af"][1:])[0, 1]
    assert abs(lag) < 0.35  # irregularly irregular
    early, late = sorted((spread["bigeminy"][0::2].mean(), spread["bigeminy"][1::2].mean()))
    assert early < 0.7 * late
    assert early + late == pytest.approx(1.6, abs=0.02)  # the pause is compensatory


def beats_of(one: Device, lead: str) -> np.ndarray:
    """(beats, samples) in mV from 250 ms before to 450 ms after each R peak of a noiseless device at 500 Hz."""
    clean = replace(one, noise_mv=0.0, wander_mv=0.0)
    x = synthesize(clean, 20_000)[LEADS.index(lead)] / one.gain
    peaks = [round(at * 500) for at in beat_times(one.rhythm, one.heart_rate, one.seed, 1.0, 38.0)]
    return np.stack([x[p - 125 : p + 225] for p in peaks])


def test_sinus_looks_like_an_ecg() -> None:
    two = beats_of(device(), "II").mean(axis=0)
    assert two[:75].max() > 0.08  # P wave
    assert 0.7 < two[100:150].max() < 2.0  # R wave
    assert two[200:300].max() > 0.15  # T wave upright
    ratios = []
    for lead in LEADS[6:]:
        qrs = beats_of(device(), lead).mean(axis=0)[100:160]
        ratios.append(qrs.max() / -min(qrs.min(), -0.01))
    assert ratios == sorted(ratios)  # R grows and S shrinks from V1 to V6
    assert ratios[0] < 1 < ratios[3]
    assert beats_of(device(), "aVR").mean(axis=0)[100:150].min() < -0.5


def test_wide_beats_are_wide_and_af_has_no_p() -> None:
    def width_ms(beat: np.ndarray) -> float:
        qrs = np.abs(beat[75:190])
        return 2.0 * float((qrs > 0.5 * qrs.max()).sum())

    bigeminy = beats_of(device("bigeminy"), "II")
    widths = sorted((width_ms(bigeminy[0::2].mean(axis=0)), width_ms(bigeminy[1::2].mean(axis=0))))
    assert widths[1] > 2.5 * widths[0]
    assert width_ms(beats_of(device("paced"), "III").mean(axis=0)) > 2.5 * widths[0]
    assert beats_of(device("af"), "II").mean(axis=0)[:75].max() < 0.06


def test_pacing_spikes_stand_before_every_paced_beat() -> None:
    one = device("paced", fs_mhz=1_000_000, noise_mv=0.0)
    x = synthesize(one, 20_000)[1] / one.gain
    jump = np.abs(np.diff(x))
    beats = beat_times("paced", 75.0, 7, 0.5, 19.5)
    assert all(jump[round((at - 0.07) * 1000) : round((at - 0.04) * 1000)].max() > 0.5 for at in beats)


@pytest.mark.parametrize(("how", "value"), [("V5", ABSENT), ("V5:flat", 0)])
def test_a_lead_that_falls_off_is_absent_or_flat_then_comes_back(how: str, value: int) -> None:
    x = synthesize(device(lead_off=how), 25_000)
    v5 = LEADS.index("V5")
    assert (x[v5, 10_000:20_000] == value).all()
    for stretch in (x[v5, :10_000], x[v5, 20_000:], np.delete(x, v5, axis=0)):
        assert stretch.std() > 10
        assert not (stretch == ABSENT).any()


@pytest.mark.parametrize("more", [{"rhythm": "waltz"}, {"heart_rate": 900.0}, {"lead_off": "V7"}])
def test_devices_that_cannot_be(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rhythm|heart rate|none of"):
        device(**more)  # type: ignore[arg-type]


def test_no_sample_before_the_session() -> None:
    with pytest.raises(ValueError, match="before 0"):
        synthesize(device(), 10, -1)


def test_demo_devices_cover_rhythms_lead_sets_and_rates() -> None:
    devices = demo_devices()
    assert {d.rhythm for d in devices} == set(RHYTHMS)
    assert {len(d.leads) for d in devices} == {1, 2, 6, 12}
    assert len({d.fs_mhz for d in devices}) >= 4
    assert len({d.stream_id for d in devices}) == len(devices) == 6
    for d in devices:
        x = synthesize(d, d.layout.window)
        assert np.abs(x[x != ABSENT].astype(int)).max() < 20_000  # nothing clips
    assert demo_devices(1) != devices


def test_chunk_round_trip() -> None:
    layout = Layout(360_000, ("II", "V5"), (200.0, 100.0), (1024.0, 1024.0), "NU")
    samples = np.array([[1, -2, ABSENT], [4, 5, 32767]], dtype=np.int16)
    chunk = Chunk.FromString(encode_chunk("p1", "s1", 123, layout, 9, samples, last=True))
    assert (chunk.stream_id, chunk.session_id, chunk.session_start_ns, chunk.first_sample) == ("p1", "s1", 123, 9)
    assert (chunk.layout.fs_mhz, list(chunk.layout.leads), chunk.layout.unit, chunk.last) == (
        360_000,
        ["II", "V5"],
        NO_UNIT,
        True,
    )
    assert list(chunk.layout.gain) == [200.0, 100.0]
    assert list(chunk.layout.baseline) == [1024.0]
    assert np.array_equal(np.frombuffer(chunk.samples, "<i2").reshape(2, 3), samples)
    told = chunk.layout
    back = Layout.of(told.fs_mhz, list(told.leads), list(told.gain), list(told.baseline), "NU")
    assert back == layout


@pytest.mark.parametrize("samples", [np.zeros((1, 5), np.int16), np.zeros(5, np.int16), np.zeros((2, 5), np.int32)])
def test_samples_that_do_not_fit_the_layout_are_not_encoded(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="2 leads need int16"):
        encode_chunk("p", "s", 0, Layout(500_000, ("I", "II"), (1.0, 1.0), (0.0, 0.0)), 0, samples)


def played(**more: object) -> dict[str, list[Chunk]]:
    streams: dict[str, list[Chunk]] = defaultdict(list)
    for key, value, _ in fleet(7, 40, seed=3, **more):  # type: ignore[arg-type]
        chunk = Chunk.FromString(value)
        assert chunk.stream_id.encode() == key
        streams[chunk.stream_id].append(chunk)
    return streams


def test_fleet_without_faults_is_each_devices_signal() -> None:
    streams = played()
    assert len(streams) == 7
    devices = demo_devices(3)
    for i, (name, chunks) in enumerate(sorted(streams.items())):
        one = devices[i % 6]
        layout = one.layout
        assert len(chunks) == 40
        assert [c.last for c in chunks] == [False] * 39 + [True]
        rate = one.fs_mhz // 1000
        for k in (0, 1, 39):
            samples = synthesize(one, rate, k * rate)
            assert chunks[k].SerializeToString() == encode_chunk(name, "1", 0, layout, k * rate, samples, last=k == 39)


def test_fleet_is_deterministic_and_its_seconds_never_fall() -> None:
    faults = {"drop": 0.05, "duplicate": 0.05, "reorder": 0.1, "skew_ms": 700}
    one, two = (list(fleet(5, 20, seed=1, **faults)) for _ in range(2))  # type: ignore[arg-type]
    assert one == two
    seconds = [second for _, _, second in one]
    assert seconds == sorted(seconds)
    assert one != list(fleet(5, 20, seed=2, **faults))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_ms", [200, 500, 1000])
def test_fleet_faults_are_as_asked_and_stay_within_the_grace(chunk_ms: int) -> None:
    streams = played(drop=0.1, duplicate=0.1, reorder=0.2, skew_ms=700, chunk_ms=chunk_ms)
    n_chunks = 40_000 // chunk_ms
    seen, repeated, late = 0, 0, 0
    for chunks in streams.values():
        per = chunks[0].layout.fs_mhz * chunk_ms // 1_000_000
        highest = -1
        for chunk in chunks:
            k = chunk.first_sample // per
            if k < highest:
                late += 1
                assert (highest + 1 - k) * chunk_ms <= 2000
            highest = max(highest, k)
        counts = Counter(chunk.first_sample for chunk in chunks)
        seen += len(counts)
        repeated += len(chunks) - len(counts)
        assert chunks[-1].last
        assert chunks[-1].first_sample == (n_chunks - 1) * per
    assert 0.8 < seen / (7 * n_chunks) < 0.97
    assert 0.04 < repeated / (7 * n_chunks) < 0.18
    assert late > 0.1 * 7 * n_chunks
    assert len({chunks[0].session_start_ns for chunks in streams.values()}) == 7
    assert all(abs(chunks[0].session_start_ns) <= 700e6 for chunks in streams.values())
