"""A CSV of ECG samples: a header row of lead names, one row a sample.

    # fs=500
    # unit=uV
    time,I,II,V1
    0.000,12,35,-8
    0.002,14,,-9          an empty cell or NaN: no sample of this lead

The rate stands in a comment (`# fs=500`) or follows from a first column of times in seconds ("time", "t", "time_s") or
milliseconds ("time_ms", "ms"). A first column that counts samples ("sample", "index", "n", or no name) is ignored.
Values are in mV unless `# unit=` says uV, V or NU. The delimiter is a comma, semicolon or tab. It knows no gain.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.signal import SignalError, canonical_lead

__all__ = ["CsvError", "CsvTable", "looks_like_leads", "read_csv"]

_SETTING = re.compile(r"^#\s*(fs|unit)\s*[=:]\s*(\S+)\s*(?:hz)?\s*$", re.IGNORECASE)
_MILLISECONDS = re.compile(r"^(?:(?:elapsed[\s_]*)?time[\s_]*[(\[]?)?m(?:illi)?s(?:ec(?:onds?)?)?[)\]]?$", re.IGNORECASE)
_SECONDS = re.compile(r"^(?:t|s|sec|seconds?|(?:elapsed[\s_]*)?time(?:[\s_]*[(\[]?(?:s|sec|seconds?)[)\]]?)?)$", re.IGNORECASE)
_INDEX = re.compile(r"^(?:|n|samples?|index|sample[\s_#]*(?:number|index|no)?|unnamed: 0)$", re.IGNORECASE)
_FAR = 1e12  # s, beyond any date since 1970
_SNAP = 2e-4  # a rate this near to whole Hz is taken as whole: times are often rounded to milliseconds


class CsvError(ValueError):
    """The table cannot be read; the text says where."""


@dataclass(frozen=True)
class CsvTable:
    """names: N columns, time left out. values: float64 (T, N) in `unit`, NaN where empty. fs: Hz."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    fs: float
    unit: str
    comments: tuple[str, ...]


def read_csv(path: Path) -> CsvTable:
    """Raises CsvError, or UnicodeDecodeError and csv.Error for what is no text table at all."""
    comments, header, body, delimiter = _split(path.read_text(encoding="utf-8-sig"))
    settings = {m[1].lower(): m[2] for line in comments if (m := _SETTING.match(line))}
    values = _numbers(body, len(header), delimiter, first_row=len(comments) + 2)
    first = header[0].strip()
    scale = 0.001 if _MILLISECONDS.match(first) else 1.0 if _SECONDS.match(first) else None
    has_ruler = scale is not None or bool(_INDEX.match(first))
    if "fs" in settings:
        fs = _float(settings["fs"])
    elif scale is not None:
        fs = _rate(values[:, 0] * scale)
    else:
        raise CsvError("the rate is not given: begin the file with '# fs=500' (Hz) or make the first column 'time' in seconds")
    plain = tuple(line.lstrip("# ").strip() for line in comments if not _SETTING.match(line))
    skip = int(has_ruler)
    return CsvTable(tuple(name.strip() for name in header[skip:]), values[:, skip:], fs, settings.get("unit", "mV"), plain)


def looks_like_leads(path: Path) -> bool:
    """Whether the header row of a CSV file names an ECG lead (a bare number does not count) and the row below holds numbers."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = (text.strip().replace('"', "") for text in file if text.strip() and not text.startswith("#"))
        rows = (re.split(r"[,;\t]", line) for line in lines)
        header, first = next(rows, []), next(rows, [])
    return any(_is_lead(name) for name in header) and len(first) > 0 and all(_is_number(cell) for cell in first)


def _is_lead(name: str) -> bool:
    try:
        canonical_lead(name)
    except SignalError:
        return False
    return not name.strip().isdigit()


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip() or "0")
    except ValueError:
        return False
    return True


def _split(text: str) -> tuple[list[str], list[str], list[str], str]:
    """(comment lines, header cells, data lines, delimiter)."""
    lines = text.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    rest = [line for line in lines if line.strip() and not line.startswith("#")]
    if not rest:
        raise CsvError("the file is empty")
    delimiter = max(",;\t", key=rest[0].count)
    header = next(csv.reader([rest[0]], delimiter=delimiter))
    if len(rest) == 1:
        raise CsvError("there is a header, but no sample")
    return comments, header, rest[1:], delimiter


def _numbers(lines: list[str], width: int, delimiter: str, first_row: int) -> NDArray[np.float64]:
    try:  # the fast way knows no empty cells
        values = np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None)
    except ValueError:
        return _numbers_with_gaps(lines, width, delimiter, first_row)
    if values.shape[1] != width:
        raise CsvError(f"the header has {width} columns, the rows have {values.shape[1]}")
    return values


def _numbers_with_gaps(lines: list[str], width: int, delimiter: str, first_row: int) -> NDArray[np.float64]:
    values = np.empty((len(lines), width))
    for i, row in enumerate(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)):
        if len(row) != width:
            raise CsvError(f"row {first_row + i} has {len(row)} cells where the header has {width}")
        values[i] = [_float(cell) if cell.strip() else np.nan for cell in row]
    return values


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CsvError(f"{text.strip()[:20]!r} is not a number") from None


def _rate(t: NDArray[np.float64]) -> float:
    """Hz from times in s (T,), which must step evenly: a missing row would shift everything after it."""
    if len(t) < 2 or not (np.abs(t) < _FAR).all() or t[-1] <= t[0]:
        raise CsvError("the time column does not rise")
    fs = (len(t) - 1) / float(t[-1] - t[0])
    if not math.isfinite(fs):
        raise CsvError("the time column rises too little to tell a rate")
    if abs(fs - round(fs)) < _SNAP * fs:
        fs = float(round(fs))
    off = np.abs(t - t[0] - np.arange(len(t)) / fs).max()
    if off > 0.75 / fs or np.diff(t).max() > 1.7 / fs:
        raise CsvError("the time column does not step evenly: fill missing rows with empty cells")
    return fs
