"""`make bench`: every figure with its target, as a table and as one JSON line at the end. Names as arguments choose some."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

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
    "worker_with_preprocessing_vs_getmany": ("", 0.0, "the same with preprocessing and quality, only the encoder null"),
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
MODULES = ("windower", "preprocess", "fused", "replay", "kafka", "ingest", "peers", "scale", "training", "gpu", "install")


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the worker's own command sets it, before numpy is imported
    names, found = sys.argv[1:] or list(MODULES), dict[str, float]()
    if len(names) == 1:
        found = importlib.import_module(f"tests.benchmarks.{names[0]}").measure()
    for name in names if len(names) > 1 else ():  # each in a process of its own: what one leaves behind slows the next
        with Console(stderr=True).status(f"measuring {name}"):
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks", name], check=True, stdout=subprocess.PIPE, text=True
            )
            found |= json.loads(done.stdout.splitlines()[-1])
    table = Table("figure", "measured", "target", "")
    for name, value in found.items():
        sign, target, text = TARGETS[name]
        good = not sign or (value <= target if sign == "<=" else value >= target)
        table.add_row(
            text, f"{value:.3g}", f"{sign} {target:g}" if sign else "", "" if not sign else "ok" if good else "missed"
        )
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
