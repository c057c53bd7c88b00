"""Each layout is read from real recordings, and what a source does not annotate stays unknown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from training.sources import SourceError, fold_of, read_source
from training.vocabulary import Statement

COLUMNS = ["ecg_id", "patient_id", "scp_codes", "heart_axis", "strat_fold", "filename_hr"]


def ptbxl_table(folder: Path, *rows: tuple[object, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return folder


def test_ptbxl_as_published(unpacked: Path, vocabulary: tuple[Statement, ...]) -> None:
    source = read_source(unpacked / "ptbxl", vocabulary)
    assert (source.layout, len(source.records), source.skipped) == ("ptbxl", 506, ())
    first = next(r for r in source.records if r.record == "ptbxl/1")
    assert first.patient == "ptbxl:ptbxl-15709"
    assert first.fold == 3
    assert first.positive == ("LVOLT", "NORM", "SR")  # NORM 100, LVOLT 0, SR 0: stated
    assert first.path.with_suffix(".hea").is_file()
    assert {"LAD", "RAD"} <= set(first.unknown)  # no heart axis given
    declared = source.declared["ptbxl"]
    assert "MI_ANT" in declared
    assert "AMI_AC" not in declared  # has no SCP code: PTB-XL cannot say it


def test_ptbxl_likelihoods_and_axis(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    rows = [
        (1, 7, "{'AMI': 35.0, 'SR': 0.0, 'NORM': None}", "LAD", 1, "a"),
        (2, 8, "{'SR': 0.0, 'NOT_A_CODE': 100.0}", "MID", 9, "b"),
        (3, 9, "not a dict", "", 1, "c"),
        (4, 9, "{}", "", 11, "d"),
        (5, 9, "__import__('os').system('true')", "", 1, "e"),
    ]
    source = read_source(ptbxl_table(tmp_path / "p", *rows), vocabulary)
    one, two = source.records
    assert one.positive == ("LAD", "MI_ANT", "SR")
    assert one.unknown == ("NORM",)
    assert (two.positive, two.unknown) == (("SR",), ())  # a middle axis: neither deviation
    assert [name for name, _ in source.skipped] == ["p/3", "p/4", "p/5"]
    stated = read_source(tmp_path / "p", vocabulary, "stated").records[0]
    assert stated.positive == ("LAD", "MI_ANT", "NORM", "SR")
    assert stated.unknown == ()


def test_challenge_layout(unpacked: Path, vocabulary: tuple[Statement, ...]) -> None:
    source = read_source(unpacked / "challenge", vocabulary)
    assert (source.layout, len(source.records)) == ("challenge", 220)
    named = {r.record: r for r in source.records}
    assert named["challenge/E00004"].positive == ("ISC_LAT", "LVH", "SBRAD", "TAB")
    assert named["challenge/A0057"].positive == ("CLBBB",)
    assert named["challenge/A0057"].unknown == ("SR",)  # no rhythm is named: sinus rhythm is not denied
    assert "NORM" not in {label for labels in source.declared.values() for label in labels}
    assert "LAD" not in source.declared["challenge/A"]  # CPSC 2018 has nine classes; not annotated is not negative
    assert "STD" in source.declared["challenge/A"]
    folds = {r.fold for r in source.records}
    assert folds == set(range(1, 10))


def test_headers_without_diagnosis_are_listed(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    (tmp_path / "x1.hea").write_text("x1 1 500 10\nx1.dat 16 1000/mV 16 0 0 0 0 I\n")
    (tmp_path / "x2.hea").write_text("x2 1 500 10\nx2.dat 16 1000/mV 16 0 0 0 0 I\n# Dx: 164889003,999\n")
    source = read_source(tmp_path, vocabulary)
    assert [r.positive for r in source.records] == [("AFIB",)]
    assert source.records[0].unknown == ()
    assert source.skipped == ((f"{tmp_path.name}/x1", "no `# Dx:` comment in its header"),)


def test_alivecor_layout(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    (tmp_path / "REFERENCE-v3.csv").write_text("A1,N\nA2,A\nA3,O\nA4,~\n")
    source = read_source(tmp_path, vocabulary)
    assert [(r.positive, r.unknown, dict(r.leads)) for r in source.records] == [
        (("SR",), (), {"ECG": "I"}),
        (("AFIB",), (), {"ECG": "I"}),
        ((), ("SR",), {"ECG": "I"}),
    ]
    assert source.declared == {tmp_path.name: ("AFIB", "SR")}
    assert len(source.skipped) == 1


def test_other_folders_are_refused(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    with pytest.raises(SourceError, match=r"neither ptbxl_database\.csv"):
        read_source(tmp_path, vocabulary)
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,scp_codes\n1,{}\n")
    with pytest.raises(SourceError, match="no column patient_id, strat_fold, filename_hr"):
        read_source(tmp_path, vocabulary)


def test_hashed_folds_are_stable_and_fifths() -> None:
    folds = [fold_of(f"record-{i}") for i in range(5000)]
    assert folds == [fold_of(f"record-{i}") for i in range(5000)]
    assert set(folds) == set(range(1, 10))
    assert sum(f == 9 for f in folds) / 5000 == pytest.approx(0.2, abs=0.02)
