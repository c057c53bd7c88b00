"""Recordings of one's own in four formats with a table of labels; what is wrong with the table is named with its row."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom.data
import pyedflib
import pytest

from encoders.recordings import read_recording
from training.data.prepare import PrepareError, check_patients, prepare
from training.sources.annotated import Source, SourceError, fold_of
from training.sources.folders import read_source
from training.sources.relations import RHYTHMS
from training.vocabulary import Statement


@pytest.fixture(scope="module")
def folder(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ward/w1 (WFDB), e1.edf, c1.csv: three real records; d1.dcm: a device's own."""
    folder = tmp_path_factory.mktemp("own") / "clinic"
    (folder / "ward").mkdir(parents=True)
    records = unpacked / "ptbxl" / "records500" / "00000"
    for suffix in (".hea", ".dat"):
        shutil.copy(records / f"00001_hr{suffix}", folder / "ward" / f"00001_hr{suffix}")
    edf, table = read_recording(records / "00002_hr"), read_recording(records / "00003_hr")
    header = {"dimension": "uV", "sample_frequency": 500, "physical_max": 32767, "physical_min": -32768}
    header |= {"digital_max": 32767, "digital_min": -32768, "prefilter": "", "transducer": ""}
    with pyedflib.EdfWriter(str(folder / "e1.edf"), 12, file_type=pyedflib.FILETYPE_EDFPLUS) as writer:
        writer.setSignalHeaders([{"label": lead, **header} for lead in edf.layout.leads])
        writer.writeSamples([np.ascontiguousarray(row, dtype=np.int32) for row in edf.samples], digital=True)
    lines = ["# fs=500", "# unit=uV", ",".join(table.layout.leads), *(",".join(map(str, t)) for t in table.samples.T)]
    (folder / "c1.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(str(pydicom.data.get_testdata_file("waveform_ecg.dcm", download=False)), folder / "d1.dcm")
    return folder


@pytest.fixture
def read(folder: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]):  # type: ignore[no-untyped-def]
    def of(*rows: str, head: str = "record,labels", declares: str = "") -> Source:
        table = tmp_path / "labels.csv"
        table.write_text("\n".join((head, *rows)) + "\n")
        return read_source(folder, vocabulary, labels=table, declares=declares)

    return of


def test_four_formats_become_encoder_inputs(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    head = "record,labels,patient,fold,sex,age,unknown"
    source = read(
        "ward/00001_hr,SR;NORM,p1,3,F,56,",
        "e1.edf,scp:SBRAD,p2,,M,19,LVOLT",
        "c1,snomed_ct:426783006,p3,9,,,",
        "d1.dcm,,p4,8,female,x,",
        head=head,
    )
    assert (source.layout, source.skipped) == ("labelled", ())
    assert source.declared == {"clinic": ("NORM", "SBRAD", "SR")}
    rows = {r.record: r for r in source.records}
    first = rows["clinic/ward/00001_hr"]
    assert (first.positive, first.fold, first.sex, first.age) == (("NORM", "SR"), 3, "F", 56.0)
    assert (rows["clinic/e1.edf"].positive, rows["clinic/e1.edf"].unknown) == (("SBRAD",), ("LVOLT",))
    assert rows["clinic/e1.edf"].fold == fold_of("p2")
    assert rows["clinic/c1.csv"].positive == ("SR",)  # by its code
    nothing = rows["clinic/d1.dcm"]  # asked, and none applies: no rhythm is unknown
    assert (nothing.positive, nothing.unknown, nothing.sex, nothing.age) == ((), (), "F", None)
    manifest = prepare([source], tmp_path / "out")
    assert (manifest["records"], manifest["skipped"]) == (4, [])
    index = {r["record"]: r for r in pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()}
    assert {r["fs"] for r in index.values()} == {500.0, 1000.0}
    assert {r["mask"] for r in index.values()} == {0xFFF}


def test_what_has_no_partner_is_listed(read) -> None:  # type: ignore[no-untyped-def]
    source = read("ward/00001_hr.hea,SR", "e1,SR", "gone,SR")
    assert [r.record for r in source.records] == ["clinic/e1.edf", "clinic/ward/00001_hr"]
    assert source.skipped == (
        ("clinic/gone", "row 4 of labels.csv: no recording 'gone'"),
        ("clinic/c1.csv", "no row in labels.csv"),
        ("clinic/d1.dcm", "no row in labels.csv"),
    )
    with pytest.raises(SourceError, match=r"2 of 3 rows name no recording in clinic.*has, for example, '\w.*write the records"):
        read("a,SR", "b,SR", "c1,SR")


def test_one_recording_by_two_names_is_taken_once(read) -> None:  # type: ignore[no-untyped-def]
    source = read("c1,SR", "c1.csv,AFIB")
    assert [r.positive for r in source.records] == [("SR",)]
    assert ("clinic/c1.csv", "row 3 of labels.csv: c1.csv has a row already") in source.skipped


def test_a_bare_name_that_two_recordings_have_is_not_guessed(read, folder: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copy(folder / "d1.dcm", folder / "e1.dcm")
    try:
        source = read("e1,SR", "c1,SR", "d1,SR")
        assert ("clinic/e1", "row 2 of labels.csv: 'e1' may be e1.dcm or e1.edf; write the path") in source.skipped
    finally:
        (folder / "e1.dcm").unlink()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["c1,AF"], r"labels\.csv: row 2: 'AF' is not in the vocabulary; nearest ids: .*AFIB"),
        (["c1,SR", "e1,SR;xyzzy"], r"row 3: 'xyzzy' is not in the vocabulary"),
        (["c1,atrial fibrilation"], r"nearest ids: AFIB \(心房細動, Atrial fibrillation\)"),
        (["c1,心房細道"], r"nearest ids: AFIB \(心房細動, Atrial fibrillation\).*`ecg-train labels --list` has all"),
        (["c1,164889003"], r"as a code write snomed_ct:164889003, which is AFIB \(心房細動, Atrial fibrillation\)"),
        (["c1,scp:AFIV"], r"no label has; nearest: scp:AFIB is AFIB \(心房細動, Atrial fibrillation\)"),
        (["c1,cinc:AMI"], "row 2: 'cinc:AMI' is of no known scheme; known are scp:CODE and snomed_ct:CODE"),
        (["c1,snomed_ct:1"], "'snomed_ct:1' is a code that no label has"),
        (["c1,SR", "c1,AFIB"], "row 3 repeats c1 of row 2"),
        (["c1,SR,AFIB"], "row 2 has more cells than the first line; labels are separated by ';'"),
        ([",SR"], "row 2 names no record"),
        (["c1,"], "no row states a label"),
        ([], "it holds no row"),
    ],
)
def test_a_wrong_table_is_refused_by_row(read, rows: list[str], problem: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match=problem):
        read(*rows)


