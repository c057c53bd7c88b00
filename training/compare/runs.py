"""One table of recipes on the same records: each row is trained on folds 1 to 6 and judged on folds 7 and 8 and on fold 9.

DIR/<row>-<seed>/   a run with predictions.safetensors: "held_out", "reported", float32 (N, L) logits of whole windows, 12 leads
DIR/compare.json    the table, with patient-level intervals      DIR/compare.md, compare.png   the same to read and to look at
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from encoders.model import count_multiply_adds, receptive_field_s
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.evaluation.evaluate import model_scorer, predict
from training.folds import DEVELOPMENT, GROUPS, check_development, check_disjoint
from training.learning.checkpoint import write_whole
from training.learning.loop import Progress, train
from training.sources.annotated import VALIDATION_FOLD
from training.text.labels import TextBank
from training.vocabulary import Statement

__all__ = [
    "PARTS",
    "PREDICTIONS",
    "ROWS",
    "TRAINED",
    "CompareError",
    "Predicted",
    "Row",
    "check_alike",
    "is_finished",
    "read_predictions",
    "read_rows",
    "run_directory",
    "run_row",
]

ROWS = Path(__file__).parents[1] / "configs" / "compare.toml"
PREDICTIONS = "predictions.safetensors"
HELD_OUT = GROUPS[-1]
TRAINED = tuple(fold for fold in DEVELOPMENT if fold not in HELD_OUT)
PARTS = {"held_out": HELD_OUT, "reported": (VALIDATION_FOLD,)}


class CompareError(ValueError):
    """A row that does not exist or cannot be compared; the text names it."""


@dataclass(frozen=True)
class Row:
    """name: also of its directories. what: in words. set: keys of the config. seeds: runs. gpu: not run without one. config: a
    file beside compare.toml that takes the place of default.toml."""

    name: str
    what: str
    set: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    gpu: bool = False
    config: str = ""

    @property
    def keys(self) -> dict[str, Any]:
        """What it changes of default.toml."""
        return {**(tomllib.loads((ROWS.parent / self.config).read_text("utf-8")) if self.config else {}), **self.set}

    @property
    def left_sources(self) -> tuple[str, ...]:
        """Folders that it does not train on."""
        return TrainConfig.of(self.keys).left_sources

    @property
    def left_labels(self) -> tuple[str, ...]:
        """Labels whose targets it does not train on."""
        return TrainConfig.of(self.keys).leave_out

    def recipe(self, base: TrainConfig, seed: int, epochs: int | None) -> TrainConfig:
        """Of one run. epochs: instead of the base's, for a quick trial; the row's own take its place in proportion."""
        config = TrainConfig.of({**base.as_dict(), **self.keys, "seed": seed, "train_folds": list(TRAINED)})
        config = replace(config, calibration_folds=HELD_OUT)
        if epochs is None:
            return config
        longer = max(1, round(epochs * config.epochs / base.epochs))
        finish, warmup = min(config.finish_epochs, longer), min(config.warmup_epochs, longer)
        return replace(config, epochs=longer, finish_epochs=finish, warmup_epochs=warmup)


def read_rows(path: Path = ROWS) -> tuple[tuple[Row, ...], str]:
    """-> rows, and the name of the one that the others are compared with. Raises ConfigError."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = tuple(Row(**row) for row in told["row"])
    names = [row.name for row in rows]
    if told["reference"] not in names or len(set(names)) < len(names):
        raise ConfigError(f"{path}: reference = {told['reference']!r} must be one of the rows, each named once: {names}")
    return rows, told["reference"]


def run_directory(out: Path, row: Row, seed: int) -> Path:
    """Where this run stands."""
    return out / f"{row.name}-{seed}"


def is_finished(out: Path, row: Row, seed: int) -> bool:
    """Whether this run has been trained and has predicted."""
    return (run_directory(out, row, seed) / PREDICTIONS).is_file()


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
    run, config = run_directory(out, row, seed), row.recipe(base, seed, epochs)
    data = DataSet(directory, labels, config.train_folds)
    if (run / PREDICTIONS).is_file():
        _check(run, read_predictions(run / PREDICTIONS, data), config)
        return True
    parts = {name: DataSet(directory, labels, folds) for name, folds in PARTS.items()}
    check_development(data, "training")
    for name, part in parts.items():
        check_disjoint(data, part, name)
    resume = (run / "checkpoint.json").is_file()
    trained = train(config, data, text, run, resume, lambda p: report(run.name, p), command=command)
    if trained.signalled or not trained.finished:
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
    write_whole(run / PREDICTIONS, lambda part: save_file(tensors, part, metadata=meta))
    return True


@dataclass(frozen=True)
class Predicted:
    """One run's logits by part; active: bool (L,); meta: as written."""

    logits: dict[str, NDArray[np.float32]]
    active: NDArray[np.bool_]
    meta: dict[str, str]


def read_predictions(path: Path, data: DataSet) -> Predicted:
    """Raises CompareError where they are damaged or of another data set or label set."""
    try:
        with safe_open(path, framework="np") as file:
            meta = dict(file.metadata() or {})
            logits = {name: file.get_tensor(name) for name in PARTS}
            active = file.get_tensor("active")
    except (SafetensorError, OSError) as error:
        raise CompareError(
            f"{path}: no predictions of a run ({error}); remove it and give the command again: a run that was trained only "
            "predicts again"
        ) from None
    ids = json.dumps([s.id for s in data.labels])
    if meta.get("data") != data.digest or meta.get("labels") != ids:
        raise CompareError(f"{path.parent}: made from another data set or label set than {data.directory}; give another --out")
    return Predicted(logits, active, meta)


def _check(run: Path, found: Predicted, config: TrainConfig) -> None:
    """Raises CompareError unless the run is of this config."""
    if different := config.differences(json.loads(found.meta["config"])):
        raise CompareError(f"{run} is a run of another recipe: {'; '.join(different)[:600]}; give another --out or remove it")


def check_alike(out: Path, runs: Mapping[str, Mapping[int, Predicted]], rows: Sequence[Row]) -> None:
    """Raises CompareError unless each run has its row's keys and, but for the seed, all runs of a row are alike."""
    for row in rows:
        first: TrainConfig | None = None
        for seed, found in runs[row.name].items():
            config = TrainConfig.of(json.loads(found.meta["config"]))
            first = first or config
            rows_own = {k: v for k, v in row.keys.items() if k not in ("epochs", "finish_epochs")}  # fewer in a quick trial
            _check(run_directory(out, row, seed), found, TrainConfig.of({**first.as_dict(), **rows_own, "seed": seed}))
