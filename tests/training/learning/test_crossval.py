"""Cross-validation on real recordings, small: who is held out, what resumes, and that folds 9 and 10 stay out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tests.training.full_disk import full_disk
from training.__main__ import app
from training.config import ConfigError, TrainConfig
from training.data.dataset import Batch, DataSet
from training.evaluation.bootstrap import resamples
from training.evaluation.evaluate import model_scorer, predict
from training.evaluation.held_out import build_bank, by_crossval, by_folds, int8_encoder
from training.evaluation.metrics import macro_auroc
from training.folds import DEVELOPMENT, GROUPS, ProtocolError, check_development, check_disjoint
from training.learning import crossval as work
from training.learning.checkpoint import CheckpointError, load_checkpoint
from training.learning.crossval import OOF, REPORT, Stopped, crossval, fold_config, read_crossval, refit, run_name
from training.learning.loop import load_trained, train
from training.learning.step import Stepper
from training.release.quantize import S8S8, U8S8, QuantizeError
from training.text.labels import TextBank
from training.vocabulary import Statement, select

TINY = TrainConfig(
    epochs=1, finish_epochs=0, crop_s=1.0, batch=32, dim=32, warmup_epochs=0.5, lead_sets=("12",), full_share=1.0
)


@pytest.fixture(scope="module")
def labels(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return select(vocabulary, "core98")


@pytest.fixture(scope="module")
def done(prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("crossval")
    crossval(TINY, prepared, labels, text, out, command="ecg-train crossval")
    refit(TINY, prepared, labels, text, out)
    return out


def test_each_record_is_predicted_by_the_model_that_never_saw_its_fold(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...]
) -> None:
    found = load_file(done / OOF)
    whole = DataSet(prepared, labels, DEVELOPMENT)
    assert found["logits"].shape == (len(whole), len(labels))
    assert (found["logits"].dtype, found["fold"].dtype) == (np.float32, np.int8)
    assert np.isfinite(found["logits"]).all()
    assert found["fold"].tolist() == [row["fold"] for row in whole.index]
    for group in GROUPS:
        rest = DataSet(prepared, labels, [f for f in DEVELOPMENT if f not in group])
        model = load_trained(done / run_name(group), rest, text).model
        assert model.config.train_folds == tuple(f for f in DEVELOPMENT if f not in group)
        expected = predict(model_scorer(model), DataSet(prepared, labels, group)).logits
        np.testing.assert_array_equal(found["logits"][np.isin(found["fold"], group)], expected)


def test_the_report_tells_what_was_done_and_how_good_it_is(
    done: Path, prepared: Path, labels: tuple[Statement, ...], text: TextBank
) -> None:
    told = json.loads((done / REPORT).read_text())
    whole = DataSet(prepared, labels, DEVELOPMENT)
    assert (told["data"], told["text"], told["records"]) == (whole.digest, text.digest, len(whole))
    assert [run["held_out"] for run in told["runs"]] == [list(g) for g in GROUPS]
    assert sum(run["held_out_records"] for run in told["runs"]) == len(whole)
    assert all(run["epochs"] == 1 for run in told["runs"])
    assert TrainConfig.of(told["config"]) == TINY
    metrics = told["metrics"]
    low, high = metrics["macro_auroc_interval"]
    assert low < metrics["macro_auroc"] < high
    assert metrics["calibration"]["slope_interval"][0] < metrics["calibration"]["slope_interval"][1]
    found = read_crossval(done, prepared, labels).predictions
    for label, entry in told["support"].items():
        j = found.ids.index(label)
        assert entry["out_of_fold"] == (found.y & found.known)[:, j].sum() <= entry["training"] == whole.positives()[j]
    rare = {label for run in told["runs"] for label in run["not_trained"]}
    assert rare
    first = told["runs"][0]
    here = np.isin([row["fold"] for row in found.index], first["held_out"])
    assert not found.known[np.ix_(here, [found.ids.index(label) for label in first["not_trained"]])].any()


def test_finished_runs_are_kept_and_a_stopped_one_goes_on(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.glob("fold-*/checkpoint.json")}
    oof, report = load_file(done / OOF), (done / REPORT).read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        crossval(TINY, prepared, labels, text, done)
    steps: list[Any] = []
    crossval(TINY, prepared, labels, text, done, resume=True, report=lambda *p: steps.append(p), command="ecg-train crossval")
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (done / REPORT).read_bytes() == report
    np.testing.assert_array_equal(load_file(done / OOF)["logits"], oof["logits"])


def test_a_signal_stops_it_and_says_how_to_go_on(
    prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "train", lambda *a, **k: replace(train(*a, **k), finished=False))
    with pytest.raises(Stopped, match=r"fold-12: stopped at epoch 1 of 1; continue with --resume"):
        crossval(TINY, prepared, labels, text, tmp_path)
    assert not (tmp_path / OOF).exists()


@pytest.mark.parametrize(("run", "options"), [("fold-34", []), ("final", ["--refit"])])
def test_the_command_exits_with_143_when_told_to_stop(
    run: str, options: list[str], done: Path, prepared: Path, text_directory: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the last step of a run: nothing is lost, and the next run is not begun."""
    out, step = tmp_path / "out", Stepper.__call__
    shutil.copytree(done, out)
    for name in {"fold-34": ("fold-34", "fold-56", "fold-78", "final"), "final": ("final",)}[run]:
        shutil.rmtree(out / name)
    (out / OOF).unlink()
    (tmp_path / "c.toml").write_text(
        "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.as_dict().items() if value is not None)
    )

    def interrupted(self: Stepper, batch: Batch) -> float:
        if self.step == self.per_epoch - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Stepper, "__call__", interrupted)
    places = ["--config", tmp_path / "c.toml", "--data", prepared, "--text", text_directory, "--out", out]
    stopped = CliRunner().invoke(app, [str(a) for a in ["crossval", *places, *options, "--resume", "--threads", 1]])
    assert stopped.exit_code == 143, stopped.output
    assert f"{run}: stopped at epoch 1 of 1; continue with --resume" in stopped.output.replace("\n", "")
    assert load_checkpoint(out / run)[1]["epoch"] == 1
    assert (out / OOF).exists() == (run == "final")
    assert not (out / "fold-56").exists() or run == "final"


