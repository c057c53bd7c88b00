"""The gate: each rule refuses what it is for; whole: the shipped artifact against changed copies of itself, and Redis."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import redis as redis_client
from click.testing import Result
from typer.testing import CliRunner

from encoders.artifact import Artifact
from encoders.bank import LabelBank
from training.__main__ import app
from training.evaluation.prevalence import own_bank
from training.release.promote import PromoteError, Scores, check_folds, compare, default_protected
from training.release.publish import ACTIVE_KEY, PublishError, active_bank, publish

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "model"
N = 210
PATIENTS = [f"p{i}" for i in range(N)]
ALL = np.ones((N, 1), dtype=bool)


def truth(*positives: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N, L): the first so many records of each label are positive."""
    return np.stack([np.arange(N) < n for n in positives], axis=1)


def perfect(y: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits (N, L): positives at 1000, negatives 0 to N, all distinct."""
    return np.where(y, 1000, 0).astype(np.float32) + np.arange(N, dtype=np.float32)[:, None]


def scores(
    logits: np.ndarray[Any, np.dtype[np.float32]], served: list[bool] | None = None, threshold: float | None = 300
) -> Scores:
    """threshold: on the logits, of all labels; None: no label has one."""
    gives = np.array(served if served is not None else [True] * logits.shape[1])
    above = logits >= (np.inf if threshold is None else threshold)
    return Scores(logits, gives, above, gives & (threshold is not None))


def judged(
    candidate: Scores, running: Scores, y: np.ndarray[Any, np.dtype[np.bool_]], protected: str = "A", accepted: str = ""
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    ids = list("ABCDEFGH")[: y.shape[1]]
    decision = compare(candidate, running, y, np.ones_like(y), PATIENTS, ids, set(protected), set(accepted))
    json.dumps(decision, allow_nan=False)
    return decision, {label["id"]: label for label in decision["labels"]}


def one_positive_lower(y: np.ndarray[Any, np.dtype[np.bool_]], label: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The first positive falls below three quarters of the 200 negatives of a label with 10 positives."""
    out = perfect(y)
    out[0, label] = 59.5  # negatives are records 10 to 209 with scores 10 to 209: 50 of 200 lie below
    return out


def test_the_same_scores_are_promoted() -> None:
    y = truth(10, 50)
    decision, labels = judged(scores(perfect(y)), scores(perfect(y)), y)
    assert decision["promoted"]
    assert decision["macro"] == {"labels": 2, "candidate": 1, "running": 1, "difference": 0, "interval": [0, 0]}
    assert {label["state"] for label in labels.values()} == {"same"}
    assert (decision["records"], decision["patients"]) == (N, N)


def test_a_drop_of_a_protected_label_must_be_accepted() -> None:
    y = truth(10, *[50] * 7)
    lower = scores(one_positive_lower(y))
    decision, labels = judged(lower, scores(perfect(y)), y)
    a = labels["A"]
    assert a["difference"] == pytest.approx(-0.75 / 10)  # by hand: 150 of the 2,000 pairs turn round
    assert a["interval"][1] == 0  # a third of the resamples lack the record: the interval holds 0
    assert (decision["promoted"], a["state"]) == (False, "refused")
    assert "A: AUROC falls by 0.0750, more than 0.02; --accept A accepts it" in decision["reasons"]
    macro = decision["macro"]
    assert macro["difference"] == pytest.approx(-0.075 / 8)
    unprotected = judged(lower, scores(perfect(y)), y, protected="B")[1]["A"]
    assert (unprotected["state"], unprotected["protected"]) == ("lower", False)


def test_an_accepted_drop_passes_the_label_and_not_the_macro() -> None:
    y = truth(10, *[50] * 7)
    lower, before = one_positive_lower(y), perfect(y)
    decision, labels = judged(scores(lower), scores(before), y, accepted="A")
    assert labels["A"]["state"] == "accepted"
    assert decision["accepted"] == ["A"]
    assert len(decision["reasons"]) == 1
    assert decision["reasons"][0].startswith("macro AUROC: the interval of the difference begins at -0.0")
    before[:50, 1] = 30  # label B of the running artifact is poor, and the candidate gains there more than it loses in A
    decision, labels = judged(scores(lower), scores(before), y, accepted="A")
    assert (decision["promoted"], labels["B"]["state"]) == (True, "better")


def test_an_interval_below_zero_cannot_be_accepted() -> None:
    y = truth(50, 50)
    poor = perfect(y)
    poor[:50, 0] = np.arange(50) * 4 + 50.5
    decision, labels = judged(scores(poor), scores(perfect(y)), y, accepted="A")
    assert labels["A"]["interval"][1] < 0
    assert (decision["promoted"], labels["A"]["state"]) == (False, "refused")
    assert "A: AUROC is lower, 95 % interval" in decision["reasons"][0]
    assert decision["reasons"][0].endswith("; no option accepts it")


def test_a_small_fall_is_refused_when_its_interval_lies_below_zero() -> None:
    y = truth(10, *[50] * 7)
    slightly = perfect(y)
    slightly[:5, 0] = 203.5  # five of ten positives fall below six of 200 negatives
    decision, labels = judged(scores(slightly), scores(perfect(y)), y, accepted="A")
    assert labels["A"]["difference"] == pytest.approx(-0.5 * 6 / 200)  # less than 0.02
    assert labels["A"]["interval"][1] < 0
    assert (decision["promoted"], labels["A"]["state"], len(decision["reasons"])) == (False, "refused", 1)


def test_many_small_falls_are_refused_by_the_macro() -> None:
    y = truth(*[100] * 8)
    slightly = perfect(y)
    slightly[:100] = 208.5
    decision, labels = judged(scores(slightly), scores(perfect(y)), y, protected="")
    assert {label["state"] for label in labels.values()} <= {"lower", "same"}
    assert [reason[:11] for reason in decision["reasons"]] == ["macro AUROC"]


def test_too_few_positives_are_not_testable_and_never_passed() -> None:
    y = truth(9, 50)
    poor = perfect(y)
    poor[:9, 0] = -1  # below all negatives
    decision, labels = judged(scores(poor), scores(perfect(y)), y)
    assert (labels["A"]["state"], labels["A"]["difference"]) == ("not testable", None)
    assert labels["A"]["why"] == "9 positives and 201 negatives, 10 of each are needed"
    assert decision["not_testable"] == ["A"]
    assert decision["promoted"]
    assert decision["macro"]["labels"] == 1
    decision, _ = judged(scores(poor[:, :1]), scores(perfect(y)[:, :1]), y[:, :1])
    assert decision["reasons"] == [
        "no label could be compared: none is served by both with 10 positives and negatives; compare on more records"
    ]
    assert not decision["promoted"]


def test_windows_of_one_recording_are_one_case() -> None:
    y = truth(20, 20)
    twelve = np.concatenate([np.zeros(11, dtype=np.int64), np.arange(1, N - 10)])  # 11 of 20 positives are of one recording
    poor = perfect(y)
    poor[:20, 0] = -1
    arguments = (scores(poor), scores(perfect(y)), y, np.ones_like(y), PATIENTS, ["A", "B"], ["A"], ())
    assert compare(*arguments, twelve)["labels"][0]["state"] == "refused"  # 1 + 9
    seventeen = np.concatenate([np.zeros(16, dtype=np.int64), np.arange(1, N - 15)])
    label = compare(*arguments, seventeen)["labels"][0]
    assert (label["state"], label["why"]) == ("not testable", "5 positives and 190 negatives, 10 of each are needed")


def test_a_protected_label_must_not_lose_its_probability() -> None:
    y = truth(20, 20, 20, 20)
    without = scores(perfect(y), [False, False, True, False])
    running = scores(perfect(y), [True, True, False, False])
    decision, labels = judged(without, running, y)
    assert {k: v["state"] for k, v in labels.items()} == {"A": "refused", "B": "lost", "C": "new", "D": "not served"}
    assert "A: the candidate gives it no probability, the running artifact does; --accept A accepts it" in decision["reasons"]
    decision, labels = judged(scores(perfect(y), [False, True, True, True]), scores(perfect(y)), y, protected="A", accepted="A")
    assert (decision["promoted"], labels["A"]["state"]) == (True, "accepted")


def test_a_protected_label_must_not_lose_its_threshold() -> None:
    y = truth(20, 9)
    same, silent = scores(perfect(y)), scores(perfect(y), threshold=None)
    decision, labels = judged(silent, same, y, protected="AB")
    assert labels["A"]["difference"] == 0  # by AUROC alone it would pass
    assert (decision["promoted"], labels["A"]["state"], labels["B"]["state"]) == (False, "refused", "refused")
    assert "A: the candidate has no threshold for it and so never calls it positive" in decision["reasons"][0]
    assert judged(silent, same, y, protected="AB", accepted="AB")[0]["promoted"]
    assert judged(silent, same, y, protected="")[1]["A"]["state"] == "lower"
    assert judged(same, silent, y)[0]["promoted"]  # one more threshold is no loss


def test_worse_decisions_at_the_threshold_are_refused_though_the_order_is_the_same() -> None:
    y = truth(20)
    alarming = scores(perfect(y), threshold=109.5)  # by hand: the negatives 110 to 209, 100 of 190, are called positive
    decision, labels = judged(alarming, scores(perfect(y)), y)
    a = labels["A"]
    assert (a["difference"], a["state"], decision["promoted"]) == (0, "refused", False)
    assert (a["decisions"]["candidate"], a["decisions"]["running"]) == ([1.0, pytest.approx(90 / 190)], [1.0, 1.0])
    assert a["decisions"]["difference"] == pytest.approx(-100 / 190)
    assert a["decisions"]["interval"][1] < 0
    assert decision["reasons"] == [
        "A: at its threshold, sensitivity and specificity go from 1.000 to 1.000 and 1.000 to 0.474; --accept A accepts it"
    ]
    assert judged(alarming, scores(perfect(y)), y, accepted="A")[1]["A"]["state"] == "accepted"
    slightly = scores(perfect(y), threshold=206.5)  # 3 of 190: less than 0.02
    assert judged(slightly, scores(perfect(y)), y)[0]["promoted"]


def test_names_that_do_not_exist_are_refused() -> None:
    y = truth(10)
    with pytest.raises(PromoteError, match=r"--accept Z: no label of these artifacts; they have A"):
        judged(scores(perfect(y)), scores(perfect(y)), y, accepted="Z")
    with pytest.raises(PromoteError, match="--protected Q"):
        judged(scores(perfect(y)), scores(perfect(y)), y, protected="Q")


def test_records_of_one_patient_are_drawn_together() -> None:
    y = truth(20)
    logits = perfect(y)
    logits[:10, 0] = 100
    pairs = [f"p{i // 10}" for i in range(N)]  # 21 patients, two of them positive
    known = np.ones_like(y)
    wide = compare(scores(logits), scores(perfect(y)), y, known, pairs, ["A"], ())["labels"][0]["interval"]
    narrow = compare(scores(logits), scores(perfect(y)), y, known, PATIENTS, ["A"], ())["labels"][0]["interval"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


# whole


def changed(
    out: Path,
    bank: Callable[[LabelBank], LabelBank] = lambda b: b,
    encoder: bool = False,
    prevalence: dict[str, float] | None = None,
) -> Path:
    """A copy of the shipped artifact with another bank, an encoder of other bytes that computes the same, or a manifest that
    tells the training prevalence.
    """
    source = Artifact.load(SHIPPED)
    part = Path(shutil.copytree(source.directory, out / "part"))
    made = bank(source.bank())
    if encoder:
        graph = onnx.load(part / "encoder.onnx")
        graph.doc_string = "another"
        onnx.save(graph, part / "encoder.onnx")
        made = replace(made, encoder=hashlib.sha256((part / "encoder.onnx").read_bytes()).hexdigest())
    (part / "labels.bank").write_bytes(made.to_bytes())
    manifest = json.loads((part / "manifest.json").read_text())
    for name in ("labels.bank", "encoder.onnx"):
        body = (part / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    manifest["training"]["data"].pop("prevalence", None)
    if prevalence:
        manifest["training"]["data"]["prevalence"] = prevalence
    raw = json.dumps(manifest).encode()
    (part / "manifest.json").write_bytes(raw)
    final = out / hashlib.sha256(raw).hexdigest()[:16]
    part.rename(final)
    return final


def softer(bank: LabelBank) -> LabelBank:
    """Another bank of the same order within each label: only calibrations differ."""
    labels = [
        x.model_copy(update={"calibration": (0.9 * x.calibration[0], x.calibration[1])} if x.calibration else {})
        for x in bank.labels
    ]
    return replace(bank, labels=tuple(labels))


def shuffled(bank: LabelBank) -> LabelBank:
    """Every label has the row of another."""
    return replace(bank, matrix=np.roll(bank.matrix, 1, axis=0))


@pytest.fixture
def few_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small data set has few of anything in fold 9."""
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 4)


def run(code: int, *arguments: object) -> Result:
    result = CliRunner().invoke(app, ["promote", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.usefixtures("few_suffice")
def test_a_good_candidate_becomes_active(prepared: Path, tmp_path: Path, redis_url: str) -> None:
    candidate, running = changed(tmp_path, softer), Artifact.load(SHIPPED)
    arguments = (candidate, "--against", SHIPPED, "--data", prepared, "--redis", redis_url)
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete(ACTIVE_KEY)
        publish(redis_url, running.bank())
        said = run(0, *arguments, "--dry-run").output
        assert "promoted" in said
        assert client.get(ACTIVE_KEY) == running.bank().digest.encode()
        assert not list(tmp_path.glob("*.json"))
        said = run(0, *arguments).output
        digest = Artifact.load(candidate).bank().digest
        assert client.get(ACTIVE_KEY) == digest.encode()
        assert "The encoder is another" not in said
        told = json.loads((tmp_path / f"{candidate.name}.promotion.json").read_text())
        assert (told["promoted"], told["published"]) == (True, digest)
        assert told["running"]["bank"] == running.bank().digest
        assert set(told["not_testable"]) & {x["id"] for x in told["labels"] if x["protected"]}
        assert "nothing to promote" in run(2, *arguments).stderr
        client.delete(ACTIVE_KEY)


@pytest.mark.usefixtures("few_suffice")
def test_a_poor_candidate_is_refused_and_redis_left_alone(prepared: Path, tmp_path: Path, redis_url: str) -> None:
    candidate = changed(tmp_path, shuffled)
    publish(redis_url, Artifact.load(SHIPPED).bank())
    said = run(1, candidate, "--against", SHIPPED, "--data", prepared, "--redis", redis_url).output
    assert "refused: " in said
    assert "not promoted" in said
    active = active_bank(redis_url)
    assert active is not None
    assert active.digest == Artifact.load(SHIPPED).bank().digest
    told = json.loads((tmp_path / f"{candidate.name}.promotion.json").read_text())
    assert (told["promoted"], told["published"]) == (False, "")
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete(ACTIVE_KEY)


def test_names_are_looked_at_before_the_work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = changed(tmp_path, softer)
    monkeypatch.setattr("training.release.promote.score", lambda *_: pytest.fail("scored"))
    refused = run(2, candidate, "--against", SHIPPED, "--data", prepared, "--dry-run", "--accept", "AFBI").stderr
    assert "--accept AFBI: no label of these artifacts" in refused


@pytest.mark.usefixtures("few_suffice")
def test_another_encoder_needs_a_worker_started_anew(prepared: Path, tmp_path: Path, redis_url: str) -> None:
    candidate = changed(tmp_path, softer, encoder=True)
    told = run(0, candidate, "--against", SHIPPED, "--data", prepared, "--json")
    assert json.loads(told.stdout)["promoted"]
    assert "start workers with the new artifact" in told.stderr
    publish(redis_url, Artifact.load(candidate).bank())
    (tmp_path / "b").mkdir()
    other = changed(tmp_path / "b", softer)
    refused = run(2, other, "--against", SHIPPED, "--data", prepared, "--redis", redis_url)
    assert "is not what runs: in Redis, the active label bank is for encoder" in refused.stderr
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete(ACTIVE_KEY)


def test_a_bank_published_meanwhile_is_not_overwritten(tmp_path: Path, redis_url: str) -> None:
    shipped, candidate = Artifact.load(SHIPPED).bank(), changed(tmp_path, softer)
    publish(redis_url, Artifact.load(candidate).bank())
    with pytest.raises(PublishError, match=rf"bank {shipped.digest} was active when it was compared, now .*compare again"):
        publish(redis_url, shipped, instead_of=shipped)
    with redis_client.Redis.from_url(redis_url) as client:
        assert client.get(ACTIVE_KEY) == Artifact.load(candidate).bank().digest.encode()
        client.set(ACTIVE_KEY, "ab" * 32)
        with pytest.raises(PublishError, match="which Redis does not hold; publish the running artifact again"):
            active_bank(redis_url)
        client.delete(ACTIVE_KEY)


@pytest.mark.usefixtures("few_suffice")
def test_the_running_banks_own_prevalence_is_carried_over(prepared: Path, tmp_path: Path, redis_url: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    running = Artifact.load(changed(tmp_path / "a", prevalence={"AFIB": 0.1, "SR": 0.5}))
    candidate = changed(tmp_path / "b", softer, prevalence={"AFIB": 0.2, "SR": 0.6})
    active = own_bank(running, {"AFIB": 0.01, "SR": 0.9})
    arguments = (candidate, "--against", running.directory, "--data", prepared, "--redis", redis_url)
    publish(redis_url, active)
    plain = json.loads(run(0, candidate, "--against", running.directory, "--data", prepared, "--dry-run", "--json").stdout)
    told = json.loads(run(0, *arguments, "--json").stdout)
    assert told["own_prevalence"] == {"AFIB": 0.01, "SR": 0.9}
    assert plain["own_prevalence"] == {}
    decided = [[(x["id"], x["difference"], x["decisions"]) for x in each["labels"]] for each in (plain, told)]
    assert decided[0] == decided[1]  # neither order nor decisions depend on prevalence
    now = active_bank(redis_url)
    assert now is not None
    assert now.digest == own_bank(Artifact.load(candidate), {"AFIB": 0.01, "SR": 0.9}).digest
    assert json.loads(next((tmp_path / "b").glob("*.json")).read_text())["candidate"]["bank"] == now.digest
    assert "nothing to promote" in run(2, *arguments).stderr  # its bank, moved likewise, is what runs
    publish(redis_url, active)
    silent = changed(tmp_path, softer)
    refused = run(2, silent, "--against", running.directory, "--data", prepared, "--redis", redis_url).stderr
    assert "does not tell its training prevalence; export again" in refused
    with redis_client.Redis.from_url(redis_url) as client:
        client.delete(ACTIVE_KEY)


def test_folds_that_an_artifact_has_seen_are_refused(prepared: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(SHIPPED)
    check_folds(artifact, (9,), "running")
    for fold, use in ((3, "train"), (8, "(train|calibration)")):
        with pytest.raises(PromoteError, match=rf"fold {fold} is among its {use} folds; .*usually --fold 9 \(running\)"):
            check_folds(artifact, (fold, 9), "running")
    untold = replace(artifact, manifest=artifact.manifest.model_copy(deep=True))
    untold.manifest.training.data.pop("folds")
    with pytest.raises(PromoteError, match="does not tell on which folds it was trained"):
        check_folds(untold, (9,), "running")
    said = run(2, changed(tmp_path, softer), "--against", SHIPPED, "--data", prepared, "--fold", 8)
    assert "compare on folds that neither artifact has seen" in said.stderr


def test_what_is_protected_by_default() -> None:
    bank = Artifact.load(SHIPPED).bank()
    protected = default_protected(bank)
    assert {"VF", "AFIB", "CLBBB", "MI_INF"} <= protected
    assert not {"SR", "NORM", "LVOLT"} & protected
