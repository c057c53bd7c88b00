"""Recordings on disk -> int16 counts (C, T) and their layout: the one reader that training and worker share.

WFDB (any format `wfdb` reads, FLAC included), EDF and BDF by `pyedflib`, DICOM waveforms by `pydicom`, CSV by itself. The
libraries come with the extra `records` and are imported on first use. Nothing here filters or resamples; windows know only
what is returned.
"""

from __future__ import annotations

import csv
import importlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.csv_table import CsvError, looks_like_leads, read_csv
from encoders.dicom_waveform import DicomError, is_dicom, read_dicom
from encoders.signal import ABSENT, GAIN_RANGE, Layout, SignalError, canonical_lead
from encoders.wfdb_faults import why_unreadable

__all__ = ["Recording", "RecordingError", "find_recordings", "read_recording"]

WFDB_PARTS = (".hea", ".dat", ".atr", ".mat")
EDF_SUFFIXES = (".edf", ".bdf")
DICOM_SUFFIX = ".dcm"
LARGEST = 1e15  # counts, far beyond any recorder; a float holds them exactly
COUNT_LIMIT = 32767  # the int16 minimum says ABSENT, so the range is symmetric
CSV_REMEDY = "a CSV needs a header of lead names and '# fs=500' or a time column"
PER_MV = {"mv": 1.0, "millivolt": 1.0, "uv": 1000.0, "microvolt": 1000.0, "v": 0.001, "volt": 0.001}  # of a unit in one mV
_NO_GAIN = re.compile(r"[-+]?0*\.?0*(e[-+]?\d+)?($|[(/])", re.IGNORECASE)
NO_UNIT = ("nu", "sd", "zscore")
NO_DATE = datetime(1985, 1, 1)  # EDF+ has this where the date is withheld


class RecordingError(ValueError):
    """A file that cannot be played: names the file, what is wrong and what to do about it."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = path


@dataclass(frozen=True)
class Recording:
    """samples: int16 (C, T), ABSENT where a lead has no sample; row c is layout.leads[c].

    start: time of sample 0, with time zone (naive headers are taken as UTC), or None. skipped: channels left out: no ECG lead,
    a lead that came before, or another rate or kind of unit than most leads.
    """

    name: str
    samples: NDArray[np.int16]
    layout: Layout
    start: datetime | None
    comments: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Channel:
    """One channel as its file has it. counts: (T,), integers of any width or float with NaN. gain: counts per `unit`."""

    name: str
    counts: NDArray[Any]
    absent: NDArray[np.bool_]
    fs: float
    gain: float
    baseline: float
    unit: str


def read_recording(path: Path, leads: Mapping[str, str] | None = None) -> Recording:
    """One recording: a WFDB record with or without suffix ("mitdb/100"), .hea, .dat, .edf, .bdf, .csv, .dcm or a DICOM
    file of any name.

    leads: names for channels that are no known lead, for instance {"ECG": "I"}. Raises RecordingError.
    """
    path = Path(path)
    if path.suffix.lower() in EDF_SUFFIXES:
        return _read_edf(_existing(path), leads or {})
    if path.suffix.lower() == ".csv":
        return _read_csv(_existing(path), leads or {})
    if path.suffix.lower() == DICOM_SUFFIX or (path.is_file() and is_dicom(path)):
        return _read_dicom(_existing(path), leads or {})
    record = path.with_suffix("") if path.suffix.lower() in WFDB_PARTS else path
    if not record.with_name(record.name + ".hea").is_file():
        what = "no such recording" if not path.exists() else "not a recording that can be read"
        raise RecordingError(path, what, f"give a WFDB record ({record.name}.hea beside its signals), .edf, .bdf, .dcm or .csv")
    return _read_wfdb(record, leads or {})


def find_recordings(path: Path) -> list[Path]:
    """A file or a record without suffix: itself. A folder: every recording in and below it, sorted; WFDB without suffix.

    In folders, segments of a multi-segment WFDB record and CSV files whose header names no lead are left out.
    Raises RecordingError where there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists() and not path.with_name(path.name + ".hea").is_file():
            raise RecordingError(path, "no such file, folder or WFDB record", "check the path")
        return [path]
    headers = sorted(path.rglob("*.hea"))
    segments = {segment for header in headers for segment in _segments(header)}
    found = [header.with_suffix("") for header in headers if header.with_suffix("") not in segments]
    found += [f for f in path.rglob("*") if f.suffix.lower() in (*EDF_SUFFIXES, DICOM_SUFFIX)]
    found += [f for f in path.rglob("*") if f.suffix.lower() == ".csv" and looks_like_leads(f)]
    if not found:
        raise RecordingError(path, "no recording in this folder", "no .hea, .edf, .bdf, .dcm, nor a .csv with lead names")
    return sorted(found)


