"""A DICOM waveform object (12-lead, general or ambulatory ECG; DICOM PS3.3 A.34) -> the channels of one multiplex group.

Of several groups the recorded one ("ORIGINAL", not a median beat) with most ECG leads is taken, of equals the longest.
physical = counts * ChannelSensitivity * ChannelSensitivityCorrectionFactor + ChannelBaseline, in ChannelSensitivityUnits.
`pydicom` comes with the extra `records` and is handed in by the caller.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.signal import SignalError, canonical_lead

__all__ = ["DicomChannel", "DicomError", "DicomWaveform", "is_dicom", "read_dicom"]

MAGIC_AT, MAGIC = 128, b"DICM"
COMPANDED = ("MB", "AB")  # mu-law and A-law bytes: no linear counts
# the last number of an MDC ("2:61") or SCP-ECG ("5.6.3-9-61") lead code
LEAD_CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", **{2 + n: f"V{n}" for n in range(1, 7)}}


class DicomError(ValueError):
    """The object holds no ECG that can be read; the text says why."""


@dataclass(frozen=True)
class DicomChannel:
    """counts: integers (T,). absent: bool (T,). gain: counts per `unit`. baseline: counts at zero."""

    name: str
    counts: NDArray[Any]
    absent: NDArray[np.bool_]
    gain: float
    baseline: float
    unit: str


@dataclass(frozen=True)
class DicomWaveform:
    """One multiplex group. fs: Hz. start: acquisition time, UTC where no zone is given, or None."""

    channels: tuple[DicomChannel, ...]
    fs: float
    start: datetime | None


def is_dicom(path: Path) -> bool:
    """Whether the file says so itself, whatever its name."""
    with path.open("rb") as file:
        return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC


def read_dicom(path: Path, pydicom: Any) -> DicomWaveform:
    """Raises DicomError for what is no ECG, and whatever pydicom raises for what is broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of odd values in fields that are not read here
        data = pydicom.dcmread(str(path))
        groups = list(data.get("WaveformSequence", ()))
        if not groups:
            raise DicomError(f"it holds no waveform ({data.SOPClassUID.name if 'SOPClassUID' in data else 'no SOP class'})")
        chosen = max(range(len(groups)), key=lambda i: _worth(groups[i]))
        group = groups[chosen]
        if (kind := str(group.WaveformSampleInterpretation)) in COMPANDED:
            raise DicomError(f"its samples are companded ({kind}), not linear counts")
        counts = pydicom.waveforms.multiplex_array(data, chosen, as_raw=True)  # (T, C)
        start = _start(data, pydicom)
    if counts.dtype.kind == "u":  # "UB", "US": offset binary has no baseline of its own, the channel's stands for it
        counts = counts.astype(np.int64)
    absent = _padding(group, counts)
    channels = [_channel(d, counts[:, c], absent[:, c]) for c, d in enumerate(group.ChannelDefinitionSequence)]
    return DicomWaveform(tuple(channels), float(group.SamplingFrequency), start)


def _worth(group: Any) -> tuple[bool, int, int]:
    names = {_lead(definition) for definition in group.ChannelDefinitionSequence}
    known = sum(1 for name in names if _known(name))
    return group.get("WaveformOriginality") != "DERIVED", known, int(group.NumberOfWaveformSamples)


def _known(name: str) -> bool:
    try:
        canonical_lead(name)
    except SignalError:
        return False
    return True


def _lead(definition: Any) -> str:
    """The channel's lead by its code, else its name."""
    source = next(iter(definition.get("ChannelSourceSequence", ())), None)
    label = str(definition.get("ChannelLabel", "")).strip()
    if source is None:
        return label
    scheme, code = str(source.get("CodingSchemeDesignator", "")), str(source.get("CodeValue", ""))
    number = code.replace(":", "-").rpartition("-")[2]
    if scheme in ("MDC", "SCPECG") and number.isdigit() and int(number) in LEAD_CODES:
        return LEAD_CODES[int(number)]
    return label or str(source.get("CodeMeaning", "")).strip()


def _padding(group: Any, counts: NDArray[Any]) -> NDArray[np.bool_]:
    """Where WaveformPaddingValue stands: no sample."""
    value = group.get("WaveformPaddingValue")
    if value is None:
        return np.zeros(counts.shape, dtype=bool)
    if isinstance(value, bytes):
        value = int.from_bytes(
            value[: max(1, int(group.WaveformBitsAllocated) // 8)], "little", signed=counts.dtype.kind == "i"
        )
    return np.asarray(counts == int(value))


def _channel(definition: Any, counts: NDArray[Any], absent: NDArray[np.bool_]) -> DicomChannel:
    name = _lead(definition)
    sensitivity = definition.get("ChannelSensitivity")
    units = next(iter(definition.get("ChannelSensitivityUnitsSequence", ())), None)
    if sensitivity is None or units is None:
        raise DicomError(f"channel {name!r} has no ChannelSensitivity or no unit of it")
    step = float(sensitivity) * float(definition.get("ChannelSensitivityCorrectionFactor", 1.0))  # `unit` per count
    if step == 0:
        raise DicomError(f"channel {name!r} has a ChannelSensitivity of 0")
    baseline = -float(definition.get("ChannelBaseline", 0.0)) / step
    return DicomChannel(name, counts, absent, 1 / step, baseline, str(units.get("CodeValue", "")))


def _start(data: Any, pydicom: Any) -> datetime | None:
    text = data.get("AcquisitionDateTime")
    if not text:
        return None
    try:
        when = pydicom.valuerep.DT(text)
    except ValueError:
        return None
    return None if when is None else datetime.fromtimestamp(when.timestamp(), UTC) if when.tzinfo else _utc(when)


def _utc(when: datetime) -> datetime:
    return datetime(when.year, when.month, when.day, when.hour, when.minute, when.second, when.microsecond, UTC)
