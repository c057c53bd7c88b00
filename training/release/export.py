"""A trained run -> an artifact directory named by its digest, verified and opened before it is handed over."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from encoders import preprocess as chain
from encoders.artifact import (
    FORMAT,
    NAME_DIGITS,
    Artifact,
    FileEntry,
    Manifest,
    ModelInfo,
    Tolerances,
    TrainingInfo,
    write_golden,
)
from encoders.bank import LabelBank, tiers_said
from encoders.base import Encoder
from encoders.model import ARCHITECTURES, count_multiply_adds, count_parameters, receptive_field_s
from encoders.onnx_backend import OnnxEncoder
from encoders.signal import FS, LEADS, WINDOW
from encoders.torch_backend import TorchEncoder
from training.data.dataset import DataSet
from training.evaluation.bootstrap import resamples
from training.evaluation.breakdown import false_positives
from training.evaluation.evaluate import Evidence, bank_scorer, evaluate
from training.evaluation.held_out import HeldOut, build_bank, check_trained, int8_encoder
from training.evaluation.scorers import evidence_of_bank, prevalence_of
from training.learning.checkpoint import write_whole, writing
from training.learning.trainee import Trainee
from training.release.card import model_card
from training.release.golden import golden_recording
from training.release.onnx_graph import encoder_graph
from training.release.quantize import Form
from training.text.labels import TextBank

__all__ = ["ExportError", "check_exportable", "export", "said"]

GOLDEN_COSINE = 0.999  # float16 weights give 0.99999; int8 passes, another model does not
PARITY_COSINE = 0.9999  # each float encoder that was written against the torch model
KEPT = ("folds", "train_records", "calibration_records", "cross_validated", "sources", "prevalence", "int8")  # in the manifest


class ExportError(ValueError):
    """The run cannot become an artifact; the text gives both values."""


def check_exportable(model: Trainee, train: DataSet) -> None:
    """What can be refused before anything is scored. Raises ExportError, ProtocolError."""
    if model.config.objective == "supervised":
        raise ExportError("a supervised run has no label bank: it is a reference; train with another objective")
    check_trained(model, train)


def export(
    model: Trainee,
    train: DataSet,
    held_out: HeldOut,
    report: DataSet | None,
    text: TextBank,
    out: Path,
    command: str = "",
    fp32: bool = False,
    safetensors: bool = False,
    int8: Sequence[Form] = (),
    advance: Callable[[int], None] = lambda n: None,
) -> Path:
    """Write the artifact under `out` -> its directory. report: the folds for reporting, scored once, here; None: no metrics.

    fp32, safetensors, int8: optional files. advance is told how many records were scored: of held_out once for each of int8, of
    report by lead set. Raises ExportError, ArtifactError, ProtocolError, RowsError, CheckpointError (a full disk), and
    QuantizeError before fold 9 is scored.
    """
    check_exportable(model, train)
    part = out / ".part"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        onnx = encoder_graph(model.encoder)
        digest = hashlib.sha256(onnx).hexdigest()
        bank = build_bank(model, train, held_out, text, digest)
        more, measured = _optional(model, train, held_out, text, fp32, int8, advance)
        files: dict[str, bytes] = {"labels.bank": bank.to_bytes(), **more}
        files["thresholds.json"] = _json(
            {"method": "highest F1 on held-out records", "thresholds": {x.id: x.threshold for x in bank.labels}}
        )
        samples, layout = golden_recording()
        x = chain.preprocess(samples, layout).x
        files["golden.npz"] = write_golden(samples, layout, _embed(model, x[None])[0])
        write_whole(part / "encoder.onnx", lambda path: path.write_bytes(onnx))
        with OnnxEncoder(part / "encoder.onnx", digest) as served:
            metrics = {**_metrics(model, train, held_out, report, bank, served, advance), **measured}
        files["metrics.json"] = _json(metrics)
        info = _model_info(model)
        files["MODEL_CARD.md"] = model_card(info, bank, metrics, command, model.config).encode()
        for name, data in files.items():
            write_whole(part / name, lambda path, data=data: path.write_bytes(data))  # type: ignore[misc]
        if safetensors:
            config = {"config": json.dumps(asdict(model.encoder.config))}
            weights = model.encoder.state_dict()
            write_whole(part / "encoder.safetensors", lambda path: save_file(weights, path, metadata=config))
        manifest = _manifest(part, info, bank, metrics, command, model)
        return _finish(part, out, manifest, model, x)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def said(made: Path) -> str:
    """What `export` made and what comes next, for people. made: its directory."""
    artifact = Artifact.load(made)
    size = sum(path.stat().st_size for path in made.iterdir())
    lines = [
        f"{made}: {size / 1e6:.2f} MB, verified and opened",
        f"digest {artifact.digest}",
        f"labels: {tiers_said(artifact.bank().labels)}",
        f"next: read {made / 'MODEL_CARD.md'}; try it with `ecg-worker demo --artifact {made}`; compare it with what runs by "
        f"`ecg-train promote {made} --against RUNNING --data DATA`",
    ]
    others = [path.parent.name for path in sorted(made.parent.glob("*/manifest.json")) if path.parent != made]
    if others:
        lines.append(f"{made.parent} holds {', '.join(others)} too: name the folder {made.name} itself, not {made.parent}")
    return "\n".join(lines)


def _optional(
    model: Trainee,
    train: DataSet,
    held_out: HeldOut,
    text: TextBank,
    fp32: bool,
    int8: Sequence[Form],
    advance: Callable[[int], None],
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Further graphs by file name, and what was measured of them."""
    files: dict[str, bytes] = {}
    measured: dict[str, Any] = {}
    if fp32:
        files["encoder.fp32.onnx"] = encoder_graph(model.encoder, half=False)
    for form in int8:
        files[form.file], measured[form.name] = int8_encoder(model, train, held_out, text, form, advance)
    return files, {"int8": measured} if int8 else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _embed(model: Trainee, x: NDArray[np.float32]) -> NDArray[np.float32]:
    model.eval()
    with torch.inference_mode():
        return np.asarray(model.encoder(torch.from_numpy(x)).numpy(), dtype=np.float32)


