"""Configuration is checked by key, and the two shipped files are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import training
from training.config import ConfigError, TrainConfig, read_config

CONFIGS = Path(training.__file__).with_name("configs")


def test_the_papers_numbers() -> None:
    c = read_config(CONFIGS / "paper.toml")
    assert (c.objective, c.tau, c.lr, c.weight_decay, c.batch, c.epochs) == ("infonce", 0.07, 1e-3, 1e-3, 32, 200)
    assert (c.form, c.crop_s, c.lead_sets, c.schedule) == ("plain", 10.0, ("12",), "constant")


def test_the_shipped_recipe_is_the_default() -> None:
    assert read_config(CONFIGS / "default.toml") == TrainConfig()


def test_plain_values_and_back() -> None:
    c = TrainConfig(epochs=7, finish_epochs=2, train_folds=(1, 2))
    assert TrainConfig.of(c.as_dict()) == c


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "learning_rate: no such key; keys are objective"),
        ("objective = 'magic'", "objective: must be one of bank_sigmoid, bank_softmax, infonce, unicl, .*, got 'magic'"),
        ("epochs = 2.5", "epochs: a int is needed, got 2.5"),
        ("epochs = true", "epochs: a int is needed, got True"),
        ("lr = 'fast'", "lr: a float is needed"),
        ("lr = 0", "lr: must be above 0"),
        ("crop_s = 20.0", "crop_s: must be 1 to 10"),
        ("lead_sets = ['12', 'V9']", "lead_sets: must be of 12, limb6"),
        ("train_folds = [8, 9]", "train_folds: must not hold folds 9 and 10"),
        ("calibration_folds = [10]", "calibration_folds: must not hold folds 9 and 10"),
        ("calibration_folds = [7]", "calibration_folds: must be disjoint"),
        ("finish_epochs = 99", "finish_epochs: must be 0 to epochs = 40"),
        ("dim = 2", "dim: must be 8"),
        ("epochs = ", "Invalid value"),
    ],
)
def test_wrong_keys_and_values_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {message}"):
        read_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")


def test_overrides_are_typed_by_key() -> None:
    changes = [
        "lr=2e-4",
        "epochs = 7",
        "finish_epochs=0",
        "whiten=false",
        "lead_sets=12, I+II",
        "train_folds=1,2",
        "objective=unicl",
    ]
    c = read_config(CONFIGS / "default.toml", changes)
    assert (c.lr, c.epochs, c.whiten, c.lead_sets, c.train_folds) == (2e-4, 7, False, ("12", "I+II"), (1, 2))
    assert c.objective == "unicl"
    assert read_config(CONFIGS / "default.toml", ["labels=AFIB,SR", "labels=core98"]) == TrainConfig()  # the last one counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("speed=1", "speed: no such key; keys are objective"),
        ("lr", "--set lr: key=value is needed"),
        ("lr=fast", "lr: a float is needed, got 'fast'"),
        ("epochs=2.5", "epochs: a int is needed, got '2.5'"),
        ("frozen=1", "frozen: true or false is needed, got '1'"),
        ("train_folds=1,two", "train_folds: a list with commas is needed"),
        ("architecture=vit", "architecture: must be one of resnet1d18, xresnet1d18, got 'vit'"),
        ("wander=-1", "wander: must be 0 to 100"),
        ("padding=2", "padding: must be 0 to 1"),
        ("distill=1.5", "distill: must be 0 to 1"),
        ("superclass_weight=-1", "superclass_weight: must be 0 to 10"),
    ],
)
def test_wrong_overrides_are_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_config(CONFIGS / "default.toml", [change])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["distill=0.5", "objective=bank_softmax"], "distill: needs objective bank_sigmoid or supervised"),
        (
            ["superclass_weight=1", "objective=infonce"],
            "superclass_weight: needs one of bank_sigmoid, bank_softmax, supervised",
        ),
        (["leave_out=AFIB", "objective=supervised"], "leave_out: needs objective bank_sigmoid or bank_softmax"),
    ],
)
def test_keys_that_do_not_go_together(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(CONFIGS / "default.toml", changes)


def test_lists_hold_one_type(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("train_folds = [1, 'two']")
    with pytest.raises(ConfigError, match="train_folds: a list of int is needed"):
        read_config(tmp_path / "c.toml")
