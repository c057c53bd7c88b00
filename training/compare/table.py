"""The figures of `compare`: every row that has a run, on the same records and labels, with patient-level intervals.

A row's value is the mean over its seeds, in each bootstrap resample; differences to the reference row are paired. Rows that
leave a folder or a label out stand apart: what counts of them is the folder, or the label, that they never saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.compare.runs import (
    PARTS,
    PREDICTIONS,
    TRAINED,
    CompareError,
    Predicted,
    Row,
    check_alike,
    is_finished,
    read_predictions,
    run_directory,
)
from training.data.dataset import DataSet
from training.data.targets import cases_of
from training.evaluation import metrics
from training.evaluation.bootstrap import interval, macro, resamples
from training.evaluation.calibration import apply_platt_all, fit_platt_all
from training.evaluation.metrics import aurocs, enough
from training.evaluation.ptbxl_groups import group_metrics
from training.vocabulary import Statement

__all__ = ["tabulate"]

Runs = Mapping[int, Predicted]  # of one row, by seed
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


def tabulate(
    rows: Sequence[Row], reference: str, directory: Path, labels: Sequence[Statement], out: Path, resampled: int = 1000
) -> dict[str, Any]:
    """-> compare.json. Raises CompareError."""
    parts = {name: DataSet(directory, labels, folds) for name, folds in PARTS.items()}
    some = next(iter(parts.values()))
    runs = {
        row.name: {
            seed: read_predictions(run_directory(out, row, seed) / PREDICTIONS, some)
            for seed in range(1, row.seeds + 1)
            if is_finished(out, row, seed)
        }
        for row in rows
    }
    whole = [row for row in rows if not row.left_sources and not row.left_labels]
    if not any(runs[row.name] for row in whole):
        raise CompareError(f"{out}: no row has been run that leaves nothing out; `ecg-train compare --out {out}` runs them")
    check_alike(out, runs, rows)
    compared = {row.name: runs[row.name] for row in whole}
    active = np.logical_and.reduce([p.active for found in compared.values() for p in found.values()])
    told: dict[str, Any] = {"data": some.digest, "trained_folds": list(TRAINED), "reference": reference, "parts": {}}
    for name, part in parts.items():
        told["parts"][name] = _part(name, part, compared, active, reference, resampled)
    for name, value in _superclasses(parts, compared, active).items():
        told["parts"]["reported"]["rows"][name]["superclasses"] = value
    told["rows"] = [_about(row, runs[row.name]) | _on_gpu(out, row, runs[row.name]) for row in whole]
    told["curve"] = _curve(whole, reference, compared, DataSet(directory, labels, TRAINED))
    told["left_out"] = [
        _about(row, runs[row.name]) | {"left": list(row.left_sources)} | _left_out(row, runs, reference, parts, resampled)
        for row in rows
        if row.left_sources
    ]
    told["by_sentence"] = [
        _about(row, runs[row.name]) | {"left": list(row.left_labels)} | _by_sentence(row, rows, runs, parts, resampled)
        for row in rows
        if row.left_labels
    ]
    return told


def _values(logits: Sequence[NDArray[np.float32]], y: Bools, known: Bools, use: Bools, weights: Weights) -> list[Weights]:
    """logits: (N, L) by seed. use: bool (L,) -> macro AUROC by seed, (R,) each."""
    return [macro(aurocs(z[:, use], y[:, use], known[:, use], weights)) for z in logits]


def _entry(each: Sequence[Weights], reference: Sequence[Weights] | None) -> dict[str, Any]:
    """Of one row's seeds; reference: those of the row that it is compared with, None for itself or where it was not run."""
    value = np.mean(each, axis=0)
    entry: dict[str, Any] = {"macro_auroc": float(value[0]), "interval": interval(value), "seeds": [float(v[0]) for v in each]}
    if reference:
        gap = value - np.mean(reference, axis=0)
        entry["difference"], entry["difference_interval"] = float(gap[0]), interval(gap)
    return entry


def _part(name: str, part: DataSet, runs: Mapping[str, Runs], active: Bools, reference: str, resampled: int) -> dict[str, Any]:
    y, known = part.shown
    known &= active
    use = enough(y, known, cases_of(part.index))
    if not use.any():
        cases = f"{metrics.MIN_CASES} positives and {metrics.MIN_CASES} negatives"
        raise CompareError(
            f"{part.directory}: no label has {cases} in folds {', '.join(map(str, PARTS[name]))}; prepare more recordings"
        )
    weights = resamples([row["patient"] for row in part.index], resampled)
    values = {
        row: _values([p.logits[name] for p in found.values()], y, known, use, weights) for row, found in runs.items() if found
    }
    return {
        "folds": list(PARTS[name]),
        "records": len(part),
        "labels": [s.id for s, u in zip(part.labels, use, strict=True) if u],
        "rows": {row: _entry(each, None if row == reference else values.get(reference)) for row, each in values.items()},
    }


def _left_out(
    row: Row, runs: Mapping[str, Runs], reference: str, parts: Mapping[str, DataSet], resampled: int
) -> dict[str, Any]:
    """On the held-out and reported records of folders that the row never saw, and of which the reference saw other records.

    Both parts together, for one folder has few; nothing may be chosen by them. Labels: enough cases there, and learnt by both.
    """
    if not runs[row.name]:
        return {}
    inside = {name: np.isin(part.folders, row.left_sources) for name, part in parts.items()}
    found, other = ([*runs[name].values()] for name in (row.name, reference))
    learnt = np.logical_and.reduce([p.active for p in (*found, *other)])
    return _unseen(found, other, inside, learnt, parts, resampled)


