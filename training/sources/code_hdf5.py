"""CODE-15% and sets like it: exams.csv beside HDF5 files with `tracings` float (N, 4096, 12) at 400 Hz and `exam_id` (N,).

Tracings are padded with zeros, mostly on both sides; rows of zeros at either end are cut off. Leads stand in the order I, II,
III, aVR, aVL, aVF, V1 to V6. Values are taken as mV, as the PhysioNet/CinC Challenge 2025 takes CODE-15%; the test set of the
same group is published in units of 1e-4 V. Which it is cannot be read from the file, so the size of the first tracings is
compared with what hearts give, and a set that does not fit is refused (`unit` says otherwise).

Each exam has a value for each of the six labels: what is not stated is denied.
"""

from __future__ import annotations

import csv
import importlib
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.recordings import Recording, RecordingError
from encoders.signal import ABSENT, LEADS, Layout
from training.sources.annotated import Annotated, Source, SourceError, age_of, fold_of
from training.vocabulary import SNOMED

__all__ = ["PER_MV", "TABLE", "read_code"]

TABLE = "exams.csv"
FS_MHZ = 400_000
GAIN = 1000.0  # counts per mV that the float values become
COUNT_LIMIT = -ABSENT - 1  # the largest count; the int16 minimum says ABSENT
BLOCK = 32  # tracings read at once; 6 MB
SAMPLED = 64  # tracings looked at for their unit
USUAL_MV = (0.6, 12.0)  # the median over exams of the largest lead's peak-to-peak; 4.9 in 250 of CODE-15% and SaMi-Trop
PER_MV = {"mV": 1.0, "1e-4V": 10.0, "uV": 1000.0, "V": 0.001}
CODES = {  # column -> SNOMED CT
    "1dAVb": "270492004",
    "RBBB": "59118001",
    "LBBB": "164909002",
    "SB": "426177001",
    "AF": "164889003",
    "ST": "427084000",
}
TRUE, FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}
SEX = {**dict.fromkeys(TRUE, "M"), **dict.fromkeys(FALSE, "F")}


def read_code(folder: Path, codes: Mapping[tuple[str, str], str], unit: str = "mV") -> Source:
    """The exams of all HDF5 files that have a row in exams.csv. unit: mV, 1e-4V, uV or V. Raises SourceError."""
    if unit not in PER_MV:
        raise SourceError(f"the unit of HDF5 tracings must be one of {', '.join(PER_MV)}, not {unit!r}")
    table = folder / TABLE
    exams = _exams(table)
    labels = {column: codes[SNOMED, code] for column, code in CODES.items() if (SNOMED, code) in codes}
    records: list[Annotated] = []
    skipped: list[tuple[str, str]] = []
    files = sorted([*folder.glob("*.hdf5"), *folder.glob("*.h5")])
    for path in files:
        tracings = _Tracings(path, PER_MV[unit])
        tracings.check_unit(unit)
        for row, exam in enumerate(tracings.exam_ids()):
            name = f"{folder.name}/{exam}"
            cells = exams.pop(exam, None)
            if cells is None:
                skipped.append((name, f"{path.name} row {row}: no row in {TABLE}, or a second tracing of the exam"))
            else:
                records.append(_annotate(path, name, cells, labels, folder.name, partial(tracings.read, row)))
    skipped += [(f"{folder.name}/{exam}", f"no tracing in {len(files)} HDF5 files") for exam in exams]
    if not records:
        raise SourceError(f"{folder}: no tracing of {len(files)} HDF5 files has a row in {TABLE}; exam_id must agree")
    declared = {folder.name: tuple(sorted(labels.values()))}
    return Source(folder.name, "code", tuple(records), declared, tuple(skipped))


