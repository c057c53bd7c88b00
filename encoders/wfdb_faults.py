"""Why a WFDB record cannot be read, in words that name the line or the file, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["why_unreadable"]

RECORD_LINE = re.compile(r"[-\w]+(/\d+)?\s+\d+(\s|$)")  # name, segments, signals: WFDB header(5), as `wfdb` takes it
BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12}  # of a sample, in formats of fixed size
SHOWN = 80  # characters of a header's line


def why_unreadable(wfdb: Any, record: Path, error: Exception) -> tuple[str, str]:
    """(problem, remedy). wfdb: the library; error: what it raised."""
    plain = f"wfdb cannot read it ({type(error).__name__}: {error})", "check header and signals"
    header = record.with_name(record.name + ".hea")
    lines = [line.strip() for line in header.read_text(encoding="utf-8", errors="replace").splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if not RECORD_LINE.match(first):
        return (
            f"the first line of {header.name} is no record line: {first[:SHOWN]!r}",
            "it begins with a name of letters, digits, _ and - (no dot), then the number of signals, rate and samples: "
            "rename the record in its header, and its files, or write the header again",
        )
    try:
        read = wfdb.rdheader(str(record), rd_segments=True)
        parts = [segment for segment in getattr(read, "segments", None) or [read] if segment is not None]
        faults = [fault for part in parts for fault in _files(part, record.parent)]
    except Exception:  # the parser raises whatever a broken header leads it into; `error` says it already
        return plain
    return faults[0] if faults else plain


def _files(header: Any, folder: Path) -> list[tuple[str, str]]:
    """What is wrong with the signal files that a header names: missing, or shorter than it says."""
    faults, names = [], list(header.file_name or ())
    for name in dict.fromkeys(names):
        if Path(name).name != name:
            continue  # a header does not reach out of its folder
        path, signals = folder / name, [i for i, other in enumerate(names) if other == name]
        if not path.is_file():
            faults.append((f"wfdb cannot read it: its signal file {name} is missing", "put it beside the header"))
            continue
        if not header.sig_len or any(header.fmt[i] not in BITS for i in signals):
            continue
        bits = sum(BITS[header.fmt[i]] * (header.samps_per_frame or [1] * len(names))[i] for i in signals)
        expected = (header.byte_offset[signals[0]] or 0) + -(-header.sig_len * bits // 8)
        found = path.stat().st_size
        if found < expected:
            problem = f"wfdb cannot read it: {name} has {found} bytes, {expected} are expected by its header"
            faults.append((problem, f"it is cut off: copy it again, or correct the {header.sig_len} samples of the header"))
    return faults
