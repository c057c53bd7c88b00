"""DICOM waveforms: the 12-lead object that pydicom ships, and variants of it whose every number is known."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from encoders.recordings import RecordingError, find_recordings, read_recording
from encoders.signal import ABSENT, LEADS


@pytest.fixture(scope="module")
def real() -> Path:
    """A resting ECG of a device: ten seconds of 12 leads at 1000 Hz, and a median beat."""
    path = get_testdata_file("waveform_ecg.dcm", download=False)
    assert isinstance(path, str)
    return Path(path)


@pytest.fixture
def changed(real: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(change: Callable[[Any], None]) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(real)
            change(data)
            data.save_as(tmp_path / "changed.dcm")
        return tmp_path / "changed.dcm"

    return write


def test_a_real_resting_ecg(real: Path) -> None:
    recording = read_recording(real)
    assert recording.layout.leads == LEADS
    assert recording.layout.fs_mhz == 1_000_000
    assert recording.samples.shape == (12, 10_000)
    assert recording.start == datetime(2013, 1, 25, 10, 59, 19, tzinfo=UTC)
    assert recording.layout.gain == pytest.approx((800.0,) * 12)  # 1.25 uV a count
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uv = pydicom.waveforms.multiplex_array(pydicom.dcmread(real), 0, as_raw=False)  # (T, C), as the library scales it
    mv = recording.samples / np.array(recording.layout.gain)[:, None]
    np.testing.assert_allclose(mv, uv.T / 1000, atol=1e-9)
    assert np.abs(mv[0] + mv[2] - mv[1]).max() < 0.005  # I + III = II


def test_the_median_beat_is_never_taken_for_the_recording(changed: Callable[..., Path]) -> None:
    def swap(data: Any) -> None:
        data.WaveformSequence = data.WaveformSequence[::-1]

    assert read_recording(changed(swap)).samples.shape == (12, 10_000)


def test_baseline_correction_padding_and_other_lead_codes(changed: Callable[..., Path], real: Path) -> None:
    plain = read_recording(real)

    def change(data: Any) -> None:
        group = data.WaveformSequence[0]
        first, second = group.ChannelDefinitionSequence[:2]
        first.ChannelBaseline, first.ChannelSensitivityCorrectionFactor = "50", "2"
        source = second.ChannelSourceSequence[0]
        source.CodingSchemeDesignator, source.CodeValue, source.CodeMeaning = "MDC", "2:2", "whatever"
        third = group.ChannelDefinitionSequence[2].ChannelSourceSequence[0]
        third.CodingSchemeDesignator, third.CodeMeaning = "99VENDOR", "Lead III"
        counts = np.frombuffer(group.WaveformData, "<i2").copy()
        counts[12 * 7] = -32000  # lead I, sample 7
        group.WaveformData = counts.tobytes()
        group.add_new("WaveformPaddingValue", "OW", np.int16(-32000).tobytes())

    recording = read_recording(changed(change))
    assert recording.layout.leads == LEADS
    assert recording.samples[0, 7] == ABSENT
    lead_i = (recording.samples[0, 8:] - recording.layout.baseline[0]) / recording.layout.gain[0]
    np.testing.assert_allclose(lead_i, plain.samples[0, 8:] * 2.5e-3 + 0.05, atol=1e-6)  # 2 * 1.25 uV a count, plus 50 uV


def test_it_is_found_by_suffix_and_by_its_own_mark(real: Path, tmp_path: Path) -> None:
    shutil.copy(real, tmp_path / "a.dcm")
    assert find_recordings(tmp_path) == [tmp_path / "a.dcm"]
    shutil.copy(real, tmp_path / "IM0001")
    assert read_recording(tmp_path / "IM0001").samples.shape == (12, 10_000)


def _as_bytes(group: Any, kind: str) -> None:
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 8, kind
    group.WaveformData = group.WaveformData[::2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.__delattr__("WaveformSequence"), r"it holds no waveform \(12-lead ECG Waveform Storage\)"),
        (
            lambda d: d.WaveformSequence[0].ChannelDefinitionSequence[3].__delattr__("ChannelSensitivity"),
            "'aVR' has no Channel",
        ),
        (lambda d: setattr(d.WaveformSequence[0].ChannelDefinitionSequence[3], "ChannelSensitivity", "0"), "Sensitivity of 0"),
        (lambda data: setattr(data.WaveformSequence[0], "WaveformData", b"\0" * 8), "pydicom cannot read it"),
        (lambda data: _as_bytes(data.WaveformSequence[0], "MB"), r"its samples are companded \(MB\), not linear"),
    ],
)
def test_what_cannot_be_used_says_why(changed: Callable[..., Path], change: Callable[[Any], None], problem: str) -> None:
    with pytest.raises(RecordingError, match=problem):
        read_recording(changed(change))


def test_a_file_that_is_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    with pytest.raises(RecordingError, match=r"x\.dcm: pydicom cannot read it \(InvalidDicomError"):
        read_recording(tmp_path / "x.dcm")
