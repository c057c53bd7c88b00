"""Recordings on disk: real WFDB records, and files written here whose every count is known."""

from __future__ import annotations

import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.recordings import Recording, RecordingError, find_recordings, read_recording
from encoders.signal import ABSENT, LEADS, Layout

NAMES = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]  # PTB-XL's spelling


def millivolts(recording: Recording) -> np.ndarray:
    """(C, T) in mV, NaN where absent."""
    layout = recording.layout
    mv = (recording.samples - np.array(layout.baseline)[:, None]) / np.array(layout.gain)[:, None]
    return np.where(recording.samples == ABSENT, np.nan, mv)


def write_wfdb(folder: Path, name: str, counts: np.ndarray, names: list[str], **more: Any) -> Path:
    """counts: (T, C)."""
    n = len(names)
    fields = {"fs": 500, "units": ["mV"] * n, "fmt": ["16"] * n, "adc_gain": [1000.0] * n, "baseline": [0] * n, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb calls what pandas deprecates
        import wfdb

        wfdb.wrsamp(name, sig_name=names, d_signal=counts, write_dir=str(folder), **fields)
    return folder / name


def write_edf(path: Path, signals: list[tuple[str, np.ndarray, dict[str, Any]]], start: datetime | None = None) -> Path:
    """Digital counts as they shall stand in the file; one second a data record."""
    import pyedflib

    writer = pyedflib.EdfWriter(str(path), len(signals), file_type=pyedflib.FILETYPE_EDFPLUS)
    common = {"dimension": "uV", "sample_frequency": 250, "physical_max": 3276.7, "physical_min": -3276.8}
    digital = {"digital_max": 32767, "digital_min": -32768, "prefilter": "", "transducer": ""}
    writer.setSignalHeaders([{"label": label, **common, **digital, **more} for label, _, more in signals])
    if start:
        writer.setStartdatetime(start)
    writer.writeAnnotation(0.5, -1, "a note")
    writer.writeSamples([np.ascontiguousarray(counts, dtype=np.int32) for _, counts, _ in signals], digital=True)
    writer.close()
    return path


def wave(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """(T, C) int16 counts."""
    return np.random.default_rng(seed).integers(-3000, 3000, (n, channels)).astype(np.int16)


def test_mitdb_100_is_read_with_and_without_suffix(mitdb: Path) -> None:
    recording = read_recording(mitdb / "100")
    assert recording.samples.shape == (2, 650_000)
    assert recording.samples.dtype == np.int16
    assert recording.samples[:, 0].tolist() == [995, 1011]  # the initial values that its header states
    assert recording.layout == Layout(360_000, ("II", "V5"), (200.0, 200.0), (1024.0, 1024.0))
    assert recording.name == "100"
    assert recording.comments[0] == "69 M 1085 1629 x1"
    assert recording.start is None
    for suffix in (".hea", ".dat"):
        assert np.array_equal(read_recording(mitdb / f"100{suffix}").samples, recording.samples)


def test_wfdb_agrees_with_the_physical_values_of_wfdb(shared: Path) -> None:
    path = shared / "ecg" / "long" / "af" / "data_101_6"
    recording = read_recording(path)
    assert recording.layout.fs_mhz == 200_000
    assert recording.layout.leads == ("I", "II")
    import wfdb  # quietly, now that the reader has imported it

    np.testing.assert_allclose(millivolts(recording).T, wfdb.rdrecord(str(path)).p_signal, atol=1e-9)


def test_ptbxl_layout_with_start_and_invalid_samples(tmp_path: Path) -> None:
    counts = wave(1000, 12)
    counts[100:110, 3] = ABSENT
    start = datetime(1984, 11, 9, 9, 17, 34)
    path = write_wfdb(tmp_path, "00001_hr", counts, NAMES, base_datetime=start, comments=["Age: 56"])
    recording = read_recording(path)
    assert recording.layout.leads == LEADS
    assert np.array_equal(recording.samples, counts.T)
    assert recording.start == start.replace(tzinfo=UTC)
    assert recording.comments == ("Age: 56",)


@pytest.mark.parametrize(("unit", "gain", "expected"), [("uV", 2.0, 2000.0), ("V", 200_000.0, 200.0), ("mV", 409.6, 409.6)])
def test_units_become_counts_per_millivolt(tmp_path: Path, unit: str, gain: float, expected: float) -> None:
    path = write_wfdb(tmp_path, "r", wave(100, 1), ["II"], units=[unit], adc_gain=[gain], baseline=[7])
    recording = read_recording(path)
    assert recording.layout.gain == pytest.approx((expected,))
    assert recording.layout.baseline == (7.0,)
    assert recording.layout.unit == "mV"


def test_lost_amplitude_is_unit_nu(tmp_path: Path) -> None:
    assert read_recording(write_wfdb(tmp_path, "r", wave(100, 1), ["V1"], units=["NU"])).layout.unit == "NU"


@pytest.mark.parametrize("gain", ["0", "0(7)/mV", "0.0/mV"])
def test_a_gain_of_zero_says_that_the_amplitude_is_lost(tmp_path: Path, gain: str) -> None:
    path = write_wfdb(tmp_path, "r", wave(100, 2), ["II", "V1"])
    header = path.with_suffix(".hea")
    assert read_recording(path).layout.unit == "mV"
    text = header.read_text()
    header.write_text(text.replace("1000.0(0)/mV", gain))
    assert header.read_text() != text
    assert read_recording(path).layout.unit == "NU"  # wfdb itself would say 200 counts per mV


def test_a_header_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_wfdb(tmp_path, "other", wave(100, 1), ["II"])
    path = write_wfdb(tmp_path / "in", "r", wave(100, 1), ["II"])
    path.with_suffix(".hea").write_text("r 1 500 100\n../other.dat 16 1000.0(0)/mV 16 0 0 0 0 II\n")
    with pytest.raises(RecordingError, match="wfdb cannot read it"):
        read_recording(path)


def test_format_212(tmp_path: Path) -> None:
    counts = np.clip(wave(100, 2), -2047, 2047)
    counts[50, 1] = -2048  # the smallest value of 12 bits says "no sample"
    samples = read_recording(write_wfdb(tmp_path, "r", counts, ["MLII", "V1"], fmt=["212"] * 2)).samples
    assert samples[1, 50] == ABSENT
    counts[50, 1] = ABSENT
    assert np.array_equal(samples, counts.T)


def test_wide_counts_with_a_small_span_are_shifted_without_loss(tmp_path: Path) -> None:
    counts = wave(500, 1).astype(np.int64) + 4_000_000
    path = write_wfdb(tmp_path, "r", counts, ["II"], fmt=["24"], adc_gain=[1000.0], baseline=[4_000_100])
    recording = read_recording(path)
    assert recording.layout.gain == (1000.0,)
    np.testing.assert_allclose(millivolts(recording).T, (counts - 4_000_100) / 1000, atol=1e-9)


def test_wide_counts_with_a_wide_span_are_scaled_with_their_gain(tmp_path: Path) -> None:
    counts = wave(500, 1).astype(np.int64) * 500
    counts[3] = -(1 << 23)  # no sample, in 24 bits
    path = write_wfdb(tmp_path, "r", counts, ["II"], fmt=["24"], adc_gain=[300_000.0], baseline=[1000])
    recording = read_recording(path)
    step = 1 / recording.layout.gain[0]
    expected = ((counts - 1000) / 300_000).T
    expected[0, 3] = np.nan
    assert recording.samples[0, 3] == ABSENT
    np.testing.assert_allclose(millivolts(recording), expected, atol=0.51 * step)
    assert step < 0.0002  # mV: no worse than the span asks for


def test_channels_that_are_no_leads_are_skipped_and_doubled_leads_too(tmp_path: Path) -> None:
    counts = wave(100, 4)
    recording = read_recording(write_wfdb(tmp_path, "r", counts, ["RESP", "MLII", "II", "V1"], units=["l", "mV", "mV", "mV"]))
    assert recording.layout.leads == ("II", "V1")
    assert recording.skipped == ("RESP", "II")
    assert np.array_equal(recording.samples, counts.T[[1, 3]])


def test_alivecor_needs_a_mapping(tmp_path: Path) -> None:
    path = write_wfdb(tmp_path, "A00001", wave(100, 1), ["ECG"], fs=300)
    with pytest.raises(RecordingError, match=r"'ECG'.*--lead ECG=I"):
        read_recording(path)
    assert read_recording(path, {"ecg": "I"}).layout.leads == ("I",)
    with pytest.raises(RecordingError, match="mapping is wrong"):
        read_recording(path, {"ECG": "nose"})


def test_leads_of_another_rate_are_skipped(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb

    signals = [wave(200, 1)[:, 0], wave(100, 1)[:, 0], wave(200, 1, seed=1)[:, 0]]
    record = wfdb.Record(
        record_name="r", n_sig=3, fs=250, sig_len=100, file_name=["r.dat"] * 3, fmt=["16"] * 3, samps_per_frame=[2, 1, 2],
        adc_gain=[200.0] * 3, baseline=[0] * 3, units=["mV"] * 3, adc_res=[16] * 3, adc_zero=[0] * 3, block_size=[0] * 3,
        init_value=[0] * 3, checksum=[0] * 3, sig_name=["II", "V5", "V1"], e_d_signal=signals, base_counter=None,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record.wrsamp(write_dir=str(tmp_path), expanded=True)
    recording = read_recording(tmp_path / "r")
    assert recording.layout.leads == ("II", "V1")
    assert recording.layout.fs == 500
    assert recording.skipped == ("V5",)
    assert np.array_equal(recording.samples, np.stack([signals[0], signals[2]]))


def test_multi_segment_record(tmp_path: Path) -> None:
    parts = [wave(100, 2, seed=s) for s in range(2)]
    for i, part in enumerate(parts):
        write_wfdb(tmp_path, f"r_{i}", part, ["I", "II"])
    (tmp_path / "r.hea").write_text("r/2 2 500 200\nr_0 100\nr_1 100\n")
    assert np.array_equal(read_recording(tmp_path / "r").samples, np.concatenate(parts).T)
    assert find_recordings(tmp_path) == [tmp_path / "r"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"units": ["mmHg"]}, "known units are mV"),
        ({"fs": 10}, "outside 50 to 2000 Hz"),
        ({"adc_gain": [0.5]}, "gain must be"),
    ],
)
def test_wfdb_that_no_encoder_can_be_given(tmp_path: Path, more: dict[str, Any], match: str) -> None:
    with pytest.raises(RecordingError, match=match):
        read_recording(write_wfdb(tmp_path, "r", wave(100, 1), ["II"], **more))


@pytest.mark.parametrize("fmt", ["16", "24", "32", "80", "212"])
def test_a_file_of_any_format_is_measured(tmp_path: Path, fmt: str) -> None:
    path = write_wfdb(tmp_path, "r", wave(99, 3) // 30, ["I", "II", "V1"], fmt=[fmt] * 3)
    whole = (tmp_path / "r.dat").read_bytes()
    (tmp_path / "r.dat").write_bytes(whole[:-40])
    with pytest.raises(RecordingError, match=rf"r\.dat has {len(whole) - 40} bytes, {len(whole)} are expected by its header"):
        read_recording(path)


def test_a_header_whose_first_line_is_none_is_quoted(tmp_path: Path) -> None:
    write_wfdb(tmp_path, "r", wave(100, 1), ["II"])
    (tmp_path / "p1.2024.hea").write_text("# a note\np1.2024 1 500 100\nr.dat 16 1000(0)/mV 16 0 0 0 0 II\n")
    with pytest.raises(
        RecordingError, match=r"first line of p1\.2024\.hea is no record line: 'p1\.2024 1 500 100'; .*\(no dot\)"
    ):
        read_recording(tmp_path / "p1.2024")
    (tmp_path / "e.hea").write_text("# nothing\n")
    with pytest.raises(RecordingError, match=r"first line of e\.hea is no record line: ''"):
        read_recording(tmp_path / "e")
    (tmp_path / "s.hea").write_text("s/2 1 500 200\nr 100\ngone 100\n")
    with pytest.raises(RecordingError, match="wfdb cannot read it"):
        read_recording(tmp_path / "s")


def test_truncated_and_missing_wfdb(tmp_path: Path) -> None:
    path = write_wfdb(tmp_path, "r", wave(100, 1), ["II"])
    data = (tmp_path / "r.dat").read_bytes()
    (tmp_path / "r.dat").write_bytes(data[:20])
    with pytest.raises(RecordingError, match=r"r\.dat has 20 bytes, 200 are expected by its header; it is cut off: copy it"):
        read_recording(path)
    (tmp_path / "r.dat").unlink()
    with pytest.raises(RecordingError, match=r"its signal file r\.dat is missing; put it beside the header"):
        read_recording(path)
    for name in ("absent", "absent.edf", "absent.csv", "absent.hea"):
        with pytest.raises(RecordingError, match="no such"):
            read_recording(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecordingError, match="not a recording"):
        read_recording(tmp_path / "notes.txt")


def test_edf(tmp_path: Path) -> None:
    a, b = wave(1000, 2).T
    a = a.copy()
    a[5] = ABSENT  # a sample here, not a mark
    start = datetime(2024, 2, 3, 4, 5, 6)
    half = {"dimension": "mV", "physical_max": 3.2767, "physical_min": -3.2768}
    upside_down = {"physical_max": -3276.8, "physical_min": 3276.7}
    slow = {"sample_frequency": 10}
    path = write_edf(
        tmp_path / "x.edf",
        [("ECG II", a, {}), ("EDR", b[:40], slow), ("V1", b, half), ("V2", b, upside_down), ("V3", b[:40], slow)],
        start,
    )
    recording = read_recording(path)
    assert recording.layout.leads == ("II", "V1", "V2")
    assert recording.layout.fs == 250
    assert recording.layout.gain == pytest.approx((10_000.0,) * 3)
    assert recording.skipped == ("EDR", "V3")
    assert recording.start == start.replace(tzinfo=UTC)
    assert recording.samples[0, 5] == -32767
    mv = millivolts(recording)
    np.testing.assert_allclose(mv[0, 6:], a[6:] / 10_000, atol=2e-4)
    np.testing.assert_allclose(mv[1], b / 10_000, atol=2e-4)
    np.testing.assert_allclose(mv[2], -b / 10_000, atol=2e-4)


def test_broken_edf(tmp_path: Path) -> None:
    (tmp_path / "x.edf").write_bytes(b"0       " * 100)
    with pytest.raises(RecordingError, match="pyedflib cannot read it"):
        read_recording(tmp_path / "x.edf")


def write_csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "# fs=500\nI,V1\n0.1,-0.2\n0.3,\n0.5,nan\n",
        "# fs: 500 Hz\n# unit=uV\nI;V1\n100;-200\n300;\n500;nan\n",
        "time,I,V1\n0.000,0.1,-0.2\n0.002,0.3,\n0.004,0.5,NaN\n",
        "time_ms\tI\tV1\n10\t0.1\t-0.2\n12\t0.3\t\n14\t0.5\tNaN\n",
        "#fs=500\nsample,DI,C1\n0,0.1,-0.2\n1,0.3,\n2,0.5,NaN\n",
    ],
)
def test_csv_layouts(tmp_path: Path, text: str) -> None:
    recording = read_recording(write_csv(tmp_path, text))
    assert recording.layout == Layout(500_000, ("I", "V1"), (1000.0, 1000.0), (0.0, 0.0))
    assert recording.samples.tolist() == [[100, 300, 500], [-200, ABSENT, ABSENT]]


