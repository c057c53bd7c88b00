"""MODEL_CARD.md, written from the metrics and nothing else."""

from __future__ import annotations

from typing import Any

from encoders.artifact import ModelInfo
from encoders.bank import EVALUATED, LabelBank
from training.config import TrainConfig
from training.evaluation.metrics import PREVALENCES

__all__ = ["model_card"]

COLUMNS = (
    *("label", "English", "Japanese", "tier", "training positives", "held-out positives", "positives here"),
    *("AUROC out of fold", "AUROC here", "AUPRC", "PPV / NPV at 1 %", "at 5 %", "at the training share"),
)
LICENCES = {
    "ptbxl": "PTB-XL, CC BY 4.0 (Wagner et al. 2020)",
    "ptbxl_norm": "PTB-XL records redistributed band-passed and z-scored, amplitude lost, CC BY 4.0",
    "challenge": "PhysioNet/CinC Challenge 2020/2021 (CPSC 2018, Georgia, Chapman, Ningbo, PTB), SPH, CC BY 4.0 / ODC-BY 1.0",
    "cinc2017": "PhysioNet/CinC Challenge 2017 (AliveCor, one lead), ODC-BY 1.0",
    "long": "MIT-BIH Arrhythmia Database, ODC-BY 1.0, and CPSC 2021, CC BY 4.0: windows of long two-lead recordings",
}


CAPTIONS = """
Decided here, since the paper (arXiv 2504.09302) leaves it open: one linear layer a side; one caption names all labels of a
record in the order of labels.csv; records without any have no caption and are left out; equal captions of a batch count as
the objective says; at test time each label is a sentence of its own.
"""


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

**Intended use.** Research, and triage hints to trained readers who see the signal themselves. Not for unattended alarms, not
for ruling a finding out, not for patients unlike those of the data below.

**Label sentences** were embedded by `{text.model}` ({text.pooling} pooling, {language} names, "{text.prompt}"), frozen.
{note}Names, Japanese and English, come from labels.csv; a Japanese cardiologist has to review the
terms before clinical use. The card of EQUES/MedLLama3-JP-v2, this package's default language model,
forbids medical use: whoever trains with it is bound by that."""


def _int8(metrics: dict[str, Any]) -> str:
    out = ""
    for form, measured in metrics.get("int8", {}).items():
        each = ", ".join(f"{value:.4f} ({name})" for name, value in measured["median_cosine"].items())
        gate = measured["held_out_auroc"]
        out += (
            f"\n`encoder.{form}.onnx`: median cosine with the float32 embeddings, by leads: {each};\nmacro AUROC on held-out "
            f"records {gate['int8_macro_auroc']:.4f}, in float32 {gate['macro_auroc']:.4f} ({gate['labels']} labels)."
        )
    return out


def _data(metrics: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {n} | {LICENCES.get(name, 'see its publisher')} |" for name, n in metrics["sources"].items())
    folds = metrics["folds"]
    return f"""## Data

| folder | records used | what, licence |
|---|---|---|
{rows}

Weights: folds {_list(folds["train"])} ({metrics["train_records"]} records). Calibration and thresholds:
fold {_list(folds["calibration"])} ({metrics["calibration_records"]} records), {_held_out(metrics)}.
The weights derive from these data: keep to their licences, name their sources.
Unknown, so neither trained nor counted: a label that a source does not annotate; a general statement left out
beside a specific one (T wave abnormality beside T wave inversion); every rhythm where a record names none;
voltage, hypertrophy and atrial enlargement where the amplitude is lost. Ischaemia of a region counts as ischaemia,
inferolateral and inferoposterior infarction as inferior."""


def _held_out(metrics: dict[str, Any]) -> str:
    if metrics["cross_validated"]:
        return "each predicted by one of four models of the same recipe that never saw its patient"
    return "patients disjoint"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(value: float | None, interval: list[float] | None) -> str:
    return _number(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _results(bank: LabelBank, metrics: dict[str, Any]) -> str:
    report = metrics.get("report")
    if report is None:
        return "## Results\n\nNot evaluated."
    sets = report["lead_sets"]
    lines = []
    for name, entry in sets.items():
        same = entry.get("same_labels_12", {}).get("macro_auroc")
        lines.append(
            f"| {name} | {entry['labels']} | {_span(entry['macro_auroc'], entry['macro_auroc_interval'])} | {_number(same)} "
            f"| {_number(entry['macro_auprc'])} | {_number(entry['top1'])} | {_number(entry['top5'])} |"
        )
    return f"""## Results

Fold {_list(report["folds"])} ({report["records"]} records), not used for weights, calibration or thresholds, fixed before.
In brackets the 95 % interval, patients drawn with replacement.
Labels with at least 10 positives and 10 negatives there; a label that the leads do not allow does not count.

| leads | labels | macro AUROC | the same labels from 12 leads | macro AUPRC | top-1 | top-5 |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

