"""ecg-worker engine, as its user meets it: each command in a process of its own, its exit code and what it says."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install tensorrt-rtx")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def engine(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_worker", "engine", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("ECG_")} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(done.stdout.splitlines()[-1]))


@rtx
def test_build_check_damage_build(tmp_path: Path) -> None:
    here = ("--cache", tmp_path / "engines", "--for", "8.9")
    missing = engine("check", *here)
    assert (missing.returncode, missing.stderr) == (1, "")
    assert "none is kept for these ingredients" in missing.stdout
    first = engine("build", *here, "--rate", 250, "--json")
    assert first.returncode == 0, first.stderr
    windows, counts = (json.loads(line) for line in first.stdout.splitlines())
    assert (windows["takes"], counts["takes"]) == ("prepared windows", "counts at 250 Hz")
    assert windows["built"] is counts["built"] is True
    assert counts["ingredients"]["ranges"] == [["C", 1, 12, 12], ["L", 1, 98, 512]]
    plan = Path(windows["plan"])
    assert plan.stat().st_size == windows["bytes"] > 6_000_000
    assert told(engine("build", *here, "--json"))["built"] is False
    good = engine("check", *here, "--json", ECG_ENGINE_PRECISION="fp16")
    assert (good.returncode, told(good)["ok"]) == (0, True)
    assert told(good)["ingredients"]["sm"] == "8.9"
    assert engine("check", *here, "--rate", 250).returncode == 0
    other = engine("check", *here, "--rate", 360)
    assert (other.returncode, other.stdout.splitlines()[0].endswith("as it was built")) == (1, True)
    assert engine("check", *here, ECG_ENGINE_PRECISION="bf16").returncode == 1
    plan.write_bytes(plan.read_bytes()[:-1])
    damaged = engine("check", *here, "--json")
    assert damaged.returncode == 1
    assert f"{plan.stat().st_size + 1} bytes expected, found {plan.stat().st_size}" in told(damaged)["problem"]
    again = engine("build", *here, "--json")
    assert told(again)["built"] is True
    assert "built again: " in again.stderr
    assert engine("check", *here).returncode == 0


@rtx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--for", "9.0"),
            "no engine for 9.0, prepared windows: tensorrt_rtx .* knows no compute capability 9.0; it knows",
        ),
        (("--for", "8.9", "--cache", "/proc/nowhere"), "/proc/nowhere: cannot be written"),
        (("--for", "8.9", "--precision", "int8"), r"holds no encoder\.s8s8\.onnx: export it with --s8s8"),
        (("--precision", "int7"), "ECG_ENGINE_PRECISION: Input should be 'fp16'"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    cache = () if "--cache" in arguments else ("--cache", tmp_path)
    done = engine("build", *arguments, *cache)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize("arguments", [("build",), ("check",), ("bench", "--backend", "tensorrt")])
def test_without_a_gpu_it_says_so(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = engine(*arguments, "--cache", tmp_path)
    assert done.returncode == 2
    assert "no NVIDIA driver: libcuda.so.1 is not found" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bench_measures_what_is_here() -> None:
    done = engine("bench", "--backend", "onnxruntime", "--batch", 1, "--batch", 3, "--seconds", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["backend"], r["batch"]) for r in rows] == [("onnxruntime", 1), ("onnxruntime", 3)]
    for row in rows:
        assert row["calls"] >= 5
        assert row["p99_ms"] >= row["median_ms"] > 0
        assert row["windows_per_s"] == pytest.approx(row["batch"] / row["median_ms"] * 1e3, rel=0.01)
    table = engine("bench", "--backend", "onnxruntime", "--batch", 1, "--seconds", 0.1)
    assert "onnxruntime: prepared windows in host memory -> embeddings in host memory" in table.stdout
    assert "windows/s" in table.stdout


def test_help_teaches() -> None:
    for command in ("build", "check", "bench"):
        text = " ".join(engine(command, "--help").stdout.split())
        assert "ECG_ENGINE_CACHE" in text
        assert ("Exit codes:" in text) is (command != "bench")
