"""What a user installs and waits for: size of the base install in a fresh environment, time of `--help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.timing import seconds

ROOT = Path(__file__).resolve().parents[2]


def measure() -> dict[str, float]:
    """base_install_mb: bytes of all files as uv installs them (no byte code). help_s: median of 5."""
    with tempfile.TemporaryDirectory() as folder:
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", folder + "/venv"], check=True)
        python = folder + "/venv/bin/python"
        base = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--require-hashes",
            "-r",
            str(ROOT / "requirements/base.txt"),
        ]
        subprocess.run(base, check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "--no-deps", str(ROOT)], check=True)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file() and not f.is_symlink()) / 1e6
        worker = folder + "/venv/bin/ecg-worker"
        subprocess.run([worker, "--help"], check=True, capture_output=True)
        times = [seconds(lambda: subprocess.run([worker, "--help"], check=True, capture_output=True)) for _ in range(5)]
    return {"base_install_mb": size, "help_s": statistics.median(times)}