{_calibration(metrics)}
{_false_positives(metrics)}
{_per_label(bank, metrics)}"""


def _calibration(metrics: dict[str, Any]) -> str:
    """The same figures for the out-of-fold predictions, where there are any, and for the reported fold."""
    parts = (("out of fold", metrics.get("out_of_fold", {})), ("reported fold", metrics["report"]["lead_sets"]["12"]))
    lines = []
    for name, entry in parts:
        told = entry.get("calibration", {})
        if "slope" in told:
            lines.append(
                f"| {name} | {_span(entry['macro_auroc'], entry['macro_auroc_interval'])} "
                f"| {_span(told['slope'], told['slope_interval'])} "
                f"| {_number(told['median_brier_skill'])} | {told['ece']:.4f} | {told['ece_floor']:.4f} |"
            )
    if not lines:
        return "Calibration: too few cases to measure."
    return f"""Calibration. Slope: 1 is right, below 1 the probabilities are too extreme. Brier skill: 1 is perfect, 0 no better
than always saying the prevalence. Error: mean distance of probability and frequency in bins of equally many records;
noise alone: what a perfect model would show on as many. Out-of-fold probabilities are calibrated on the other folds.

| records | macro AUROC | slope | Brier skill, median | error | noise alone |
|---|---|---|---|---|---|
{chr(10).join(lines)}"""


def _false_positives(metrics: dict[str, Any]) -> str:
    """Of the out-of-fold predictions where there are any, else of the reported fold; "" without long recordings."""
    parts = (("out of fold", metrics.get("out_of_fold", {})), ("reported fold", metrics["report"]["lead_sets"]["12"]))
    where, told = next(((name, m["false_positives"]) for name, m in parts if "false_positives" in m), ("", None))
    if told is None:
        return ""
    rows = [
        f"| {label} | {m['per_hour']:.1f}{_rate(m['per_hour_interval'])} | {m['hours']:.1f} | {m['patients']} |"
        for label, m in sorted(told["per_label"].items(), key=lambda item: -item[1]["per_hour"])
    ]
    return f"""
False positives on long recordings ({where}, {told["hours"]:.1f} h of {told["patients"]} patients): windows at or above the
threshold among those known not to have the finding, an hour of such signal; 360 would be all of them.

| label | windows an hour | hours without it | patients |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _rate(interval: list[float] | None) -> str:
    return f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""


def _per_label(bank: LabelBank, metrics: dict[str, Any]) -> str:
    """Every label with a probability, the best supported first."""
    told = metrics["report"]["lead_sets"]["12"]["per_label"]
    before = metrics.get("out_of_fold", {}).get("per_label", {})
    rows = []
    for label in sorted((x for x in bank.labels if x.tier != "unsupported"), key=lambda x: -x.positives):
        m, o = told.get(label.id, {}), before.get(label.id, {})
        values = m.get("predictive", {}).get("at", {})
        trained = metrics["prevalence"].get(label.id)
        shown = [values.get(f"{pi:.4g}", {}) for pi in (*PREVALENCES, trained) if pi is not None]
        predictive = [f"{_number(v['ppv']['value'])} / {_number(v['npv']['value'])}" if v else "-" for v in shown]
        cells = [label.id, label.name_en, label.name_ja, label.tier, label.positives, label.held_out, m.get("positives", "-")]
        cells += [_span(x.get("auroc"), x.get("auroc_interval")) for x in (o, m)]
        cells += [_number(m.get("auprc")), *predictive]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    least, held = EVALUATED
    return f"""Labels with a probability. `evaluated`: at least {least} training and {held} held-out positives, there an AUROC
whose interval lies above 0.5; `trained`: less, so that the figures say little. PPV / NPV: by sensitivity and specificity of
the reported fold at the threshold, where 1 %, 5 % or as many as of the training records have the finding. `-`: fewer than 10
positives or negatives, or no threshold.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
{chr(10).join(rows)}"""


def _origin(sources: dict[str, int]) -> str:
    total, largest = sum(sources.values()), max(sources, key=sources.__getitem__)
    return f"{total:,} records, {100 * sources[largest] / total:.0f} % of them from the folder {largest}"


def _limits(bank: LabelBank, metrics: dict[str, Any]) -> str:
    unsupported = metrics["unsupported_labels"]
    critical = [label.id for label in bank.labels if label.urgency == "critical" and label.tier != "unsupported"]
    said = (
        "Critical labels with a probability: " + ", ".join(critical) if critical else "**No critical label has a probability**"
    )
    return f"""## Limits

- {metrics["trained_labels"]} of {len(bank.labels)} labels have at least 10 training positives and a probability;
  {len(metrics["evaluated_labels"])} of them are `evaluated`.
  {len(unsupported)} are `unsupported`: they have names and rows but no evidence, and no probability is given.
  {said}: silence about such a label says nothing.
- {_origin(metrics["sources"])}; probabilities hold at the prevalence of these data.
- The held-out records hold few positives of most labels: their calibration is held near the pooled one, and below 5 held-out
  positives no threshold is given. Intervals tell the chance of the records drawn, not of the seed.
- Subgroups by sex, age, unit, source, quality and signal: metrics.json, where the data tell them and cases suffice.
- Ischaemia, infarction and voltage statements need all 12 leads. Normality is not stated from fewer than 12 leads.

Unsupported: {", ".join(unsupported) or "none"}."""


def _recipe(command: str, config: TrainConfig) -> str:
    keys = "\n".join(f"{key} = {value!r}" for key, value in config.as_dict().items())
    return f"""## Made by

```
{command}
```
{CAPTIONS if config.needs_captions else ""}
Configuration:

```
{keys}
```"""
