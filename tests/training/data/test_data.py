"""Batches: lead sets as serving would feed them, targets masked with them, the same bits for the same seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.signal import LEADS, lead_bits
from training.config import TrainConfig
from training.data.dataset import LEAD_SET_BITS, DataError, DataSet, batches, effective_mask
from training.data.prepare import file_digest
from training.data.targets import cases_of, count_evidence
from training.text.labels import captions_of
from training.vocabulary import Statement, select

FULL = lead_bits(LEADS)
LIMB = lead_bits(LEADS[:6])
TRAIN = (1, 2, 3, 4, 5, 6, 7)


@pytest.fixture
def core(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return select(vocabulary, "core98")


@pytest.fixture
def data(prepared: Path, core: tuple[Statement, ...]) -> DataSet:
    return DataSet(prepared, core, TRAIN)


@pytest.mark.parametrize(
    ("mask", "name", "unit", "expected"),
    [
        (FULL, "12", "mV", FULL),
        (FULL, "I+II", "mV", LIMB),  # serving derives the other four
        (FULL, "I+II", "NU", lead_bits(("I", "II"))),  # nothing is derived where the amplitude is lost
        (FULL, "limb6", "NU", LIMB),
        (FULL, "II+V1", "mV", lead_bits(("II", "V1"))),
        (FULL, "II", "mV", lead_bits(("II",))),
        (lead_bits(("I",)), "II+V1", "mV", lead_bits(("I",))),  # a record without the set keeps its own lead
        (lead_bits(("I", "V1")), "II+V1", "mV", lead_bits(("V1",))),
    ],
)
def test_effective_mask(mask: int, name: str, unit: str, expected: int) -> None:
    assert effective_mask(mask, LEAD_SET_BITS[name], unit) == expected


def test_targets_of_real_records(data: DataSet) -> None:
    y, known = data.targets
    ids = [s.id for s in data.labels]
    assert not (y & ~known).any()
    row = next(i for i, r in enumerate(data.index) if r["record"] == "ptbxl/1")
    assert {ids[j] for j in np.flatnonzero(y[row])} == {"NORM", "SR", "LVOLT"}
    assert known[row, ids.index("AFIB")]  # PTB-XL could have said it and did not
    assert not known[row, ids.index("VF")]  # it has no code for it
    assert not known[row, ids.index("LAD")]  # no heart axis given
    challenge = [i for i, r in enumerate(data.index) if r["source"].startswith("challenge")]
    assert not known[challenge, ids.index("NORM")].any()
    assert data.positives().tolist() == (y & data.assessable(data.mask)).sum(axis=0).tolist()


def test_what_the_leads_do_not_show_is_no_evidence(data: DataSet, prepared: Path, core: tuple[Statement, ...]) -> None:
    two = DataSet(prepared, core, TRAIN)
    two.mask = np.full(len(two), LEAD_SET_BITS["I+II"], dtype=np.int64)
    before, after = (dict(zip((s.id for s in core), d.positives(), strict=True)) for d in (data, two))
    assert after["SR"] == before["SR"] > 0
    assert before["CLBBB"] > 0 == after["CLBBB"]


def test_a_share_of_the_patients_is_drawn_whole_and_within_a_larger_share(data: DataSet) -> None:
    half, quarter = (data.of_patients(share, 1) for share in (0.5, 0.25))
    everyone, more, fewer = ({row["patient"] for row in d.index} for d in (data, half, quarter))
    assert len(more) == round(0.5 * len(everyone))
    assert len(fewer) == round(0.25 * len(everyone))
    assert fewer < more < everyone
    assert [row for row in data.index if row["patient"] in fewer] == quarter.index
    assert quarter.mask.tolist() == [row["mask"] for row in quarter.index]
    assert {row["patient"] for row in data.of_patients(0.5, 2).index} != more
    assert data.of_patients(1.0, 1) is data


def test_a_folder_that_is_left_out_does_not_train(data: DataSet) -> None:
    left = data.for_training(TrainConfig(leave_source="challenge"))
    assert {row["source"] for row in left.index} == {"ptbxl"} < {row["source"] for row in data.index}
    assert len(left.for_training(TrainConfig(train_share=0.5))) < len(left)
    with pytest.raises(DataError, match=r"leave_source = nowhere: some of several .* there is challenge, ptbxl"):
        data.for_training(TrainConfig(leave_source="nowhere"))
    with pytest.raises(DataError, match="leave_source = ptbxl, challenge"):
        data.for_training(TrainConfig(leave_source="ptbxl, challenge"))
    with pytest.raises(DataError, match="leave_source = ptbxl"):
        left.for_training(TrainConfig(leave_source="ptbxl"))


def test_windows_of_one_patient_are_evidence_once() -> None:
    index = [{"patient": p, "window": w} for p, w in (("a", 0), ("a", 10), ("b", 0), ("c", None), ("c", None))]
    stated = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [1, 0]], dtype=bool)
    assert count_evidence(stated, index).tolist() == [1 + 2, 1 + 1]  # by hand: a's windows once, c's two recordings twice
    assert len(set(cases_of(index).tolist())) == 4
    assert count_evidence(stated[:0], []).tolist() == [0, 0]


def test_lost_amplitude_hides_voltage_statements(prepared: Path, core: tuple[Statement, ...], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    before = DataSet(prepared, core, TRAIN)
    rewrite_index(copy, lambda row: {**row, "unit": "NU" if row["record"].startswith("ptbxl/") else row["unit"]})
    after = DataSet(copy, core, TRAIN)
    lost = np.array([row["unit"] == "NU" for row in after.index])
    column = np.array([s.rests_on_amplitude for s in core])
    assert {s.id for s in core if s.rests_on_amplitude} == {"LVOLT", "LVH", "LVHV", "RVH", "LAE", "RAE", "TTALL"}
    (y, known), (y0, known0) = after.targets, before.targets
    assert lost.any()
    assert (~lost).any()
    assert known0[np.ix_(lost, column)].any()
    assert not known[np.ix_(lost, column)].any()
    np.testing.assert_array_equal(known[~lost], known0[~lost])
    np.testing.assert_array_equal(known[:, ~column], known0[:, ~column])
    np.testing.assert_array_equal(y, y0)
    lvolt = [s.id for s in core].index("LVOLT")
    assert after.positives()[lvolt] == int(y0[~lost, lvolt].sum()) < before.positives()[lvolt]
    for batch in (next(after.plain(batch=32)), next(iter(batches(after, TrainConfig(batch=32), 0)))):
        assert lost[batch.rows].any()
        assert not batch.known[np.ix_(lost[batch.rows], column)].any()
    assert len(after.stating()) <= len(before.stating())
    assert any("LVOLT" in ids for ids in captions_of(prepared, core))
    stated = {tuple(s.id for s, true in zip(core, row, strict=True) if true) for row in after.stated}
    assert stated - {()} <= set(captions_of(copy, core))


def rewrite_index(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every row of the index, and the manifest's entry with it."""
    path = directory / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist([change(row) for row in table.to_pylist()], schema=table.schema), path)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["index.parquet"] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_lead_sets_zero_the_signal_and_mask_the_targets(data: DataSet) -> None:
    ids = [s.id for s in data.labels]
    full, limb = next(data.plain("12", batch=8)), next(data.plain("I+II", batch=8))
    assert full.x[:, 6:].any()
    assert not limb.x[:, 6:].any()
    np.testing.assert_array_equal(limb.x[:, :6], full.x[:, :6])
    assert full.known[:, ids.index("NORM")].any()
    assert not limb.known[:, ids.index("NORM")].any()  # never normal from fewer than 12 leads
    np.testing.assert_array_equal(limb.known[:, ids.index("LAFB")], full.known[:, ids.index("LAFB")])
    one = next(data.plain("I", batch=8))
    assert not one.known[:, ids.index("LAFB")].any()
    np.testing.assert_array_equal(one.known[:, ids.index("AFIB")], full.known[:, ids.index("AFIB")])


