"""`make bench`: every figure with its target, as a table and as one JSON line at the end. Names as arguments choose some.

What this machine cannot measure is a row "not run", and null. A group that fails is named and does not end the others.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

TARGETS: dict[str, tuple[str, float, str]] = {
    "windower_vs_scatter": ("<=", 3.0, "Protobuf to closed window: time over parse + one scatter"),
    "memory_per_run": ("<=", 1.3, "bytes of an open run, less 4 kB, over the int16 bytes of 12 s"),
    "preprocess_250hz_vs_scipy": ("<=", 0.25, "preprocess from 250 Hz: time over resample_poly + sosfiltfilt"),
    "preprocess_360hz_vs_scipy": ("<=", 0.25, "preprocess from 360 Hz: the same"),
    "replay_paper_encoder": (">=", 0.85, "replay of 30 minutes: windows/s over the bare session's, paper-exact encoder"),
    "replay_default_encoder": (">=", 0.50, "the same with the default encoder"),
    "replay_vs_fused": (">=", 0.90, "replay, default encoder: windows/s over the fused graph's alone"),
    "fused_onnxruntime_decimated": (">=", 0.90, "12 leads at 500 Hz, counts to logits by one graph over the encoder alone"),
    "fused_onnxruntime_plain": (">=", 0.90, "the same, paper-exact encoder"),
    "fused_openvino_decimated": (">=", 0.90, "the same by OpenVINO, default encoder"),
    "fused_openvino_plain": (">=", 0.90, "the same, paper-exact encoder"),
    "int8_onnxruntime_plain": (">=", 2.5, "counts to logits, paper-exact encoder: windows/s in 8 bits over 32"),
    "int8_onnxruntime_decimated": ("", 0.0, "the same, default encoder"),
    "int8_openvino_plain": ("", 0.0, "the same by OpenVINO, paper-exact encoder"),
    "int8_openvino_decimated": ("", 0.0, "the same, default encoder"),
    "worker_vs_getmany": (">=", 0.50, "whole worker through Kafka, null scorer: chunks/s over a bare getmany loop"),
    "worker_fast_vs_getmany": (">=", 0.50, "the same by the client of the extra fast, against the same loop"),
    "worker_with_preprocessing_vs_getmany": ("", 0.0, "the worker with preprocessing and quality, only the encoder null"),
    "exactly_once_vs_at_least_once": (">=", 0.85, "the default client: chunks/s delivered exactly once over at least once"),
    **{
        f"{name}_{ms}ms_{partitions}": (
            *((">=", 0.85) if (name, ms, partitions) == ("exactly_once", 500, 4) else ("", 0.0)),
            f"{text}, commits every {ms} ms, {partitions} partitions",
        )
        for partitions in (4, 12, 32)
        for ms in (100, 250, 500, 1000)
        for name, text in (
            ("exactly_once", "chunks/s exactly once over at least once"),
            ("per_cpu", "the same in a second of the worker's CPU time"),
            ("worker", "cores of the worker, more than at least once"),
            ("broker", "cores of the broker, more than at least once"),
        )
    },
    "takeover_over_session_s": ("<=", 5.0, "kill -9 to the survivor's first new record, beyond the session timeout, s"),
    "reread_s": ("<=", 42.5, "the same: log time that is read again, s"),
    "ingest_vs_getmany": (">=", 0.75, "bytes on Kafka to closed windows: chunks/s over a bare getmany loop"),
    "ingest_fast_vs_ingest": (">=", 1.6, "the same by the client of the extra fast, over the default client"),
    "ingest_two_processes": ("", 0.0, "the same by two processes over one, default client"),
    "ingest_fast_two_processes": ("", 0.0, "the same by two processes over one, extra fast"),
    "ingest_bare_us": ("", 0.0, "CPU time of a chunk, us: the bare loop"),
    "ingest_us": ("", 0.0, "the same: to closed windows, default client"),
    "ingest_fast_us": ("", 0.0, "the same: to closed windows, extra fast"),
    "ingest_vs_faust": (">=", 5.0, "Kafka to closed windows, a CPU second: the default client over a Faust agent"),
    "ingest_fast_vs_faust": (">=", 5.0, "the same: extra fast over a Faust agent"),
    "ingest_vs_quix": (">=", 1.0, "the same: the default client over quixstreams with its own state"),
    "ingest_fast_vs_quix": (">=", 1.0, "the same: extra fast over quixstreams with its own state"),
    "ingest_vs_quix_plain": (">=", 1.0, "the same: the default client over quixstreams with a plain dict"),
    "ingest_fast_vs_quix_plain": (">=", 1.0, "the same: extra fast over quixstreams with a plain dict"),
    "chunk_cost_12000_vs_100": ("<=", 1.25, "cost of a chunk in steady state: 12,000 streams over 100"),
    "chunk_cost_1000_vs_100": ("<=", 1.25, "the same: 1,000 streams over 100"),
    "start_us": ("", 0.0, "first chunk of a new stream, us"),
    "starts_20000_s": ("", 0.0, "20,000 streams start at once, s"),
    "run_kb": ("", 0.0, "resident memory of an open run of 12 leads and 500 Hz, kB"),
    "run_kb_ratio": ("<=", 1.25, "the same: a run of 4,000 over a run of 1,000"),
    "first_finding_s": ("<=", 5.0, "start of the worker to its first finding on a CPU, s"),
    "training_vs_bare": (">=", 0.80, "training loop: records/s over bare forward and backward passes on synthetic batches"),
    "gpu_torch_plain_512": (">=", 0.35, "torch on a GPU, paper-exact encoder, batch 512, host to host: share of the floor"),
    "gpu_tensorrt_plain_512": (">=", 0.60, "TensorRT on a GPU: the same"),
    "gpu_p99_batch8_ms": ("<=", 5.0, "default encoder on a GPU, batch 8, the best path: p99 of a batch, ms"),
    "base_install_mb": ("<=", 320.0, "base install, MB"),
    "help_s": ("<=", 0.5, "ecg-worker --help, s"),
}
MODULES = (
    *("windower", "preprocess", "fused", "replay", "kafka", "commits", "takeover", "ingest", "peers", "scale", "training"),
    *("gpu", "install"),
)
REPLAY, PAIRS = ("replay_paper_encoder", "replay_default_encoder", "replay_vs_fused"), ("ingest", "ingest_fast")
CPU = "_cpu"  # after the name of a figure by wall time: the same by CPU time
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {  # group -> its figures that not every machine can measure, and what they need
    "replay": ((*REPLAY, *(name + CPU for name in REPLAY)), "recordings (ECG_SHARED)"),
    "peers": (
        tuple(f"{ours}_vs_{peer}" for peer in ("quix", "quix_plain") for ours in PAIRS),
        "quixstreams: `make peers` installs it",
    ),
    "gpu": (("gpu_torch_plain_512", "gpu_tensorrt_plain_512", "gpu_p99_batch8_ms"), "a GPU, and its libraries"),
}


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the worker's own command sets it, before numpy is imported
    names = sys.argv[1:] or list(MODULES)
    found, failed = dict[str, float | None](), list[str]()
    if len(names) == 1:
        found |= importlib.import_module(f"tests.benchmarks.{names[0]}").measure()
    for name in names if len(names) > 1 else ():  # each in a process of its own: what one leaves behind slows the next
        with Console(stderr=True).status(f"measuring {name}"):
            done = subprocess.run([sys.executable, "-m", "tests.benchmarks", name], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
        else:
            found |= json.loads(done.stdout.splitlines()[-1])
    found, why = with_not_run([name for name in names if name not in failed], found)
    Console().print(tabled(found), *why, *(f"failed, its words are above: {name}" for name in failed), sep="\n", markup=False)
    print(json.dumps(found))
    if failed:
        sys.exit(1)


def with_not_run(names: Sequence[str], found: Mapping[str, float | None]) -> tuple[dict[str, float | None], list[str]]:
    """None for each figure that this machine could not measure, and a line for each group of them."""
    out, why = dict(found), list[str]()
    for figures, what in (NEEDS[name] for name in names if name in NEEDS):
        missing = [figure for figure in figures if out.get(figure) is None]
        out |= dict.fromkeys(missing)
        if missing:
            why.append(f"not run: {', '.join(missing)}: needs {what}")
    return out, why


def tabled(found: Mapping[str, float | None]) -> Table:
    """A row a figure, in the order of TARGETS: a text may lean on the one above."""
    order = {name + end: (at, end) for at, name in enumerate(TARGETS) for end in ("", CPU)}
    table = Table("figure", "measured", "target", "")
    for name, value in sorted(found.items(), key=lambda row: order[row[0]]):
        sign, target, text = target_of(name)
        asked = f"{sign} {target:g}" if sign else ""
        if value is None:
            table.add_row(text, "not run", asked, "")
            continue
        good = value <= target if sign == "<=" else value >= target
        table.add_row(text, f"{value:.3g}", asked, "" if not sign else "ok" if good else "missed")
    return table


def target_of(name: str) -> tuple[str, float, str]:
    """Sign, target and text; what is asked of a rate is asked by the clock on the wall."""
    if name in TARGETS:
        return TARGETS[name]
    return "", 0.0, TARGETS[name.removesuffix(CPU)][2] + "; by CPU time"


if __name__ == "__main__":
    main()
