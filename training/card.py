"""MODEL_CARD.md, written from the metrics and nothing else."""

from __future__ import annotations

from typing import Any

from encoders.artifact import ModelInfo
from encoders.bank import LabelBank
from training.config import TrainConfig

__all__ = ["model_card"]

LICENCES = {
    "ptbxl": "PTB-XL, CC BY 4.0 (Wagner et al. 2020)",
    "ptbxl_norm": "PTB-XL records redistributed band-passed and z-scored, amplitude lost, CC BY 4.0",
    "challenge": "PhysioNet/CinC Challenge 2020/2021 (CPSC 2018, Georgia, Chapman, Ningbo, PTB), SPH, CC BY 4.0 / ODC-BY 1.0",
    "cinc2017": "PhysioNet/CinC Challenge 2017 (AliveCor, one lead), ODC-BY 1.0",
}


def model_card(info: ModelInfo, bank: LabelBank, metrics: dict[str, Any], command: str, config: TrainConfig) -> str:
    """The card as Markdown."""
    parts = [
        _head(info, bank, metrics),
        _data(metrics),
        _results(bank, metrics),
        _limits(bank, metrics),
        _recipe(command, config),
    ]
    return "\n\n".join(parts) + "\n"


def _head(info: ModelInfo, bank: LabelBank, metrics: dict[str, Any]) -> str:
    text = bank.text
    language = "English" if text.language == "en" else "Japanese"
    note = f"That is {text.note}.\n" if text.note else ""
    return f"""# Model card: {info.architecture} ({info.form}) with a label bank of {len(bank.labels)} statements

**Decision support and research software. Not a medical device, not a monitor: its output is no diagnosis.**

Takes a 10 s ECG window, {info.input_shape[0]} leads at {info.fs} Hz after this project's preprocessing, gives a unit vector
of {info.dim} numbers; its cosine with each row of the label bank becomes a calibrated probability.
{info.parameters / 1e6:.2f} M parameters, {info.multiply_adds / 1e6:.0f} M multiply-adds a window; one feature
sees {info.receptive_field_s:.2f} s before the mean over time.{_int8(metrics)}

**Intended use.** Research, and triage hints to trained readers who see the signal themselves. Not for unattended alarms.

**Label sentences** were embedded by `{text.model}` ({text.pooling} pooling, {language} names, "{text.prompt}"), frozen.
{note}Names, Japanese and English, come from labels.csv; a Japanese cardiologist has to review the
terms before clinical use. The card of EQUES/MedLLama3-JP-v2, this package's default language model,
forbids medical use: whoever trains with it is bound by that."""


def _int8(metrics: dict[str, Any]) -> str:
    if "int8" not in metrics:
        return ""
    each = ", ".join(f"{value:.4f} ({name})" for name, value in metrics["int8"]["median_cosine"].items())
    return f"\n`encoder.u8s8.onnx`: median cosine with the float32 embeddings, by leads, calibration folds: {each}."


def _data(metrics: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {n} | {LICENCES.get(name, 'see its publisher')} |" for name, n in metrics["sources"].items())
    folds = metrics["folds"]
    return f"""## Data

| folder | records used | what, licence |
|---|---|---|
{rows}

Weights: folds {_list(folds["train"])} ({metrics["train_records"]} records). Calibration and thresholds:
fold {_list(folds["calibration"])} ({metrics["calibration_records"]} records), patients disjoint.
Unknown, so neither trained nor counted: a label that a source does not annotate; a general statement left out
beside a specific one (T wave abnormality beside T wave inversion); every rhythm where a record names none;
voltage, hypertrophy and atrial enlargement where the amplitude is lost. Ischaemia of a region counts as ischaemia,
inferolateral and inferoposterior infarction as inferior."""


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _results(bank: LabelBank, metrics: dict[str, Any]) -> str:
    report = metrics.get("report")
    if report is None:
        return "## Results\n\nNot evaluated."
    sets = report["lead_sets"]
    lines = []
    for name, entry in sets.items():
        same = entry.get("same_labels_12", {}).get("macro_auroc")
        lines.append(
            f"| {name} | {entry['labels']} | {_number(entry['macro_auroc'])} | {_number(same)} "
            f"| {_number(entry['macro_auprc'])} | {_number(entry['top1'])} | {_number(entry['top5'])} |"
        )
    labels = {label.id: label for label in bank.labels}
    per = [
        f"| {key} | {labels[key].name_en} | {labels[key].name_ja} | {labels[key].positives} | {m['positives']} "
        f"| {m['auroc']:.3f} | {m['auprc']:.3f} |"
        for key, m in sorted(sets["12"]["per_label"].items(), key=lambda item: -item[1]["positives"])
    ]
    return f"""## Results

Fold {_list(report["folds"])} ({report["records"]} records), not used for weights, calibration or thresholds.
Labels with at least 10 positives and 10 negatives there; a label that the leads do not allow does not count.

| leads | labels | macro AUROC | the same labels from 12 leads | macro AUPRC | top-1 | top-5 |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

| label | English | Japanese | training positives | positives here | AUROC | AUPRC |
|---|---|---|---|---|---|---|
{chr(10).join(per)}"""


def _limits(bank: LabelBank, metrics: dict[str, Any]) -> str:
    unsupported = metrics["unsupported_labels"]
    critical = [label.id for label in bank.labels if label.urgency == "critical" and label.tier == "trained"]
    said = (
        "Critical labels with a probability: " + ", ".join(critical) if critical else "**No critical label has a probability**"
    )
    return f"""## Limits

- {metrics["trained_labels"]} of {len(bank.labels)} labels have at least 10 training positives and a probability;
  {len(unsupported)} are `unsupported`: they have names and rows but no evidence, and no probability is given.
  {said}: silence about such a label says nothing.
- A few thousand records, mostly from one country and one archive; probabilities hold at the prevalence of these data.
- The calibration fold holds few positives of most labels: their calibration is held near the pooled one, and below 5 held-out
  positives no threshold is given. The tables give single figures of one seed on few records; intervals are wide.
- Ischaemia, infarction and voltage statements need all 12 leads. Normality is not stated from fewer than 12 leads.

Unsupported: {", ".join(unsupported) or "none"}."""


def _recipe(command: str, config: TrainConfig) -> str:
    keys = "\n".join(f"{key} = {value!r}" for key, value in config.as_dict().items())
    return f"""## Made by

```
{command}
```

Configuration:

```
{keys}
```"""
