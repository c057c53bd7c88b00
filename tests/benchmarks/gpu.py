"""The encoder on a GPU, both forms: torch eager, compiled and recorded; TensorRT on prepared windows and from counts.

Host memory to host memory: pinned int16 counts (120 kB a window) go in, embeddings come out, on two streams by turns. "run"
adds what the worker's thread does, the copy into pinned memory. Each share is of the floor in `floor.py`. Written to be run in
one call of about seven minutes (GPU_BATCHES chooses some); not run yet, no GPU was at hand. Needs numpy, torch, onnx, rich;
TensorRT or TensorRT-RTX for its rows.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from encoders.base import BackendUnavailable, DeviceLost
from encoders.engine.build import BuildError, library_of
from encoders.engine.cuda_calls import Cuda, OutOfMemory, probe
from encoders.engine.plans import Recipe, Source
from encoders.engine.run import Engine
from encoders.model import EcgEncoder, EncoderConfig, fold
from encoders.signal import LEADS, WINDOW
from encoders.tensorrt_backend import CONSTANTS, FUSED, Planner
from encoders.torch_backend import HalfEncoder
from tests.benchmarks.floor import windows_per_s
from training.release.onnx_graph import encoder_graph

BATCHES = tuple(int(n) for n in os.environ.get("GPU_BATCHES", "8,32,128,512,2048").split(","))
SECONDS, ROUNDS = 0.3, 5  # a round; the median of the rounds counts
LABELS = 98
Step = Callable[[int], None]  # enqueue a batch on stream 0 or 1, after the batch before on that stream is done


def measure() -> dict[str, float]:
    """-> the figures that have a target, those that ran; the whole table is printed. Without a GPU: none."""
    err = Console(stderr=True, width=140)
    try:
        gpu = probe()
    except BackendUnavailable as error:
        err.print(f"no GPU: {error}", markup=False)
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    table, found = Table("encoder", "path", "batch", "windows/s", "of the floor", "p99 ms", title=str(gpu)), dict[str, float]()
    for form in ("plain", "decimated"):
        torch.manual_seed(0)
        model = EcgEncoder(EncoderConfig(form=form)).eval()  # type: ignore[arg-type]
        floor = windows_per_s(model)
        table.add_row(form, "floor: layers, an H200", "", f"{floor:.0f}", "1", "")
        for path, batch, rate, p99 in [*torch_rows(model), *tensorrt_rows(model)]:
            if isinstance(rate, str):
                table.add_row(form, path, str(batch), rate, "", "")
                continue
            table.add_row(form, path, str(batch), f"{rate:.0f}", f"{rate / floor:.2f}", f"{p99:.2f}")
            if form == "plain" and batch == 512:
                best = "gpu_tensorrt_plain_512" if path.startswith("tensorrt") else "gpu_torch_plain_512"
                found[best] = max(found.get(best, 0.0), rate / floor)
            if form == "decimated" and batch == 8 and "p99" not in path:
                found["gpu_p99_batch8_ms"] = min(found.get("gpu_p99_batch8_ms", np.inf), p99)
    err.print(table)
    return found


def timed(step: Step, wait: Callable[[int], None], batch: int) -> tuple[float, float]:
    """-> windows/s on two streams by turns (median of the rounds), p99 in ms of one batch at a time."""
    for i in range(6):
        step(i % 2)
    wait(0), wait(1)
    rates = []
    for _ in range(ROUNDS):
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            wait(calls % 2)
            step(calls % 2)
            calls += 1
        wait(0), wait(1)
        rates.append(calls * batch / (time.perf_counter() - began))
    times = []
    for _ in range(200):
        began = time.perf_counter()
        step(0)
        wait(0)
        times.append(time.perf_counter() - began)
    return statistics.median(rates), float(np.quantile(times, 0.99)) * 1e3


def torch_rows(model: EcgEncoder) -> list[tuple[str, int, Any, float]]:
    """eager, compiled, recorded: (path, batch, windows/s or what went wrong, p99 ms)."""
    half = HalfEncoder(fold(model)).cuda()
    rows: list[tuple[str, int, Any, float]] = []
    torch._dynamo.reset()  # type: ignore[attr-defined]  # or both encoders share one limit of compiled shapes
    compiled = torch.compile(half, dynamic=False)
    for path, network, record in (
        ("eager", half, False),
        ("compiled", compiled, False),
        ("recorded", half, True),
        ("compiled, recorded", compiled, True),
    ):
        for batch in BATCHES:
            try:
                with torch.inference_mode():
                    step, wait = torch_job(network, batch, model.config.dim, record)
                    rows.append((f"torch {path}", batch, *timed(step, wait, batch)))
            except Exception as error:  # one path that fails is a row, not the end of a run that cannot be repeated soon
                rows.append((f"torch {path}", batch, f"{type(error).__name__}: {str(error)[:80]}", 0.0))
            torch.cuda.empty_cache()
    return rows


def torch_job(network: Any, batch: int, dim: int, record: bool) -> tuple[Step, Callable[[int], None]]:
    """Two streams with buffers of their own; counts are scaled on the GPU."""
    streams: list[Any] = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
    shape = (batch, len(LEADS), WINDOW)
    host = [torch.randint(-2000, 2000, shape, dtype=torch.int16).pin_memory() for _ in streams]
    counts = [torch.empty(shape, dtype=torch.int16, device="cuda") for _ in streams]
    result = [torch.empty((batch, dim), pin_memory=True) for _ in streams]

    def work(i: int) -> None:
        counts[i].copy_(host[i], non_blocking=True)
        result[i].copy_(network(counts[i].float() * 1e-3), non_blocking=True)

    graphs: list[Any] = []
    for i, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            for _ in range(3):
                work(i)
        stream.synchronize()
        if record:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1], stream=stream):
                work(i)

    def step(i: int) -> None:
        with torch.cuda.stream(streams[i]):
            graphs[i].replay() if record else work(i)

    return step, lambda i: streams[i].synchronize()


def tensorrt_rows(model: EcgEncoder) -> list[tuple[str, int, Any, float]]:
    """Prepared float32 windows (240 kB each) and counts as bytes (120 kB): recorded alone, and `run` with the host's copy."""
    graph = encoder_graph(model)
    rows: list[tuple[str, int, Any, float]] = []
    with tempfile.TemporaryDirectory() as cache:
        try:
            planner = Planner.here(Path(cache))
        except BackendUnavailable as error:
            return [("tensorrt", 0, f"not run: {error}", 0.0)]
        for name, onnx, recipe, feeds, constants in cases(graph, model.config.dim):
            path = f"tensorrt ({library_of(planner.trt)}) {name}"
            for batch in BATCHES:
                try:
                    source = Source(hashlib.sha256(onnx).hexdigest(), lambda onnx=onnx: onnx)
                    engine = Engine(planner.trt, planner.plan(source, recipe)[0], recipe, Cuda(), constants=constants)
                    given = feeds(batch)
                    engine.run(given)
                    engine.run(given)
                    step, wait = engine_job(engine, given, batch)
                    rows.append((path, batch, *timed(step, wait, batch)))
                    rows.append(
                        (path + ", run", batch, *timed(lambda i, e=engine, g=given: e.run(g) and None, lambda i: None, batch))
                    )
                    engine.close()
                except (BackendUnavailable, BuildError, DeviceLost, OutOfMemory) as error:
                    rows.append((path, batch, f"{type(error).__name__}: {str(error)[:100]}", 0.0))
    return rows


