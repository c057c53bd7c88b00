"""The report as one HTML file that fetches nothing: what matters first, every label of the bank, the worst errors as ECG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from training.evaluation.metrics import beyond_chance
from training.evaluation.worst import Mistake
from training.report.ecg_paper import ecg_paper
from training.report.long_recordings import by_recording, false_positives
from training.report.page import document, number
from training.report.report import METRICS, Report
from training.report.tables import (
    LEADS_TEXT,
    abstention,
    by_leads,
    calibration,
    curves,
    named,
    parts,
    per_label,
    silent,
    spread,
)
from training.vocabulary import DEFAULT_MODEL

__all__ = ["render"]

WEAKEST = 3
FEW = 0.5  # sensitivity below which a threshold is named
SECTIONS = {
    "leads": "leads and groups",
    "calibration": "calibration",
    "labels": "labels",
    "silent": "what it is silent about",
    "subgroups": "subgroups",
    "roc": "ROC curves",
    "errors": "worst errors",
}
NAVIGATION = f"<p class='small wide'>{' · '.join(f'<a href=#{key}>{text}</a>' for key, text in SECTIONS.items())}</p>"
STYLE = """
body{max-width:1120px}svg{vertical-align:middle}svg text{font-family:system-ui,sans-serif}
.alarm{background:#fbe3e0;border-left:4px solid #b5382f;padding:.4em .8em;max-width:none}
.small{font-size:.85em}.wide{max-width:none}.span{display:block;font-size:.85em;color:#51606e}
.curves{display:flex;flex-wrap:wrap;gap:.4em}.error{margin:1.6em 0;break-inside:avoid}.error p{max-width:none;margin:.15em 0}
.kind{border-radius:3px;padding:0 .4em;background:#f3d9d6;white-space:nowrap}.nowrap{white-space:nowrap}
.ecg{border:1px solid #e9a9a9;display:block;margin-top:.3em}.two{display:flex;flex-wrap:wrap;gap:2em;align-items:flex-start}
.two>div{flex:1;min-width:20em}td.n{font-size:.9em}.narrow table{width:auto}
.labels td:first-child{min-width:15em}a{color:#2f6f9f}h3{font-size:1em;margin:1.4em 0 .3em}
"""


def render(report: Report) -> str:
    """The page."""
    sections = (
        _head(report),
        _tiles(report),
        _look(report),
        by_leads(report),
        calibration(report),
        abstention(report),
        false_positives(report),
        by_recording(report),
        per_label(report),
        silent(report),
        parts(report),
        curves(report),
        _errors(report),
        _made(report),
    )
    return document(f"Report on {report.subject.name}", sections, STYLE)


def _folds(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}" if folds else "no fold"


def _head(report: Report) -> str:
    subject, records, metrics = report.subject, report.records, report.metrics
    what = (
        f"<p class=wide>{escape(subject.kind.capitalize())} <code>{escape(subject.digest[:16])}</code> on data set "
        f"<b>{escape(records.directory.resolve().name)}</b> <code>{records.digest[:16]}</code>, {_folds(report.folds)}: "
        f"{number(metrics['records'])} records of {number(metrics['patients'])} patients. "
        f"Weights were fitted on {_folds(subject.fitted)}"
    )
    what += f", calibration and thresholds on {_folds(subject.chosen)}.</p>" if subject.chosen else ".</p>"
    text = subject.text
    model = (
        f"<p class=wide>Label sentences by <code>{escape(text.model)}</code>, {text.pooling} pooling, "
        f"{'English' if text.language == 'en' else 'Japanese'} names, “{escape(text.prompt)}”."
    )
    if DEFAULT_MODEL.rpartition("/")[2].lower() in text.model.lower():
        model += f" <b>The card of {escape(DEFAULT_MODEL)} forbids medical use: whoever uses what it made is bound by that.</b>"
    return (
        f"<h1>{escape(subject.name)}</h1><p class='alarm'><b>Research software, not a medical device.</b> This page holds "
        f"waveforms and record names of the data set: keep and pass it on as you would the recordings.</p>{what}"
        f"{model}</p>{NAVIGATION}"
    )


def _tiles(report: Report) -> str:
    shown = []
    for name, entry in report.metrics["lead_sets"].items():
        if name in ("12", "I+II", "I") and entry["macro_auroc"] is not None:
            about = f"macro AUROC, {LEADS_TEXT[name]}<span class=span>{spread(entry['macro_auroc_interval'])}, "
            shown.append((f"{entry['macro_auroc']:.3f}", f"{about}{entry['labels']} labels</span>"))
    evidence, total = int(report.evidence.candidates.sum()), len(report.records.labels)
    shown.append(
        (f"{report.full['labels']} of {total}", f"labels measured here<span class=span>{evidence} have evidence</span>")
    )
    calibration = report.full.get("calibration", {})
    if "slope" in calibration:
        about = f"calibration slope<span class=span>{spread(calibration['slope_interval'])}</span>"
        shown.append((f"{calibration['slope']:.2f}", about))
    return "<div class=tiles>" + "".join(f"<div class=tile><b>{value}</b>{what}</div>" for value, what in shown) + "</div>"


def _look(report: Report) -> str:
    """What a person should know before the tables."""
    found, labels = [], report.records.labels
    if report.seen:
        found.append(
            f"<b>{_folds(report.seen).capitalize()} took part in fitting or calibrating this {report.subject.kind}: if these "
            "are its own data, the figures are too good.</b>"
        )
    critical = [s.id for s in labels if s.urgency == "critical"]
    told = [s.id for s, c in zip(labels, report.evidence.candidates, strict=True) if c and s.urgency == "critical"]
    if critical and len(told) < len(critical):
        have = f"only {', '.join(told)}" if told else "none"
        found.append(f"Critical labels with evidence: {have} of {len(critical)}. Silence about the rest says nothing.")
    if not report.subject.calibrated:
        found.append(
            "A run before export: its probabilities are not calibrated, it has no thresholds (0.5 is taken), and no label is "
            "<i>evaluated</i> yet: held-out positives are counted by <code>export</code>."
        )
    each = report.full["per_label"]
    weak = sorted(each, key=lambda x: each[x]["auroc"])[:WEAKEST]
    if weak:
        said = ", ".join(f"{x} {each[x]['auroc']:.3f} ({spread(each[x]['auroc_interval'])})" for x in weak)
        found.append(f"Lowest AUROC: {said}.")
    if chance := sorted(x for x in each if not beyond_chance(each[x]["auroc_interval"])):
        found.append(
            f"No better than chance as far as these records tell (the interval does not lie above 0.5): {', '.join(chance)}."
        )
    few = {x: m["predictive"]["sensitivity"]["value"] for x, m in each.items() if "predictive" in m}
    if missed := sorted((x for x, share in few.items() if share is not None and share < FEW), key=lambda x: few[x]):
        found.append(
            f"Found in fewer than half of their records at the threshold: {', '.join(f'{x} {few[x]:.2f}' for x in missed)}."
        )
    found += [*_look_at_calibration(report.full.get("calibration", {})), *_look_at_losses(report)]
    return f"<h2>To look at</h2><ul class=look>{''.join(f'<li>{text}</li>' for text in found)}</ul>" if found else ""


def _look_at_calibration(told: Mapping[str, Any]) -> list[str]:
    if "slope" not in told:
        return []
    found, (low, high) = [], told["slope_interval"]
    if not low <= 1 <= high:
        how = "too extreme" if told["slope"] < 1 else "too cautious"
        found.append(
            f"Probabilities are {how}: calibration slope {told['slope']:.2f} ({low:.2f}&ndash;{high:.2f}), 1 is right."
        )
    if told["brier_skill_below_0"]:
        found.append(f"Worse than always saying the prevalence: {escape(', '.join(told['brier_skill_below_0']))}.")
    return found


def _look_at_losses(report: Report) -> list[str]:
    """Lead sets and subgroups that fall behind by more than chance."""
    found = []
    for name, entry in report.metrics["lead_sets"].items():
        loss = entry.get("loss")
        if loss and loss["interval"] and loss["interval"][0] > 0:
            found.append(
                f"{loss['value']:.3f} of macro AUROC ({spread(loss['interval'])}) is lost from 12 leads to {LEADS_TEXT[name]}."
            )
    for part, values in report.full["subgroups"].items():
        for value, m in values.items():
            if m["labels"] and m["macro_auroc_interval"] and m["macro_auroc_interval"][1] < m["same_labels_all_records"]:
                found.append(
                    f"Lower for {part} {escape(value)}: {m['macro_auroc']:.3f} ({spread(m['macro_auroc_interval'])}), all "
                    f"records {m['same_labels_all_records']:.3f}, same {m['labels']} labels."
                )
    return found


def _errors(report: Report) -> str:
    if not report.worst:
        return "<h2 id=errors>Worst errors</h2><p>None among the labels measured here.</p>"
    x = report.records.windows(np.array([m.row for m in report.worst]))
    drawn = "".join(_error(report, m, x[k], k + 1) for k, m in enumerate(report.worst))
    return (
        "<h2 id=errors>Worst errors</h2>"
        "<p>Of the labels measured here, from 12 leads or as many as recorded: where probability and "
        "statement lie farthest apart, one a label and a record. The statement is the annotator's: some of these errors are "
        f"not the model's.</p>{drawn}"
    )


def _error(report: Report, m: Mistake, x: np.ndarray[Any, np.dtype[np.float32]], place: int) -> str:
    row, s = report.records.index[m.row], report.records.labels[m.label]
    kind = "false negative: stated, not said" if m.stated else "false positive: said, not stated"
    cut = "no threshold" if m.threshold is None else f"threshold {m.threshold:.3f}"
    shown = report.records.assessable(report.records.mask[[m.row]])[0] & report.evidence.candidates
    usable = np.where(shown, report.p[m.row], -1)
    best = [int(j) for j in np.argsort(-usable, kind="stable")[:3] if usable[j] >= 0]
    said = ", ".join(f"{report.records.labels[j].id} {report.p[m.row, j]:.2f}" for j in best)
    stated = escape(", ".join(row["positive"])) or "none"
    unknown = f"; undecided: {escape(_some(row['unknown']))}" if row["unknown"] else ""
    lost = "; amplitude lost (NU)" if row["unit"] == "NU" else ""
    drawing = ecg_paper(x, row["mask"], row["derived"], row["n_valid"], f"paper{place}")
    return (
        f"<div class=error><h3>{place}. {named(s)} <span class=kind>{kind}</span></h3>"
        f"<p>Probability <b>{m.probability:.3f}</b>, {cut}. Stated: {stated}{unknown}. Most likely by the model: {said}.</p>"
        f"<p class='muted small'>{escape(row['record'])}, source {escape(row['source'])}, fold {row['fold']}{lost}</p>"
        f"{drawing}</div>"
    )


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _made(report: Report) -> str:
    config = escape("; ".join(f"{key} = {json.dumps(value)}" for key, value in report.subject.config.items()))
    return (
        f"<h2>Made by</h2><p><code>{escape(report.command)}</code></p><p>{report.subject.kind.capitalize()} "
        f"<code>{escape(report.subject.digest)}</code>, data set <code>{report.records.digest}</code> (SHA-256). All figures: "
        f"<code>{METRICS}</code> beside this page.</p>"
        f"<details><summary>Configuration of the training</summary><p class='wide small'><code>{config}</code></p></details>"
    )