def _model_info(model: Trainee) -> ModelInfo:
    encoder = model.encoder
    return ModelInfo(
        architecture=ARCHITECTURES[encoder.config.architecture].name,
        form=encoder.config.form,
        dim=encoder.config.dim,
        input_shape=(len(LEADS), WINDOW),
        lead_order=LEADS,
        fs=FS,
        parameters=count_parameters(encoder),
        multiply_adds=count_multiply_adds(encoder),
        receptive_field_s=receptive_field_s(encoder.config),
    )


def _metrics(
    model: Trainee,
    train: DataSet,
    held_out: HeldOut,
    report: DataSet | None,
    bank: LabelBank,
    served: Encoder,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Of the card. served: the file that workers load, by which `report` is scored."""
    evidence = evidence_of_bank(bank, prevalence_of(train))
    folds = {"train": model.config.train_folds, "calibration": held_out.folds}
    sets = [train] + ([held_out.records] if held_out.crossval is None else []) + ([report] if report else [])
    data: dict[str, Any] = {
        "folds": {k: list(v) for k, v in folds.items()},
        "train_records": len(train),
        "calibration_records": len(held_out.records),
        "cross_validated": held_out.crossval is not None,
        "sources": _sources(sets),
        "prevalence": {x.id: float(v) for x, v in zip(bank.labels, evidence.prevalence, strict=True) if np.isfinite(v)},
        "trained_labels": int(evidence.candidates.sum()),
        "evaluated_labels": [label.id for label in bank.labels if label.tier == "evaluated"],
        "unsupported_labels": [label.id for label in bank.labels if label.tier == "unsupported"],
    }
    if held_out.crossval is not None:
        told = held_out.crossval.told
        alarms = _false_positives(held_out, evidence)
        data["out_of_fold"] = {"records": told["records"], "runs": told["runs"], **told["metrics"], **alarms}
    if report is not None:
        data["report"] = {
            "folds": sorted({r["fold"] for r in report.index}),
            **evaluate(bank_scorer(served, bank), report, evidence, advance=advance),
        }
    return data


def _false_positives(held_out: HeldOut, evidence: Evidence) -> dict[str, Any]:
    """On long recordings, at the thresholds: only the bank, made from these predictions, has them."""
    p = held_out.predictions
    weights = resamples([row["patient"] for row in p.index])
    known, probabilities = p.known & evidence.candidates, evidence.probabilities(p.logits)
    wrong = false_positives(probabilities, evidence.thresholds, p.y, known, p.index, p.ids, weights)
    return {} if wrong is None else {"false_positives": wrong}


def _sources(sets: Sequence[DataSet]) -> dict[str, int]:
    out: dict[str, int] = {}
    for data in sets:
        for row in data.index:
            name = row["source"].split("/")[0]
            out[name] = out.get(name, 0) + 1
    return dict(sorted(out.items()))


def _manifest(part: Path, info: ModelInfo, bank: LabelBank, metrics: dict[str, Any], command: str, model: Trainee) -> bytes:
    entries = {
        path.name: FileEntry(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size)
        for path in sorted(part.iterdir())
    }
    summary: dict[str, Any] = {k: metrics[k] for k in KEPT if k in metrics}
    manifest = Manifest(
        format=FORMAT,
        created=datetime.now(UTC).replace(microsecond=0),
        files=entries,
        model=info,
        preprocess=chain.VERSION,
        text=bank.text,
        training=TrainingInfo(
            command=command, objective=model.config.objective, data={**summary, "config": model.config.as_dict()}
        ),
        tolerances=Tolerances(golden_cosine=GOLDEN_COSINE),
    )
    return (manifest.model_dump_json(indent=1) + "\n").encode()


def _finish(part: Path, out: Path, manifest: bytes, model: Trainee, x: NDArray[np.float32]) -> Path:
    """Name the directory, then load and open it as serving does, and compare what was written with the torch model."""
    write_whole(part / "manifest.json", lambda path: path.write_bytes(manifest))
    final = out / hashlib.sha256(manifest).hexdigest()[:NAME_DIGITS]
    windows = np.ascontiguousarray(np.stack([x, x[:, ::-1], np.roll(x, 7, axis=0)]))
    expected = _embed(model, windows)
    for name, encoder in _written(part):
        with encoder:
            cosine = float(np.sum(encoder.encode(windows) * expected, axis=1).min())
        if not cosine >= PARITY_COSINE:
            raise ExportError(f"{name}: cosine with the torch model of at least {PARITY_COSINE} expected, found {cosine:.6f}")
    with writing(final):
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    return final


def _written(part: Path) -> Iterator[tuple[str, Encoder]]:
    """The float encoders of an artifact, read back: what serves first, opened and checked as there, then what is optional."""
    artifact = Artifact.load(part)
    yield "encoder.onnx", artifact.open(threads=1)
    if (exact := part / "encoder.fp32.onnx").is_file():
        yield exact.name, OnnxEncoder(exact, artifact.manifest.files[exact.name].sha256, threads=1)
    if (weights := part / "encoder.safetensors").is_file():
        yield weights.name, TorchEncoder.from_safetensors(weights)
