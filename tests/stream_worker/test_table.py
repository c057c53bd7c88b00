"""What people see of findings: nothing that matters is cut off in a narrow terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from stream_worker.table import FindingsTable, line

LABELS = (("心房細動", "Atrial fibrillation", "urgent", 0.97), ("左室肥大", "Left ventricular hypertrophy", "routine", 0.41))


def finding(stream: str = "s", kind: str = "scored", **more: Any) -> dict[str, Any]:
    labels = [
        {"name_ja": ja, "name_en": en, "urgency": urgency, "probability": p, "positive": True} for ja, en, urgency, p in LABELS
    ]
    layout = {"leads": ["I", "II", "V1"], "fs_mhz": 500_000}
    said = {"labels": labels} if kind == "scored" else {}
    return (
        {"stream": stream, "kind": kind, "first_sample": 60_000, "layout": layout, "quality": {"heart_rate": 72.4}}
        | said
        | more
    )


def printed(what: Any, width: int) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(what, soft_wrap=not isinstance(what, FindingsTable))
    return capture.get()


def test_at_80_columns_every_probability_is_whole() -> None:
    table = FindingsTable("demo")
    table.add(finding("bedside-monitor-12"))
    table.add(finding("other", "unscorable", reason="gap"))
    told = printed(table, 80)
    assert all(len(row) <= 80 for row in told.splitlines())
    for ja, *_, p in LABELS:
        (row,) = (row for row in told.splitlines() if ja in row)
        assert f" {p:.2f} " in row
    assert "unscorable: gap" in told


def test_a_line_says_name_and_probability() -> None:
    assert printed(line(finding()), 200).rstrip() == (
        "s              120 s   72 bpm  ● 心房細動 Atrial fibrillation 0.97, ● 左室肥大 Left ventricular hypertrophy 0.41"
    )
    assert printed(line(finding(kind="unscorable", reason="gap")), 200).rstrip().endswith("bpm  unscorable: gap")
    assert "no label can be assessed" in printed(line(finding(labels=[])), 200)
