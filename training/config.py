"""What a training run is: a frozen dataclass read from TOML. Every key is checked by name; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encoders.model import ARCHITECTURES, EncoderConfig
from training.sources.annotated import CALIBRATION_FOLD, TEST_FOLD, VALIDATION_FOLD

__all__ = ["BANK", "CAPTIONS", "OBJECTIVES", "ConfigError", "TrainConfig", "read_config"]

BANK = ("bank_sigmoid", "bank_softmax")  # each ECG against the whole bank
CAPTIONS = ("infonce", "unicl", "jaccard_sigmoid")  # each ECG against the captions of its batch
OBJECTIVES = (*BANK, *CAPTIONS, "supervised")
LEAD_SETS = ("12", "limb6", "I+II", "I", "II", "II+V1", "II+V5")


class ConfigError(ValueError):
    """A key of the configuration that does not exist or cannot have its value; the text names it."""


@dataclass(frozen=True)
class TrainConfig:
    """One run. Defaults are those of configs/default.toml; configs/paper.toml is the paper's recipe."""

    objective: Literal["bank_sigmoid", "bank_softmax", "infonce", "unicl", "jaccard_sigmoid", "supervised"] = "bank_sigmoid"
    """bank_sigmoid, bank_softmax: each ECG against the whole label bank. infonce (the paper), unicl, jaccard_sigmoid: each ECG
    against the captions of its batch. supervised: a linear head without text, a reference that is not exported."""
    labels: str = "core98"
    """The label set of the bank: core98, all, or ids separated by commas."""
    architecture: Literal["resnet1d18", "xresnet1d18"] = "resnet1d18"
    """The encoder's network, see encoders/model.py."""
    form: Literal["decimated", "plain"] = "decimated"
    """The encoder's form, see encoders/model.py."""
    frozen: bool = False
    """Leave the encoder's network at its random start but for BatchNorm statistics; only what follows it learns: a floor."""
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
    """Temperature of infonce and unicl. jaccard_sigmoid learns its scale (from 10, as SigLIP) and its bias instead."""
    scale: float = 30.0
    """Fixed factor on the cosine in bank_sigmoid and bank_softmax."""
    whiten: bool = True
    """Whether the bank's rows are whitened; if not they are only centred, which zero-shot needs. Captions stay as they are."""
    shrinkage: float = 0.3
    """Share of the mean variance mixed into each direction when the text rows are whitened, see training/text/rows.py."""
    learned_projection: bool = True
    """Whether the whitened rows pass a learned D x D projection (starting at the identity) or stay fixed."""
    min_positives: int = 5
    """Columns with fewer positives in the training folds are masked: too few to learn, and mostly not annotated."""
    leave_out: tuple[str, ...] = ()
    """Labels of the bank whose targets are masked in training, to be found by their sentence alone (bank objectives)."""
    superclass_weight: float = 0.0
    """Weight of PTB-XL's five superclasses as further columns of the loss, see data/superclasses.py; 0 leaves them out."""
    distill: float = 0.0
    """Share of a teacher's probability in the targets (`train --teacher`); 0 is without a teacher."""
    lead_sets: tuple[str, ...] = LEAD_SETS
    """Lead sets drawn in training; the first gets `full_share`, the others share the rest."""
    full_share: float = 0.5
    """Probability of the first lead set."""
    noise: float = 0.05
    """Highest standard deviation of added white noise, in standard deviations of the lead."""
    gain_jitter: float = 0.1
    """Standard deviation of the log of a random factor a lead."""
    wander: float = 0.0
    """Highest amplitude of baseline wander before the filters, in standard deviations of the lead, see learning/augment.py."""
    mains: float = 0.0
    """Highest amplitude of mains hum before the filters, in standard deviations of the lead."""
    padding: float = 0.0
    """Probability that a whole window ends early and is padded as serving pads."""
    ema: float = 0.995
    """Decay of the moving average of the weights, which is what is evaluated and exported; 0 turns it off."""
    train_folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    """Folds that weights are fitted on."""
    train_share: float = 1.0
    """Share of the patients of the training folds, drawn by seed, a smaller one within a larger: points of a learning curve."""
    leave_source: str = ""
    """Folders of the data set, by commas, whose records do not train, to see how a model does on data from elsewhere."""
    calibration_folds: tuple[int, ...] = (CALIBRATION_FOLD,)
    """Folds that calibration and thresholds are fitted on, disjoint from the training folds; empty: by cross-validation."""
    seed: int = 1
    """Fixes weights, order, crops, lead sets and noise."""

    def __post_init__(self) -> None:
        def need(good: bool, key: str, rule: str) -> None:
            if not good:
                raise ConfigError(f"{key}: {rule}, got {getattr(self, key)!r}")

        need(self.objective in OBJECTIVES, "objective", f"must be one of {', '.join(OBJECTIVES)}")
        need(self.architecture in ARCHITECTURES, "architecture", f"must be one of {', '.join(ARCHITECTURES)}")
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
        need(not self.leave_out or self.objective in BANK, "leave_out", f"needs objective {' or '.join(BANK)}")
        need(0 <= self.superclass_weight <= 10, "superclass_weight", "must be 0 to 10")
        columns = (*BANK, "supervised")
        need(
            not (self.leave_out and self.superclass_weight),
            "superclass_weight",
            "must be 0 with leave_out: a superclass shows the encoder the records of its left-out member",
        )
        need(not self.superclass_weight or self.objective in columns, "superclass_weight", f"needs one of {', '.join(columns)}")
        need(0 <= self.distill <= 1, "distill", "must be 0 to 1")
        taught = ("bank_sigmoid", "supervised")
        need(not self.distill or self.objective in taught, "distill", f"needs objective {' or '.join(taught)}")
        need(
            len(self.lead_sets) > 0 and set(self.lead_sets) <= set(LEAD_SETS), "lead_sets", f"must be of {', '.join(LEAD_SETS)}"
        )
        need(0 < self.full_share <= 1, "full_share", "must be above 0, at most 1")
        need(0 <= self.noise <= 1, "noise", "must be 0 to 1")
        need(0 <= self.gain_jitter <= 1, "gain_jitter", "must be 0 to 1")
        need(0 <= self.wander <= 100, "wander", "must be 0 to 100")
        need(0 <= self.mains <= 100, "mains", "must be 0 to 100")
        need(0 <= self.padding <= 1, "padding", "must be 0 to 1")
        need(0 <= self.ema < 1, "ema", "must be 0 to below 1")
        need(0 < self.train_share <= 1, "train_share", "must be above 0, at most 1")
        for key in ("train_folds", "calibration_folds"):
            folds = getattr(self, key)
            some = len(folds) > 0 or key == "calibration_folds"  # none: calibrated by cross-validation
            need(some and all(1 <= f <= 10 for f in folds), key, "must name folds 1 to 10")
            need(not {VALIDATION_FOLD, TEST_FOLD} & set(folds), key, "must not hold folds 9 and 10, which are for reporting")
        need(not set(self.train_folds) & set(self.calibration_folds), "calibration_folds", "must be disjoint from train_folds")

    @property
    def encoder(self) -> EncoderConfig:
        """The model's part."""
        return EncoderConfig(form=self.form, dim=self.dim, dropout=self.dropout, architecture=self.architecture)

    @property
    def needs_captions(self) -> bool:
        """Whether the objective compares with captions, which a record without a label has not."""
        return self.objective in CAPTIONS

    @property
    def left_sources(self) -> tuple[str, ...]:
        """The folders of `leave_source`."""
        return tuple(name.strip() for name in self.leave_source.split(",") if name.strip())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in TOML or JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def differences(self, there: dict[str, Any]) -> list[str]:
        """Keys, with both values, in which the plain values `there` differ; one younger than they are has its default there."""
        theirs = TrainConfig.of(there).as_dict()
        return [f"{k}: {theirs[k]!r} there, {v!r} here" for k, v in self.as_dict().items() if theirs[k] != v]

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
            item = int if key.endswith("_folds") else str
            if isinstance(value, tuple) and any(type(one) is not item for one in value):
                raise ConfigError(f"{key}: a list of {item.__name__} is needed, got {list(value)!r}")
            out[key] = value
        return cls(**out)


def _typed(key: str, text: str) -> Any:
    """The value that `text` means for this key. Raises ConfigError. Lists are written with commas."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    if key not in defaults:
        raise ConfigError(f"{key}: no such key; keys are {', '.join(defaults)}")
    kind: type = type(defaults[key])
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.strip().lower()]
        if kind is tuple:
            item = int if key.endswith("_folds") else str
            return tuple(item(part.strip()) for part in text.split(",") if part.strip())
        return kind(text.strip())
    except (ValueError, KeyError):
        name = "true or false" if kind is bool else "a list with commas" if kind is tuple else f"a {kind.__name__}"
        raise ConfigError(f"{key}: {name} is needed, got {text!r}") from None


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A TOML file, and "key=value" that take the place of its keys -> TrainConfig.

    Raises ConfigError naming file and key, the key alone where an override is wrong, or the file and line that is no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # no UTF-8, no TOML, numbers or nesting beyond measure
        raise ConfigError(f"{path}: {error}") from None
    given = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: key=value is needed")
        given[key.strip()] = _typed(key.strip(), text)
    try:
        return TrainConfig.of({**values, **given})
    except ConfigError as error:
        if str(error).partition(":")[0] in given:
            raise
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: a number beyond measure ({error})") from None
