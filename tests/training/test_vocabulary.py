"""Codes map by scheme and code, and labels.csv holds together."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.__main__ import app
from training.vocabulary import LABELS_CSV, Statement, VocabularyError, by_code, read_vocabulary, select


def test_the_vocabulary_is_whole(vocabulary: tuple[Statement, ...]) -> None:
    assert len(vocabulary) == 143
    assert len(select(vocabulary, "core98")) == 98
    assert {s.leads_needed for s in vocabulary} == {"any", "limb", "V1|V2", "12"}
    assert all(s.name_en and s.name_ja for s in vocabulary)
    assert [s.order for s in vocabulary] == list(range(143))


def test_the_same_letters_in_two_schemes_are_two_things(vocabulary: tuple[Statement, ...]) -> None:
    """SCP `AMI` is anterior infarction; acute infarction, which the Challenge abbreviates AMI, is SNOMED 57054005."""
    codes = by_code(vocabulary)
    assert codes["scp", "AMI"] == "MI_ANT"
    assert codes["snomed_ct", "57054005"] == "AMI_AC"
    assert ("snomed_ct", "AMI") not in codes
    assert codes["scp", "IMI"] == "MI_INF"
    assert codes["snomed_ct", "54329005"] == "MI_ANT"


def test_several_codes_of_one_label(vocabulary: tuple[Statement, ...]) -> None:
    codes = by_code(vocabulary)
    assert {codes["scp", c] for c in ("TAB_", "NDT", "NT_")} == {"TAB"}
    assert {codes["snomed_ct", c] for c in ("713427006", "59118001")} == {"CRBBB"}


def test_select(vocabulary: tuple[Statement, ...]) -> None:
    assert [s.id for s in select(vocabulary, "AFIB, NORM")] == ["NORM", "AFIB"]  # file order
    assert len(select(vocabulary, "all")) == 143
    for bad in ("AFIB,XYZ", ""):
        with pytest.raises(VocabularyError, match=r"XYZ|''"):
            select(vocabulary, bad)


def test_a_code_for_two_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    text = LABELS_CSV.read_text(encoding="utf-8")
    path.write_text(
        text.replace("sinus bradycardia,SB,1,18918,637,SBRAD", "sinus bradycardia,SB,1,18918,637,SR"), encoding="utf-8"
    )
    with pytest.raises(VocabularyError, match="scp code SR names both SR and SBRAD"):
        read_vocabulary(path)
    path.write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    with pytest.raises(VocabularyError, match="an id stands twice among 144 rows"):
        read_vocabulary(path)


def test_the_command_lists_ids_names_and_codes() -> None:
    done = CliRunner().invoke(app, ["labels", "--list"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 143
    (afib,) = (line.split("\t") for line in lines if line.startswith("AFIB\t"))
    assert afib[:3] == ["AFIB", "心房細動", "Atrial fibrillation"]
    assert {"scp:AFIB", "snomed_ct:164889003"} <= set(afib[3].split(";"))
    assert CliRunner().invoke(app, ["labels", "--list", "--labels", "core98"]).output.count("\n") == 98
    without = CliRunner().invoke(app, ["labels"])
    assert without.exit_code == 2
    assert "--out" in without.output
