"""The table of recipes: what each row is trained on, that it goes on where it was, and its figures by hand."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from tests.training.full_disk import full_disk
from training.commands.compare import _wanted
from training.compare import runs as work
from training.compare import table as compare_table
from training.compare.page import draw, markdown
from training.compare.runs import CompareError, Predicted, Row, check_alike, read_rows, run_row
from training.compare.table import tabulate
from training.config import ConfigError, TrainConfig, read_config
from training.data.dataset import DataSet
from training.learning.checkpoint import CheckpointError
from training.text.labels import TextBank
from training.vocabulary import Statement, select

TINY = TrainConfig(
    epochs=1, finish_epochs=0, crop_s=1.0, batch=32, dim=32, warmup_epochs=0.5, lead_sets=("12",), full_share=1.0
)
ROWS = (
    Row("reference", "whole bank", seeds=2),
    Row("other", "linear head", set={"objective": "supervised"}),
    Row("never", "too slow", gpu=True),
)
FEWER = Row("fewer", "half of the patients", set={"train_share": 0.5})
ELSEWHERE = Row("elsewhere", "nothing of PTB-XL", set={"leave_source": "ptbxl", "min_positives": 2})
UNTOLD = Row("untold", "never told of NORM", set={"leave_out": ["NORM"]})


@pytest.fixture(scope="module")
def labels(vocabulary: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return select(vocabulary, "core98")


@pytest.fixture(scope="module")
def done(prepared: Path, text: TextBank, labels: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("compare")
    for row, seed in ((ROWS[0], 1), (ROWS[0], 2), (ROWS[1], 1), (FEWER, 1), (ELSEWHERE, 1), (UNTOLD, 1)):
        assert run_row(row, seed, TINY, prepared, labels, text, out)
    return out


def test_the_rows_of_the_project_are_configs_that_exist() -> None:
    rows, reference = read_rows()
    assert reference == "bank_sigmoid"
    for row in rows:
        config = row.recipe(TrainConfig(), 3, None)
        assert (config.seed, config.train_folds, config.calibration_folds) == (3, (1, 2, 3, 4, 5, 6), (7, 8))
    longest = next(row for row in rows if row.name == "infonce-200")
    assert longest.recipe(TrainConfig(), 1, None).epochs == 200
    assert longest.recipe(TrainConfig(), 1, 2).epochs == 10  # five times the others', as without --epochs
    by_name = {row.name: row.recipe(TrainConfig(), 1, None) for row in rows}
    paper = read_config(work.ROWS.parent / "paper.toml")
    for name, apart in (("paper-500hz", set()), ("paper-200", {"form", "crop_s", "finish_epochs"})):
        different = {line.split(":")[0] for line in by_name[name].differences(paper.as_dict())}
        assert different - {"train_folds", "calibration_folds"} == apart
    untold = [row for row in rows if row.left_labels]
    assert len(untold) >= 8  # each with a row beside it that was told
    assert all({k: v for k, v in row.keys.items() if k != "leave_out"} in [r.keys for r in rows] for row in untold)
    left = {row.name: row.left_sources for row in rows if row.left_sources}
    assert left["without-ptbxl"] == ("ptbxl", "ptbxl_norm")
    assert not {"without-ptbxl", "paper-500hz"} & {row.name for row in _wanted(rows, "", False, {"ptbxl", "challenge"})}
    assert "without-challenge" in {row.name for row in _wanted(rows, "", False, {"ptbxl", "challenge"})}
    assert "without-challenge" not in {row.name for row in _wanted(rows, "", False, {"challenge"})}
    with pytest.raises(ConfigError, match="nonsense: no such key"):
        Row("x", "", {"nonsense": 1}).recipe(TrainConfig(), 1, None)


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
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 3)
    monkeypatch.setattr("training.evaluation.calibration.PULL", 0.0)
    parts = {name: DataSet(prepared, labels, folds) for name, folds in work.PARTS.items()}
    active = parts["held_out"].positives() >= 3
    rng = np.random.default_rng(0)
    logits = {name: (part.stated + rng.standard_normal(part.stated.shape)).astype(np.float32) for name, part in parts.items()}
    shift = np.linspace(-9, 9, len(labels), dtype=np.float32)  # of each label; the order within it stays
    moved = {name: z + shift for name, z in logits.items()}
    runs = {name: {1: Predicted(z, active, {})} for name, z in (("as it is", logits), ("moved", moved))}
    told = compare_table._superclasses(parts, runs | {"not run": {}}, active)
    assert set(told) == {"as it is", "moved"}
    before = told["as it is"]
    assert before is not None
    assert before > 0.55
    assert told["moved"] == pytest.approx(before, abs=0.005)


def test_the_learning_curve_is_of_one_recipe_by_share(
    done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    other = Row("other half", "another recipe", set={"train_share": 0.5, "objective": "supervised"})
    told = tabulate((*ROWS, FEWER, other), "reference", prepared, labels, done, resampled=50)
    data = DataSet(prepared, labels, work.TRAINED)
    fewer = data.for_training(FEWER.recipe(TINY, 1, None))
    assert told["curve"] == [
        {"row": "fewer", "share": 0.5, "records": len(fewer)},
        {"row": "reference", "share": 1.0, "records": len(data)},
    ]
    value = told["parts"]["held_out"]["rows"]["fewer"]["macro_auroc"]
    assert f"| 50% | {len(fewer)} | fewer | {value:.3f} (" in markdown(told)
    draw(told, tmp_path / "with.png")
    alone = tabulate(ROWS, "reference", prepared, labels, done, resampled=50)
    assert alone["curve"] == []
    assert "Learning curve" not in markdown(alone)
    draw(alone, tmp_path / "without.png")
    heights = [int.from_bytes((tmp_path / name).read_bytes()[20:24]) for name in ("with.png", "without.png")]  # of the header
    assert heights[0] - heights[1] == pytest.approx((2.8 + 0.42) * 150, abs=2)  # a curve and a row more


def test_a_folder_left_out_is_judged_on_itself_beside_the_reference(
    done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 4)
    rows = (*ROWS, ELSEWHERE)
    told = tabulate(rows, "reference", prepared, labels, done, resampled=50)
    (entry,) = told["left_out"]
    assert (entry["name"], entry["left"], entry["run"]) == ("elsewhere", ["ptbxl"], [1])
    parts = [DataSet(prepared, labels, folds) for folds in work.PARTS.values()]
    inside = [np.array([row["source"] == "ptbxl" for row in part.index]) for part in parts]
    y, known = (np.concatenate([part.shown[k][i] for part, i in zip(parts, inside, strict=True)]) for k in (0, 1))

    def by_hand(run: str) -> float:
        there = load_file(done / run / work.PREDICTIONS)
        logits = np.concatenate([there[name][i] for name, i in zip(work.PARTS, inside, strict=True)])
        columns = [[s.id for s in labels].index(name) for name in entry["labels"]]
        return float(np.mean([roc_auc_score(y[known[:, j], j], logits[known[:, j], j]) for j in columns]))

    assert entry["records"] == len(y)
    assert entry["labels"] == ["SR", "TAB", "ISC"]  # by the other folder alone; NORM has cases, but is not learnt there
    assert entry["unseen"]["macro_auroc"] == pytest.approx(by_hand("elsewhere-1"))
    reference = (by_hand("reference-1") + by_hand("reference-2")) / 2
    assert entry["seen"]["macro_auroc"] == pytest.approx(reference)
    assert entry["unseen"]["difference"] == pytest.approx(by_hand("elsewhere-1") - reference)
    low, high = entry["unseen"]["difference_interval"]
    assert low <= entry["unseen"]["difference"] <= high
    # what it has not learnt is not taken from the table of all rows
    assert told["parts"] == tabulate(ROWS, "reference", prepared, labels, done, resampled=50)["parts"]
    shown = markdown(told)
    assert f"| elsewhere | ptbxl | {len(y)}, {len(entry['labels'])} | {entry['unseen']['macro_auroc']:.3f} (" in shown
    assert "| elsewhere | nothing of PTB-XL |" not in shown


def test_a_left_out_folder_with_too_few_cases_or_without_its_reference_says_so(
    done: Path, prepared: Path, labels: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tabulate((*ROWS, ELSEWHERE), "reference", prepared, labels, done, resampled=20)
    assert few["left_out"][0]["labels"] == []
    assert re.search(r"\| elsewhere \| ptbxl \| \d+, 0 \| too few cases \|", markdown(few))
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 4)
    alone = tabulate((ROWS[1], ROWS[2], ELSEWHERE), "never", prepared, labels, done, resampled=20)
    assert alone["left_out"][0]["seen"] is None
    assert "difference" not in alone["left_out"][0]["unseen"]
    assert re.search(r"\) \| not run \|  \|\n$", markdown(alone))
    never = replace(ELSEWHERE, name="not yet")
    assert "| not yet | ptbxl | not run |" in markdown(tabulate((*ROWS, never), "reference", prepared, labels, done))
    with pytest.raises(CompareError, match="no row has been run that leaves nothing out"):
        tabulate((ROWS[2], ELSEWHERE), "never", prepared, labels, done)


def test_a_label_left_out_is_judged_by_its_sentence_beside_the_row_that_was_told(
    done: Path, prepared: Path, labels: tuple[Statement, ...]
) -> None:
    never = replace(UNTOLD, name="not yet", set={"leave_out": ["TAB"]})
    lonely = replace(UNTOLD, set={**UNTOLD.set, "epochs": 7})  # no row is the same but for the label
    told = tabulate((*ROWS, UNTOLD, never), "reference", prepared, labels, done, resampled=50)
    entry, unrun = told["by_sentence"]
    assert (entry["left"], entry["beside"], entry["labels"], unrun["run"]) == (["NORM"], "reference", ["NORM"], [])
    parts = [DataSet(prepared, labels, folds) for folds in work.PARTS.values()]
    y, known = (np.concatenate([part.shown[k] for part in parts]) for k in (0, 1))
    j = [s.id for s in labels].index("NORM")

    def by_hand(run: str) -> float:
        there = load_file(done / run / work.PREDICTIONS)
        logits = np.concatenate([there[name] for name in work.PARTS])
        return float(roc_auc_score(y[known[:, j], j], logits[known[:, j], j]))

    assert not load_file(done / "untold-1" / work.PREDICTIONS)["active"][j]
    assert entry["positives"] == (y & known)[:, j].sum()
    reference = (by_hand("reference-1") + by_hand("reference-2")) / 2
    assert entry["unseen"]["macro_auroc"] == pytest.approx(by_hand("untold-1"))
    assert entry["seen"]["macro_auroc"] == pytest.approx(reference)
    assert entry["unseen"]["difference"] == pytest.approx(by_hand("untold-1") - reference)
    # in the table of all rows it stands nowhere, and takes no label from it
    assert told["parts"] == tabulate(ROWS, "reference", prepared, labels, done, resampled=50)["parts"]
    shown = markdown(told)
    assert f"| untold | NORM | {entry['positives']} | {entry['unseen']['macro_auroc']:.3f} (" in shown
    assert "| not yet | TAB | not run |" in shown
    assert "mean of" not in shown
    (alone,) = compare_table.tabulate((*ROWS, lonely), "reference", prepared, labels, done, resampled=20)["by_sentence"]
    assert (alone["beside"], alone["seen"]) == (None, None)


def test_a_row_that_was_not_run_says_so(done: Path, prepared: Path, labels: tuple[Statement, ...]) -> None:
    table = markdown(tabulate(ROWS, "reference", prepared, labels, done, resampled=50))
    assert "| never | too slow | not run |" in table
    assert "| reference | whole bank | 1, 2 |" in table


def test_what_ran_on_a_gpu_tells_its_speed_and_memory(
    done: Path, prepared: Path, labels: tuple[Statement, ...], tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "compare")
    assert "On a GPU" not in markdown(tabulate(ROWS, "reference", prepared, labels, tmp_path / "compare", resampled=20))
    passes = [{"records_per_s": r, "gpu_memory_mb": m} for r, m in ((900.0, 2100), (5000.0, 2300), (4800.4, 2300))]
    for seed, lines in ((1, passes[:2]), (2, passes[2:])):
        log = tmp_path / "compare" / f"reference-{seed}" / "log.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = tabulate(ROWS, "reference", prepared, labels, tmp_path / "compare", resampled=20)
    assert [row.get("gpu") for row in told["rows"]] == [{"records_per_s": 4800.4, "memory_mb": 2300}, None, None]
    assert "| reference | 4,800 | 2,300 MB |\n" in markdown(told)


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


def test_a_quick_trial_of_each_row_is_known_as_its_own(tmp_path: Path) -> None:
    rows, _ = read_rows()
    for epochs in (1, None):
        told = {row.name: {"config": json.dumps(row.recipe(TrainConfig(), 1, epochs).as_dict())} for row in rows}
        runs = {name: {1: Predicted({}, np.zeros(0, dtype=bool), meta)} for name, meta in told.items()}
        check_alike(tmp_path, runs, rows)
    with pytest.raises(CompareError, match="another recipe"):
        check_alike(tmp_path, {**runs, "half": runs["quarter"]}, rows)


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


def test_a_set_with_too_few_cases_is_named(
    done: Path, prepared: Path, labels: tuple[Statement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.metrics.MIN_CASES", 60)
    with pytest.raises(CompareError, match=r"data: no label has 60 positives and 60 negatives in folds 7, 8; prepare more"):
        tabulate(ROWS, "reference", prepared, labels, done)


def test_without_any_run_there_is_no_table(prepared: Path, labels: tuple[Statement, ...], tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no row has been run"):
        tabulate(ROWS, "reference", prepared, labels, tmp_path)


def test_predictions_that_are_damaged_or_find_no_room_are_named(
    prepared: Path, text: TextBank, labels: tuple[Statement, ...], done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done / "other-1", tmp_path / "other-1")
    path = tmp_path / "other-1" / work.PREDICTIONS
    whole = path.read_bytes()
    for kept in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CompareError, match=r"other-1/predictions\.safetensors: no predictions of a run .*; remove it and"):
            tabulate(ROWS, "other", prepared, labels, tmp_path)
        with pytest.raises(CompareError, match="no predictions of a run"):
            run_row(ROWS[1], 1, TINY, prepared, labels, text, tmp_path)
    path.unlink()
    with (
        full_disk(len(whole) - 1),
        pytest.raises(CheckpointError, match=r"predictions\.safetensors: cannot be written \(.*too large.*make room"),
    ):
        run_row(ROWS[1], 1, TINY, prepared, labels, text, tmp_path)
    assert not list(path.parent.glob("predictions*"))
    assert run_row(ROWS[1], 1, TINY, prepared, labels, text, tmp_path)
    there = load_file(done / "other-1" / work.PREDICTIONS)
    assert all(np.array_equal(value, there[name]) for name, value in load_file(path).items())