def cases(graph: bytes, dim: int) -> list[tuple[str, bytes, Recipe, Callable[[int], dict[str, Any]], frozenset[str]]]:
    """(name, graph, recipe, inputs of a batch, constant inputs)."""
    from encoders.graph.fused import fused_graph

    rng, n = np.random.default_rng(0), len(LEADS)
    labels = rng.standard_normal((LABELS, dim), dtype=np.float32)
    bias = rng.standard_normal(LABELS, dtype=np.float32)

    def windows(batch: int) -> dict[str, Any]:
        return {"x": rng.standard_normal((batch, n, WINDOW), dtype=np.float32)}

    def counts(batch: int) -> dict[str, Any]:
        samples = rng.integers(-2000, 2000, (batch, n, WINDOW)).astype("<i2")
        return {
            "counts": samples.view(np.uint8).reshape(batch, n, WINDOW, 2),
            "mix": np.tile(np.eye(n, dtype=np.float32) / 1000, (batch, 1, 1)),
            "least": np.full((batch, 1, 1), 0.005, dtype=np.float32),
            "labels": labels,
            "bias": bias,
        }

    fused = fused_graph(graph, 500_000, planes=True).SerializeToString()
    return [
        ("float16, windows", graph, Recipe(), windows, frozenset()),
        ("bfloat16, windows", graph, Recipe(precision="bf16"), windows, frozenset()),
        ("float16, from counts", fused, Recipe(ranges=FUSED), counts, CONSTANTS),
    ]


def engine_job(engine: Any, feeds: dict[str, Any], batch: int) -> tuple[Step, Callable[[int], None]]:
    """What was recorded, by turns on both lanes; the windows are in pinned memory already."""
    lanes = engine._lanes._lanes
    for lane in lanes:
        lane.submit(feeds, batch, batch)
        lane.collect(batch)

    def step(i: int) -> None:
        lane = lanes[i]
        if lane._job.graph is None:
            lane._enqueue(lane._job)
        else:
            lane._cuda.play(lane._job.graph, lane._stream)

    return step, lambda i: lanes[i]._cuda.wait(lanes[i]._stream)
