"""What a training run is: a frozen dataclass read from TOML. Every key is checked by name; unknown keys are refused."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encoders.model import EncoderConfig
from training.sources import CALIBRATION_FOLD, TEST_FOLD, VALIDATION_FOLD

__all__ = ["ConfigError", "TrainConfig", "read_config"]

LEAD_SETS = ("12", "limb6", "I+II", "I", "II", "II+V1", "II+V5")


class ConfigError(ValueError):
    """A key of the configuration that does not exist or cannot have its value; the text names it."""


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are those of configs/default.toml; configs/paper.toml is the paper's recipe."""

    objective: Literal["bank_sigmoid", "infonce"] = "bank_sigmoid"
    """bank_sigmoid: each ECG against the whole label bank. infonce: each ECG against the captions of its batch (the paper)."""
    labels: str = "core98"
    """The label set of the bank: core98, all, or ids separated by commas."""
    form: Literal["decimated", "plain"] = "decimated"
    """The encoder's form, see encoders/model.py."""
    dim: int = 256
    """D, the length of an embedding."""
    dropout: float = 0.2
    """Share of features dropped before the projection."""
    epochs: int = 40
    """Passes over the training folds, the finish included."""
    finish_epochs: int = 5
    """The last passes, on whole 10 s windows instead of crops."""
    crop_s: float = 2.5
    """Seconds of a random crop in the other passes; 10 means whole windows."""
    batch: int = 32
    """Records a step, over all processes."""
    accumulate: int = 1
    """Parts in which a process embeds its records: memory of one part, one more forward pass; the loss sees the whole batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    amp: Literal["off", "bf16"] = "off"
    """bf16: convolutions in bfloat16 on a GPU; projection, norm, logits and loss stay in float32."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-3
    """AdamW's weight decay."""
    warmup_epochs: float = 1.0
    """Passes of linear warm-up before the cosine decay; 0 with schedule = "constant"."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes down."""
    tau: float = 0.07
    """Temperature of InfoNCE."""
    scale: float = 30.0
    """Fixed factor on the cosine in bank_sigmoid."""
    shrinkage: float = 0.3
    """Share of the mean variance mixed into each direction when the text rows are whitened, see training/rows.py."""
    learned_projection: bool = True
    """Whether the whitened rows pass a learned D x D projection (starting at the identity) or stay fixed."""
    min_positives: int = 5
    """Columns with fewer positives in the training folds are masked: too few to learn, and mostly not annotated."""
    lead_sets: tuple[str, ...] = LEAD_SETS
    """Lead sets drawn in training; the first gets `full_share`, the others share the rest."""
    full_share: float = 0.5
    """Probability of the first lead set."""
    noise: float = 0.05
    """Highest standard deviation of added white noise, in standard deviations of the lead."""
    gain_jitter: float = 0.1
    """Standard deviation of the log of a random factor a lead."""
    ema: float = 0.995
    """Decay of the moving average of the weights, which is what is evaluated and exported; 0 turns it off."""
    train_folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    """Folds that weights are fitted on."""
    calibration_folds: tuple[int, ...] = (CALIBRATION_FOLD,)
    """Folds that calibration and thresholds are fitted on, disjoint from the training folds."""
    seed: int = 1
    """Fixes weights, order, crops, lead sets and noise."""

    def __post_init__(self) -> None:
        def need(good: bool, key: str, rule: str) -> None:
            if not good:
                raise ConfigError(f"{key}: {rule}, got {getattr(self, key)!r}")

        need(self.objective in ("bank_sigmoid", "infonce"), "objective", "must be bank_sigmoid or infonce")
        need(self.form in ("decimated", "plain"), "form", "must be decimated or plain")
        need(self.schedule in ("cosine", "constant"), "schedule", "must be cosine or constant")
        need(8 <= self.dim <= 4096, "dim", "must be 8 to 4096")
        need(0 <= self.dropout < 1, "dropout", "must be 0 to below 1")
        need(self.epochs >= 1, "epochs", "must be at least 1")
        need(0 <= self.finish_epochs <= self.epochs, "finish_epochs", f"must be 0 to epochs = {self.epochs}")
        need(1 <= self.crop_s <= 10, "crop_s", "must be 1 to 10 seconds")
        need(self.batch >= 2, "batch", "must be at least 2")
        parts = f"must be at least 1 and divide batch = {self.batch} into parts of at least 2"
        need(1 <= self.accumulate <= self.batch // 2 and self.batch % self.accumulate == 0, "accumulate", parts)
        need(self.device in ("auto", "cpu", "cuda"), "device", "must be auto, cpu or cuda")
        need(self.amp in ("off", "bf16"), "amp", "must be off or bf16")
        need(0 < self.lr < 1, "lr", "must be above 0 and below 1")
        need(0 <= self.weight_decay < 1, "weight_decay", "must be 0 to below 1")
        need(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs", f"must be 0 to epochs = {self.epochs}")
        need(0 < self.tau <= 1, "tau", "must be above 0, at most 1")
        need(0 < self.scale <= 200, "scale", "must be above 0, at most 200")
        need(0 <= self.shrinkage <= 1, "shrinkage", "must be 0 to 1")
        need(self.min_positives >= 1, "min_positives", "must be at least 1")
        need(
            len(self.lead_sets) > 0 and set(self.lead_sets) <= set(LEAD_SETS), "lead_sets", f"must be of {', '.join(LEAD_SETS)}"
        )
        need(0 < self.full_share <= 1, "full_share", "must be above 0, at most 1")
        need(0 <= self.noise <= 1, "noise", "must be 0 to 1")
        need(0 <= self.gain_jitter <= 1, "gain_jitter", "must be 0 to 1")
        need(0 <= self.ema < 1, "ema", "must be 0 to below 1")
        for key in ("train_folds", "calibration_folds"):
            folds = getattr(self, key)
            need(len(folds) > 0 and all(1 <= f <= 10 for f in folds), key, "must name folds 1 to 10")
            need(not {VALIDATION_FOLD, TEST_FOLD} & set(folds), key, "must not hold folds 9 and 10, which are for reporting")
        need(not set(self.train_folds) & set(self.calibration_folds), "calibration_folds", "must be disjoint from train_folds")

    @property
    def encoder(self) -> EncoderConfig:
        """The model's part."""
        return EncoderConfig(form=self.form, dim=self.dim, dropout=self.dropout)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in TOML or JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainConfig:
        """From plain values. Raises ConfigError for unknown keys and wrong types."""
        defaults = {f.name: f.default for f in fields(cls)}
        unknown = sorted(set(values) - set(defaults))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)}: no such key; keys are {', '.join(defaults)}")
        out: dict[str, Any] = {}
        for key, value in values.items():
            kind = type(defaults[key])
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if kind is tuple and isinstance(value, list):
                value = tuple(value)
            if type(value) is not kind:
                raise ConfigError(f"{key}: a {kind.__name__} is needed, got {value!r}")
            out[key] = value
        return cls(**out)


def read_config(path: Path) -> TrainConfig:
    """A TOML file -> TrainConfig. Raises ConfigError naming the key, or the file and line that is no TOML."""
    try:
        return TrainConfig.of(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None
