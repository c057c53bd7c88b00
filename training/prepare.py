"""Folders of recordings -> a prepared data set: shards of encoder inputs, an index, a manifest. One shard in memory at a time.

DIR/manifest.json            sources and what they declare, digests of all files, records left out with the reason
DIR/index.parquet            a row a record: patient, fold, split, shard, row, lead mask, unit, labels
DIR/shard-00000.safetensors  "x": float16 (N, 12, 5000), exactly what `encoders.preprocess` gives, rounded
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from encoders import preprocess as chain
from encoders.recordings import RecordingError, read_recording
from encoders.signal import SignalError
from training.sources import CALIBRATION_FOLD, TEST_FOLD, VALIDATION_FOLD, Annotated, Source

__all__ = ["MANIFEST", "PrepareError", "check_patients", "file_digest", "prepare", "split_of"]

MANIFEST = "manifest.json"
INDEX = "index.parquet"
FORMAT = 1
SHARD = 128  # records; 15 MB
READERS = 2

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("record", "source", "patient", "split", "shard", "unit", "signal")]
    + [(name, pa.int32()) for name in ("fold", "row", "mask", "derived", "n_valid")]
    + [(name, pa.list_(pa.string())) for name in ("positive", "unknown")]
)


class PrepareError(ValueError):
    """The data cannot be prepared as asked; the text names the record and the remedy."""


def split_of(fold: int) -> str:
    """Folds 1 to 7 train, 8 calibration, 9 val, 10 test."""
    return {CALIBRATION_FOLD: "calibration", VALIDATION_FOLD: "val", TEST_FOLD: "test"}.get(fold, "train")


def check_patients(records: Iterable[Annotated]) -> None:
    """Raises PrepareError when one patient's records lie in two splits, or one record comes twice."""
    seen: dict[str, Annotated] = {}
    names: set[str] = set()
    for record in records:
        other = seen.setdefault(record.patient, record)
        if split_of(other.fold) != split_of(record.fold):
            raise PrepareError(
                f"patient {record.patient} crosses the split: {other.record} is in {split_of(other.fold)} (fold {other.fold}), "
                f"{record.record} in {split_of(record.fold)} (fold {record.fold}); give both the same strat_fold"
            )
        if record.record in names:
            raise PrepareError(f"{record.record} comes twice; give each folder once, under names of their own")
        names.add(record.record)


@dataclass(frozen=True)
class _Row:
    annotated: Annotated
    prepared: chain.Prepared | None
    unit: str
    reason: str


def _read(record: Annotated) -> _Row:
    try:
        recording = read_recording(record.path, record.leads or None)
        prepared = chain.preprocess(recording.samples, recording.layout)
    except (RecordingError, SignalError) as error:
        return _Row(record, None, "", str(error).replace(str(record.path), record.record))
    if prepared.reason is not None:
        return _Row(record, None, "", f"cannot be scored: {prepared.reason}")
    return _Row(record, prepared, recording.layout.unit, "")


def prepare(
    sources: Sequence[Source], out: Path, command: str = "", advance: Callable[[int], None] = lambda n: None, shard: int = SHARD
) -> dict[str, Any]:
    """Read, preprocess and write all records of `sources` into the new or empty directory `out` -> the manifest.

    advance is told how many records were done. Raises PrepareError.
    """
    records = [record for source in sources for record in source.records]
    check_patients(records)
    if out.exists() and any(out.iterdir()):
        raise PrepareError(f"{out} is not empty; give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    skipped = [item for source in sources for item in source.skipped]
    rows: list[dict[str, Any]] = []
    signals: dict[str, Annotated] = {}
    with ThreadPoolExecutor(READERS) as pool:
        held: list[_Row] = []
        for start in range(0, len(records), shard):  # bounded: the pool never runs ahead by more than a shard
            for row in pool.map(_read, records[start : start + shard]):
                advance(1)
                reason = row.reason or _crossing(row, signals)
                if reason:
                    skipped.append((row.annotated.record, reason))
                    continue
                held.append(row)
                if len(held) == shard:
                    rows += _write_shard(out, len({r["shard"] for r in rows}), held)
                    held = []
        if held:
            rows += _write_shard(out, len({r["shard"] for r in rows}), held)
    if not rows:
        raise PrepareError(f"none of {len(records)} records could be read; the first: {skipped[0] if skipped else 'no record'}")
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), out / INDEX)
    manifest = _manifest(sources, rows, skipped, out, command)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _digest(window: chain.Prepared) -> str:
    return hashlib.sha256(window.x.tobytes()).hexdigest()[:32]


def _crossing(row: _Row, signals: dict[str, Annotated]) -> str:
    """Why this record must be left out: its signal stands in another split already."""
    assert row.prepared is not None
    other = signals.setdefault(_digest(row.prepared), row.annotated)
    if split_of(other.fold) == split_of(row.annotated.fold):
        return ""
    return f"same signal as {other.record}, but that is in {split_of(other.fold)}, this in {split_of(row.annotated.fold)}"


def _write_shard(out: Path, number: int, held: Sequence[_Row]) -> list[dict[str, Any]]:
    name = f"shard-{number:05d}.safetensors"
    windows = [row.prepared for row in held if row.prepared is not None]
    save_file({"x": np.stack([w.x for w in windows]).astype(np.float16)}, out / name)
    return [
        {
            "record": row.annotated.record,
            "source": row.annotated.source,
            "patient": row.annotated.patient,
            "fold": row.annotated.fold,
            "split": split_of(row.annotated.fold),
            "shard": name,
            "row": i,
            "mask": window.mask,
            "derived": window.derived,
            "n_valid": window.n_valid,
            "unit": row.unit,
            "signal": _digest(window),
            "positive": list(row.annotated.positive),
            "unknown": list(row.annotated.unknown),
        }
        for i, (row, window) in enumerate(zip(held, windows, strict=True))
    ]


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(
    sources: Sequence[Source], rows: Sequence[dict[str, Any]], skipped: Sequence[tuple[str, str]], out: Path, command: str
) -> dict[str, Any]:
    signals = Counter(row["signal"] for row in rows)
    files = [INDEX, *sorted({row["shard"] for row in rows})]
    return {
        "format": FORMAT,
        "command": command,
        "preprocess": chain.VERSION,
        "records": len(rows),
        "splits": dict(Counter(row["split"] for row in rows)),
        "folders": [{"name": s.name, "layout": s.layout, "records": len(s.records)} for s in sources],
        "declared": {name: list(labels) for s in sources for name, labels in s.declared.items()},
        "positives": dict(sorted(Counter(label for row in rows for label in row["positive"]).items())),
        "duplicates": [row["record"] for row in rows if signals[row["signal"]] > 1],
        "files": {name: {"sha256": file_digest(out / name), "bytes": (out / name).stat().st_size} for name in files},
        "skipped": [{"record": record, "reason": reason} for record, reason in skipped],
    }