@pytest.mark.parametrize("fold", [9, 10])
def test_reporting_folds_reach_neither_training_nor_calibration(
    fold: int, done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = DataSet(prepared, labels, DEVELOPMENT)
    leaking = DataSet(prepared, labels, DEVELOPMENT)
    leaking.index[3] = leaking.index[3] | {"fold": fold}
    with pytest.raises(ProtocolError, match=f"fold {fold} must not reach training"):
        check_development(leaking, "training")
    with pytest.raises(ProtocolError, match=f"fold {fold} must not reach training"):
        train(TINY, leaking, text, tmp_path / "run")
    with pytest.raises(ConfigError, match="must not hold folds 9 and 10"):
        replace(TINY, train_folds=(1, fold))
    with pytest.raises(ConfigError, match="must not hold folds 9 and 10"):
        fold_config(TINY, (7, fold))
    model = load_trained(done / "final", whole, text).model
    with pytest.raises(ProtocolError, match="must not reach training"):
        by_folds(model, leaking, whole)
    with pytest.raises(ProtocolError, match="must not reach calibration"):
        by_folds(model, DataSet(prepared, labels, (1, 2)), leaking)
    with pytest.raises(ProtocolError, match="must not reach training"):
        by_crossval(done, model.config, leaking)

    class Leaking(DataSet):  # a reader that gives other folds than it was asked for
        def __init__(self, directory: Path, of: Sequence[Statement], folds: Sequence[int]) -> None:
            super().__init__(directory, of, folds)
            self.index[0] = self.index[0] | {"fold": fold}

    monkeypatch.setattr(work, "DataSet", Leaking)
    with pytest.raises(ProtocolError, match="must not reach cross-validation"):
        crossval(TINY, prepared, labels, text, tmp_path / "out")
    with pytest.raises(ProtocolError, match="must not reach training"):
        refit(TINY, prepared, labels, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_of_fold_predictions_of_a_reporting_fold_are_refused(
    done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    tensors = load_file(done / OOF)
    tensors["fold"][0] = 9
    meta = {"data": json.loads((done / REPORT).read_text())["data"], "labels": json.dumps([s.id for s in labels])}
    save_file(tensors, tmp_path / OOF, metadata=meta)
    (tmp_path / REPORT).write_bytes((done / REPORT).read_bytes())
    with pytest.raises(ProtocolError, match=r"folds \[9\] must not be in it"):
        read_crossval(tmp_path, prepared, labels)
    save_file(tensors, tmp_path / OOF, metadata=meta | {"data": "other"})
    with pytest.raises(ProtocolError, match="made from data set other"):
        read_crossval(tmp_path, prepared, labels)
    with pytest.raises(ProtocolError, match="predictions of other labels"):
        read_crossval(done, prepared, labels[:-1])
    with pytest.raises(ProtocolError, match="make it with `ecg-train crossval"):
        read_crossval(tmp_path / "nowhere", prepared, labels)


def test_labels_left_out_are_scored_by_all_that_is_known_of_them(prepared: Path, labels: tuple[Statement, ...]) -> None:
    whole = DataSet(prepared, labels, DEVELOPMENT)
    y, known = whole.targets
    left_out, weights = ("SR", "VF"), resamples([row["patient"] for row in whole.index], 50)
    told = work._left_out(whole, np.where(y, 1, 0).astype(np.float32), left_out, weights)
    assert told == {"SR": {"auroc": 1.0, "auroc_interval": [1.0, 1.0]}}  # nobody has VF
    column = [s.id for s in labels].index("SR")
    assert (y & known)[:, column].sum() >= 10
    told = work._left_out(whole, np.zeros(y.shape, dtype=np.float32), left_out, weights)
    assert told["SR"]["auroc"] == 0.5


def test_a_label_that_no_model_trained_has_no_tier(
    prepared: Path, labels: tuple[Statement, ...], text: TextBank, tmp_path: Path
) -> None:
    whole = DataSet(prepared, labels, DEVELOPMENT)
    fold = np.array([row["fold"] for row in whole.index], dtype=np.int8)
    norm = [s.id for s in labels].index("NORM")
    noise = np.random.default_rng(0).standard_normal(whole.stated.shape).astype(np.float32)
    logits = noise.copy()
    logits[:, norm] += whole.targets[0][:, norm]
    runs = [{"held_out": list(group), "not_trained": ["SR"]} for group in GROUPS]
    support = work._judged(whole, work._predictions(whole, logits, fold, runs), fold, TINY)["support"]
    sr = [s.id for s in labels].index("SR")
    assert support["SR"] == {"training": int(whole.positives()[sr]), "out_of_fold": 0, "tier": "unsupported"}
    assert support["NORM"]["tier"] == "evaluated"
    told = work._judged(whole, work._predictions(whole, noise, fold, runs), fold, TINY)
    low, high = told["metrics"]["per_label"]["NORM"]["auroc_interval"]
    assert low < 0.5 < high
    assert told["support"]["NORM"] == support["NORM"] | {"tier": "trained"}  # cases enough, but no better than chance
    with pytest.raises(ProtocolError, match=r"train_share = 0.5: a learning curve is made by `compare`"):
        crossval(replace(TINY, train_share=0.5), prepared, labels, text, tmp_path)
    with pytest.raises(ConfigError, match=r"superclass_weight: must be 0 with leave_out"):
        replace(TINY, leave_out=("SR",), superclass_weight=0.3)


def test_a_patient_or_a_signal_in_both_is_refused(prepared: Path, labels: tuple[Statement, ...]) -> None:
    train, held_out = DataSet(prepared, labels, (1, 2)), DataSet(prepared, labels, (3,))
    check_disjoint(train, held_out, "held-out")
    for key in ("patient", "signal"):
        other = DataSet(prepared, labels, (3,))
        other.index[0] = other.index[0] | {key: train.index[5][key]}
        with pytest.raises(ProtocolError, match=f"1 records have {key}s that are in training and held-out folds"):
            check_disjoint(train, other, "held-out")


def test_the_refit_is_calibrated_by_all_out_of_fold_predictions(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...]
) -> None:
    whole = DataSet(prepared, labels, DEVELOPMENT)
    model = load_trained(done / "final", whole, text).model
    held_out = by_crossval(done, model.config, whole)
    assert held_out.folds == DEVELOPMENT
    bank = build_bank(model, whole, held_out, text, "ab" * 32)
    told = json.loads((done / REPORT).read_text())["support"]
    assert {x.id: x.tier for x in bank.labels} == {k: v["tier"] for k, v in told.items()}
    assert {x.id: x.held_out for x in bank.labels} == {k: v["out_of_fold"] for k, v in told.items()}
    assert {"trained", "unsupported"} == {x.tier for x in bank.labels}  # one epoch orders nothing beyond chance
    assert bank.made is not None
    assert bank.made.sentences == hashlib.sha256(text.rows_of(labels).tobytes()).hexdigest()
    assert any(x.threshold is not None for x in bank.labels)
    p = held_out.predictions
    windows = [{**row, "patient": "one", "window": i} for i, row in enumerate(p.index)]
    alone = build_bank(model, whole, replace(held_out, predictions=replace(p, index=windows)), text, "ab" * 32)
    assert {x.tier for x in alone.labels} == {"trained", "unsupported"}
    assert all(x.threshold is None for x in alone.labels)  # however many windows, it is one heart
    told_apart = np.random.default_rng(0).standard_normal(p.y.shape).astype(np.float32)
    by_chance, by_truth = (
        build_bank(
            model, whole, replace(held_out, crossval=None, predictions=replace(p, logits=x.astype(np.float32))), text, "ab" * 32
        )
        for x in (told_apart, told_apart + 3 * p.y)
    )
    good = {x.id for x in by_truth.labels if x.tier == "evaluated"}
    assert {"NORM", "SR"} <= good
    assert len(good & {x.id for x in by_chance.labels if x.tier == "evaluated"}) < 0.2 * len(good)
    with pytest.raises(ProtocolError, match=r"cross-validated another recipe: lr: 0\.001 there, 0\.002 here"):
        by_crossval(done, replace(model.config, lr=0.002), whole)
    with pytest.raises(ProtocolError, match=r"fitted on folds 3, 4, 5, 6, 7, 8; .*crossval --refit"):
        by_crossval(done, fold_config(TINY, (1, 2)), whole)


def test_8_bits_are_judged_on_the_models_that_never_saw_the_records(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DataSet(prepared, labels, DEVELOPMENT)
    model = load_trained(done / "final", whole, text).model
    held_out = by_crossval(done, model.config, whole)
    monkeypatch.setattr("training.release.quantize.WINDOWS", 16)
    monkeypatch.setattr("training.release.quantize.LEAST_COSINE", 0.5)  # of models of one epoch
    scored: list[int] = []
    monkeypatch.setattr("training.release.quantize.MOST_LOSS", -1)
    with pytest.raises(QuantizeError, match=r"may lose at most -1 of macro AUROC on held-out records, lost -?0\.\d{4} \("):
        int8_encoder(model, whole, held_out, text, S8S8, scored.append)
    assert sum(scored) == len(whole)
    monkeypatch.setattr("training.release.quantize.MOST_LOSS", 1.0)
    graph, told = int8_encoder(model, whole, held_out, text, U8S8)
    assert len(graph) > 1_000_000
    gate = told["held_out_auroc"]
    assert gate["loss"] == pytest.approx(gate["macro_auroc"] - gate["int8_macro_auroc"], abs=1e-9)
    assert 0 < abs(gate["loss"]) < 0.2


def test_the_report_is_that_of_the_stored_predictions(done: Path, prepared: Path, labels: tuple[Statement, ...]) -> None:
    """AUROC hardly changes by calibrating each group, so the raw logits must give nearly the same."""
    found = read_crossval(done, prepared, labels)
    p, told = found.predictions, found.told["metrics"]
    counted = p.known & np.array([found.told["support"][i]["tier"] != "unsupported" for i in p.ids])
    raw = macro_auroc(p.logits, p.y, counted, resamples([row["patient"] for row in p.index], 1))[0]
    assert told["macro_auroc"] == pytest.approx(raw, abs=0.05)


def test_two_cross_validations_are_compared_out_of_fold(done: Path, prepared: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("crossval.json", "oof.safetensors"):
        shutil.copy(done / name, other)
    with safe_open(other / "oof.safetensors", framework="np") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("logits", "fold")}
    noise = np.random.default_rng(0).standard_normal(tensors["logits"].shape)
    tensors["logits"] = (tensors["logits"] + 20 * noise).astype(np.float32)  # as good as nothing
    save_file(tensors, other / "oof.safetensors", metadata=meta)

    def said(target: Path, against: Path) -> dict[str, Any]:
        command = ["evaluate", str(target), "--against", str(against), "--data", str(prepared), "--json"]
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
        told: dict[str, Any] = json.loads(found.stdout)
        return told

    told, metrics = said(done, other), json.loads((done / "crossval.json").read_text())["metrics"]
    assert told["folds"] == list(DEVELOPMENT)
    assert told["macro_auroc"][0] == pytest.approx(metrics["macro_auroc"])  # as it was judged
    assert told["difference"] == pytest.approx(told["macro_auroc"][0] - told["macro_auroc"][1])
    assert abs(told["macro_auroc"][1] - 0.5) < 0.1
    assert said(done, done)["difference_interval"] == [0.0, 0.0]
    refused = CliRunner().invoke(app, ["evaluate", str(done), "--against", str(tmp_path), "--data", str(prepared)])
    assert refused.exit_code == 2
    assert "no cross-validation" in refused.stderr


def test_a_refit_that_is_there_already_is_refused_before_the_four_are_trained(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "checkpoint.json").touch()
    places = ["--data", str(tmp_path / "data"), "--text", str(tmp_path / "text"), "--out", str(tmp_path)]
    told = CliRunner().invoke(app, ["crossval", *places, "--refit"])
    assert told.exit_code == 2
    assert "holds a run already; continue it with --resume" in told.output.replace("\n", " ")


@pytest.mark.parametrize("name", [OOF, REPORT])
@pytest.mark.parametrize("kept", [0, 100])
def test_what_is_damaged_is_named_with_its_remedy(
    name: str, kept: int, done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    for each in (OOF, REPORT):
        (tmp_path / each).write_bytes((done / each).read_bytes()[: kept if each == name else None])
    with pytest.raises(ProtocolError, match=rf"{name}: no .*copy it again, or make both again with `ecg-train crossval --out "):
        read_crossval(tmp_path, prepared, labels)
    (tmp_path / name).unlink()
    with pytest.raises(ProtocolError, match=rf"{name}: no "):
        read_crossval(tmp_path, prepared, labels)


def test_a_full_disk_leaves_what_was_there(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    with (
        full_disk(40_000),  # enough for what describes a run
        pytest.raises(CheckpointError, match=r"oof\.safetensors: cannot be written \(.*too large.*make room .* --resume"),
    ):
        crossval(TINY, prepared, labels, text, out, resume=True)
    assert (out / OOF).read_bytes() == (done / OOF).read_bytes()
    assert not list(out.glob("*.part"))