def test_a_table_in_another_encoding_is_refused(folder: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]) -> None:
    table = tmp_path / "sjis.csv"
    table.write_bytes("record,labels,patient\nc1,SR,山田\n".encode("cp932"))
    with pytest.raises(SourceError, match=r"sjis\.csv: a table is no CSV in UTF-8 .*; save it as CSV in UTF-8"):
        read_source(folder, vocabulary, labels=table)


def test_many_faults_are_told_at_once_but_not_all(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match=r"row 2: .*row 6: .*; and 2 more$"):
        read(*(f"r{i},nonsense" for i in range(7)))


def test_columns_and_folds(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match=r"no column labels; the first line must be record,labels .* found 'record,label'"):
        read("c1,SR", head="record,label")
    with pytest.raises(SourceError, match=r"row 2: fold '11' is not 1 to 10"):
        read("c1,SR,11", head="record,labels,fold")
    with pytest.raises(SourceError, match="row 2 calls SR both stated and unknown"):
        read("c1,SR,SR", head="record,labels,unknown")


def test_a_table_with_gaps_saved_as_floats_keeps_its_folds(read) -> None:  # type: ignore[no-untyped-def]
    source = read("c1,SR,3.0", "e1,SR,", head="record,labels,fold")
    assert {r.record: r.fold for r in source.records} == {"clinic/c1.csv": 3, "clinic/e1.edf": fold_of("e1.edf")}
    with pytest.raises(SourceError, match=r"fold '3\.5' is not 1 to 10"):
        read("c1,SR,3.5", head="record,labels,fold")


def test_a_row_cannot_reach_out_of_the_folder(read, folder: Path) -> None:  # type: ignore[no-untyped-def]
    outside = folder.parent / "outside.csv"
    shutil.copy(folder / "c1.csv", outside)
    for row in ("../outside.csv", "ward/../../outside.csv", str(outside)):
        source = read("e1,SR", f"{row},SR")
        assert [r.record for r in source.records] == ["clinic/e1.edf"]
        (reason,) = (text for name, text in source.skipped if "outside" in name)
        assert f"row 3 of labels.csv: {row!r} leads out of clinic" in reason


def test_a_patient_in_two_folds_is_refused(read) -> None:  # type: ignore[no-untyped-def]
    source = read("c1,SR,p1,1", "e1,SR,p1,9", head="record,labels,patient,fold")
    with pytest.raises(PrepareError, match="patient clinic:p1 crosses the split"):
        check_patients(source.records)
    both = read("c1,SR,p1", "e1,SR,p1", head="record,labels,patient")
    assert len({r.fold for r in both.records}) == 1


def test_what_is_annotated_can_be_said(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert read("c1,SR", "e1,AFIB", "d1,LVH", declares="SR, scp:AFIB").declared == {"clinic": ("AFIB", "SR")}
    (tmp_path / "ids").write_text("SR\nAFIB\n")
    assert read("c1,SR", "e1,AFIB", "d1,LVH", declares=str(tmp_path / "ids")).declared == {"clinic": ("AFIB", "SR")}
    assert read("c1,SR", "e1,AFIB", "d1,LVH", declares=",".join(["AFIB", "SR"] * 60)).declared == {"clinic": ("AFIB", "SR")}
    with pytest.raises(SourceError, match=r"VT declared by --declares SR,VT, but stated by no row.*leave it out of --declares"):
        read("c1,SR", "e1,SR", "d1,LVH", declares="SR,VT")
    with pytest.raises(SourceError, match="--declares AFF: 'AFF' is not in the vocabulary"):
        read("c1,SR", "e1,SR", "d1,LVH", declares="AFF")


def test_what_the_words_leave_open_stays_unknown(read) -> None:  # type: ignore[no-untyped-def]
    source = read("c1,TINV", "e1,TAB", "d1,scp:IPLMI")
    named = {r.record: r for r in source.records}
    assert "TAB" in named["clinic/c1.csv"].unknown
    assert named["clinic/d1.dcm"].positive == ("MI_INF",)
    assert not RHYTHMS & set(named["clinic/c1.csv"].unknown)


def test_a_table_inside_the_folder_is_found_and_folders_without_labels_say_what_to_do(
    folder: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    with pytest.raises(SourceError, match=r"--labels labels\.csv, with the columns record and labels"):
        read_source(own, vocabulary)
    (own / "labels.csv").write_text("\ufeffrecord,labels\nc1,SR\ne1,AFIB\n", encoding="utf-8")
    assert len(read_source(own, vocabulary).records) == 2
    with pytest.raises(SourceError, match=r"none\.csv: no such file"):
        read_source(own, vocabulary, labels=tmp_path / "none.csv")
