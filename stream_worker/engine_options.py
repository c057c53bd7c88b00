"""ecg-worker engine: the options of its commands. Imports nothing heavy until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream_worker.options import ArtifactDir, Json

__all__ = ["engine"]

engine = typer.Typer(no_args_is_help=True, help="Engine plans of TensorRT: built ahead, checked; and any backend's speed.")

Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Where plans are kept [env ECG_ENGINE_CACHE]; default: ~/.cache.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", help="fp16, bf16, fp32, or int8 of encoder.s8s8.onnx [env ECG_ENGINE_PRECISION; default fp16]."
    ),
]
Chip = Annotated[
    str | None,
    typer.Option("--for", metavar="X.Y", help="A compute capability, e.g. 8.9, not this machine's GPU (TensorRT-RTX only)."),
]
Rates = Annotated[
    list[float] | None,
    typer.Option("--rate", metavar="HZ", min=50, max=2000, help="Also the plan that takes counts at this rate. Repeatable."),
]


@engine.command("build", short_help="Build the plan of a model for this GPU.")
def engine_build(
    artifact: ArtifactDir = None,
    cache: Cache = None,
    precision: Precision = None,
    chip: Chip = None,
    rate: Rates = None,
    again: Annotated[bool, typer.Option("--again", help="Also where a good one is kept.")] = False,
    json: Json = False,
) -> None:
    """Build the plan of a model for this machine's GPU and keep it, so that a worker's start need not.

    A plan is compiled for one chip and is kept under a key of all it depends on: model, precision, batch profiles, version of
    TensorRT, chip, driver. Nothing is ever loaded from the cache unless its sha256 agrees; to clear it, delete the directory.
    Only the worker's own user should be able to write there.

    With --rate 500 --rate 250 and so on, streams at these rates are preprocessed on the GPU too; a worker builds the plan for
    prepared windows itself where it is missing, but never these, and preprocesses on the CPU instead.

    Exit codes: 0 a plan is there, 2 no GPU, no TensorRT, or no plan can be built or kept; 3 model refused.
    """
    from stream_worker import engine_command

    engine_command.build(artifact, cache, precision, chip, rate or [], again, json)


@engine.command("check", short_help="Would a worker find its plan?")
def engine_check(
    artifact: ArtifactDir = None,
    cache: Cache = None,
    precision: Precision = None,
    chip: Chip = None,
    rate: Rates = None,
    json: Json = False,
) -> None:
    """Is a plan kept for this model, library, chip and driver, and is it as it was built?

    Exit codes: 0 yes, 1 missing or damaged (a worker would build it at its start), 2 no GPU or no TensorRT, 3 model refused.
    """
    from stream_worker import engine_command

    raise typer.Exit(engine_command.check(artifact, cache, precision, chip, rate or [], json))


@engine.command("bench", short_help="Windows a second, and the time of a call, by batch size.")
def engine_bench(
    artifact: ArtifactDir = None,
    cache: Cache = None,
    precision: Precision = None,
    backend: Annotated[
        str | None, typer.Option(help="tensorrt, torch, onnxruntime, openvino; default: the worker's choice [env ECG_BACKEND].")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, max=2048, help="Windows a call. Repeatable; default 1, 8, 32.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="For each batch size.")] = 2.0,
    json: Json = False,
) -> None:
    """How fast is the encoder alone here: prepared windows in host memory to embeddings in host memory, transfers included.

    Runs with every backend; a GPU is worth larger batches: --batch 8 --batch 64 --batch 512 --batch 2048. The whole worker is
    measured by ecg-worker bench.
    """
    from stream_worker import engine_command

    engine_command.bench(artifact, cache, precision, backend, batch or [1, 8, 32], seconds, json)
