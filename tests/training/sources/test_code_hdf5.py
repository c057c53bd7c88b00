"""HDF5 as CODE-15% is laid out, written here from real recordings of it; its unit is checked, its padding cut off."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from encoders.recordings import Recording, RecordingError, read_recording
from encoders.signal import ABSENT, LEADS
from training.data.prepare import prepare
from training.sources.annotated import Source, SourceError
from training.sources.code_hdf5 import read_code
from training.sources.folders import read_source
from training.vocabulary import Statement, by_code

HEAD = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file"
LENGTH = 4096


@pytest.fixture(scope="module")
def exams(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """40 real tracings, 12 leads at 400 Hz, 1000 counts per mV."""
    out = tmp_path_factory.mktemp("chagas")
    command = [sys.executable, str(shared / "ecg" / "unpack.py"), str(out), "--group", "chagas2025"]
    subprocess.run(command, check=True, capture_output=True)
    paths = sorted(p.with_suffix("") for p in (out / "chagas2025").glob("*.hea"))
    return [r for r in map(read_recording, paths) if r.samples.shape[1] <= LENGTH][:40]


def padded(recording: Recording) -> np.ndarray:
    """(4096, 12) float32 mV with zeros on both sides."""
    x = np.zeros((LENGTH, 12), dtype=np.float32)
    n = recording.samples.shape[1]
    start = (LENGTH - n) // 2
    x[start : start + n] = recording.samples.T / 1000
    return x


@pytest.fixture
def write(exams: list[Recording], tmp_path: Path) -> Callable[..., Path]:
    def of(scale: float = 1.0, rows: Any = None, change: Callable[[np.ndarray], None] = lambda x: None) -> Path:
        folder = tmp_path / "code"
        folder.mkdir(exist_ok=True)
        for part in (0, 1):
            x = np.stack([padded(r) for r in exams[part::2]] + [np.zeros((LENGTH, 12), np.float32)]) * scale
            change(x)
            with h5py.File(folder / f"exams_part{part}.hdf5", "w") as file:
                file.create_dataset("tracings", data=x, chunks=(4, LENGTH, 12))
                file["exam_id"] = np.array([*(1000 * part + np.arange(len(x) - 1)), 0])  # CODE-15% ends with a row of zeros
        with (folder / "exams.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEAD.split(","))
            for part in (0, 1):
                for i in range(20):
                    flags = [i == k for k in range(6)]  # each label once a file; the rest is none of the six
                    writer.writerow(
                        [1000 * part + i, 50 + i, i % 2 == 0, 1, *flags, f"p{i}", "", "", False, f"exams_part{part}"]
                    )
            writer.writerows(rows or [])
        return folder

    return of


@pytest.fixture
def read(vocabulary: tuple[Statement, ...]) -> Callable[..., Source]:
    return lambda folder, **more: read_source(folder, vocabulary, **more)


def test_exams_with_their_labels(write: Callable[..., Path], read: Callable[..., Source]) -> None:
    source = read(write(rows=[[77, 60, True, 1, *[False] * 6, "p77", "", "", False, "exams_part9"]]))
    assert (source.layout, len(source.records)) == ("code", 40)
    assert source.declared == {"code": ("AFIB", "AVB1", "CLBBB", "CRBBB", "SBRAD", "STACH")}
    named = {r.record: r for r in source.records}
    assert [named[f"code/{i}"].positive for i in range(7)] == [
        *(("AVB1",), ("CRBBB",), ("CLBBB",), ("SBRAD",), ("STACH",), ("AFIB",), ()),
    ]
    assert all(r.unknown == () for r in source.records)  # denied where not stated, rhythms too
    assert (named["code/0"].sex, named["code/1"].sex, named["code/1"].age) == ("M", "F", 51.0)
    assert named["code/3"].patient == named["code/1003"].patient
    assert named["code/3"].fold == named["code/1003"].fold
    reasons = [reason for _, reason in source.skipped]
    assert source.skipped[0][0] == "code/0"
    assert [r.split(":")[0] for r in reasons] == [
        "exams_part0.hdf5 row 20",
        "exams_part1.hdf5 row 20",
        "no tracing in 2 HDF5 files",
    ]


def test_tracings_come_back_without_their_padding(
    write: Callable[..., Path], read: Callable[..., Source], exams: list[Recording], tmp_path: Path
) -> None:
    source = read(write())
    for record, real in zip(source.records[:20], exams[0::2], strict=True):
        assert record.read is not None
        recording = record.read()
        assert recording.layout.leads == LEADS
        assert recording.layout.fs == 400
        assert np.array_equal(recording.samples, np.maximum(real.samples, -32767))
    manifest = prepare([source], tmp_path / "out")
    assert manifest["records"] == 40 - sum("suspicious" in s["reason"] for s in manifest["skipped"])
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert {r["fs"] for r in rows} == {400.0}
    assert {r["n_valid"] for r in rows if r["record"] == "code/0"} == {min(5000, -(-exams[0].samples.shape[1] * 5 // 4))}


def test_missing_numbers_are_absent_and_zeros_are_no_recording(write: Callable[..., Path], read: Callable[..., Source]) -> None:
    def change(x: np.ndarray) -> None:
        x[0, 2000:2010, 3] = np.nan
        x[1] = 0

    source = read(write(change=change))
    reads = [r.read for r in source.records[:2]]
    assert reads[0] is not None
    assert reads[1] is not None
    assert (reads[0]().samples[3] == ABSENT).sum() == 10
    with pytest.raises(RecordingError, match="row 1 holds zeros only"):
        reads[1]()


def test_a_unit_that_does_not_fit_is_refused_and_another_can_be_given(
    write: Callable[..., Path], read: Callable[..., Source], exams: list[Recording]
) -> None:
    folder = write(scale=10.0)  # in units of 1e-4 V
    with pytest.raises(
        SourceError, match=r"exams_part0\.hdf5: taken as mV, its ECGs measure \d\d.* say --hdf5-unit 1e-4V, uV, V"
    ):
        read(folder)
    first = read(folder, hdf5_unit="1e-4V").records[0].read
    assert first is not None
    assert np.array_equal(first().samples, np.maximum(exams[0].samples, -32767))
    with pytest.raises(SourceError, match="taken as uV, its ECGs measure"):
        read(folder, hdf5_unit="uV")
    with pytest.raises(SourceError, match="must be one of mV, 1e-4V, uV, V, not 'kV'"):
        read(folder, hdf5_unit="kV")


def test_files_that_are_something_else(write: Callable[..., Path], vocabulary: tuple[Statement, ...]) -> None:
    codes = by_code(vocabulary)
    folder = write()
    with h5py.File(folder / "exams_part1.hdf5", "w") as file:
        file["tracings"] = np.zeros((3, 10, 8))
    with pytest.raises(SourceError, match=r"exams_part1\.hdf5: tracings \(N, T, 12\) .* found tracings \(3, 10, 8\)"):
        read_code(folder, codes)
    (folder / "exams_part1.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(SourceError, match=r"exams_part1\.hdf5: h5py cannot read it"):
        read_code(folder, codes)
    (folder / "exams.csv").write_text("exam_id,AF\n1,True\n")
    with pytest.raises(SourceError, match=r"exams\.csv: no column patient_id, 1dAVb"):
        read_code(folder, codes)
    (folder / "exams.csv").write_text(HEAD + "\n")
    (folder / "exams_part1.hdf5").unlink()
    with pytest.raises(SourceError, match=r"no tracing of 1 HDF5 files has a row in exams\.csv"):
        read_code(folder, codes)
