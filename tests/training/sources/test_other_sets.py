"""AliveCor, CinC 2011 and PTB-XL with lost amplitude, real recordings: unit, leads, labels and grades of known ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from encoders.recordings import read_recording
from encoders.signal import LEADS, lead_bits
from training.data.dataset import DataSet
from training.data.grades import ALL_GOOD, MOST_POOR, SOME_POOR
from training.data.prepare import prepare
from training.sources.folders import read_source
from training.vocabulary import Statement

GROUPS = ("cinc2017", "cinc2011", "ptbxl_norm")
FIRST = """
import sys
from itertools import islice
sys.path.insert(0, sys.argv.pop(1))
import unpack
every = unpack.iter_part
unpack.iter_part = lambda *given, **named: islice(every(*given, **named), 8)
unpack.main()
"""


@pytest.fixture(scope="module")
def few(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first eight recordings of each group, as `unpack.py` writes them."""
    out = tmp_path_factory.mktemp("few")
    command = [sys.executable, "-c", FIRST, str(shared / "ecg"), str(out), "--group", *GROUPS]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def data(few: Path, vocabulary: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare([read_source(few / group, vocabulary, "stated") for group in GROUPS], out)
    return out


@pytest.fixture(scope="module")
def index(data: Path) -> dict[str, dict[str, Any]]:
    return {row["record"]: row for row in pq.read_table(data / "index.parquet").to_pylist()}


def known(data: Path, vocabulary: tuple[Statement, ...], record: str) -> dict[str, bool]:
    """label -> true or false, of the labels that are known of a record."""
    records = DataSet(data, vocabulary, range(1, 11))
    (i,) = [k for k, row in enumerate(records.index) if row["record"] == record]
    y, sure = records.shown
    return {s.id: bool(y[i, j]) for j, s in enumerate(vocabulary) if sure[i, j]}


def test_alivecor_is_lead_one_in_millivolts(
    few: Path, data: Path, index: dict[str, dict[str, Any]], vocabulary: tuple[Statement, ...]
) -> None:
    source = read_source(few / "cinc2017", vocabulary)
    assert (source.layout, len(source.records), source.skipped) == ("alivecor", 8, ())
    rows = {name.removeprefix("cinc2017/"): row for name, row in index.items() if row["source"] == "cinc2017"}
    assert len(rows) == 8
    for row in rows.values():
        assert (row["mask"], row["derived"], row["unit"], row["fs"]) == (lead_bits(("I",)), 0, "mV", 300.0)
        assert row["n_valid"] == 5000  # the first 10 of some 30 s
    stated = {name: (row["positive"], row["unknown"], row["quality"]) for name, row in rows.items()}
    assert stated["A00009"] == (["AFIB"], [], None)
    assert stated["A00098"] == (["SR"], [], None)
    assert stated["A00030"] == ([], ["SR"], None)  # some other rhythm: no fibrillation
    assert stated["A00034"] == ([], ["AFIB", "SR"], "noisy")
    assert known(data, vocabulary, "cinc2017/A00009") == {"AFIB": True, "SR": False}
    assert known(data, vocabulary, "cinc2017/A00030") == {"AFIB": False}
    assert known(data, vocabulary, "cinc2017/A00034") == {}
    x = DataSet(data, vocabulary, range(1, 11)).windows(np.array([0]))[0]
    assert x[0].std() == pytest.approx(1, abs=0.01)
    assert not x[1:].any()


def test_cinc_2011_has_grades_and_no_label(
    data: Path, index: dict[str, dict[str, Any]], vocabulary: tuple[Statement, ...]
) -> None:
    rows = {name.removeprefix("cinc2011/"): row for name, row in index.items() if row["source"] == "cinc2011"}
    assert {name: (row["quality"], row["signal_grade"]) for name, row in rows.items()} == {
        **dict.fromkeys(("1002867", "1007823", "1009856", "1013179"), ("acceptable", ALL_GOOD)),
        "1003574": ("unacceptable", MOST_POOR),
        "1004502": ("unacceptable", SOME_POOR),
    }  # 1002603 and 1006637, unacceptable as well, are flat
    for row in rows.values():
        assert (row["mask"], row["unit"], row["fs"]) == (lead_bits(LEADS), "mV", 500.0)
        assert (row["positive"], row["unknown"]) == ([], [])
    assert known(data, vocabulary, "cinc2011/1002867") == {}


def test_ptbxl_with_lost_amplitude_says_nothing_of_voltage(
    few: Path, data: Path, index: dict[str, dict[str, Any]], vocabulary: tuple[Statement, ...]
) -> None:
    recording = read_recording(few / "ptbxl_norm/records500/10000/10036_hr")
    assert (recording.layout.unit, recording.layout.leads) == ("NU", LEADS)
    spread = (recording.samples / np.array(recording.layout.gain)[:, None]).std(axis=1)
    np.testing.assert_allclose(spread, 1, atol=0.05)  # each lead z-scored
    rows = {name: row for name, row in index.items() if row["source"] == "ptbxl_norm"}
    assert len(rows) == 8
    for row in rows.values():
        assert (row["unit"], row["mask"], row["derived"]) == ("NU", lead_bits(LEADS), 0)
    one = rows["ptbxl_norm/10036"]
    assert (one["patient"], one["fold"], one["sex"], one["age"]) == ("ptbxl:ptbxl-7452", 3, "F", 89.0)
    assert one["positive"] == ["ISC", "LAD", "LAFB", "LVH", "LVHV", "MI_AS", "SR", "STD"]
    told = known(data, vocabulary, "ptbxl_norm/10036")
    assert told["LAFB"]
    assert told["SR"]
    assert not told["AFIB"]
    assert not {"LVH", "LVHV", "LVOLT", "HVOLT", "RVH"} & told.keys()  # stated or not: nobody can see it here
    uncertain = read_source(few / "ptbxl_norm", vocabulary).records  # likelihood None
    assert {r.record: r.positive for r in uncertain}["ptbxl_norm/10000"] == ()
    assert rows["ptbxl_norm/10000"]["positive"] == ["NORM", "SR"]