def _segments(header: Path) -> list[Path]:
    """The segment records that a multi-segment header ("name/3 ...") lists; none for an ordinary one."""
    lines = _header_lines(header)
    if not lines or "/" not in lines[0][0]:
        return []
    return [header.parent / line[0] for line in lines[1:]]


def _header_lines(header: Path) -> list[list[str]]:
    """The words of each line that is no comment."""
    with header.open(encoding="utf-8", errors="replace") as file:
        return [line.split() for line in file if line.strip() and not line.lstrip().startswith("#")]


def _calibrated(header: Path) -> list[bool]:
    """Whether each signal's gain is given; of a record in segments, as its first segment says.

    A gain of 0, or none, says that the amplitude is not calibrated (WFDB header(5)); `wfdb` takes 200 counts per mV instead.
    """
    segments = _segments(header)
    if segments:
        header = segments[0].with_name(segments[0].name + ".hea")
    return [len(words) > 2 and not _NO_GAIN.match(words[2]) for words in _header_lines(header)[1:]]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RecordingError(path, "no such file", "check the path")
    return path


def _library(name: str, path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wfdb calls what pandas deprecates while it is imported
            return importlib.import_module(name)
    except ImportError as error:
        raise RecordingError(path, f"reading it needs {name}", "pip install ecg-stream-worker[records]") from error


def _read_wfdb(record: Path, leads: Mapping[str, str]) -> Recording:
    wfdb = _library("wfdb", record)
    try:
        _check_segments(wfdb.rdheader(str(record), rd_segments=True), record)
        calibrated = _calibrated(record.with_name(record.name + ".hea"))
        r = wfdb.rdrecord(str(record), physical=False, smooth_frames=False)
        columns = r.e_d_signal if r.e_d_signal is not None else list(r.d_signal.T)
    except RecordingError:
        raise
    except Exception as error:  # the parser raises whatever a broken header or signal file leads it into
        raise RecordingError(record, *why_unreadable(wfdb, record, error)) from error
    channels = []
    for c, counts in enumerate(columns):
        invalid = _invalid_sample(str(r.fmt[c]))
        per_frame = r.samps_per_frame[c] if r.samps_per_frame else 1
        gain, baseline = float(r.adc_gain[c]), float(r.baseline[c])
        absent = counts == invalid if invalid is not None else np.zeros(len(counts), dtype=bool)
        unit = (r.units[c] or "mV") if calibrated[c] else "NU"  # no gain: the amplitude is lost
        channels.append(_Channel(r.sig_name[c] or "", counts, absent, float(r.fs) * per_frame, gain, baseline, unit))
    start = r.base_datetime.replace(tzinfo=UTC) if r.base_datetime else None
    return _assemble(record, record.name, channels, leads, start, tuple(r.comments or ()))


def _check_segments(header: Any, record: Path) -> None:
    """A record in segments is one signal only if all are calibrated alike and none is missing."""
    segments = getattr(header, "segments", None)
    if segments is None:
        return
    remedy = "read the segments one by one (their names stand in the header)"
    if any(segment is None for segment in segments):
        raise RecordingError(record, "it has gaps between its segments", remedy)
    kinds = {(tuple(s.sig_name), tuple(s.adc_gain), tuple(s.baseline), tuple(s.units)) for s in segments if s.sig_len}
    if len(kinds) > 1:
        raise RecordingError(record, f"its segments have {len(kinds)} different sets of leads, gains or baselines", remedy)


def _invalid_sample(fmt: str) -> int | None:
    """The count that says "no sample" in a WFDB format: the minimum of its width; format 80 (offset binary) included."""
    bits = {"8": None, "80": 8, "310": 10, "311": 10, "212": 12, "508": 8, "24": 24, "524": 24, "32": 32}.get(fmt, 16)
    return None if bits is None else -(1 << (bits - 1))


def _read_edf(path: Path, leads: Mapping[str, str]) -> Recording:
    pyedflib = _library("pyedflib", path)
    try:
        with pyedflib.EdfReader(str(path), annotations_mode=pyedflib.DO_NOT_READ_ANNOTATIONS) as reader:
            signals = [(h, reader.readSignal(c, digital=True)) for c, h in enumerate(reader.getSignalHeaders())]
            start = reader.getStartdatetime()
            notes = [reader.getPatientAdditional(), reader.getRecordingAdditional()]
    except Exception as error:  # as with wfdb: a record of no duration, for one, makes it divide by zero
        problem = f"pyedflib cannot read it ({type(error).__name__}: {error})"
        raise RecordingError(path, problem, "check that it is a complete EDF(+C) or BDF file") from error
    channels = []
    for header, counts in signals:
        physical = float(header["physical_max"]) - float(header["physical_min"])
        digital = float(header["digital_max"]) - float(header["digital_min"])
        gain = digital / physical if physical else 0.0
        baseline = float(header["digital_min"]) - float(header["physical_min"]) * gain
        absent = np.zeros(len(counts), dtype=bool)
        channels.append(
            _Channel(header["label"], counts, absent, float(header["sample_frequency"]), gain, baseline, header["dimension"])
        )
    when = None if start == NO_DATE else start.replace(tzinfo=UTC)
    return _assemble(path, path.stem, channels, leads, when, tuple(str(note) for note in notes if note))


def _read_dicom(path: Path, leads: Mapping[str, str]) -> Recording:
    pydicom = _library("pydicom", path)
    try:
        found = read_dicom(path, pydicom)
    except Exception as error:  # the parser raises whatever a broken object leads it into
        problem = str(error) if isinstance(error, DicomError) else f"pydicom cannot read it ({type(error).__name__}: {error})"
        raise RecordingError(path, problem, "give a DICOM object with an ECG waveform") from error
    channels = [_Channel(c.name, c.counts, c.absent, found.fs, c.gain, c.baseline, c.unit) for c in found.channels]
    return _assemble(path, path.stem, channels, leads, found.start, ())


def _read_csv(path: Path, leads: Mapping[str, str]) -> Recording:
    try:
        table = read_csv(path)
    except (CsvError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(path, str(error), CSV_REMEDY) from error
    per_mv = PER_MV.get(table.unit.lower(), 1.0)
    gain = 1000.0 / per_mv  # quantised at 1000 counts/mV whatever the unit
    with np.errstate(over="ignore"):  # what overflows is refused with what was infinite before
        counts = table.values * gain
    channels = [
        _Channel(name, counts[:, c], np.isnan(table.values[:, c]), table.fs, gain, 0.0, table.unit)
        for c, name in enumerate(table.names)
    ]
    return _assemble(path, path.stem, channels, leads, None, table.comments)


def _assemble(
    path: Path,
    name: str,
    channels: Iterable[_Channel],
    leads: Mapping[str, str],
    start: datetime | None,
    comments: tuple[str, ...],
) -> Recording:
    channels = list(channels)
    if any(not np.isfinite(channel.fs) for channel in channels):
        raise RecordingError(path, "its sampling rate is no finite number", "correct the rate in the file")
    chosen, skipped = _choose(path, channels, leads)
    unit = _unit(path, next(iter(chosen.values())))[0]
    columns = []
    for lead, channel in chosen.items():
        if channel.gain == 0 or not np.isfinite(channel.gain):
            raise RecordingError(path, f"channel {channel.name!r} has no gain", "write its counts per mV into the header")
        if not (np.abs(channel.counts[~channel.absent]) <= LARGEST).all():
            raise RecordingError(path, f"channel {channel.name!r} holds values that no ECG has", "leave such cells empty")
        columns.append(_narrow(channel, channel.gain * _unit(path, channel)[1]))
        if columns[-1][0].size == 0:
            raise RecordingError(path, f"lead {lead} holds no sample", "the recording is empty or cut off")
    fs = next(iter(chosen.values())).fs
    length = min(len(counts) for counts, _, _ in columns)
    samples = np.ascontiguousarray(np.stack([counts[:length] for counts, _, _ in columns]))  # (C, T)
    try:
        layout = Layout(round(fs * 1000), tuple(chosen), tuple(g for _, g, _ in columns), tuple(b for _, _, b in columns), unit)
    except SignalError as error:
        raise RecordingError(path, str(error), "convert the recording first") from error
    return Recording(name, samples, layout, start, comments, skipped)


def _choose(path: Path, channels: list[_Channel], leads: Mapping[str, str]) -> tuple[dict[str, _Channel], tuple[str, ...]]:
    """Which channel is which lead, all at the rate and with the kind of unit that most leads have; the names of the rest."""
    try:
        given = {name.strip().lower(): canonical_lead(lead) for name, lead in leads.items()}
    except SignalError as error:
        raise RecordingError(
            path, f"the lead mapping is wrong: {error}", "map to a standard lead, for instance ECG=I"
        ) from error
    known: list[tuple[str, _Channel]] = []
    for channel in channels:
        try:
            known.append((given.get(channel.name.strip().lower()) or canonical_lead(channel.name), channel))
        except SignalError:
            continue
    if not known:
        names = ", ".join(repr(channel.name) for channel in channels) or "none"
        example = channels[0].name.strip() if channels else "ECG"
        raise RecordingError(path, f"no channel is a known ECG lead (channels: {names})", f"map one: --lead {example}=I")
    kinds = [(channel.fs, channel.unit.strip().lower() in NO_UNIT) for _, channel in known]
    usual = max(kinds, key=kinds.count)  # on a tie the first
    chosen: dict[str, _Channel] = {}
    for (lead, channel), kind in zip(known, kinds, strict=True):
        if kind == usual:
            chosen.setdefault(lead, channel)
    taken = {id(channel) for channel in chosen.values()}
    return chosen, tuple(channel.name for channel in channels if id(channel) not in taken)


def _unit(path: Path, channel: _Channel) -> tuple[str, float]:
    """(unit of the layout, what one mV is in the channel's unit)."""
    unit = channel.unit.strip().lower().replace("µ", "u").replace("μ", "u")
    if unit in NO_UNIT:
        return "NU", 1.0
    if unit not in PER_MV:
        raise RecordingError(
            path, f"channel {channel.name!r} is in {channel.unit!r}", "known units are mV, uV, V and NU (none)"
        )
    return "mV", PER_MV[unit]


def _narrow(channel: _Channel, gain: float) -> tuple[NDArray[np.int16], float, float]:
    """Counts as int16 (T,), gain per mV, baseline. Wider counts are shifted where that is enough, otherwise scaled down.

    A sample at the int16 minimum is clipped to -32767: the minimum itself says ABSENT.
    """
    sign = -1 if gain < 0 else 1  # EDF may give its physical range upside down
    counts = channel.counts.astype(np.int64 if channel.counts.dtype.kind == "i" else np.float64) * sign
    absent, baseline, gain = channel.absent, channel.baseline * sign, gain * sign
    present = counts[~absent]
    if not present.size:
        return np.full(len(counts), ABSENT, dtype=np.int16), min(max(gain, GAIN_RANGE[0]), GAIN_RANGE[1]), 0.0
    low, high = float(present.min()), float(present.max())
    scale = max(1.0, (high - low) / (2 * COUNT_LIMIT), gain / GAIN_RANGE[1])  # old counts in a new one
    fits = scale == 1.0 and low >= -COUNT_LIMIT - 1 and high <= COUNT_LIMIT
    offset = 0.0 if fits else float(round((low + high) / 2))
    exact = scale == 1.0 and counts.dtype.kind == "i"
    shifted = counts - int(offset) if exact else np.rint((np.where(absent, offset, counts) - offset) / scale)
    narrow = np.clip(shifted, -COUNT_LIMIT, COUNT_LIMIT).astype(np.int16)
    narrow[absent] = ABSENT
    return narrow, gain / scale, (baseline - offset) / scale
