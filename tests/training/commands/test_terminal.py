"""What `evaluate` prints for people."""

from __future__ import annotations

from typing import Any

import pytest

from training.commands.terminal import show_metrics


def test_false_positives_of_long_recordings_are_printed_the_most_first(capsys: pytest.CaptureFixture[str]) -> None:
    entry: dict[str, Any] = {"labels": 0, "per_label": {}, "macro_auroc": None, "macro_auroc_interval": None}
    entry |= {"macro_auprc": None, "top1": None, "top5": None}
    told = {"folds": [9], "records": 7485, "patients": 43, "lead_sets": {"12": entry}}
    show_metrics(told)
    shown = capsys.readouterr().out
    assert "said wrongly" not in shown
    assert any(line.replace("│", " ").split() == ["12", "0", *"------"] for line in shown.splitlines())  # None is a dash
    each = {"PVC": {"per_hour": 15.12, "per_hour_interval": [4.0, 28.0], "hours": 14.9, "patients": 38}}
    each["AFIB"] = {"per_hour": 38.78, "per_hour_interval": [13.8, 67.0], "hours": 16.1, "patients": 41}
    entry["false_positives"] = {"hours": 20.8, "patients": 43, "per_label": each}
    show_metrics(told)
    shown = capsys.readouterr().out
    assert "20.8 h of 43 patients" in shown
    assert [line.split()[1:8:2] for line in shown.splitlines() if "AFIB" in line or "PVC" in line] == [
        ["AFIB", "38.8", "13.8-67.0", "16.1"],
        ["PVC", "15.1", "4.0-28.0", "14.9"],
    ]


def test_long_recordings_are_printed_with_what_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    entry: dict[str, Any] = {"labels": 0, "per_label": {}, "macro_auroc": None, "macro_auroc_interval": None}
    entry |= {"macro_auprc": None, "top1": None, "top5": None}
    few: dict[str, Any] = {"windows": 12, "recordings": 2, "patients": 2, "sensitivity": 0.5, "said_wrongly": None}
    few |= {
        "few_patients_auroc": None,
        "few_patients_auroc_interval": None,
        "within_recordings": 0,
        "within_auroc_median": None,
    }
    more = few | {"windows": 987, "said_wrongly": 0.031, "few_patients_auroc": 0.912, "within_recordings": 7}
    more |= {"few_patients_auroc_interval": [0.701, 0.988], "within_auroc_median": 0.951}
    entry["recordings"] = {"recordings": 52, "patients": 43, "windows": 7485, "per_label": {"SBRAD": few, "AFIB": more}}
    entry["recordings"] |= {"unsupported": {"JRHY": 25, "VFL": 14}, "not_shown": {"CLBBB": 9}}
    show_metrics({"folds": [9], "records": 7485, "patients": 43, "lead_sets": {"12": entry}})
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "52 long recordings of 43 patients, 7485 windows" in shown
    assert "AFIB 987 2 0.912 0.701-0.988 0.951 (7) 0.500 0.031 SBRAD 12 2 - - - (0) 0.500 -" in shown
    assert "has no probability with a threshold (windows): JRHY 25, VFL 14" in shown
    assert "do not show it (windows): CLBBB 9" in shown
