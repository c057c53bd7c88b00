"""The page counts what trains, and says what to look at."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from training.__main__ import app
from training.data.contents import count
from training.data.dataset import DataSet
from training.data.grades import MOST_POOR
from training.data.prepare import prepare
from training.data.statistics_page import write_page
from training.sources.annotated import Annotated, Source
from training.vocabulary import Statement


def record(folder: Path, name: str, unit: str = "mV", leads: tuple[str, ...] = ("I", "II"), scale: float = 300) -> Path:
    counts = np.random.default_rng(ord(name[0])).normal(0, scale, (5000, len(leads)))
    (folder / f"{name}.dat").write_bytes(counts.astype("<i2").tobytes())
    lines = [f"{name} {len(leads)} 500 5000", *(f"{name}.dat 16 1000(0)/{unit} 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return folder / name


def annotated(
    path: Path, fold: int, positive: tuple[str, ...] = (), unknown: tuple[str, ...] = (), **more: object
) -> Annotated:
    return replace(Annotated(path, f"s/{path.name}", path.name, fold, positive, unknown, "s"), **more)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One of each: positive, negative, unknown, lost amplitude, too few leads, too large, unreadable."""
    made = [
        annotated(record(tmp_path, "a"), 1, ("SR", "CLBBB"), sex="F", age=61.0),  # two leads do not show CLBBB
        annotated(record(tmp_path, "b"), 1, ("AFIB",), ("SR",), sex="M", age=93.0),
        annotated(record(tmp_path, "c", "NU", ("I", "II", "V1", "V2")), 9, ("LVOLT", "SR")),  # without amplitude no low voltage
        annotated(record(tmp_path, "d", scale=9000), 1, ("SR",)),
        annotated(record(tmp_path, "e"), 9, ("SR",), quality="acceptable"),
        annotated(tmp_path / "gone<b>", 1, ("SR",)),
    ]
    declared = {"s": ("AFIB", "CLBBB", "LVOLT", "SR", "VT"), "empty": ()}
    prepare([Source("s", "x", tuple(made), declared, (("s/<i>", "row 7: 'q' & none"),))], tmp_path / "out", "cmd <x>")
    return tmp_path / "out"


def test_labels_are_counted_as_they_train(data: Path, vocabulary: tuple[Statement, ...]) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["records"] == 4
    counts = count(data, manifest, vocabulary)

    def of(label: str) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        c = counts.labels[label]
        return dict(c.true), dict(c.false), dict(c.unknown)

    assert of("SR") == ({"train": 1, "val": 2}, {}, {"train": 1})
    assert of("AFIB") == ({"train": 1}, {"train": 1, "val": 2}, {})
    assert of("LVOLT") == ({}, {}, {"train": 2, "val": 2})  # needs 12 leads, and amplitude
    assert of("CLBBB") == ({}, {}, {"train": 2, "val": 2})
    assert of("VT") == ({}, {"train": 2, "val": 2}, {})
    assert counts.development == {"SR": 1, "AFIB": 1}
    assert counts.tables["sex"] == {("women", "train"): 1, ("men", "train"): 1, ("not given", "val"): 2}
    assert counts.ages == {(60, "F"): 1, (90, "M"): 1}
    assert counts.tables["leads"]["I, II, other limb leads derived", "train"] == 2
    assert counts.tables["amplitude"]["lost (NU)", "val"] == 1
    assert sum(counts.tables["signal, as graded here"].values()) == 4  # noise: no lead shows a QRS
    assert counts.tables["signal, as graded here"][MOST_POOR, "train"] == 2


def test_windows_of_one_patient_are_one_case_for_the_tier(data: Path, vocabulary: tuple[Statement, ...]) -> None:
    index = data / "index.parquet"
    rows = [r | {"patient": "p", "fold": 1, "positive": ["SR"], "unknown": []} for r in pq.read_table(index).to_pylist()]

    def tier(windows: tuple[int | None, int | None]) -> str:
        each = [r | {"window": window} for r in rows[:1] * 20 for window in windows]
        pq.write_table(pa.Table.from_pylist(each, schema=pq.read_schema(index)), index)
        return count(data, json.loads((data / "manifest.json").read_text()), vocabulary).tier("SR")

    assert tier((0, 5000)) == "unsupported"
    assert tier((None, 5000)) == "trained"
    assert tier((None, None)) == "evaluated"


