"""Each record is graded by its own leads: half of them good, or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from encoders.preprocess import calibrate, prepare
from encoders.recordings import Recording, read_recording
from training.data.grades import ALL_GOOD, MOST_POOR, SOME_POOR, grade


def graded(samples: NDArray[np.int16], recording: Recording) -> str:
    calibrated = calibrate(samples, recording.layout)
    return grade(calibrated, prepare(calibrated, recording.layout), recording.layout)


@pytest.mark.parametrize(("flat", "expected"), [(0, ALL_GOOD), (1, SOME_POOR), (6, SOME_POOR), (7, MOST_POOR)])
def test_leads_that_are_off_lower_the_grade(unpacked: Path, flat: int, expected: str) -> None:
    recording = read_recording(unpacked / "ptbxl/records500/00000/00001_hr")
    samples = recording.samples.copy()
    samples[12 - flat :] = 7
    assert graded(samples, recording) == expected


def test_a_lead_alone_is_good_or_most_are_poor(unpacked: Path) -> None:
    recording = read_recording(unpacked / "ptbxl/records500/00000/00001_hr")
    layout = replace(recording.layout, leads=("I",), gain=recording.layout.gain[:1], baseline=recording.layout.baseline[:1])
    alone = replace(recording, samples=recording.samples[:1], layout=layout)
    assert graded(alone.samples, alone) == ALL_GOOD
    drift = (4 * layout.gain[0] * np.linspace(0, 1, alone.samples.shape[1])).astype(np.int16)  # 4 mV in 10 s
    assert graded(alone.samples + drift, alone) == MOST_POOR


def test_every_prepared_record_has_a_grade(prepared: Path) -> None:
    rows = pq.read_table(prepared / "index.parquet", columns=["signal_grade", "quality"]).to_pylist()
    grades = Counter(row["signal_grade"] for row in rows)
    assert set(grades) == {ALL_GOOD, SOME_POOR, MOST_POOR}
    assert grades[ALL_GOOD] > 0.8 * len(rows)  # PTB-XL and the Challenge are clean
    assert {row["quality"] for row in rows} == {None}
