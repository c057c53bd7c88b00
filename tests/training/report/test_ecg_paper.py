"""Where a sample of the prepared window lies on the paper, and what the paper says of leads that are not there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np

from encoders.signal import LEADS, lead_bits
from training.report.ecg_paper import ecg_paper

ALL = lead_bits(LEADS)
LEFT, UNIT = 15, 4  # mm before the first sample, SVG units a mm


def drawn(mask: int = ALL, derived: int = 0, n_valid: int = 5000) -> tuple[list[list[tuple[float, float]]], str]:
    """Traces as points, and the text. The signal: 0, but 1 SD at sample 500 of I, -2 SD at sample 2000 of aVF."""
    x = np.zeros((12, 5000), dtype=np.float32)
    x[0, 500], x[5, 2000] = 1, -2
    picture = ecg_paper(x, mask, derived, n_valid, "k")
    root = ET.fromstring(picture)  # noqa: S314
    traces = [
        [(float(a), float(b)) for a, b in (p.split(",") for p in e.get("points", "").split())] for e in root.iter("polyline")
    ]
    return traces, " | ".join(t.text or "" for t in root.iter("text"))


def test_a_second_is_25_mm_and_a_standard_deviation_3_mm() -> None:
    traces, _ = drawn()
    assert len(traces) == 13  # 12 leads of 2.5 s and lead II of 10 s
    rows = [trace[0][1] for trace in traces]
    assert rows[0] == rows[3] == rows[6]  # I, aVR, V1 in one row
    assert rows[1] - rows[0] == rows[12] - rows[2] == 25 * UNIT
    one = dict(traces[0])
    assert one[(LEFT + 25) * UNIT] == rows[0] - 3 * UNIT
    assert sorted(one.values())[1] == rows[0]  # nowhere else
    foot = dict(traces[5])
    assert foot[(LEFT + 100) * UNIT] == rows[5] + 6 * UNIT


def test_leads_follow_each_other_in_time_above_one_of_ten_seconds() -> None:
    traces, text = drawn()
    for k, trace in enumerate(traces[:12]):
        assert trace[0][0] == (LEFT + k // 3 * 62.5) * UNIT
        assert trace[-1][0] == round((LEFT + (k // 3 + 1) * 62.5 - 0.1) * UNIT, 1)  # 250 Hz: the last lies 4 ms before the end
    assert (traces[12][0][0], traces[12][-1][0]) == (LEFT * UNIT, round((LEFT + 250 - 0.1) * UNIT, 1))
    assert "heights are not mV" in text
    assert "each lead scaled by its own SD" in text


def test_padding_is_not_drawn() -> None:
    traces, _ = drawn(n_valid=3000)
    assert [len(t) for t in traces] == [625] * 3 + [625] * 3 + [250] * 3 + [0] * 3 + [1500]


def test_few_leads_are_rows_of_ten_seconds() -> None:
    traces, text = drawn(lead_bits(("I",)))
    assert [len(t) for t in traces] == [2500]
    assert "II" not in text.split(" | ")
    traces, _ = drawn(lead_bits(("I", "II", "V5")))
    assert [len(t) for t in traces] == [2500] * 3
    assert len({t[0][1] for t in traces}) == 3


def test_what_was_not_recorded_is_said() -> None:
    limb = lead_bits(LEADS[:6])
    traces, text = drawn(limb, derived=lead_bits(LEADS[2:6]))
    assert len(traces) == 7
    assert "III derived" in text
    assert re.search(r"V6 not recorded", text)
    assert "II derived" not in text.split(" | ")
    traces, text = drawn(lead_bits(("I", "V1", "V2", "V3")))
    assert len(traces) == 5
    assert text.split(" | ").count("I") == 4  # halo and name, above and as the strip: no lead II to show


def test_no_lead_is_empty_paper() -> None:
    assert drawn(0)[0] == []
