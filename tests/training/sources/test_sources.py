"""Each layout is read from real recordings, and what a source does not annotate stays unknown."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from training.sources.annotated import SourceError, fold_of
from training.sources.folders import read_source
from training.sources.relations import ENTAILS, LEAVES_OPEN, RHYTHMS
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
    assert (first.sex, first.age) == ("F", 56.0)
    assert max(r.age for r in source.records if r.age is not None) == 90.0  # the table has 300 for whoever is older
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
    assert (one.unmapped, two.unmapped) == ((), ("scp:NOT_A_CODE",))
    assert [name for name, _ in source.skipped] == ["p/3", "p/4", "p/5"]
    stated = read_source(tmp_path / "p", vocabulary, "stated").records[0]
    assert stated.positive == ("LAD", "MI_ANT", "NORM", "SR")
    assert stated.unknown == ()


@pytest.mark.parametrize(
    ("codes", "positive", "unknown"),
    [
        ("'ISCAL': 100.0", {"ISC_AL", "ISC"}, {"ISC_ANT", "ISC_LAT"}),  # ischaemia somewhere is ischaemia
        ("'ISCIN': 100.0", {"ISC_INF", "ISC"}, set()),
        ("'ISC_': 100.0", {"ISC"}, set()),  # the general one says nothing of a region
        ("'ISCLA': None", set(), {"ISC_LAT", "ISC"}),  # of an uncertain statement only uncertain things follow
        ("'ILMI': 50.0", {"MI_IL", "MI_INF"}, {"MI_LAT"}),
        ("'IPMI': 50.0", {"MI_IP", "MI_INF"}, {"MI_POST"}),
        ("'IPLMI': 50.0", {"MI_INF"}, {"MI_IL", "MI_IP", "MI_LAT", "MI_POST"}),  # has no label of its own
        ("'ASMI': 50.0", {"MI_AS"}, {"MI_ANT"}),
        ("'ALMI': 50.0", {"MI_AL"}, {"MI_ANT", "MI_LAT"}),
        ("'ASMI': 50.0, 'AMI': 50.0", {"MI_AS", "MI_ANT"}, set()),  # stated itself: stays
        ("'INVT': 0.0", {"TINV"}, {"TAB", "NSSTT"}),
        ("'LOWT': 0.0, 'NST_': 0.0", {"TFLAT", "NSSTT"}, {"TAB"}),
        ("'NDT': 100.0", {"TAB"}, {"NSSTT"}),
        ("'STD_': 0.0", {"STD"}, {"NSSTT"}),
        ("'BIGU': 0.0", set(), {"SVPC", "PVC"}),  # of ventricular or supraventricular origin
        ("'SVARR': 0.0", set(), RHYTHMS - {"SR"}),
        ("'AMI': 50.0", {"MI_ANT"}, set()),
    ],
)
def test_a_specific_statement_does_not_deny_the_general_one(
    tmp_path: Path, vocabulary: tuple[Statement, ...], codes: str, positive: set[str], unknown: set[str]
) -> None:
    row = (1, 7, f"{{'SR': 0.0, {codes}}}", "MID", 1, "a")
    (record,) = read_source(ptbxl_table(tmp_path / "p", row), vocabulary).records
    assert set(record.positive) == {"SR", *positive}
    assert set(record.unknown) == unknown


def test_relations_name_labels_that_exist(vocabulary: tuple[Statement, ...]) -> None:
    ids = {s.id for s in vocabulary}
    codes = {code for s in vocabulary for code in s.scp}
    for table in (ENTAILS, LEAVES_OPEN):
        for name, general in table.items():
            assert set(general) <= ids, name
            assert name not in general
            assert name in ids or (name.startswith("scp:") and name[4:] not in codes), name
    assert ids >= RHYTHMS


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        ("'NORM': 100.0", False),
        ("'NORM': 100.0, 'SR': 0.0", True),
        ("'NORM': 100.0, 'SR': None", False),
        ("'SVARR': 0.0", False),  # PTB-XL's rhythm statements without a label here
        ("'BIGU': 0.0", False),
        ("'TRIGU': 0.0", False),
        ("'PACE': 0.0, 'BIGU': 0.0", True),
    ],
)
def test_a_record_that_names_no_rhythm_denies_none(
    tmp_path: Path, vocabulary: tuple[Statement, ...], codes: str, named: bool
) -> None:
    row = (1, 7, f"{{{codes}}}", "MID", 1, "a")
    (record,) = read_source(ptbxl_table(tmp_path / "p", row), vocabulary).records
    assert ("AFIB" in record.unknown, "STACH" in record.unknown) == (not named, not named)
    assert (set(record.unknown) | set(record.positive) >= RHYTHMS) == (not named)
    assert "AVB1" not in record.unknown


def test_challenge_layout(unpacked: Path, vocabulary: tuple[Statement, ...]) -> None:
    source = read_source(unpacked / "challenge", vocabulary)
    assert (source.layout, len(source.records)) == ("challenge", 219)
    assert source.skipped == (("challenge/ETEST", "no SNOMED CT code in its `# Dx:` comment, ''"),)
    named = {r.record: r for r in source.records}
    assert named["challenge/E00004"].positive == ("ISC", "ISC_LAT", "LVH", "SBRAD", "TAB")
    assert named["challenge/A0057"].positive == ("CLBBB",)
    assert (named["challenge/A0057"].sex, named["challenge/A0057"].age) == ("M", 85.0)
    assert set(named["challenge/A0057"].unknown) == RHYTHMS  # no rhythm is named: none is denied
    assert "ISC" not in source.declared["challenge/E"] or any(
        "164861001" in path.read_text() for path in (unpacked / "challenge").glob("E*.hea")
    )  # what follows from a statement declares nothing
    assert "NORM" not in {label for labels in source.declared.values() for label in labels}
    assert "LAD" not in source.declared["challenge/A"]  # CPSC 2018 has nine classes; not annotated is not negative
    assert "STD" in source.declared["challenge/A"]
    unmapped = Counter(code for r in source.records for code in r.unmapped)
    assert unmapped.keys() >= {"snomed_ct:55930002", "snomed_ct:164930006", "snomed_ct:233917008"}
    for code, n in unmapped.items():
        stating = [p for p in (unpacked / "challenge").glob("*.hea") if code.partition(":")[2] in p.read_text()]
        assert n == len(stating), code
    folds = {r.fold for r in source.records}
    assert folds == set(range(1, 10))


def test_headers_without_diagnosis_are_listed(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    (tmp_path / "x1.hea").write_text("x1 1 500 10\nx1.dat 16 1000/mV 16 0 0 0 0 I\n")
    (tmp_path / "x2.hea").write_text("x2 1 500 10\nx2.dat 16 1000/mV 16 0 0 0 0 I\n# Dx: 164889003,999\n")
    source = read_source(tmp_path, vocabulary)
    assert [r.positive for r in source.records] == [("AFIB",)]
    assert source.records[0].unknown == ()
    assert source.records[0].unmapped == ("snomed_ct:999",)
    assert source.skipped == ((f"{tmp_path.name}/x1", "no `# Dx:` comment in its header"),)


@pytest.mark.parametrize("comment", ["# Dx: ", "# Dx: Unknown", "#Dx:"])
def test_a_withheld_diagnosis_denies_nothing(tmp_path: Path, vocabulary: tuple[Statement, ...], comment: str) -> None:
    signal = "x.dat 16 1000/mV 16 0 0 0 0 I"
    (tmp_path / "x1.hea").write_text(f"x1 1 500 10\n{signal}\n{comment}\n")
    (tmp_path / "x2.hea").write_text(f"x2 1 500 10\n{signal}\n# Dx: 164889003\n")
    source = read_source(tmp_path, vocabulary)
    assert [r.record for r in source.records] == [f"{tmp_path.name}/x2"]
    ((name, reason),) = source.skipped
    assert (name, reason[:18]) == (f"{tmp_path.name}/x1", "no SNOMED CT code ")


def test_no_table_reaches_out_of_its_folder(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    row = "{'SR': 0.0}"
    table = ptbxl_table(tmp_path / "p", (1, 7, row, "MID", 1, "a"), (2, 8, row, "MID", 1, "../b"), (3, 9, row, "MID", 1, "/c"))
    source = read_source(table, vocabulary)
    assert [r.record for r in source.records] == ["p/1"]
    assert source.skipped[0] == ("p/2", "'../b' leads out of p; name recordings by their path inside it")
    assert source.skipped[1][0] == "p/3"
    for folder, name, text in (("a", "REFERENCE-v3.csv", "../x,N\n"), ("g", "RECORDS-acceptable", "../x\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
        with pytest.raises(SourceError, match=f"'../x' leads out of {folder}"):
            read_source(tmp_path / folder, vocabulary)


def test_alivecor_layout(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    (tmp_path / "REFERENCE-v3.csv").write_text("A1,N\nA2,A\nA3,O\nA4,~\nA5,AF\nA6,NOISY\nA7,X\n")
    source = read_source(tmp_path, vocabulary)
    assert [(r.positive, r.unknown, dict(r.leads)) for r in source.records] == [
        (("SR",), (), {"ECG": "I"}),
        (("AFIB",), (), {"ECG": "I"}),
        ((), ("SR",), {"ECG": "I"}),
        ((), ("AFIB", "SR"), {"ECG": "I"}),
        (("AFIB",), (), {"ECG": "I"}),
        ((), ("AFIB", "SR"), {"ECG": "I"}),
    ]
    assert [r.quality for r in source.records] == [None, None, None, "noisy", None, "noisy"]
    assert source.declared == {tmp_path.name: ("AFIB", "SR")}
    assert source.skipped == ((f"{tmp_path.name}/A7", "annotated as 'X', not N, A, AF, O, ~, NOISY"),)


def test_quality_grades_are_kept_and_declare_nothing(tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    (tmp_path / "RECORDS-acceptable").write_text("1\n2\n")
    with pytest.raises(SourceError, match="RECORDS-unacceptable: no such file"):
        read_source(tmp_path, vocabulary)
    (tmp_path / "RECORDS-unacceptable").write_text("3\n")
    source = read_source(tmp_path, vocabulary)
    assert [r.quality for r in source.records] == ["acceptable", "acceptable", "unacceptable"]
    assert source.declared == {tmp_path.name: ()}


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
