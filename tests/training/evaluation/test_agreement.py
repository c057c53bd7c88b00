"""Windows that overlap beside windows that do not, by small cases worked out by hand and on a real recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from typer.testing import CliRunner

from encoders.preprocess import preprocess
from encoders.recordings import RecordingError, read_recording
from encoders.signal import LEADS
from training.__main__ import app
from training.evaluation.agreement import AgreementError, agreement, compare_windows, places
from training.evaluation.evaluate import Evidence
from training.evaluation.scorers import open_artifact
from training.vocabulary import Statement, select

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "model"


def write(folder: Path, name: str, seconds: float, leads: tuple[str, ...] = ("V1",), gain: str = "1000(0)/mV") -> None:
    """A WFDB record at 100 Hz whose every window moves."""
    counts = np.random.default_rng(len(name)).normal(0, 300, (round(seconds * 100), len(leads)))
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.dat").write_bytes(counts.astype("<i2").tobytes())
    lines = [f"{name} {len(leads)} 100 {len(counts)}", *(f"{name}.dat 16 {gain} 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


def test_places_are_all_or_threes_from_beginning_to_end() -> None:
    assert places(5, 5) == [0, 1, 2, 3, 4]
    assert places(100, 6) == [0, 1, 2, 97, 98, 99]
    assert places(100, 9) == [0, 1, 2, 48, 49, 50, 97, 98, 99]  # 48.5 is rounded to even
    assert len(places(8, 7)) <= 7
    assert places(3, 3) == [0, 1, 2]


def test_pairs_by_hand() -> None:
    at = np.array([0, 1, 2, 3, 7, 8])  # threes begin at 0 and 1; 7 and 8 have no third
    p = np.array([[0.9, 0.1], [0.6, 0.2], [0.2, 0.1], [0.8, 0.1], [0.0, 1.0], [1.0, 0.0]])
    there = np.ones((6, 2), dtype=bool)
    overlapping, apart = compare_windows(at, p, there, np.array([0.5, np.nan]))
    # label 0: 0-1 and 1-2: said, said; said, not. 0-2 and 1-3: said, not; said, said
    np.testing.assert_allclose(overlapping[:, 0], [2, 0.3 + 0.4, 2, 1, 2, 1])
    np.testing.assert_allclose(apart[:, 0], [2, 0.7 + 0.2, 2, 1, 2, 1])
    np.testing.assert_allclose(overlapping[:, 1], [2, 0.1 + 0.1, 0, 0, 0, 0])  # no threshold: nothing is decided
    there[0, 0] = False  # the leads of the first window do not show it
    np.testing.assert_allclose(compare_windows(at, p, there, np.array([0.5, np.nan]))[0][:, 0], [1, 0.4, 1, 0, 1, 0])
    assert not compare_windows(at[4:], p[4:], there[4:], np.array([0.5, 0.5])).any()


@pytest.fixture
def labels(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Shown by any lead, by V1 or V2, by twelve leads in mV, and one without evidence."""
    return select(vocabulary, "AFIB,CRBBB,LVOLT,SR")


