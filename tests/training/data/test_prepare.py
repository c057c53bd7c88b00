"""Prepared shards hold what serving would compute; splits are by patient; what is left out is listed."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from encoders.preprocess import VERSION, preprocess
from encoders.recordings import Recording, read_recording
from training.data.dataset import DataSet
from training.data.duplicates import Seen
from training.data.prepare import PrepareError, check_patients, file_digest, prepare, split_of
from training.data.statistics_page import write_page
from training.evaluation.breakdown import subgroups
from training.sources.annotated import Annotated, Source
from training.sources.folders import read_source
from training.vocabulary import Statement

HEADER = "{name} {n} 500 5000\n"
SIGNAL = "{name}.dat 16 1000(0)/mV 16 0 0 0 0 {lead}\n"


def record(folder: Path, name: str, counts: np.ndarray, leads: tuple[str, ...] = ("I", "II")) -> Path:
    """A WFDB record; counts: int16 (T, C)."""
    (folder / f"{name}.dat").write_bytes(counts.astype("<i2").tobytes())
    lines = HEADER.format(name=name, n=len(leads)) + "".join(SIGNAL.format(name=name, lead=lead) for lead in leads)
    (folder / f"{name}.hea").write_text(lines)
    return folder / name


def annotated(path: Path, fold: int = 1, patient: str = "", positive: tuple[str, ...] = ("SR",)) -> Annotated:
    return Annotated(path, f"s/{path.name}", patient or path.name, fold, positive, (), "s")


def source(*records: Annotated) -> Source:
    return Source("s", "challenge", records, {"s": ("SR", "AFIB")}, (("s/none", "no header"),))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, (5000, 2)).cumsum(axis=0).clip(-3000, 3000) / 3


def test_real_records_are_what_serving_computes(prepared: Path, unpacked: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    rows = pq.read_table(prepared / "index.parquet").to_pylist()
    assert manifest["preprocess"] == VERSION
    assert manifest["records"] == len(rows) == 169 + 55
    assert manifest["splits"] == {s: sum(r["split"] == s for r in rows) for s in ("train", "calibration", "val")}
    assert manifest["positives"]["SR"] == sum("SR" in r["positive"] for r in rows)
    for row in (rows[0], rows[100], rows[-1]):
        folder, name = row["record"].split("/")
        path = unpacked / "ptbxl" / f"records500/00000/{int(name):05d}_hr" if folder == "ptbxl" else unpacked / folder / name
        recording = read_recording(path)
        expected = preprocess(recording.samples, recording.layout)
        x = load_file(prepared / row["shard"])["x"][row["row"]]
        assert x.dtype == np.float16
        np.testing.assert_allclose(x.astype(np.float32), expected.x, rtol=1e-3, atol=1e-3)
        assert (row["mask"], row["n_valid"], row["unit"]) == (expected.mask, expected.n_valid, "mV")
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((prepared / name).read_bytes()).hexdigest() == entry["sha256"]
    assert len([n for n in manifest["files"] if n.startswith("shard")]) == -(-224 // 64)


def test_no_patient_crosses_in_real_data(prepared: Path) -> None:
    rows = pq.read_table(prepared / "index.parquet").to_pylist()
    patients: dict[str, set[str]] = {}
    for row in rows:
        patients.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in patients.values())


def test_a_crossing_patient_is_refused_by_name(tmp_path: Path) -> None:
    records = [annotated(tmp_path / "a", 7, "p7"), annotated(tmp_path / "b", 9, "p7")]
    with pytest.raises(PrepareError, match=r"patient p7 crosses.*s/a is in fold 7 \(train\), s/b in fold 9 \(val\)"):
        check_patients(records)
    with pytest.raises(PrepareError, match=r"s/a is in fold 1 \(train\), s/b in fold 3 \(train\)"):  # held out in turn
        check_patients([annotated(tmp_path / "a", 1, "p7"), annotated(tmp_path / "b", 3, "p7")])
    check_patients([annotated(tmp_path / "a", 1, "p7"), annotated(tmp_path / "b", 1, "p7")])
    with pytest.raises(PrepareError, match="s/a comes twice"):
        check_patients([annotated(tmp_path / "a"), annotated(tmp_path / "a")])
    assert [split_of(f) for f in (1, 8, 9, 10)] == ["train", "calibration", "val", "test"]


def test_two_folders_of_one_name_are_refused(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    """What one of them annotates would be denied in the other, which never looked for it."""
    for ward, name, label in (("a", "one", "AFIB"), ("b", "two", "LVH")):
        folder = tmp_path / ward / "clinic"
        folder.mkdir(parents=True)
        record(folder, name, noise(len(name) + ord(ward)))
        (folder / "labels.csv").write_text(f"record,labels\n{name},{label}\n")
    sources = [read_source(tmp_path / ward / "clinic", vocabulary) for ward in ("a", "b")]
    with pytest.raises(PrepareError, match="two folders give records to the source 'clinic'"):
        prepare(sources, tmp_path / "out")


def test_a_folder_given_as_a_dot_has_its_name(
    tmp_path: Path, vocabulary: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clinic"
    (folder / "sub").mkdir(parents=True)
    record(folder, "one", noise(1))
    (folder / "labels.csv").write_text("record,labels\none,AFIB\n")
    for inside, spelled in ((folder, "."), (folder / "sub", "..")):
        monkeypatch.chdir(inside)
        (found,) = read_source(Path(spelled), vocabulary).records
        assert (found.record, found.source) == ("clinic/one", "clinic")


def test_what_cannot_be_used_is_left_out_and_listed(tmp_path: Path) -> None:
    good = record(tmp_path, "good", noise(1))
    flat = record(tmp_path, "flat", np.zeros((5000, 2)))
    cut = record(tmp_path, "cut", noise(2))
    (tmp_path / "cut.dat").write_bytes(b"\x00" * 99)
    odd = record(tmp_path, "odd", noise(3), ("EEG1", "EEG2"))
    told: list[int] = []
    missing = tmp_path / "missing"
    manifest = prepare([source(*(annotated(p) for p in (good, flat, cut, odd, missing)))], tmp_path / "out", "cmd", told.append)
    left = {entry["record"]: entry["reason"] for entry in manifest["skipped"]}
    assert set(left) == {"s/none", "s/flat", "s/cut", "s/odd", "s/missing"}
    assert left["s/flat"] == "cannot be scored: flat"
    assert all(str(tmp_path) not in reason for reason in left.values())
    assert sum(told) == 5
    assert manifest["records"] == 1
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["command"] == "cmd"


def test_what_is_not_used_of_kept_records_is_counted_and_shown(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    """A misspelt column, 4 s of NaN, a flat lead, and respiration in every record."""
    lead = [f"{v:.3f}" for v in noise(1)[:, 0] / 1000]
    gap = ["NaN" if 1000 <= t < 3000 else v for t, v in enumerate(lead)]
    flat, breath = ["0"] * len(lead), ["7"] * len(lead)
    columns = {"a": ("I,II,VI,RESP", lead, lead, lead, breath), "b": ("I,V1,V2,RESP", lead[::-1], gap, flat, breath)}
    for name, (header, *each) in columns.items():
        rows = "\n".join(map(",".join, zip(*each, strict=True)))
        (tmp_path / f"{name}.csv").write_text(f"# fs=500\n{header}\n{rows}\n")
    manifest = prepare([source(*(annotated(tmp_path / f"{name}.csv") for name in columns))], tmp_path / "out")
    assert manifest["records"] == 2
    found = {(e["kind"], e["name"]): (e["source"], e["records"], e["first"]) for e in manifest["incomplete"]}
    assert found == {
        ("channel", "RESP"): ("s", 2, ["s/a.csv", "s/b.csv"]),
        ("channel", "VI"): ("s", 1, ["s/a.csv"]),
        ("lead with gaps", "V1"): ("s", 1, ["s/b.csv"]),
        ("flat lead", "V2"): ("s", 1, ["s/b.csv"]),
    }
    page = re.sub(r"<[^>]*>", "", write_page(tmp_path / "out", vocabulary).read_text())
    assert "at another rate: s: RESP (all records); s: VI (1 of 2 records, s/a.csv first). Where one is a lead, correct" in page
    assert "are missing: s: V1 (1 of 2 records, s/b.csv first). They count as not recorded" in page
    assert "do not move: s: V2 (1 of 2 records, s/b.csv first)." in page


def test_codes_without_a_label_are_counted_by_source_and_shown(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    codes = {"A1": "426783006,55930002", "A2": "55930002,55930002,Rare", "Q1": "55930002,233917008", "Q2": "426783006"}
    for seed, (name, given) in enumerate(codes.items()):
        header = record(tmp_path, name, noise(seed)).with_suffix(".hea")
        header.write_text(header.read_text() + f"# Dx: {given}\n")
    (tmp_path / "Q1.dat").write_bytes(b"")  # left out
    manifest = prepare([read_source(tmp_path, vocabulary)], tmp_path / "out")
    assert manifest["unmapped"] == {f"{tmp_path.name}/A": {"snomed_ct:55930002": 2, "snomed_ct:Rare": 1}}
    page = re.sub(r"<[^>]*>", "", write_page(tmp_path / "out", vocabulary).read_text())
    assert "state them: snomed_ct:55930002 (2); snomed_ct:Rare (1). Add them to training/labels.csv" in page


def test_many_channels_are_named_up_to_a_dozen(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    names = ("I", *(f"x{k}" for k in range(20)))
    one = annotated(record(tmp_path, "one", np.tile(noise(1)[:, :1], len(names)), names))
    manifest = prepare([source(one)], tmp_path / "out")
    assert [e["name"] for e in manifest["incomplete"]] == list(names[1:])
    page = re.sub(r"<[^>]*>", "", write_page(tmp_path / "out", vocabulary).read_text())
    assert "s: x11 (all records); 8 more in the manifest. Where" in page


def test_a_file_that_fails_while_it_is_read_is_one_record_left_out(tmp_path: Path) -> None:
    def fails() -> Recording:
        raise OSError(5, "Input/output error")

    broken = replace(annotated(tmp_path / "broken"), read=fails)
    manifest = prepare([source(broken, annotated(record(tmp_path, "good", noise(1))))], tmp_path / "out")
    assert manifest["records"] == 1
    assert {"record": "s/broken", "reason": "[Errno 5] Input/output error"} in manifest["skipped"]


@pytest.mark.parametrize("gain", [0.37, 0.05])  # 0.4 and 3 counts' rounding
def test_a_copy_with_another_gain_is_the_same_signal(tmp_path: Path, gain: float) -> None:
    counts = noise(5)
    one = annotated(record(tmp_path, "one", counts), 1)
    copy = annotated(record(tmp_path, "copy", np.rint(counts * gain)), 2)
    header = tmp_path / "copy.hea"
    header.write_text(header.read_text().replace("1000(0)/mV", f"{1000 * gain:g}(0)/mV"))
    other = annotated(record(tmp_path, "other", noise(6)), 2)
    manifest = prepare([source(one, copy, other)], tmp_path / "out")
    reasons = {e["record"]: e["reason"] for e in manifest["skipped"]}
    assert reasons["s/copy"] == "same signal as s/one, but that is in fold 1 (train), this in fold 2 (train)"
    assert manifest["records"] == 2


def test_real_recordings_are_not_taken_for_copies(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    seen, index = Seen(), pq.read_table(prepared / "index.parquet").to_pylist()
    shards = {name: load_file(prepared / name)["x"] for name in manifest["files"] if name.startswith("shard")}
    for row in index:
        x = shards[row["shard"]][row["row"]].astype(np.float32)
        first = seen.first(x, row["mask"], row["record"], row["fold"])
        assert first == (row["record"], row["fold"]) or row["record"] in manifest["duplicates"]


def test_a_full_disk_names_the_directory(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    good = annotated(record(tmp_path, "good", noise(1)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a shard of one record is larger
    try:
        with pytest.raises(PrepareError, match=r"out: cannot be written \(.*\); make room, remove it and prepare again"):
            prepare([source(good)], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_two_leads_are_masked_and_derived(tmp_path: Path) -> None:
    prepare([source(annotated(record(tmp_path, "two", noise(4))))], tmp_path / "out")
    row = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()[0]
    assert row["mask"] == 0b111111  # the six limb leads
    assert row["derived"] == 0b111100
    x = load_file(tmp_path / "out" / row["shard"])["x"][0]
    assert not x[6:].any()
    assert x[2].any()


def test_the_same_signal_never_stands_in_two_folds(tmp_path: Path) -> None:
    names = {"one": 1, "two": 9, "same": 1, "other": 2}
    parts = [annotated(record(tmp_path, name, noise(5)), fold) for name, fold in names.items()]
    manifest = prepare([source(*parts)], tmp_path / "out")
    reasons = {e["record"]: e["reason"] for e in manifest["skipped"]}
    assert reasons["s/two"] == "same signal as s/one, but that is in fold 1 (train), this in fold 9 (val)"
    assert reasons["s/other"] == "same signal as s/one, but that is in fold 1 (train), this in fold 2 (train)"
    assert manifest["duplicates"] == ["s/one", "s/same"]  # within one fold they may stay, and are named
    assert manifest["records"] == 2


def test_microvolts_taken_for_millivolts_are_left_out_with_the_remedy(tmp_path: Path, unpacked: Path) -> None:
    table = tmp_path / "uv.csv"  # a device's export in uV, without saying so
    counts = record(tmp_path, "ok", noise(1))
    values = read_recording(counts).samples.T
    table.write_text("# fs=500\nI,II\n" + "\n".join(f"{a},{b}" for a, b in values) + "\n")
    real = read_recording(unpacked / "ptbxl/records500/00000/00001_hr")
    large = replace(real, layout=replace(real.layout, gain=tuple(g / 1000 for g in real.layout.gain)))
    late = replace(large, samples=np.concatenate([real.samples // 1000, large.samples], axis=1))
    made = [replace(annotated(table.with_name(f"{i}.csv")), read=lambda r=r: r) for i, r in enumerate((real, large, late))]
    manifest = prepare([source(annotated(counts), annotated(table), *made)], tmp_path / "out")
    reasons = {e["record"]: e["reason"] for e in manifest["skipped"]}
    assert reasons.keys() - {"s/none"} == {"s/uv.csv", "s/1.csv"}  # of "late" only the 10 s that are used are looked at
    assert "in 2 of 2 leads" in reasons["s/uv.csv"]
    assert re.match(r"suspicious amplitude: \d{3} mV .* in 12 of 12 leads; if its numbers are uV", reasons["s/1.csv"])


def test_what_the_source_knows_of_a_person_stands_in_the_index(tmp_path: Path) -> None:
    known = replace(annotated(record(tmp_path, "known", noise(1))), sex="F", age=61.0, quality="acceptable", window=36000)
    prepare([source(known, annotated(record(tmp_path, "other", noise(2))))], tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    columns = ("sex", "age", "quality", "window", "fs")
    assert [tuple(r[c] for c in columns) for r in rows] == [
        ("F", 61.0, "acceptable", 36000, 500.0),
        (None, None, None, None, 500.0),
    ]


def test_a_data_set_without_the_newer_columns_is_still_read(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    out = tmp_path / "out"
    manifest = prepare([source(annotated(record(tmp_path, "a", noise(1))))], out)
    table = pq.read_table(out / "index.parquet").drop_columns(["sex", "age", "quality", "signal_grade", "window", "fs"])
    pq.write_table(table, out / "index.parquet")
    path = out / "index.parquet"
    manifest["files"]["index.parquet"] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    (out / "manifest.json").write_text(json.dumps(manifest))
    data = DataSet(out, vocabulary, (1,))
    assert data.positives().sum() == 1
    y, known = data.targets
    parts = subgroups(np.zeros(y.shape), y, known, data.index, [s.id for s in data.labels], np.ones((2, 1)))
    assert set(parts) == {"unit", "source"}


def test_output_must_be_new_and_something_must_be_readable(tmp_path: Path) -> None:
    good = source(annotated(record(tmp_path, "good", noise(6))))
    prepare([good], tmp_path / "out")
    with pytest.raises(PrepareError, match="is not empty"):
        prepare([good], tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(PrepareError, match="none of 1 records could be read"):
        prepare([source(annotated(tmp_path / "missing"))], tmp_path / "out")
