"""One table of recipes on the same records: each row is trained on folds 1 to 6 and judged on folds 7 and 8 and on fold 9.

DIR/<row>-<seed>/   a run with predictions.safetensors: "held_out", "reported", float32 (N, L) logits of whole windows, 12 leads
DIR/compare.json    the table, with patient-level intervals      DIR/compare.md, compare.png   the same to read and to look at

A row's value is the mean over its seeds, in each bootstrap resample; differences to the reference row are paired.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from encoders.model import count_multiply_adds, receptive_field_s
from training.annotated import VALIDATION_FOLD
from training.bootstrap import interval, macro, resamples
from training.calibration import apply_platt_all, fit_platt_all
from training.config import ConfigError, TrainConfig
from training.data import DataSet
from training.evaluate import model_scorer, predict
from training.folds import DEVELOPMENT, GROUPS, check_development, check_disjoint
from training.labels import TextBank
from training.loop import Progress, train
from training.metrics import aurocs, enough
from training.ptbxl_groups import group_metrics
from training.vocabulary import Statement

__all__ = ["ROWS", "CompareError", "Row", "is_finished", "read_rows", "run_row", "tabulate"]

ROWS = Path(__file__).with_name("configs") / "compare.toml"
PREDICTIONS = "predictions.safetensors"
HELD_OUT = GROUPS[-1]
TRAINED = tuple(fold for fold in DEVELOPMENT if fold not in HELD_OUT)
PARTS = {"held_out": HELD_OUT, "reported": (VALIDATION_FOLD,)}


class CompareError(ValueError):
    """A row that does not exist or cannot be compared; the text names it."""


@dataclass(frozen=True)
class Row:
    """name: also of its directories. what: in words. set: keys of the config. seeds: runs. gpu: not run without one."""

    name: str
    what: str
    set: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    gpu: bool = False

    def config(self, base: TrainConfig, seed: int, epochs: int | None) -> TrainConfig:
        """Of one run. epochs: instead of the base's, for a quick trial; the row's own take its place in proportion."""
        config = TrainConfig.of({**base.as_dict(), **self.set, "seed": seed, "train_folds": list(TRAINED)})
        config = replace(config, calibration_folds=HELD_OUT)
        if epochs is None:
            return config
        longer = max(1, round(epochs * config.epochs / base.epochs))
        return replace(config, epochs=longer, finish_epochs=min(config.finish_epochs, longer), warmup_epochs=min(1.0, longer))


def read_rows(path: Path = ROWS) -> tuple[tuple[Row, ...], str]:
    """-> rows, and the name of the one that the others are compared with. Raises ConfigError."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Row(**row) for row in told["row"])
    names = [row.name for row in rows]
    if told["reference"] not in names or len(set(names)) < len(names):
        raise ConfigError(f"{path}: reference = {told['reference']!r} must be one of the rows, each named once: {names}")
    return rows, told["reference"]


def _run(out: Path, row: Row, seed: int) -> Path:
    return out / f"{row.name}-{seed}"


def is_finished(out: Path, row: Row, seed: int) -> bool:
    """Whether this run has been trained and has predicted."""
    return (_run(out, row, seed) / PREDICTIONS).is_file()


def run_row(
    row: Row,
    seed: int,
    base: TrainConfig,
    directory: Path,
    labels: Sequence[Statement],
    text: TextBank,
    out: Path,
    epochs: int | None = None,
    report: Callable[[str, Progress], None] = lambda name, p: None,
    command: str = "",
) -> bool:
    """Train and predict one run, or go on with it; one that has its predictions is left as it is. False: stopped by SIGTERM.

    Raises CompareError where the predictions there are of another recipe.
    """
    run, config = _run(out, row, seed), row.config(base, seed, epochs)
    data = DataSet(directory, labels, config.train_folds)
    if (run / PREDICTIONS).is_file():
        _check(run, _read(run / PREDICTIONS, data), config)
        return True
    parts = {name: DataSet(directory, labels, folds) for name, folds in PARTS.items()}
    check_development(data, "training")
    for name, part in parts.items():
        check_disjoint(data, part, name)
    resume = (run / "checkpoint.json").is_file()
    trained = train(config, data, text, run, resume, lambda p: report(run.name, p), command=command)
    if not trained.finished:
        return False
    score = model_scorer(trained.model)
    tensors = {name: predict(score, part).logits for name, part in parts.items()}
    tensors["active"] = trained.model.active.numpy()
    encoder = trained.model.encoder
    meta = {
        "data": data.digest,
        "labels": json.dumps([s.id for s in labels]),
        "config": json.dumps(config.as_dict()),
        "multiply_adds": str(count_multiply_adds(encoder)),
        "receptive_field_s": f"{receptive_field_s(encoder.config):.2f}",
    }
    save_file(tensors, run / PREDICTIONS, metadata=meta)
    return True


@dataclass(frozen=True)
class _Predicted:
    """One run's logits by part; active: bool (L,); meta: as written."""

    logits: dict[str, NDArray[np.float32]]
    active: NDArray[np.bool_]
    meta: dict[str, str]


