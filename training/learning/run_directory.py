"""A run directory that explains itself: what was run on what, with which versions, and the commands that go on from there.

README.md   for people                       log.jsonl                  a line an epoch
run.json    the same, whole                  events.out.tfevents.*      for TensorBoard
checkpoint.json, step-*.safetensors          the last checkpoint and the one before
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from training.data.dataset import DataSet
from training.learning.checkpoint import CheckpointError, write_whole, writing
from training.learning.parallel import World
from training.text.labels import TextBank

__all__ = ["EventFile", "describe"]

PACKAGES = ("ecg-stream-worker", "numpy", "safetensors")


class EventFile:
    """Scalars for TensorBoard, in a file without the machine's name in its own, as the usual writers put there."""

    def __init__(self, directory: Path, step: int) -> None:
        self._path = directory / f"events.out.tfevents.{int(time.time()):010d}.{step}"
        with writing(self._path):
            self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by tag."""
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=entries)))

    def _write(self, event: Any) -> None:
        with writing(self._path):
            self._records.write(event.SerializeToString())
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def describe(out: Path, state: Mapping[str, Any], data: DataSet, text: TextBank, world: World) -> None:
    """Write run.json and README.md; a continued run adds its start to those before. Raises CheckpointError."""
    path = out / "run.json"
    starts = _starts(path)
    begun = {"command": state["command"], "time": _now(), "step": state["step"], "processes": world.size}
    what = {
        "config": state["config"],
        "data": {
            "digest": data.digest,
            "records": data.manifest["records"],
            "training_records": len(data),
            "command": data.manifest["command"],
        },
        "text": {"digest": text.digest, "command": text.command, **text.text.model_dump()},
        "labels": state["labels"],
        "steps": state["per_epoch"] * state["config"]["epochs"],
        "starts": [*starts, {**begun, "versions": _versions(), "commit": _commit(), "host": _host(world)}],
    }
    body = json.dumps(what, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(body, encoding="utf-8"))
    page = _page(out.name, what)
    write_whole(out / "README.md", lambda part: part.write_text(page, encoding="utf-8"))


def _starts(path: Path) -> list[dict[str, Any]]:
    """Those before, of run.json."""
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: no description of a run ({error!r}); remove it: only what it tells of earlier starts is lost"
        ) from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return {**found, **{name: version(name) for name in PACKAGES}}


def _commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout that it refuses
        return None


def _host(world: World) -> dict[str, Any]:
    """What decides speed and bits; no name."""
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9, 1),
        "gpu": gpu,
    }


def _option(command: str, name: str) -> str:
    """The value that a command line gives an option, or the option's name in capitals."""
    words = shlex.split(command)
    for k, word in enumerate(words):
        if word == name and k + 1 < len(words):
            return words[k + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return name.removeprefix("--").upper()


def _again(command: str) -> str:
    """The command that goes on with a run: `compare` does so when given again, the others by --resume, whatever the epochs."""
    words = shlex.split(command)
    if words[1:2] == ["compare"]:
        return command
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--epochs", "--resume") and not word.startswith("--epochs="):
            kept.append(word)
        skip = word == "--epochs"
    return shlex.join([*kept, "--resume"])


def _uses(command: str, name: str, config: Mapping[str, Any]) -> tuple[list[list[str]], str]:
    """What the run serves for: commands, as words; and a sentence where it is not exported. command: that began it."""
    kind = (shlex.split(command)[1:2] or ["train"])[0]
    out = _option(command, "--out")
    run = f"{out}/{name}" if kind in ("compare", "crossval") else out if "--out" in command else name
    inputs = ["--data", _option(command, "--data"), "--text", _option(command, "--text")]
    uses = [["tensorboard", "--logdir", run], ["ecg-train", "evaluate", run, *inputs]]
    export = ["ecg-train", "export", run, *inputs]
    if config["objective"] == "supervised":
        return uses, "It is a reference and is not exported: it has no label bank."
    if config["leave_out"]:
        return uses, f"It is a trial and is not exported: {', '.join(config['leave_out'])} were left out."
    if kind == "compare":
        return uses, "It is a row of a comparison; `train` or `crossval` makes the run of a recipe that is exported."
    if kind == "crossval" and config["calibration_folds"]:
        return uses, "It judges a recipe on the folds that it never saw; `crossval --refit` makes the run that is exported."
    if kind == "crossval":
        return [*uses, [*export, "--crossval", out, "--out", f"{out}/model"]], ""
    if not config["calibration_folds"]:  # all of folds 1 to 8 are in its weights
        teacher = _option(command, "--teacher")
        export += ["--crossval", str(Path(teacher).parent) if "--teacher" in command else "CROSSVAL"]
    return [*uses, [*export, "--out", f"{run}/model"]], ""


def _page(name: str, what: Mapping[str, Any]) -> str:
    first, last = what["starts"][0], what["starts"][-1]
    command = first["command"] or "ecg-train train"
    uses, note = _uses(command, name, what["config"])
    listed = "\n".join("    " + shlex.join(words) for words in uses) + (f"\n\n{note}" if note else "")
    again = _again(command)
    if last["processes"] > 1:
        torchrun = f"torchrun --nproc-per-node {last['processes']} -m training"
        command, again = (each.replace("ecg-train", torchrun, 1) for each in (command, again))
    config, host = what["config"], last["host"]
    where = host["gpu"] or f"{host['threads']} of {host['cores']} {host['machine']} cores"
    data, text = what["data"], what["text"]
    return f"""# Training run {name}

{config["epochs"]} epochs of {data["training_records"]} records in batches of {config["batch"]}: {what["steps"]} steps.
Objective `{config["objective"]}`, seed {config["seed"]}. Begun {first["time"]}; last started {last["time"]} at step
{last["step"]}, in {last["processes"]} process(es) on {where}, torch {last["versions"]["torch"]},
commit {last["commit"] or "unknown"}.

How far it is: `checkpoint.json` ("epoch", "step"). Each epoch's loss: `log.jsonl`. Settings, versions, digests: `run.json`.
Data set {data["digest"][:16]}, text {text["digest"][:16]} ({text["model"]}, {text["language"]}).

Begun with (of a path outside the working directory only the last part is kept: give it in full again):

    {command}

Continue, to the bit on a CPU with as many threads and processes:

    {again}

Watch, evaluate{"" if note else ", export"}:

{listed}

Research software, not a medical device.
"""
