"""Two processes over gloo: loss and gradients of one with the same batch, one writer, one end; devices that are not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.one_of_two import BASE, OBJECTIVES, gradients, opened
from training.config import ConfigError
from training.learning.checkpoint import CheckpointError, load_checkpoint
from training.learning.loop import train
from training.learning.parallel import ParallelError, World, pick_device


def together(task: str, data: Path, text: Path, out: Path) -> None:
    """Two processes, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.training.one_of_two", task, str(data), str(text), str(out)]
    both = [
        subprocess.Popen(command, env={**shared, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)


def test_loss_and_gradients_are_those_of_one_process(prepared: Path, text_directory: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    together("losses", prepared, text_directory, tmp_path)
    data, text = opened(prepared, text_directory)
    for objective in OBJECTIVES:
        alone = gradients(replace(BASE, objective=objective), data, text, World())
        assert alone["loss"] > 0.01
        assert max(float(g.abs().max()) for name, g in alone.items() if name.startswith("encoder.conv1")) > 1e-4
        for parts in (1, 2):
            for rank in (0, 1):
                found = load_file(tmp_path / f"{objective}-{parts}-{rank}.safetensors")
                assert found.keys() == alone.keys()
                assert float((found["loss"] - alone["loss"]).abs()) < 1e-6, objective
                for name, value in alone.items():
                    torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{objective} {name}")


def test_one_writes_a_signal_to_any_stops_all_and_it_goes_on_to_the_bit(
    prepared: Path, text_directory: Path, tmp_path: Path
) -> None:
    together("runs", prepared, text_directory, tmp_path)
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert said == [{"signalled": True, "step": 3, "finished": False}] * 2
    whole, cut = (load_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert whole[0].keys() == cut[0].keys()
    assert all(torch.equal(value, cut[0][name]) for name, value in whole[0].items())
    assert (whole[1]["processes"], whole[1]["epoch"]) == (2, 1)
    log = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert len(log) == 1
    assert json.loads(log[0])["loss"] == json.loads((tmp_path / "cut" / "log.jsonl").read_text())["loss"]
    assert [start["step"] for start in json.loads((tmp_path / "cut" / "run.json").read_text())["starts"]] == [0, 3]
    assert "torchrun --nproc-per-node 2 -m training train" in (tmp_path / "cut" / "README.md").read_text()
    data, text = opened(prepared, text_directory)
    with pytest.raises(CheckpointError, match="started otherwise: processes: 2 there, 1 here"):
        train(replace(BASE, epochs=1, dropout=0.2), data, text, tmp_path / "cut", resume=True)


def test_shares_of_a_batch_must_be_equal(prepared: Path, text_directory: Path, tmp_path: Path) -> None:
    data, text = opened(prepared, text_directory)
    for size, parts in ((3, 1), (16, 1), (2, 8)):
        with pytest.raises(ParallelError, match=rf"batch = 16: {size} processes times accumulate = {parts} need equal shares"):
            train(replace(BASE, accumulate=parts), data, text, tmp_path / "run", world=World(0, size))
    with pytest.raises(ConfigError, match="accumulate: must be at least 1 and divide batch = 16 into parts of at least 2"):
        replace(BASE, accumulate=3)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto", "off") == pick_device("cpu", "off") == torch.device("cpu")
    with pytest.raises(ParallelError, match='device: "cuda" asked for, torch sees no GPU; set device = "auto" or "cpu"'):
        pick_device("cuda", "off")
    with pytest.raises(ParallelError, match='amp: "bf16" is for GPUs; on a CPU it is slower than float32; set amp = "off"'):
        pick_device("auto", "bf16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto", "bf16") == torch.device("cuda", 1)
    with pytest.raises(ParallelError, match="amp"):
        pick_device("cpu", "bf16")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ParallelError, match="3 processes want a GPU each, torch sees 2; lower --nproc-per-node to 2"):
        pick_device("cuda", "off")
