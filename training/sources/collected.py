"""Windows that `collect` gathered from the running system: Parquet files, a row a window, and how `prepare` reads them.

id, stream, session, first_sample, model, bank, why    of the finding; `why` is the rule that chose it
fs_mhz, leads, gain, baseline, unit                    how to read the samples
samples                                                little-endian int16 (C, T), lead-major, -32768 = no sample
finding                                                the finding as published, JSON

The patient is the stream: windows of one device never stand in two folds.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.recordings import Recording, RecordingError
from encoders.signal import Layout, SignalError
from training.sources.annotated import Annotated, SourceError

__all__ = ["NAME", "SCHEMA", "collected_rows"]

NAME = "collected-{:05d}.parquet"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "stream", "session", "model", "bank", "why", "finding", "unit")]
    + [("first_sample", pa.int64()), ("fs_mhz", pa.int64()), ("samples", pa.binary())]
    + [("leads", pa.list_(pa.string()))]
    + [(name, pa.list_(pa.float64())) for name in ("gain", "baseline")]
)


def collected_rows(folder: Path) -> dict[str, Annotated]:
    """Finding id -> its window, for all files that `collect` wrote into `folder`. Nothing is labelled yet.

    Raises SourceError for a Parquet file of that name that `collect` did not write.
    """
    out = {}
    for path in sorted(folder.glob(NAME.replace("{:05d}", "*"))):
        try:
            file = _File(path)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path}: {error}; it must be a file that `ecg-train collect` wrote") from None
        for group in range(file.groups):
            for row, entry in enumerate(file.table(group, ["id", "stream"]).to_pylist()):
                out[entry["id"]] = Annotated(
                    path,
                    f"{folder.name}/{entry['id']}",
                    entry["stream"],
                    1,
                    (),
                    (),
                    folder.name,
                    read=partial(file.read, group, row),
                )
    return out


class _File:
    """One file; holds the row group read last, since windows are read in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.groups = file.num_row_groups
        self._lock = threading.Lock()
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def table(self, group: int, columns: list[str] | None = None) -> Any:
        with pq.ParquetFile(self.path) as file:
            return file.read_row_group(group, columns)

    def read(self, group: int, row: int) -> Recording:
        """Raises RecordingError."""
        with self._lock:
            if self._held[0] != group:
                self._held = (group, self.table(group).to_pylist())
            entry = self._held[1][row]
        try:
            layout = Layout.of(entry["fs_mhz"], entry["leads"], entry["gain"], entry["baseline"], entry["unit"])
            samples = np.frombuffer(entry["samples"], "<i2").reshape(len(layout.leads), -1)
        except (SignalError, ValueError) as error:
            raise RecordingError(self.path, f"window {entry['id']}: {error}", "collect it again") from None
        return Recording(entry["id"], samples.astype(np.int16), layout, None, (), ())
