"""The long form: `python -m tests.fuzz --runs 400000 --seconds 600`, or `make fuzz N=400000 SECONDS=600`.

Each target runs in a process of its own, so that one that dies, hangs or eats memory is a finding like any other. Where atheris
is installed (it looks for inputs that reach new code), it is used, otherwise hypothesis. What is found, and atheris' corpus,
lies under build/fuzz; an input worth keeping goes to tests/fuzz/corpus/<target>/. The last line is JSON; exit code 1 says that
something was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import time
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "fuzz"
GUIDED = ("encoders", "stream_worker")  # whose branches atheris watches, besides what a target alone uses:
ALSO = {"dotenv": ["dotenv"], "toml": ["training.config", "tomllib"]}  # not wfdb and pydicom: 2 to 20 executions a second then


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--target", action="append", help="one of the targets; may be repeated; default: all")
    parser.add_argument("--runs", type=int, default=100_000, help="executions a target")
    parser.add_argument("--seconds", type=int, default=600, help="at most, for each target")
    parser.add_argument(
        "--engine", choices=("atheris", "hypothesis"), default="atheris" if find_spec("atheris") else "hypothesis"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return run_one(given.one, given.engine, given.runs, given.seconds)
    from tests.fuzz.seeds import SEEDS

    results = {name: look(name, given.engine, given.runs, given.seconds) for name in given.target or SEEDS}
    found = sum(result["found"] is not None for result in results.values())
    executions = sum(result["executions"] for result in results.values())
    print(json.dumps({"engine": given.engine, "executions": executions, "found": found, "targets": results}))
    return int(found > 0)


def look(name: str, engine: str, runs: int, seconds: int) -> dict[str, Any]:
    """One target in a process of its own: executions, seconds, and where the input lies that broke it."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, "--engine", engine, "--runs", str(runs)]
    done = subprocess.run([*command, "--seconds", str(seconds)], cwd=ROOT, capture_output=True, text=True, errors="replace")
    said = done.stdout + done.stderr
    counts = [int(n) for n in re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)]
    written = re.findall(r"Test unit written to (\S+)", said)
    found = None if done.returncode == 0 else written[-1] if written else f"exit code {done.returncode}"
    result = {"executions": counts[-1] if counts else 0, "seconds": round(time.monotonic() - began, 1), "found": found}
    print(f"{name:12} {result['executions']:>10,} executions in {result['seconds']:7.1f} s   {found or ''}", flush=True)
    if found:
        print(said[-3000:], file=sys.stderr, flush=True)
    return result


def run_one(name: str, engine: str, runs: int, seconds: int) -> int:
    """In the child. Says what libFuzzer says: how many executions, and where the input lies that broke the target."""
    import structlog

    logging.disable(logging.CRITICAL)  # readers and recovery tell of every input they refuse
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for folder in (WORK / "found", WORK / "corpus" / name):
        folder.mkdir(parents=True, exist_ok=True)
    return (_atheris if engine == "atheris" else _hypothesis)(name, runs, seconds)


def _atheris(name: str, runs: int, seconds: int) -> int:
    import atheris

    with atheris.instrument_imports(include=[*GUIDED, *ALSO.get(name, ())], enable_loader_override=False):
        from tests.fuzz.mutate import TELLING
        from tests.fuzz.seeds import SEEDS, corpus
        from tests.fuzz.targets import TARGETS

        for data in (inputs := [*SEEDS[name](), *corpus(name)]):
            TARGETS[name](data)  # brings in what is imported on first use
    kept = WORK / "corpus" / name
    for data in inputs:
        (kept / sha256(data).hexdigest()[:16]).write_bytes(data)
    words = WORK / "words"
    spelled = (re.sub("(..)", r"\\x\1", word.hex()) for word in TELLING if len(word) < 64)
    words.write_text("".join(f'"{word}"\n' for word in spelled))
    longest = 4 * max(map(len, inputs))
    limits = [f"-runs={runs}", f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=4096", f"-max_len={longest}"]
    said = [f"-dict={words}", "-print_final_stats=1", f"-artifact_prefix={WORK / 'found'}{os.sep}{name}-"]
    atheris.Setup([sys.argv[0], *limits, *said, str(kept)], TARGETS[name])
    atheris.Fuzz()  # ends the process
    return 0


def _hypothesis(name: str, runs: int, seconds: int) -> int:
    from hypothesis import HealthCheck, given, settings

    from tests.fuzz.mutate import mutated
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS

    end, count, last = time.monotonic() + seconds, 0, b""

    @settings(max_examples=runs, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(mutated(SEEDS[name]()))
    def find(data: bytes) -> None:
        nonlocal count, last
        if time.monotonic() > end:
            return
        count, last = count + 1, data
        TARGETS[name](data)

    try:
        find()
    except BaseException:
        path = WORK / "found" / f"{name}-{sha256(last).hexdigest()[:16]}"
        path.write_bytes(last)  # the smallest: hypothesis shows it last
        print(f"Test unit written to {path}")
        raise
    finally:
        print(f"stat::number_of_executed_units: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
