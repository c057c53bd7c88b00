"""Folders of recordings -> a prepared data set: shards of encoder inputs, an index, a manifest. One shard in memory at a time.

DIR/manifest.json            sources and what they declare, digests of all files, records left out with the reason, channels,
                             leads and codes that are not used (training/data/unused.py)
DIR/index.parquet            a row a record: patient, fold, split, shard, row, lead mask, unit, labels, sex, age, quality (the
                             annotators' grade) and signal_grade (training/data/grades.py)
DIR/shard-00000.safetensors  "x": float16 (N, 12, 5000), exactly what `encoders.preprocess` gives, rounded
DIR/statistics.html          what is in it, for people (training/data/statistics_page.py)
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import save_file

from encoders import preprocess as chain
from encoders.recordings import Recording, RecordingError, read_recording
from encoders.signal import SignalError
from training.data.duplicates import Seen
from training.data.grades import grade
from training.data.unused import Unused, unused_parts
from training.sources.annotated import CALIBRATION_FOLD, TEST_FOLD, VALIDATION_FOLD, Annotated, Source

__all__ = [
    "INDEX",
    "MANIFEST",
    "PrepareError",
    "check_new",
    "check_patients",
    "check_sources",
    "file_digest",
    "prepare",
    "split_of",
    "suspicious",
]

MANIFEST = "manifest.json"
INDEX = "index.parquet"
FORMAT = 1
SHARD = 128  # records; 15 MB
READERS = 2

_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("record", "source", "patient", "split", "shard", "unit", "signal", "sex", "quality", "signal_grade")
    ]
    + [(name, pa.int32()) for name in ("fold", "row", "mask", "derived", "n_valid")]
    + [(name, pa.float32()) for name in ("age", "fs")]
    + [("window", pa.int64())]
    + [(name, pa.list_(pa.string())) for name in ("positive", "unknown")]
)


class PrepareError(ValueError):
    """The data cannot be prepared as asked; the text names the record and the remedy."""


def split_of(fold: int) -> str:
    """Folds 1 to 7 train, 8 calibration, 9 val, 10 test."""
    return {CALIBRATION_FOLD: "calibration", VALIDATION_FOLD: "val", TEST_FOLD: "test"}.get(fold, "train")


def _place(fold: int) -> str:
    return f"fold {fold} ({split_of(fold)})"


def check_new(out: Path) -> None:
    """Raises PrepareError unless `out` is an empty directory, or none yet."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PrepareError(f"{out} is not empty; give a new directory")


def check_sources(sources: Sequence[Source]) -> None:
    """Raises PrepareError when two folders would be one source: what one of them annotates would be denied in the other."""
    seen: set[str] = set()
    for source in sources:
        if twice := sorted(seen & source.declared.keys()):
            raise PrepareError(f"two folders give records to the source {twice[0]!r}: give each folder a name of its own")
        seen |= source.declared.keys()


def check_patients(records: Iterable[Annotated]) -> None:
    """Raises PrepareError when one patient's records lie in two folds, or one record comes twice.

    Folds, not splits: cross-validation holds out pairs of the training folds.
    """
    seen: dict[str, Annotated] = {}
    names: set[str] = set()
    for record in records:
        other = seen.setdefault(record.patient, record)
        if other.fold != record.fold:
            raise PrepareError(
                f"patient {record.patient} crosses the split: {other.record} is in {_place(other.fold)}, "
                f"{record.record} in {_place(record.fold)}; give both the same fold"
            )
        if record.record in names:
            raise PrepareError(f"{record.record} comes twice; give each folder once, under names of their own")
        names.add(record.record)


def suspicious(recording: Recording) -> str:
    """With the remedy, that most leads are too large to be in the unit that the file states: uV taken for mV."""
    mv = chain.sizes(recording.samples, recording.layout)
    mv = mv[mv >= 0]
    return (
        f"suspicious amplitude: {np.median(mv):.0f} mV peak to peak within a second in {(mv > chain.LARGEST_MV).sum()} of "
        f"{len(mv)} leads; if its numbers are uV, say so in its header (unit or gain)"
    )


@dataclass(frozen=True)
class _Row:
    annotated: Annotated
    prepared: chain.Prepared | None
    unit: str
    fs: float
    reason: str
    grade: str = ""
    unused: tuple[tuple[str, str], ...] = ()


def _read(record: Annotated) -> _Row:
    try:
        recording = record.read() if record.read else read_recording(record.path, record.leads or None)
        layout = recording.layout
        calibrated = chain.calibrate(recording.samples[:, : layout.window], layout)
        prepared = chain.prepare(calibrated, layout)
    except (RecordingError, SignalError, OSError) as error:
        return _Row(record, None, "", 0.0, str(error).replace(str(record.path), record.record))
    reason = f"cannot be scored: {prepared.reason}" if prepared.reason else ""
    if prepared.reason == "amplitude":
        reason = suspicious(recording)
    if reason:
        return _Row(record, None, layout.unit, layout.fs, reason)
    quality, unused = grade(calibrated, prepared, layout), unused_parts(recording, calibrated)
    return _Row(record, prepared, layout.unit, layout.fs, "", quality, unused)