def planted(*rows: list[float]) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities by construction, window after window."""
    waiting = list(rows)
    return lambda x: np.array([logit(waiting.pop(0)) for _ in x], dtype=np.float32)


def evidence(labels: tuple[Statement, ...]) -> Evidence:
    """All have a probability, SR none."""
    n = len(labels)
    some = np.array([s.id != "SR" for s in labels])
    return Evidence(some, np.full(n, 0.1), np.where(some[:, None], [1.0, 0.0], np.nan), np.where(some, 0.5, np.nan))


def test_figures_of_two_recordings_by_hand(tmp_path: Path, labels: tuple[Statement, ...]) -> None:
    write(tmp_path, "a", 25)  # windows at 0, 5, 10, 15 s
    write(tmp_path, "b", 20)  # at 0, 5, 10 s
    write(tmp_path, "short", 19.9)
    (tmp_path / "torn.hea").write_text("torn 1 100 3000\ntorn.dat 16 1000(0)/mV 16 0 0 0 0 II\n")
    column = [s.id for s in labels].index("AFIB")
    afib = (0.9, 0.8, 0.6, 0.2, 0.4, 0.6, 0.1)
    rows = [[p if j == column else 0.3 for j in range(4)] for p in afib]
    done: list[int] = []
    out = agreement(planted(*rows), labels, evidence(labels), tmp_path, 60, done.append)
    assert (out["recordings"], out["windows"], out["not_scored"], sum(done)) == (2, 7, 0, 4)
    assert [entry["record"] for entry in out["skipped"]] == ["short", "torn"]
    assert out["skipped"][0]["reason"] == "shorter than 20 s"
    assert str(tmp_path) not in json.dumps(out)
    assert set(out["per_label"]) == {"AFIB", "CRBBB"}  # V1 alone does not show LVOLT; SR has no evidence
    m = out["per_label"]["AFIB"]
    # overlapping: a .9-.8 and .8-.6, b .4-.6; apart: a .9-.6 and .8-.2, b .4-.1
    assert m["overlapping"]["difference"] == pytest.approx((0.1 + 0.2 + 0.2) / 3, abs=1e-6)
    assert m["apart"]["difference"] == pytest.approx((0.3 + 0.6 + 0.3) / 3, abs=1e-6)
    assert (m["overlapping"]["equal"], m["apart"]["equal"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (m["overlapping"]["said"], m["overlapping"]["said_by_both"]) == (3, pytest.approx(2 / 3))
    assert (m["apart"]["said"], m["apart"]["said_by_both"]) == (2, pytest.approx(1 / 2))
    assert m["overlapping"]["difference_interval"] == pytest.approx([0.15, 0.2], abs=1e-6)  # a alone, b alone
    assert (out["overlapping"]["pairs"], out["overlapping"]["equal"]) == (6, pytest.approx(5 / 6))  # CRBBB never changes
    assert out["overlapping"]["difference"] == pytest.approx(0.5 / 6, abs=1e-6)


def test_what_leads_or_unit_do_not_show_is_not_compared(tmp_path: Path, labels: tuple[Statement, ...]) -> None:
    def compared(leads: tuple[str, ...], gain: str = "1000(0)/mV") -> set[str]:
        write(tmp_path, "a", 20, leads, gain)
        return set(agreement(planted(*[[0.3] * 4] * 3), labels, evidence(labels), tmp_path, 60)["per_label"])

    assert compared(("II",)) == {"AFIB"}
    assert compared(LEADS) == {"AFIB", "CRBBB", "LVOLT"}
    assert compared(LEADS, "0") == {"AFIB", "CRBBB"}  # no gain: the amplitude is lost


def test_a_run_has_probabilities_by_its_logits_and_decides_nothing(tmp_path: Path, labels: tuple[Statement, ...]) -> None:
    write(tmp_path, "a", 20)
    run = Evidence.uncalibrated(np.ones(4, dtype=bool), np.full(4, np.nan))
    out = agreement(planted([0.3] * 4, [0.5] * 4, [0.4] * 4), labels, run, tmp_path, 60)
    assert out["overlapping"]["difference"] == pytest.approx(0.2, abs=1e-6)
    assert (out["overlapping"]["equal"], out["overlapping"]["said_by_both"], out["overlapping"]["said"]) == (None, None, 0)


def test_windows_that_cannot_be_scored_take_their_pairs_with_them(tmp_path: Path, labels: tuple[Statement, ...]) -> None:
    write(tmp_path, "a", 35)  # six windows, the last at 25 s
    counts = np.fromfile(tmp_path / "a.dat", dtype="<i2")
    counts[2000:3000] = 5  # flat: the window at 20 s
    counts.tofile(tmp_path / "a.dat")
    out = agreement(planted(*[[0.3] * 4] * 5), labels, evidence(labels), tmp_path, 60)
    assert (out["windows"], out["not_scored"], out["overlapping"]["pairs"]) == (5, 1, 2 * 2)  # threes at 0 and 5 s, two labels


def test_bad_input_names_the_remedy(tmp_path: Path, labels: tuple[Statement, ...]) -> None:
    write(tmp_path / "x", "a", 12)
    with pytest.raises(
        AgreementError, match=r"x: no recording gives windows to compare \(a: shorter than 20 s\); give recordi"
    ):
        agreement(planted(), labels, evidence(labels), tmp_path / "x", 60)
    with pytest.raises(AgreementError, match="2 windows a recording: 3 or more"):
        agreement(planted(), labels, evidence(labels), tmp_path / "x", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="no recording in this folder"):
        agreement(planted(), labels, evidence(labels), tmp_path / "empty", 60)


def test_the_shipped_artifact_on_a_real_recording(mitdb: Path) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", str(SHIPPED), "--agreement", str(mitdb / "100.hea"), "--windows", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert (out["recordings"], out["windows"], out["skipped"]) == (1, 3, [])
    score, statements, known = open_artifact(SHIPPED)
    whole = read_recording(mitdb / "100")
    x = np.stack([preprocess(whole.samples[:, at : at + 3600], whole.layout).x for at in (0, 1800, 3600)])
    a, b = known.platt.T
    p = expit(a * score(x) + b)
    for label, m in out["per_label"].items():
        j = [s.id for s in statements].index(label)
        assert m["overlapping"]["difference"] == pytest.approx(abs(p[0, j] - p[1, j]), abs=1e-5)
        assert m["apart"]["difference"] == pytest.approx(abs(p[0, j] - p[2, j]), abs=1e-5)
    assert {"SR", "PVC", "AFIB"} <= set(out["per_label"])
    assert "CRBBB" not in out["per_label"]  # leads II and V5


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_the_command_says_what_is_missing(mitdb: Path, tmp_path: Path) -> None:
    assert "--data is needed" in invoke(SHIPPED)
    assert "no such file, folder or WFDB record" in invoke(SHIPPED, "--agreement", mitdb / "none")
    assert "give one of them" in invoke(SHIPPED, "--agreement", mitdb, "--zero-shot")
    (tmp_path / "checkpoint.json").write_text("{}")
    assert "is a run: give --data and --text too" in invoke(tmp_path, "--agreement", mitdb)
