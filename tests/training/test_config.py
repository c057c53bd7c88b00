"""Configuration is checked by key, and the two shipped files are what they say."""

from __future__ import annotations

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
        ("epochs = ", "config.toml"),
    ],
)
def test_wrong_keys_and_values_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")