def test_csv_times_rounded_to_milliseconds_give_the_whole_rate(tmp_path: Path) -> None:
    rows = "".join(f"{k / 360:.3f},{k % 7}\n" for k in range(3600))
    assert read_recording(write_csv(tmp_path, "time,II\n" + rows)).layout.fs_mhz == 360_000


def test_csv_of_electrode_offsets_keeps_the_ecg(tmp_path: Path) -> None:
    recording = read_recording(write_csv(tmp_path, "# fs=250\nII\n300.001\n300.002\n299.5\n"))
    assert recording.layout.gain == (1000.0,)
    np.testing.assert_allclose(millivolts(recording), [[300.001, 300.002, 299.5]], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("# fs=500\nI,II\n", "no sample"),
        ("I,II\n1,2\n", "rate is not given"),
        ("# fs=fast\nI\n1\n", "not a number"),
        ("# fs=500\nI,II\n1,2\n3\n", "row 4 has 1 cells"),
        ("# fs=500\nI,II\n1\n3\n", "2 columns"),
        ("# fs=500\nI,II\n1,x\n", "'x' is not a number"),
        ("time,I\n" + "".join(f"{0.002 * (k + (k > 5))},1\n" for k in range(20)), "step evenly"),
        ("time,I\n0.2,1\n0.1,1\n", "does not rise"),
        ("time,I\n0,1\n1e-320,1\n", "rises too little"),
        ("# fs=inf\nI\n1\n", "no finite number"),
        ("# fs=500\nI\ninf\n1\n", "'I' holds values that no ECG has"),
        ("# fs=500\nI\n1e308\n1\n", "'I' holds values that no ECG has"),
        ("# fs=500\n# unit=furlong\nI\n1\n", "known units"),
        ("# fs=500\nfoo,bar\n1,2\n", "no channel is a known"),
        ("# fs=5\nI\n1\n", "outside 50"),
    ],
)
def test_csv_errors_name_file_and_problem(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(RecordingError, match=match) as caught:
        read_recording(write_csv(tmp_path, text))
    assert "x.csv" in str(caught.value)


def test_find_recordings(tmp_path: Path) -> None:
    write_wfdb(tmp_path, "b", wave(10, 1), ["II"])
    (tmp_path / "sub").mkdir()
    write_wfdb(tmp_path / "sub", "a", wave(10, 1), ["II"])
    write_edf(tmp_path / "z.EDF", [("II", wave(250, 1)[:, 0], {})])
    (tmp_path / "c.csv").write_text('"time","II"\n0,1\n')
    (tmp_path / "table.csv").write_text("ecg_id,age,0\n1,2,3\n")
    (tmp_path / "reference.csv").write_text("A00009,AF\nA00015,AF\n")  # a rhythm, not the lead aVF
    assert find_recordings(tmp_path) == [tmp_path / "b", tmp_path / "c.csv", tmp_path / "sub" / "a", tmp_path / "z.EDF"]
    assert find_recordings(tmp_path / "b") == [tmp_path / "b"]
    assert find_recordings(tmp_path / "c.csv") == [tmp_path / "c.csv"]
    (tmp_path / "void").mkdir()
    for name in ("void", "absent"):
        with pytest.raises(RecordingError):
            find_recordings(tmp_path / name)


@pytest.mark.parametrize(("library", "file"), [("wfdb", "r"), ("pyedflib", "x.edf")])
def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, file: str) -> None:
    (tmp_path / "r.hea").touch()
    (tmp_path / "x.edf").touch()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecordingError, match=r"pip install ecg-stream-worker\[records\]"):
        read_recording(tmp_path / file)