class _Writer:
    """Shards and index as the rows come; what the manifest has to say is counted, not kept."""

    def __init__(self, out: Path, shard: int) -> None:
        self.out, self.size = out, shard
        self.held: list[tuple[Annotated, chain.Prepared, _Row, str]] = []
        self.seen = Seen()
        self.duplicates: dict[str, None] = {}  # ordered
        self.splits: Counter[str] = Counter()
        self.positives: Counter[str] = Counter()
        self.unused = Unused()
        self.shards: list[str] = []
        self.records = 0
        self.index = pq.ParquetWriter(out / INDEX, _SCHEMA)

    def add(self, row: _Row) -> str:
        """ "" or why this record must be left out: its signal stands in another fold already."""
        window, record = row.prepared, row.annotated
        assert window is not None
        digest = hashlib.sha256(window.x.tobytes()).hexdigest()[:32]
        name, fold = self.seen.first(window.x, window.mask, record.record, record.fold)
        if fold != record.fold:
            return f"same signal as {name}, but that is in {_place(fold)}, this in {_place(record.fold)}"
        if name != record.record:
            self.duplicates |= {name: None, record.record: None}
        self.unused.add(record, row.unused)
        self.held.append((record, window, row, digest))
        if len(self.held) == self.size:
            self._flush()
        return ""

    def _flush(self) -> None:
        if not self.held:
            return
        name = f"shard-{len(self.shards):05d}.safetensors"
        save_file({"x": np.stack([window.x for _, window, _, _ in self.held]).astype(np.float16)}, self.out / name)
        rows = [_entry(*held, name, i) for i, held in enumerate(self.held)]
        self.index.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
        self.splits.update(row["split"] for row in rows)
        self.positives.update(label for row in rows for label in row["positive"])
        self.shards.append(name)
        self.records += len(rows)
        self.held = []

    def finish(self) -> None:
        """Write what is held, and the index."""
        self._flush()
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """After an error the file is let go, whatever becomes of it."""
        if kind is not None:
            with suppress(OSError):
                self.index.close()


def _entry(record: Annotated, window: chain.Prepared, row: _Row, digest: str, shard: str, position: int) -> dict[str, Any]:
    return {
        "record": record.record,
        "source": record.source,
        "patient": record.patient,
        "fold": record.fold,
        "split": split_of(record.fold),
        "shard": shard,
        "row": position,
        "mask": window.mask,
        "derived": window.derived,
        "n_valid": window.n_valid,
        "unit": row.unit,
        "signal": digest,
        "positive": list(record.positive),
        "unknown": list(record.unknown),
        "sex": record.sex,
        "age": record.age,
        "quality": record.quality,
        "signal_grade": row.grade,
        "fs": row.fs,
        "window": record.window,
    }


def _rows(records: Sequence[Annotated]) -> Iterator[_Row]:
    """In order, read by a few threads that never run ahead by more than a shard."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(records), SHARD):
            yield from pool.map(_read, records[start : start + SHARD])


def prepare(
    sources: Sequence[Source], out: Path, command: str = "", advance: Callable[[int], None] = lambda n: None, shard: int = SHARD
) -> dict[str, Any]:
    """Read, preprocess and write all records of `sources` into the new or empty directory `out` -> the manifest.

    advance is told how many records were done. Raises PrepareError.
    """
    records = [record for source in sources for record in source.records]
    check_sources(sources)
    check_patients(records)
    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    skipped = [item for source in sources for item in source.skipped]
    try:
        with _Writer(out, shard) as writer:
            for row in _rows(records):
                advance(1)
                reason = row.reason or writer.add(row)
                if reason:
                    skipped.append((row.annotated.record, reason))
            writer.finish()
        if not writer.records:
            first = skipped[0] if skipped else "no record"
            raise PrepareError(f"none of {len(records)} records could be read; the first: {first}")
        manifest = _manifest(sources, writer, skipped, command)
        (out / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise PrepareError(f"{out}: cannot be written ({error}); make room, remove it and prepare again") from None
    return manifest


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(sources: Sequence[Source], made: _Writer, skipped: Sequence[tuple[str, str]], command: str) -> dict[str, Any]:
    files = [INDEX, *made.shards]
    return {
        "format": FORMAT,
        "command": command,
        "preprocess": chain.VERSION,
        "records": made.records,
        "splits": dict(made.splits),
        "folders": [{"name": s.name, "layout": s.layout, "records": len(s.records)} for s in sources],
        "declared": {name: list(labels) for s in sources for name, labels in s.declared.items()},
        "positives": dict(sorted(made.positives.items())),
        "duplicates": list(made.duplicates),
        "incomplete": made.unused.incomplete,
        "unmapped": made.unused.unmapped,
        "files": {name: {"sha256": file_digest(made.out / name), "bytes": (made.out / name).stat().st_size} for name in files},
        "skipped": [{"record": record, "reason": reason} for record, reason in skipped],
    }
