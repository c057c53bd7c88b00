"""The artifact in the checkout is whole, small, tells where it comes from, and knows rhythm when it sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from encoders.artifact import Artifact
from encoders.preprocess import preprocess, stack
from encoders.recordings import read_recording

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "model"
LIMIT = 10e6  # bytes; each replacement stays in history


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.load(MODEL)  # exactly one, or it would not load


def test_it_is_whole_and_small(artifact: Artifact) -> None:
    assert artifact.directory.name == artifact.digest[:16]
    assert sum(p.stat().st_size for p in artifact.directory.iterdir()) < LIMIT
    assert {p.name for p in artifact.directory.iterdir()} == {"manifest.json", *artifact.manifest.files}
    with artifact.open(threads=1) as encoder:
        assert encoder.dim == 256


def test_it_says_how_it_was_made_and_how_good_it_is(artifact: Artifact) -> None:
    metrics = json.loads(artifact.read("metrics.json"))
    report = metrics["report"]
    assert report["folds"] == [9]
    assert not {9, 10} & {*metrics["folds"]["train"], *metrics["folds"]["calibration"]}
    assert report["lead_sets"]["12"]["macro_auroc"] > 0.9
    card = artifact.read("MODEL_CARD.md").decode()
    for step in ("prepare", "labels", "crossval", "export"):
        assert f"ecg-train {step} " in card
    assert "Not a medical device" in card
    assert f"{report['lead_sets']['12']['macro_auroc']:.3f}" in card


def test_labels_without_evidence_have_no_probability(artifact: Artifact) -> None:
    bank = artifact.bank()
    assert len(bank.labels) == 98
    e = np.eye(1, bank.dim, dtype=np.float32)
    for label, p in zip(bank.labels, bank.probabilities(e)[0], strict=True):
        assert (label.positives < 10) == (label.tier == "unsupported") == bool(np.isnan(p))
        assert label.threshold is None or label.tier != "unsupported"


@pytest.mark.parametrize(("name", "expected", "absent"), [("100", "SR", "AFIB"), ("201", "AFIB", "SR")])
def test_two_lead_recordings_it_never_saw(artifact: Artifact, mitdb: Path, name: str, expected: str, absent: str) -> None:
    """MIT-BIH 100 is in sinus rhythm; the first ten minutes of 201 are atrial fibrillation."""
    recording = read_recording(mitdb / name)
    n = recording.layout.window
    windows = [preprocess(recording.samples[:, i : i + n], recording.layout) for i in range(0, 20 * n, n)]
    bank = artifact.bank()
    ids = [label.id for label in bank.labels]
    with artifact.open(threads=1) as encoder:
        p = bank.probabilities(encoder.encode(stack(windows))).mean(axis=0)
    assert p[ids.index(expected)] > 0.5 > 0.3 > p[ids.index(absent)]