def test_a_header_whose_segment_has_no_name_of_a_file_is_found_and_refused(tmp_path: Path) -> None:
    (tmp_path / "r.hea").write_text("r/2 1 250 40\n/2 20\n.. 20\n")
    assert find_recordings(tmp_path) == [tmp_path / "r"]
    with pytest.raises(RecordingError):
        read_recording(tmp_path / "r")


def test_segments_of_one_calibration_are_one_signal_and_others_are_refused(tmp_path: Path) -> None:
    x = np.arange(200, dtype="<i2")
    for name, gain in (("one", 200), ("two", 200), ("other", 400)):
        (tmp_path / f"{name}.dat").write_bytes(x.tobytes())
        (tmp_path / f"{name}.hea").write_text(f"{name} 1 360 200\n{name}.dat 16 {gain}(0)/mV 16 0 0 0 0 II\n")
    (tmp_path / "same.hea").write_text("same/2 1 360 400\none 200\ntwo 200\n")
    assert np.array_equal(read_recording(tmp_path / "same").samples[0], np.concatenate([x, x]))
    (tmp_path / "differ.hea").write_text("differ/2 1 360 400\none 200\nother 200\n")
    with pytest.raises(RecordingError, match="2 different sets of leads, gains or baselines"):
        read_recording(tmp_path / "differ")
    (tmp_path / "holes.hea").write_text("holes/3 1 360 600\none 200\n~ 200\ntwo 200\n")
    with pytest.raises(RecordingError, match="gaps between its segments"):
        read_recording(tmp_path / "holes")