def test_batches_repeat_by_seed_and_continue_in_the_middle(data: DataSet) -> None:
    config = TrainConfig(epochs=4, finish_epochs=1, batch=16)
    first, again = list(batches(data, config, 0)), list(batches(data, config, 0))
    assert len(first) == len(data) // 16
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.known, b.known)
    rest = list(batches(data, config, 0, first=3))
    assert len(rest) == len(first) - 3
    np.testing.assert_array_equal(rest[0].x, first[3].x)
    other = next(iter(batches(data, config, 1)))
    assert not np.array_equal(other.rows, first[0].rows)
    assert not np.array_equal(next(iter(batches(data, TrainConfig(batch=16, seed=2), 0))).x, first[0].x)
    rows = np.concatenate([b.rows for b in first])
    assert len(set(rows.tolist())) == len(rows)


def test_crops_then_whole_windows(data: DataSet) -> None:
    config = TrainConfig(epochs=2, finish_epochs=1, warmup_epochs=0.0, batch=16)
    assert next(iter(batches(data, config, 0))).x.shape == (16, 12, 1250)
    assert next(iter(batches(data, config, 1))).x.shape == (16, 12, 5000)


def test_files_are_read_once_in_a_process(
    prepared: Path, core: tuple[Statement, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    read: list[str] = []
    monkeypatch.setattr("training.data.dataset.file_digest", lambda path: read.append(path.name) or file_digest(path))
    for folds in (TRAIN, (8,), (9,)):
        DataSet(copy, core, folds)
    assert sorted(read) == sorted(p.name for p in copy.iterdir() if p.name != "manifest.json")


def test_augmentation_changes_the_signal_a_little_and_can_be_off(data: DataSet) -> None:
    rows = np.arange(8)
    off = TrainConfig(noise=0.0, gain_jitter=0.0, lead_sets=("12",), full_share=1.0, crop_s=10.0)
    plain = data.draw(rows, off, True, np.random.default_rng(0)).x
    np.testing.assert_array_equal(plain, data.windows(rows))
    on = TrainConfig(lead_sets=("12",), full_share=1.0)
    noisy = data.draw(rows, on, True, np.random.default_rng(0)).x
    assert not np.array_equal(noisy, plain)
    assert np.corrcoef(noisy[0, 1], plain[0, 1])[0, 1] > 0.95


def test_all_lead_sets_are_drawn(data: DataSet) -> None:
    config = TrainConfig(noise=0.0, gain_jitter=0.0)
    rows = np.zeros(400, dtype=np.int64)
    x = data.draw(rows, config, False, np.random.default_rng(0)).x
    masks = {int(m) for m in (np.abs(x).sum(axis=2) > 0) @ (1 << np.arange(12))}
    assert masks == {effective_mask(FULL, bits, "mV") for bits in LEAD_SET_BITS.values()}
    share = np.mean([(np.abs(one).sum(axis=1) > 0).all() for one in x])
    assert share == pytest.approx(0.5, abs=0.08)


def test_stating_keeps_records_with_a_label(data: DataSet) -> None:
    kept = data.stating()
    assert len(kept) == int(data.targets[0].any(axis=1).sum())
    assert kept.targets[0].any(axis=1).all()


def test_damaged_or_foreign_data_are_refused(prepared: Path, core: tuple[Statement, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; make the data set with"):
        DataSet(tmp_path, core, TRAIN)
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    with pytest.raises(DataError, match="no record in folds 10"):
        DataSet(copy, core, (10,))
    shard = copy / "shard-00001.safetensors"
    good = shard.read_bytes()
    assert DataSet(copy, core, TRAIN).digest == file_digest(copy / "manifest.json")
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # same size
    expected, found = file_digest(prepared / shard.name), file_digest(shard)
    with pytest.raises(DataError, match=rf"shard-00001\.safetensors: sha256 {expected} expected, found {found}"):
        DataSet(copy, core, TRAIN)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.safetensors: \d+ bytes expected, no such file"):
        DataSet(copy, core, TRAIN)
    shard.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"shard-00001\.safetensors: \d+ bytes expected, found \d+"):
        DataSet(copy, core, TRAIN)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "preprocess": "0"}))
    with pytest.raises(DataError, match="prepared by preprocess version 0"):
        DataSet(copy, core, TRAIN)
    for text in ('{"files": {', "{}", "[]"):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: no manifest of a data set .*; prepare again"):
            DataSet(copy, core, TRAIN)