def _exams(table: Path) -> dict[str, dict[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("exam_id", "patient_id", *CODES) if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceError(f"{table}: no column {', '.join(missing)}; CODE-15%'s own exams.csv has it")
        kept = ("exam_id", "patient_id", "is_male", "age", *CODES)
        return {row["exam_id"]: {name: row.get(name) or "" for name in kept} for row in reader}


def _annotate(path: Path, name: str, cells: Mapping[str, str], labels: Mapping[str, str], source: str, read: Any) -> Annotated:
    value = {label: cells[column].strip().lower() for column, label in labels.items()}
    patient = cells["patient_id"] or cells["exam_id"]
    return Annotated(
        path,
        name,
        f"{source}:{patient}",
        fold_of(patient),
        tuple(sorted(label for label, text in value.items() if text in TRUE)),
        tuple(sorted(label for label, text in value.items() if text not in TRUE | FALSE)),
        source,
        sex=SEX.get(cells["is_male"].strip().lower()),
        age=age_of(cells["age"]),
        read=read,
    )


class _Tracings:
    """One HDF5 file, read a block of rows at a time; it holds the last block, since exams are read in order."""

    def __init__(self, path: Path, per_mv: float) -> None:
        self.path, self.per_mv = path, per_mv
        self._lock = threading.Lock()
        self._held: tuple[int, NDArray[Any]] | None = None
        with self._open() as file:
            shapes = {name: file[name].shape for name in ("tracings", "exam_id") if name in file}
        tracings = shapes.get("tracings", ())
        if len(tracings) != 3 or tracings[2] != len(LEADS) or shapes.get("exam_id") != tracings[:1]:
            raise SourceError(
                f"{path}: tracings (N, T, {len(LEADS)}) and exam_id (N,) expected, found "
                f"{', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'neither'}"
            )
        self.count = tracings[0]

    def _open(self) -> Any:
        try:
            return importlib.import_module("h5py").File(self.path, "r")
        except OSError as error:
            raise SourceError(f"{self.path}: h5py cannot read it ({error}); copy the file again") from None

    def exam_ids(self) -> Iterator[str]:
        with self._open() as file:
            yield from (str(int(exam)) for exam in file["exam_id"][:])

    def check_unit(self, unit: str) -> None:
        """Raises SourceError when the first tracings are larger or smaller than ECGs in `unit` are."""
        with self._open() as file:
            x = np.nan_to_num(np.asarray(file["tracings"][:SAMPLED], dtype=np.float64)) / self.per_mv  # (N, T, C) mV
        spread = np.percentile(x, 99.9, axis=1) - np.percentile(x, 0.1, axis=1)  # (N, C)
        sizes = spread.max(axis=1)
        if not (sizes > 0).any():
            return
        size = float(np.median(sizes[sizes > 0]))
        if not USUAL_MV[0] <= size <= USUAL_MV[1]:
            raise SourceError(
                f"{self.path}: taken as {unit}, its ECGs measure {size:.3g} mV peak to peak, where {USUAL_MV[0]:g} to "
                f"{USUAL_MV[1]:g} are usual: say --hdf5-unit {', '.join(name for name in PER_MV if name != unit)}"
            )

    def read(self, row: int) -> Recording:
        """Raises RecordingError."""
        with self._lock:
            block = row // BLOCK
            if self._held is None or self._held[0] != block:
                try:
                    with self._open() as file:
                        self._held = (block, file["tracings"][block * BLOCK : (block + 1) * BLOCK])
                except (OSError, SourceError) as error:
                    raise RecordingError(self.path, f"row {row} cannot be read ({error})", "copy the file again") from None
            x = self._held[1][row % BLOCK]
        filled = np.flatnonzero((x != 0).any(axis=1))  # NaN is not 0
        if not filled.size:
            raise RecordingError(self.path, f"row {row} holds zeros only", "nothing was recorded")
        mv = np.asarray(x[filled[0] : filled[-1] + 1], dtype=np.float64).T / self.per_mv  # (C, T)
        counts = np.clip(np.rint(np.where(np.isfinite(mv), mv, 0.0) * GAIN), -COUNT_LIMIT, COUNT_LIMIT).astype(np.int16)
        counts[~np.isfinite(mv)] = ABSENT
        return Recording(f"{self.path.stem}[{row}]", counts, Layout.of(FS_MHZ, LEADS, [GAIN]), None, (), ())