def test_it_agrees_with_what_the_loss_sees(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    records = DataSet(prepared, vocabulary, range(1, 11))
    y, known = records.targets
    known = known & records.assessable(records.mask)
    counts = count(prepared, records.manifest, vocabulary)
    for j, s in enumerate(vocabulary):
        assert counts.labels[s.id].true.total() == (y & known)[:, j].sum(), s.id
        assert counts.labels[s.id].false.total() == (~y & known)[:, j].sum(), s.id


class Reader(HTMLParser):
    """Text of the page; fails on a tag that no page of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_says_what_to_look_at_and_fetches_nothing(data: Path, vocabulary: tuple[Statement, ...]) -> None:
    page = write_page(data, vocabulary)
    raw = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(raw)
    text = re.sub(r"\s+", " ", " ".join(reader.text))
    assert len(raw) < 20_000
    assert not re.search(r"<script|<link|<img|https?:|url\(", raw)
    assert "script" not in reader.tags
    assert "cmd <x>" in text  # escaped in the file
    assert "s/gone<b>" in text
    assert "row 7: 'q' & none" in text
    assert "No record in fold 8, which is for calibration." in text
    assert "3 of 7 records are left out, 1 of them: row 7: 'q' & none (all reasons at the end)." in text
    assert "Too large to be in mV, s/d first of 1: is it in uV?" in text
    assert "Stated, but denied of no record, so that nothing can be learned: SR." in text
    assert "neither train nor count: empty" in text
    assert "Declared, but stated of no record: VT." in text


def test_the_command_prepares_a_folder_with_its_table(shared: Path, unpacked: Path, tmp_path: Path) -> None:
    folder = unpacked / "ptbxl" / "records500" / "00000"
    names = sorted(p.stem for p in folder.glob("*.hea"))[:6]
    table = tmp_path / "mine.csv"
    table.write_text(
        "record,labels,patient\n" + "".join(f"{n},{'SR' if i % 2 else 'AFIB'},p{i}\n" for i, n in enumerate(names))
    )
    out = tmp_path / "data"
    done = CliRunner().invoke(app, ["prepare", str(folder), "--labels", str(table), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "6 records" in done.output
    skipped = len(list(folder.glob("*.hea"))) - 6
    assert re.search(rf"left out +{skipped}: no row in mine\.csv  \(\S+, \.\.\.\)\n", done.output)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["positives"] == {"AFIB": 3, "SR": 3}
    assert {e["reason"] for e in manifest["skipped"]} == {"no row in mine.csv"}
    assert "no row in mine.csv" in (out / "statistics.html").read_text()
    inside = tmp_path / "clinic"
    inside.mkdir()
    for path in folder.glob(f"{names[0]}.*"):
        (inside / path.name).write_bytes(path.read_bytes())
    (inside / "my.csv").write_text(f"record,labels\n{names[0]},SR\n")  # named from the folder, not from where we stand
    named = CliRunner().invoke(app, ["prepare", str(inside), "--labels", "my.csv", "--out", str(tmp_path / "d")])
    assert named.exit_code == 0, named.output
    gone = CliRunner().invoke(app, ["prepare", str(inside), "--labels", "your.csv", "--out", str(tmp_path / "e")])
    assert gone.exit_code == 2
    assert f"--labels your.csv: no such file, neither here nor in {inside}" in gone.output.replace("\n", "")
    late = CliRunner().invoke(app, ["prepare", str(inside), "--labels", "your.csv", "--out", str(out)])
    assert f"{out} is not empty; give a new directory" in late.output.replace("\n", "")  # before anything is read
    two = CliRunner().invoke(app, ["prepare", str(folder), str(unpacked), "--labels", str(table), "--out", str(tmp_path / "b")])
    assert two.exit_code == 2
    assert "speaks of one folder, 2 are given" in two.output
    step = ["prepare", str(shared / "ecg" / "long" / "af"), "--window-step", "3", "--out", str(tmp_path / "c")]
    assert "windows every 3 s would overlap" in CliRunner().invoke(app, step).output
