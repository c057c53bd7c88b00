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
    assert "said wrongly" not in capsys.readouterr().out
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
