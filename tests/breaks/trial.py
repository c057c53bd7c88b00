"""One break, one test: a copy of the tracked tree, the defect in it, pytest, and what became of the test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.breaks.book import ROOT, Break, BreakError, applied

__all__ = ["Outcome", "broken", "copied", "unbroken"]

SERVICES_S = 180  # beside the time of the tests: services start, and end
ENDING_S = 60
_PLACE = re.compile(r"^(tests/\S+\.py):(\d+): ", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """`noticed`: the test failed as it should. `how`: where and by what, or why its failure does not count."""

    noticed: bool
    how: str
    seconds: float


@contextmanager
def copied() -> Iterator[Path]:
    """The tracked files as they are now, in a folder of their own. Raises BreakError where Python would import others."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="ecg-break-") as folder:
        tree = Path(folder)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():  # and not deleted since
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
        told = "import stream_worker, encoders, deploy; print(stream_worker.__file__, encoders.__file__, deploy.__file__)"
        where = subprocess.run(
            [sys.executable, "-c", told], cwd=tree, env=_env(tree), capture_output=True, text=True, check=True
        )
        if not all(Path(path).is_relative_to(tree) for path in where.stdout.split()):
            raise BreakError(f"the copy in {tree} is not what Python imports there, but {where.stdout.strip()}")
        yield tree


def broken(one: Break, tree: Path) -> Outcome:
    """Make the defect in `tree` and run the test. Raises BreakError."""
    (tree / one.file).write_text(applied(one, tree), "utf-8")
    code, seconds = _pytest(one, tree)
    failures, longest = _failures(tree)
    if code != 1 or not failures:
        verdict = "the test passed" if code == 0 else f"pytest gave no verdict (exit code {code}): {_last_words(tree)}"
        return Outcome(False, verdict, seconds)
    if not _imported(tree / one.file):
        return Outcome(False, f"failed, but {one.file} of the copy was never imported", seconds)
    where, what = failures[0]
    if longest >= one.seconds and not one.hangs:
        return Outcome(False, f"ran into its limit of {one.seconds} s: {where}", seconds)
    return Outcome(True, f"{where}: {what}", seconds)


def unbroken(one: Break, tree: Path) -> str:
    """The test as it is: empty where it passes, else what pytest said."""
    code, _ = _pytest(one, tree)
    return "" if code == 0 else f"fails without the break: {_last_words(tree)}"


def _env(tree: Path) -> dict[str, str]:
    """For the tests and the workers that they start: the copy first, and where recordings lie beside the checkout."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONSAFEPATH", "PYTEST_ADDOPTS")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {"ECG_SHARED": str(ROOT.parent / "shared"), **env, "PYTHONPATH": str(tree)}


def _pytest(one: Break, tree: Path) -> tuple[int, float]:
    """(exit code, seconds). What it said lies in the tree: report.xml, said.txt."""
    command = [sys.executable, "-m", "pytest", one.test, "-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
    began = time.monotonic()
    with open(tree / "said.txt", "wb") as said:
        process = subprocess.Popen(
            [*command, f"--timeout={one.seconds}", "--junitxml=report.xml"], cwd=tree, env=_env(tree),
            stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(8 * one.seconds + SERVICES_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it ends its services
            code = process.wait(ENDING_S)
        finally:
            process.kill()
    return code, time.monotonic() - began


def _failures(tree: Path) -> tuple[list[tuple[str, str]], float]:
    """(the place in a test's file and the line there, what pytest says) of each failure, and the seconds of the longest test.
    What went wrong beside the tests is no failure."""
    if not (report := tree / "report.xml").exists():
        return [], 0.0
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it just now
    found = [failure for case in cases for failure in case.iter("failure")]
    told = [(_place(failure.text or ""), _first(failure.get("message", ""))) for failure in found]
    return told, max((float(case.get("time", 0)) for case in cases), default=0.0)


def _place(text: str) -> str:
    """The frame in which the test stood: path:line and the code there. Helpers of its own file lie further down."""
    for at in _PLACE.finditer(text):
        name = at[1].rpartition("/")[2]
        if name.startswith("test_"):
            code = text[at.end() :].splitlines()[1].strip()
            return f"{name}:{at[2]}: {code}"
    return "in no line of a test"


def _first(message: str) -> str:
    return message.strip().partition("\n")[0][:160]


def _last_words(tree: Path) -> str:
    lines = (tree / "said.txt").read_text("utf-8", errors="replace").strip().splitlines()
    return " / ".join(lines[-3:])[:400]


def _imported(file: Path) -> bool:
    """Whether any process has compiled the broken module: a fresh copy holds no bytecode."""
    return any((file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"))
