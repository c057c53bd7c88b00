"""MIT-BIH and CPSC 2021 recordings cut into windows."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from encoders.preprocess import preprocess
from encoders.recordings import read_recording
from training.data.prepare import check_patients, prepare
from training.sources.annotated import Source, SourceError
from training.sources.beats import TYPED
from training.sources.folders import read_source
from training.vocabulary import Statement


@pytest.fixture(scope="module")
def source(shared: Path, vocabulary: tuple[Statement, ...]) -> Source:
    return read_source(shared / "ecg" / "long", vocabulary)


def test_windows_stand_side_by_side(source: Source, mitdb: Path) -> None:
    assert (source.layout, source.skipped) == ("long", ())
    hundred = [r for r in source.records if r.path.name == "100"]
    assert [r.window for r in hundred] == list(range(0, 650_000 - 3600 + 1, 3600))
    assert (hundred[0].record, hundred[0].patient, hundred[0].sex, hundred[0].age) == (
        *("long/mitdb/100@0", "long/mitdb:100", "M", 69.0),
    )
    read = hundred[7].read
    assert read is not None
    whole = read_recording(mitdb / "100")
    assert np.array_equal(read().samples, whole.samples[:, 7 * 3600 : 8 * 3600])


def test_what_each_annotator_says_is_declared(source: Source) -> None:
    assert source.declared == {"long/mitdb": tuple(sorted(TYPED)), "long/af": ("AFIB",)}  # "(N" there: no fibrillation
    assert not any("SR" in r.positive for r in source.records if r.source == "long/af")


def test_patients_are_recordings_but_for_those_known_to_be_one(source: Source) -> None:
    patients = defaultdict(set)
    for record in source.records:
        patients[record.patient].add(record.path.name)
    assert patients["long/mitdb:201"] == {"201", "202"}
    assert patients["long/af:101"] == {"data_101_6", "data_101_8", "data_101_9"}
    assert len(patients) == 39 + 4
    check_patients(source.records)


def test_rare_rhythms_are_found_where_the_directory_says(source: Source) -> None:
    where: dict[str, Counter[str]] = defaultdict(Counter)
    for record in source.records:
        for label in record.positive:
            where[label][record.path.name] += 1
    assert set(where["PACE"]) == {"102", "104", "107"}
    assert set(where["WPW"]) == {"230"}
    assert set(where["AVB2"]) == {"231"}
    assert set(where["CLBBB"]) == {"109", "214"}
    assert set(where["CRBBB"]) == {"118", "124", "212", "231", "232"}
    assert set(where["AFLT"]) == {"202", "203", "222"}
    assert where["VTRIG"]["208"] > 20
    assert where["VBIG"]["119"] > 20
    assert {"VT", "NSVT", "SVT", "JRHY", "IVR", "PVC_COUP", "SVPC_RUN"} <= set(where)
    paroxysmal = {r.window: r for r in source.records if r.path.name == "data_92_4"}  # from sample 63250 to 65213, 200 Hz
    assert [w for w, r in paroxysmal.items() if r.positive] == [64000]
    assert [w for w, r in paroxysmal.items() if "AFIB" in r.unknown] == [62000]
    none = [r for r in source.records if r.path.name == "data_35_4"]
    assert none
    assert all(r.positive == () and r.unknown == () for r in none)


def test_prepared_windows_are_what_serving_would_compute(source: Source, tmp_path: Path, mitdb: Path) -> None:
    some = [r for r in source.records if r.path.name in ("100", "208")][::20]
    manifest = prepare([Source(source.name, source.layout, tuple(some), source.declared, ())], tmp_path / "out")
    assert manifest["records"] == len(some)
    row = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()[2]
    whole = read_recording(mitdb / "100")
    assert row["window"] == 40 * 3600
    expected = preprocess(whole.samples[:, row["window"] : row["window"] + 3600], whole.layout).x
    x = load_file(tmp_path / "out" / row["shard"])["x"][row["row"]]
    np.testing.assert_allclose(x.astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_a_comment_may_speak_of_the_whole_recording(shared: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    for path in (shared / "ecg" / "long" / "af").glob("data_21_7.*"):
        shutil.copy(path, tmp_path)
    header = tmp_path / "data_21_7.hea"
    header.write_text(header.read_text().replace("# non atrial", "# persistent atrial"))
    assert {r.positive for r in read_source(tmp_path, vocabulary).records} == {("AFIB",)}


def test_other_steps_and_broken_recordings(mitdb: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    for path in mitdb.glob("10[02].*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "102.atr").unlink()
    source = read_source(tmp_path, vocabulary, window_step_s=60)
    assert [r.window for r in source.records][:3] == [0, 21600, 43200]
    ((name, reason),) = source.skipped
    assert name == f"{tmp_path.name}/102"
    assert "102.atr" in reason
    assert str(tmp_path) not in reason
    with pytest.raises(SourceError, match="windows every 5 s would overlap; give 10 s or more"):
        read_source(tmp_path, vocabulary, window_step_s=5)
    (tmp_path / "100.atr").write_bytes(b"")
    with pytest.raises(SourceError, match=r"could be read: .*/100: its annotation file holds no mark"):
        read_source(tmp_path, vocabulary)
