"""A deployment's own prevalence: numbers by hand, what stays as it is, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.artifact import Artifact
from encoders.bank import LabelBank
from training.evaluation.prevalence import PrevalenceError, own_bank, own_of, read_prevalence

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "model"
TRAINING = {"AFIB": 0.1, "SR": 0.5, "VF": 0.001, "NORM": 1.0}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """The shipped one with a manifest that tells some training prevalences."""
    out = Artifact.load(SHIPPED)
    out = replace(out, manifest=out.manifest.model_copy(deep=True))
    out.manifest.training.data["prevalence"] = TRAINING
    return out


def place(bank: LabelBank, id: str) -> int:
    return [label.id for label in bank.labels].index(id)


def at(bank: LabelBank, id: str, p: float) -> np.ndarray:
    """Logits (1, L) at which the bank says p of this label."""
    label = bank.labels[place(bank, id)]
    assert label.calibration is not None
    a, b = label.calibration
    return np.full((1, len(bank.labels)), (np.log(p / (1 - p)) - b) / a, dtype=np.float32)


def test_a_half_among_a_tenth_is_a_twelfth_among_a_hundredth(artifact: Artifact) -> None:
    """odds 1 * (0.01 / 0.99) / (0.1 / 0.9) = 1 / 11, so 1 / 12."""
    bank = artifact.bank()
    own = own_bank(artifact, {"AFIB": 0.01})
    logits, j = at(bank, "AFIB", 0.5), place(bank, "AFIB")
    assert bank.calibrated(logits)[0, j] == pytest.approx(0.5, abs=1e-6)
    assert own.calibrated(logits)[0, j] == pytest.approx(1 / 12, abs=1e-6)
    assert own_bank(artifact, {"AFIB": 0.1}).calibrated(logits)[0, j] == pytest.approx(0.5, abs=1e-6)
    more = own_bank(artifact, {"AFIB": 0.5})  # odds 1 * 1 / (1 / 9)
    assert more.calibrated(logits)[0, j] == pytest.approx(0.9, abs=1e-6)
    others = np.arange(len(bank.labels)) != j
    np.testing.assert_array_equal(own.calibrated(logits)[0, others], bank.calibrated(logits)[0, others])


def test_what_is_positive_stays_positive(artifact: Artifact) -> None:
    bank = artifact.bank()
    own = own_bank(artifact, {"AFIB": 0.001, "SR": 0.9})
    logits = np.random.default_rng(0).normal(0, 4, (5000, len(bank.labels))).astype(np.float32)
    for id in ("AFIB", "SR"):
        j = place(bank, id)
        before, after = bank.labels[j].threshold, own.labels[j].threshold
        assert before is not None
        assert after is not None
        assert (after < before) == (id == "AFIB")
        said, says = bank.calibrated(logits)[:, j] >= before, own.calibrated(logits)[:, j] >= after
        assert 100 < said.sum() < 4900
        assert (said == says).all()
    before = bank.labels[place(bank, "AFIB")].threshold
    assert before is not None
    odds = before / (1 - before) * (0.001 / 0.999) / (0.1 / 0.9)
    assert own.labels[place(bank, "AFIB")].threshold == pytest.approx(odds / (1 + odds))


def test_the_bank_says_so_and_has_another_name(artifact: Artifact) -> None:
    bank, own = artifact.bank(), own_bank(artifact, {"AFIB": 0.01, "SR": 0.9})
    assert own.digest != bank.digest
    own.check(artifact.encoder_digest, bank.dim)
    again = LabelBank.from_bytes(own.to_bytes(), own.digest)
    assert again.prevalence is not None
    assert {id: (s.training, s.own) for id, s in again.prevalence.labels.items()} == {"AFIB": (0.1, 0.01), "SR": (0.5, 0.9)}
    assert own_of(again) == {"AFIB": 0.01, "SR": 0.9}
    assert own_of(bank) == own_of(None) == {}
    assert own_bank(artifact, {}).digest == bank.digest


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("VF", r"^VF: .* gives it no probability for want of evidence \(\d training positives\), .*take it out of the table"),
        ("XYZ", "^XYZ: no label of"),
        ("CLBBB", "^CLBBB: the manifest of .* does not tell its training prevalence; export again"),
        ("NORM", "^NORM: 1 of the training records have it"),
    ],
)
def test_a_label_that_cannot_be_moved_is_named(artifact: Artifact, id: str, message: str) -> None:
    with pytest.raises(PrevalenceError, match=message):
        own_bank(artifact, {"AFIB": 0.01, id: 0.2})


def test_the_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "here.csv"
    path.write_text("note,label,prevalence\nclinic, AFIB ,0.02\nclinic,SR,.9\n", encoding="utf-8-sig")
    assert read_prevalence(path) == {"AFIB": 0.02, "SR": 0.9}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("label,share\nAFIB,0.1\n", "no column prevalence; the first line must be label,prevalence"),
        ("label,prevalence\n", "no row"),
        ("label,prevalence\nSR,0.5\nAFIB,1.5\n", r"row 3, AFIB: 1\.5 is not between 0 and 1; write 0\.02 for 2 %"),
        ("label,prevalence\nAFIB,0\n", "row 2, AFIB: 0 is not between 0 and 1"),
        ("label,prevalence\nAFIB,nan\n", "row 2, AFIB: nan is not between 0 and 1"),
        ("label,prevalence\nAFIB,2 %\n", "row 2, AFIB: '2 %' is no number"),
        ("label,prevalence\nAFIB\n", "row 2, AFIB: '' is no number"),
        ("label,prevalence\nAFIB,0.1\nAFIB,0.2\n", "row 3 repeats AFIB"),
        (b"label,prevalence\n\xff,0.1\n", "a CSV in UTF-8"),
    ],
)
def test_a_table_that_says_nothing_is_refused_by_row(tmp_path: Path, body: str | bytes, message: str) -> None:
    path = tmp_path / "here.csv"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(PrevalenceError, match=rf"here\.csv: .*{message}"):
        read_prevalence(path)
    with pytest.raises(PrevalenceError, match="nowhere"):
        read_prevalence(tmp_path / "nowhere.csv")
