"""The table of recipes: what each row is trained on, that it goes on where it was, and its figures by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from training import compare as work
from training.compare import CompareError, Row, read_rows, run_row, tabulate
from training.compare_command import markdown
from training.config import ConfigError, TrainConfig
from training.data import DataSet
from training.labels import TextBank
from training.vocabulary import Statement, select

TINY = TrainConfig(
    epochs=1, finish_epochs=0, crop_s=1.0, batch=32, dim=32, warmup_epochs=0.5, lead_sets=("12",), full_share=1.0
)
ROWS = (
    Row("reference", "whole bank", seeds=2),
    Row("other", "linear head", set={"objective": "supervised"}),
    Row("never", "too slow", gpu=True),
)


@pytest.fixture(scope="module")
def labels(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return select(vocabulary, "core98")


@pytest.fixture(scope="module")
def done(prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("compare")
    for row, seed in ((ROWS[0], 1), (ROWS[0], 2), (ROWS[1], 1)):
        assert run_row(row, seed, TINY, prepared, labels, text, out)
    return out


def test_the_rows_of_the_project_are_configs_that_exist() -> None:
    rows, reference = read_rows()
    assert reference == "bank_sigmoid"
    for row in rows:
        config = row.config(TrainConfig(), 3, None)
        assert (config.seed, config.train_folds, config.calibration_folds) == (3, (1, 2, 3, 4, 5, 6), (7, 8))
    longest = next(row for row in rows if row.name == "infonce-200")
    assert longest.config(TrainConfig(), 1, None).epochs == 200
    assert longest.config(TrainConfig(), 1, 2).epochs == 10  # five times the others', as without --epochs
    with pytest.raises(ConfigError, match="nonsense: no such key"):
        Row("x", "", {"nonsense": 1}).config(TrainConfig(), 1, None)


def test_a_reference_that_is_no_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text('reference = "b"\n[[row]]\nname = "a"\nwhat = ""\n')
    with pytest.raises(ConfigError, match="reference = 'b' must be one of the rows"):
        read_rows(path)


def test_the_table_holds_the_mean_over_seeds_of_labels_with_enough_cases(
    done: Path, prepared: Path, labels: tuple[Statement, ...]
) -> None:
    told = tabulate(ROWS, "reference", prepared, labels, done, resampled=200)
    part = told["parts"]["reported"]
    data = DataSet(prepared, labels, (9,))
    y, known = data.targets
    known = known & data.assessable(data.mask)
    means = []
    for seed in (1, 2):
        logits = load_file(done / f"reference-{seed}" / work.PREDICTIONS)["reported"]
        each = []
        for name in part["labels"]:
            j = [s.id for s in labels].index(name)
            rows = known[:, j]
            assert y[rows, j].sum() >= 10
            each.append(roc_auc_score(y[rows, j], logits[rows, j]))
        means.append(float(np.mean(each)))
    entry = part["rows"]["reference"]
    assert entry["seeds"] == pytest.approx(means)
    assert entry["macro_auroc"] == pytest.approx(np.mean(means))
    assert entry["interval"][0] < entry["macro_auroc"] < entry["interval"][1]
    other = part["rows"]["other"]
    assert other["difference"] == pytest.approx(other["macro_auroc"] - entry["macro_auroc"])
    low, high = other["difference_interval"]
    assert low <= other["difference"] <= high
    assert "difference" not in entry


def test_superclasses_do_not_depend_on_the_scale_of_a_label(
    prepared: Path, labels: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.metrics.MIN_CASES", 3)
    monkeypatch.setattr("training.calibration.PULL", 0.0)
    parts = {name: DataSet(prepared, labels, folds) for name, folds in work.PARTS.items()}
    active = parts["held_out"].positives() >= 3
    rng = np.random.default_rng(0)
    logits = {name: (part.stated + rng.standard_normal(part.stated.shape)).astype(np.float32) for name, part in parts.items()}
    shift = np.linspace(-9, 9, len(labels), dtype=np.float32)  # of each label; the order within it stays
    moved = {name: z + shift for name, z in logits.items()}
    runs = {name: {1: work._Predicted(z, active, {})} for name, z in (("as it is", logits), ("moved", moved))}
    told = work._superclasses(parts, runs | {"not run": {}}, active)
    assert set(told) == {"as it is", "moved"}
    before = told["as it is"]
    assert before is not None
    assert before > 0.55
    assert told["moved"] == pytest.approx(before, abs=0.005)


def test_a_row_that_was_not_run_says_so(done: Path, prepared: Path, labels: tuple[Statement, ...]) -> None:
    table = markdown(tabulate(ROWS, "reference", prepared, labels, done, resampled=50))
    assert "| never | too slow | not run |" in table
    assert "| reference | whole bank | 1, 2 |" in table


def test_a_finished_run_is_left_as_it_is(done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...]) -> None:
    path = done / "other-1" / work.PREDICTIONS
    before = path.stat().st_mtime_ns

    def never(name: str, progress: object) -> None:
        raise AssertionError(f"{name} was trained again")

    assert run_row(ROWS[1], 1, TINY, prepared, labels, text, done, report=never)
    assert path.stat().st_mtime_ns == before


def test_a_run_of_another_recipe_is_neither_kept_nor_shown(
    done: Path, prepared: Path, text: TextBank, labels: tuple[Statement, ...]
) -> None:
    with pytest.raises(CompareError, match=r"other-1 is a run of another recipe: epochs: 1 there, 4 here; give another --out"):
        run_row(ROWS[1], 1, replace(TINY, epochs=4), prepared, labels, text, done)
    changed = (ROWS[0], replace(ROWS[1], set={"objective": "bank_softmax"}))
    with pytest.raises(CompareError, match=r"objective: 'supervised' there, 'bank_softmax' here"):
        tabulate(changed, "reference", prepared, labels, done)


def test_a_run_that_was_stopped_goes_on(
    prepared: Path, text: TextBank, labels: tuple[Statement, ...], done: Path, tmp_path: Path
) -> None:
    two = replace(TINY, epochs=2)
    whole = tmp_path / "whole"
    assert run_row(ROWS[1], 1, two, prepared, labels, text, whole)
    (whole / "other-1" / work.PREDICTIONS).unlink()  # trained, but ended before it had predicted
    assert run_row(ROWS[1], 1, two, prepared, labels, text, whole)
    assert load_file(whole / "other-1" / work.PREDICTIONS)["held_out"].shape[1] == len(labels)


def test_runs_of_another_data_set_are_refused(
    done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    run = tmp_path / "reference-1"
    run.mkdir()
    found = load_file(done / "reference-1" / work.PREDICTIONS)
    save_file(found, run / work.PREDICTIONS, metadata={"data": "another", "labels": "[]"})
    with pytest.raises(CompareError, match="made from another data set or label set"):
        tabulate(ROWS, "reference", prepared, labels, tmp_path)


def test_without_any_run_there_is_no_table(prepared: Path, labels: tuple[Statement, ...], tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no row has been run"):
        tabulate(ROWS, "reference", prepared, labels, tmp_path)