def _read(path: Path, data: DataSet) -> _Predicted:
    with safe_open(path, framework="np") as file:
        meta = dict(file.metadata() or {})
        logits = {name: file.get_tensor(name) for name in PARTS}
        active = file.get_tensor("active")
    ids = json.dumps([s.id for s in data.labels])
    if meta.get("data") != data.digest or meta.get("labels") != ids:
        raise CompareError(f"{path.parent}: made from another data set or label set than {data.directory}; give another --out")
    return _Predicted(logits, active, meta)


def _check(run: Path, found: _Predicted, config: TrainConfig) -> None:
    """Raises CompareError unless the run is of this config."""
    if different := config.differences(json.loads(found.meta["config"])):
        raise CompareError(f"{run} is a run of another recipe: {'; '.join(different)[:600]}; give another --out or remove it")


def _check_alike(out: Path, runs: Mapping[str, Mapping[int, _Predicted]], rows: Sequence[Row]) -> None:
    """Raises CompareError unless each run has its row's keys and, but for the seed, all runs of a row are alike."""
    for row in rows:
        first: TrainConfig | None = None
        for seed, found in runs[row.name].items():
            config = TrainConfig.of(json.loads(found.meta["config"]))
            first = first or config
            rows_own = {k: v for k, v in row.set.items() if k != "epochs"}  # fewer of them in a quick trial
            _check(_run(out, row, seed), found, TrainConfig.of({**first.as_dict(), **rows_own, "seed": seed}))


def tabulate(
    rows: Sequence[Row], reference: str, directory: Path, labels: Sequence[Statement], out: Path, resampled: int = 1000
) -> dict[str, Any]:
    """Every row that has a run, on the same records and labels -> compare.json. Raises CompareError."""
    parts = {name: DataSet(directory, labels, folds) for name, folds in PARTS.items()}
    some = next(iter(parts.values()))
    runs = {
        row.name: {
            seed: _read(_run(out, row, seed) / PREDICTIONS, some)
            for seed in range(1, row.seeds + 1)
            if is_finished(out, row, seed)
        }
        for row in rows
    }
    if not any(runs.values()):
        raise CompareError(f"{out}: no row has been run; `ecg-train compare --out {out}` runs them")
    _check_alike(out, runs, rows)
    active = np.logical_and.reduce([p.active for found in runs.values() for p in found.values()])
    told: dict[str, Any] = {"data": some.digest, "trained_folds": list(TRAINED), "reference": reference, "parts": {}}
    for name, part in parts.items():
        told["parts"][name] = _part(name, part, runs, active, reference, resampled)
    for name, value in _superclasses(parts, runs, active).items():
        told["parts"]["reported"]["rows"][name]["superclasses"] = value
    told["rows"] = [_about(row, runs[row.name]) for row in rows]
    return told


def _part(
    name: str,
    part: DataSet,
    runs: Mapping[str, Mapping[int, _Predicted]],
    active: NDArray[np.bool_],
    reference: str,
    resampled: int,
) -> dict[str, Any]:
    y, known = part.shown
    known &= active
    use = enough(y, known)
    weights = resamples([row["patient"] for row in part.index], resampled)
    values: dict[str, NDArray[np.float64]] = {}
    spread: dict[str, list[float]] = {}
    for row, found in runs.items():
        if not found:
            continue
        each = [macro(aurocs(p.logits[name][:, use], y[:, use], known[:, use], weights)) for p in found.values()]
        values[row] = np.mean(each, axis=0)
        spread[row] = [float(v[0]) for v in each]
    out: dict[str, Any] = {
        "folds": list(PARTS[name]),
        "records": len(part),
        "labels": [s.id for s, u in zip(part.labels, use, strict=True) if u],
        "rows": {},
    }
    for row, value in values.items():
        entry: dict[str, Any] = {"macro_auroc": float(value[0]), "interval": interval(value), "seeds": spread[row]}
        if row != reference and reference in values:
            gap = value - values[reference]
            entry["difference"], entry["difference_interval"] = float(gap[0]), interval(gap)
        out["rows"][row] = entry
    return out


def _superclasses(
    parts: Mapping[str, DataSet], runs: Mapping[str, Mapping[int, _Predicted]], active: NDArray[np.bool_]
) -> dict[str, float | None]:
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
            groups = group_metrics(odds, y, known & active, reported.labels, active, once)
            each += [v for v in [groups["super"]["macro_auroc"]] if v is not None]
        if found:
            out[row] = float(np.mean(each)) if each else None
    return out


def _about(row: Row, found: Mapping[int, _Predicted]) -> dict[str, Any]:
    about: dict[str, Any] = {"name": row.name, "what": row.what, "set": dict(row.set), "seeds": row.seeds, "run": sorted(found)}
    if found:
        meta = next(iter(found.values())).meta
        about["epochs"] = json.loads(meta["config"])["epochs"]
        about["multiply_adds"] = int(meta["multiply_adds"])
        about["receptive_field_s"] = float(meta["receptive_field_s"])
    return about