def _by_sentence(
    row: Row, rows: Sequence[Row], runs: Mapping[str, Runs], parts: Mapping[str, DataSet], resampled: int
) -> dict[str, Any]:
    """On the labels that the row was never told of and scores by their sentence, beside the row that differs in nothing else.

    Held-out and reported records together; nothing may be chosen by them.
    """
    if not runs[row.name]:
        return {}
    recipe = {key: value for key, value in row.keys.items() if key != "leave_out"}
    twins = [one.name for one in rows if one.keys == recipe]
    found, other = [*runs[row.name].values()], [*runs[twins[0]].values()] if twins else []
    left = np.isin([s.id for s in parts["reported"].labels], row.left_labels)
    everyone = {name: np.ones(len(part), dtype=bool) for name, part in parts.items()}
    return {"beside": twins[0] if twins else None} | _unseen(found, other, everyone, left, parts, resampled)


def _unseen(
    found: Sequence[Predicted],
    other: Sequence[Predicted],
    inside: Mapping[str, Bools],
    learnt: Bools,
    parts: Mapping[str, DataSet],
    resampled: int,
) -> dict[str, Any]:
    """What `found` never saw beside `other`, which saw it. inside: which records of each part; learnt: (L,) which labels."""
    y, known = (np.concatenate([part.shown[k][inside[name]] for name, part in parts.items()]) for k in range(2))
    known &= learnt
    index = [each for name, part in parts.items() for each, i in zip(part.index, inside[name], strict=True) if i]
    use = enough(y, known, cases_of(index))
    told = {
        "records": len(y),
        "labels": [s.id for s, u in zip(parts["reported"].labels, use, strict=True) if u],
        "positives": int((y & known)[:, use].sum()),
    }
    if not use.any():
        return told
    weights = resamples([each["patient"] for each in index], resampled)
    unseen, seen = (
        _values([np.concatenate([p.logits[name][inside[name]] for name in parts]) for p in some], y, known, use, weights)
        for some in (found, other)
    )
    return told | {"unseen": _entry(unseen, seen), "seen": _entry(seen, None) if seen else None}


def _curve(rows: Sequence[Row], reference: str, runs: Mapping[str, Runs], train: DataSet) -> list[dict[str, Any]]:
    """The learning curve: rows that differ from the reference in the share of patients and in passes only, smallest first."""

    def recipe(row: Row) -> dict[str, Any]:
        return {key: value for key, value in row.keys.items() if key not in ("train_share", "epochs", "finish_epochs")}

    base = next(row for row in rows if row.name == reference)
    points = [
        {"row": row.name, "share": share, "records": len(train.of_patients(share, 1))}
        for row in rows
        if runs[row.name] and recipe(row) == recipe(base)
        for share in [float(row.keys.get("train_share", 1.0))]
        if row is base or share < 1
    ]
    return sorted(points, key=lambda point: float(point["share"])) if len(points) > 1 else []


def _superclasses(parts: Mapping[str, DataSet], runs: Mapping[str, Runs], active: Bools) -> dict[str, float | None]:
    """By row: macro AUROC of PTB-XL's five in the reported part, mean over seeds.

    The likeliest of several labels can be told only on one scale, which cosines are not: each run is calibrated on what was
    held out first.
    """
    (held_y, held_known), (y, known) = (parts[name].shown for name in ("held_out", "reported"))
    reported = parts["reported"]
    out: dict[str, float | None] = {}
    for row, found in runs.items():
        each = []
        for p in found.values():
            fits = fit_platt_all(p.logits["held_out"], held_y, held_known & active, active)
            odds = apply_platt_all(p.logits["reported"], fits)
            once = np.ones((1, len(reported)))
            groups = group_metrics(odds, y, known & active, reported.labels, active, once, cases_of(reported.index))
            each += [v for v in [groups["super"]["macro_auroc"]] if v is not None]
        if found:
            out[row] = float(np.mean(each)) if each else None
    return out


def _on_gpu(out: Path, row: Row, found: Runs) -> dict[str, Any]:
    """Speed and memory as its runs logged them, where it ran on one: median of the passes' records/s, the highest peak."""
    logs = [run_directory(out, row, seed) / "log.jsonl" for seed in found]
    lines = [json.loads(line) for log in logs if log.is_file() for line in log.read_text("utf-8").splitlines()]
    passes = [line for line in lines if "gpu_memory_mb" in line]
    if not passes:
        return {}
    rate = float(np.median([one["records_per_s"] for one in passes]))
    return {"gpu": {"records_per_s": rate, "memory_mb": max(one["gpu_memory_mb"] for one in passes)}}


def _about(row: Row, found: Runs) -> dict[str, Any]:
    about: dict[str, Any] = {"name": row.name, "what": row.what, "set": row.keys, "seeds": row.seeds, "run": sorted(found)}
    if found:
        meta = next(iter(found.values())).meta
        about["epochs"] = json.loads(meta["config"])["epochs"]
        about["multiply_adds"] = int(meta["multiply_adds"])
        about["receptive_field_s"] = float(meta["receptive_field_s"])
    return about
