"""Tables and pictures of the report, each a section of HTML. training/report/one_file.py puts them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from training.evaluation.metrics import MIN_CASES, PREVALENCES, beyond_chance
from training.report.figures import Curve, axis, reliability_bins, reliability_figure, roc_figure, span
from training.report.page import number, table
from training.report.report import Report, unassessable
from training.vocabulary import Statement

__all__ = [
    "LEADS_TEXT",
    "abstention",
    "by_leads",
    "calibration",
    "curves",
    "figure",
    "named",
    "order",
    "parts",
    "per_label",
    "silent",
    "spread",
]

URGENCY = ("critical", "urgent", "routine_new_urgent", "routine", "normal")
CURVES = 12
LEADS_TEXT = {"12": "12 leads", "limb6": "6 limb leads", "I+II": "leads I and II", "I": "lead I"}


def figure(value: float | None, digits: int = 3) -> str:
    return "<span class=muted>-</span>" if value is None else f"{value:.{digits}f}"


def spread(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    dash = "&ndash;" if interval[0] >= 0 else " to "
    return f"<span class=nowrap>{interval[0]:.3f}{dash}{interval[1]:.3f}</span>"


def named(s: Statement, between: str = " ") -> str:
    return f"<b>{escape(s.id)}</b> {escape(s.name_en)}{between}<span class=muted lang=ja>{escape(s.name_ja)}</span>"


def by_leads(report: Report) -> str:
    rows = []
    for name, m in report.metrics["lead_sets"].items():
        same = m.get("same_labels_12", {}).get("macro_auroc")
        cells = [
            f"<span class=nowrap>{LEADS_TEXT[name]}</span>",
            span(m["macro_auroc"], m["macro_auroc_interval"], same),
            str(m["labels"]),
        ]
        cells += [f"{figure(m['macro_auroc'])}<span class=span>{spread(m['macro_auroc_interval'])}</span>", figure(same)]
        cells += [_loss(m.get("loss")), _loss(m.get("rhythm_loss"))]
        rows.append([*cells, *(figure(m[key]) for key in ("macro_auprc", "top1", "top5"))])
    head = ["leads", axis(), "labels", "macro AUROC", "same labels,<br>12 leads", "lost", "lost, rhythms"]
    first = table([*head, "macro AUPRC", "top-1", "top-5"], rows, 2)
    groups = [
        [
            escape(name),
            span(m["macro_auroc"], m["macro_auroc_interval"]),
            str(m["labels"]),
            figure(m["macro_auroc"]),
            spread(m["macro_auroc_interval"]),
        ]
        for name, m in report.full["groups"].items()
    ]
    second = table(["group", axis(), "labels", "macro AUROC", "95 %"], groups, 2)
    return (
        "<h2 id=leads>By leads</h2>"
        f"<p>Labels with at least {MIN_CASES} positives and {MIN_CASES} negatives here, evidence from "
        "training, and leads that show them. Intervals are 95 %, whole patients drawn with replacement. Hollow: the same "
        f"labels from 12 leads; lost: what macro AUROC loses against them, in pairs.</p>{first}<h2>By group, 12 leads</h2><p>"
        f"PTB-XL's groups of statements, approximated by labels; sub and super are classes.</p><div class=narrow>{second}</div>"
    )


def _loss(loss: Mapping[str, Any] | None) -> str:
    return "" if loss is None else f"{loss['value']:+.3f} <span class=span>{spread(loss['interval'])}</span>"


def calibration(report: Report) -> str:
    told = report.full.get("calibration", {})
    if "slope" not in told:
        why = "too few cases" if report.subject.calibrated else "a run is calibrated when it is exported"
        return f"<h2 id=calibration>Calibration</h2><p>Not measured: {why}.</p>"
    counted = report.counted & np.isfinite(report.p)
    bins = reliability_bins(report.p[counted], report.predictions.y[counted])
    rows = [
        ["slope", f"{told['slope']:.3f}", spread(told["slope_interval"]), "1 is right, below 1 too extreme"],
        ["Brier skill, median", figure(told["median_brier_skill"]), "", "1 is perfect, 0 says the prevalence"],
        ["error (ECE)", f"{told['ece']:.4f}", "", "mean distance of said and seen"],
        ["of it noise", f"{told['ece_floor']:.4f}", "", "what perfect probabilities would show"],
    ]
    facts = "".join(
        f"<tr><td>{a}</td><td class=n>{b}</td><td class=n>{c}</td><td class=muted>{d}</td></tr>" for a, b, c, d in rows
    )
    return (
        "<h2 id=calibration>Calibration</h2><div class=two>"
        f"<div>{reliability_figure(bins)}</div><div><p>Of all statements said with about this probability, how many were "
        f"true? {len(bins)} bins of equally many of {number(told['entries'])} entries, all labels together. Grey: where 95 % "
        f"would lie if the probabilities were perfect; red: outside it.</p><table>{facts}</table></div></div>"
    )


def abstention(report: Report) -> str:
    """What withholding the closest decisions would gain."""
    told = report.full.get("abstention")
    if told is None:
        return ""
    rows = []
    for coverage, m in told["coverage"].items():
        said = [figure(m[key]) for key in ("findings_said", "findings_missed", "findings_withheld", "wrong_of_said")]
        rows.append([f"{float(coverage):.0%}", f"{m['error']:.4f}", spread(m["error_interval"]), *said])
    head = ["decided", "error", "95 %", "present:<br>said", "<br>missed", "<br>withheld", "of what is said,<br>wrong"]
    grades = [
        [escape(name), number(m["decisions"]), *(figure(share, 2) for share in m["withheld"].values())]
        for name, m in told["quality"].items()
    ]
    cuts = [f"{float(c):.0%}" for c in list(told["coverage"])[1:]]
    more = table(["withheld, by grade", "decisions", *cuts], grades) if grades else ""
    return (
        "<h2>Withholding</h2><p>What if the decisions closest to their thresholds, on log odds, were left to a "
        f"person? {number(told['decisions'])} decisions of labels with a threshold, {number(told['findings'])} of findings "
        f"that are present. Area under the error: {told['area']:.4f} ({spread(told['area_interval'])}); without skill it would "
        f"be the error at 100 %.</p><div class=two><div>{table(head, rows)}</div><div>{more}</div></div>"
    )


def order(report: Report) -> list[int]:
    """Labels with evidence: the most urgent first, then the best supported."""
    labels, n = report.records.labels, report.subject.positives
    some = np.flatnonzero(report.evidence.candidates).tolist()
    return sorted(some, key=lambda j: (URGENCY.index(labels[j].urgency), -n[j], labels[j].order))


def per_label(report: Report) -> str:
    """Every label with evidence, in two lines each."""
    stated = (report.predictions.y & report.counted).sum(axis=0)
    told, rows, urgency = report.full["per_label"], [], ""
    for j in order(report):
        s, tier, m = report.records.labels[j], report.subject.tiers[j], told.get(report.records.labels[j].id)
        if s.urgency != urgency:
            urgency = s.urgency
            rows.append([f"<b class=muted>{urgency.replace('_', ' ')}</b>", *[""] * 11])
        cells = [named(s, "<br>"), f"<span class='tier {tier}'>{tier}</span>"]
        support = [number(report.subject.positives[j]), number(int(stated[j]))]
        if m is None:
            rows.append([*cells, "<span class=muted>too few cases here</span>", *support, *[""] * 7])
            continue
        if not beyond_chance(m["auroc_interval"]):
            cells[1] += "<br><span class=muted>here no better than chance</span>"
        cells += [span(m["auroc"], m["auroc_interval"]), *support]
        cells += [f"{figure(m['auroc'])}<span class=span>{spread(m['auroc_interval'])}</span>", figure(m["auprc"], 2)]
        ranks = f"{figure(m['top1'], 2)}<br>{figure(m['top5'], 2)}"
        rows.append([*cells, ranks, *_predictive(m.get("predictive"), float(report.evidence.prevalence[j]))])
    head = ["label", "tier", axis(), "in training", "here", "AUROC", "AUPRC", "top-1<br>top-5", "sens.<br>spec."]
    head += [f"PPV<br>NPV, {where}" for where in (*(f"{pi:.0%}" for pi in PREVALENCES), "training")]
    return (
        "<h2 id=labels>Labels</h2>"
        "<p>The most urgent first, then the best supported in training. Sensitivity and specificity at "
        "the label's threshold; PPV above NPV from them, where so many have the finding: 1 %, 5 %, or as in training. Ranks "
        "(top-1, top-5) are among labels known to be absent.</p><div class='small labels'>"
        f"{table(head, rows, 3)}</div>"
    )


def _predictive(told: Mapping[str, Any] | None, prevalence: float) -> list[str]:
    if told is None:
        return ["<span class=muted>-</span>"] * 4
    pairs = [(told["sensitivity"], told["specificity"])]
    for pi in (*PREVALENCES, prevalence):
        at = told["at"].get(f"{pi:.4g}")
        pairs.append((at["ppv"], at["npv"]) if at else ({"value": None}, {"value": None}))
    return [f"{figure(a['value'], 2)}<br>{figure(b['value'], 2)}" for a, b in pairs]


def silent(report: Report) -> str:
    """Labels about which the model says nothing, by name: without evidence, or not from these leads."""
    labels, candidates = report.records.labels, report.evidence.candidates
    without = [
        [
            urgency.replace("_", " "),
            "; ".join(named(s) for s, c in zip(labels, candidates, strict=True) if not c and s.urgency == urgency),
        ]
        for urgency in URGENCY
    ]
    count = int((~candidates).sum())
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, positions in unassessable(report.records).items():
        groups.setdefault(tuple(positions), []).append(LEADS_TEXT[name])
    rows = []
    for places, names in groups.items():
        with_evidence = "; ".join(named(labels[j]) for j in places if candidates[j])
        others = ", ".join(labels[j].id for j in places if not candidates[j])
        text = with_evidence + (f" <span class=muted>and, without evidence: {escape(others)}</span>" if others else "")
        rows.append(["<br>".join(names), text or "<span class=muted>none</span>"])
    first = table(["urgency", "labels"], [row for row in without if row[1]], 2) if count else "<p>None.</p>"
    return (
        f"<h2 id=silent>Without evidence: {count} labels</h2>"
        f"<p>Too few training positives: no probability, no alert, no rank; silence "
        f"about them says nothing.</p><div class=small>{first}</div><h2>Not assessable</h2><p>Not shown by these leads, so "
        "that they neither count nor are said. Voltage, hypertrophy and atrial enlargement are not assessable either where the "
        f"amplitude is lost (NU).</p><div class=small>{table(['from', 'labels'], rows, 2)}</div>"
    )


def parts(report: Report) -> str:
    rows = []
    for part, values in report.full["subgroups"].items():
        for i, (value, m) in enumerate(values.items()):
            cells = [escape(part) if i == 0 else "", escape(value)]
            if m["labels"]:
                cells.append(span(m["macro_auroc"], m["macro_auroc_interval"], m["same_labels_all_records"]))
            else:
                cells.append("<span class=muted>too few cases of any label</span>")
            numbers = [figure(m["macro_auroc"]), spread(m["macro_auroc_interval"]), figure(m["same_labels_all_records"])]
            rows.append([*cells, number(m["records"]), number(m["patients"]), str(m["labels"]), *numbers])
    for name, m in report.full["tasks"].items():
        about = [escape(name), "", span(m["auroc"], m["auroc_interval"]), number(m["positives"] + m["negatives"]), "", "1"]
        rows.append([*about, figure(m["auroc"]), spread(m["auroc_interval"]), ""])
    if not rows:
        return ""
    head = ["", "", axis(), "records", "patients", "labels", "macro AUROC", "95 %", "all records"]
    return (
        "<h2 id=subgroups>Subgroups</h2>"
        "<p>Labels with enough cases in the part itself, which differ from part to part: compare with the "
        f"hollow dot, the same labels on all records.</p>{table(head, rows, 3)}"
    )


def curves(report: Report) -> str:
    told, drawn = report.full["per_label"], []
    for j in [j for j in order(report) if report.records.labels[j].id in told][:CURVES]:
        name, rows = report.records.labels[j].id, report.counted[:, j]
        cut = float(report.evidence.thresholds[j])
        curve = Curve(
            name, told[name]["auroc"], report.p[rows, j], report.predictions.y[rows, j], cut if np.isfinite(cut) else None
        )
        drawn.append(roc_figure(curve))
    if not drawn:
        return ""
    more = f" The first {CURVES} of {len(told)} in the order of the table." if len(told) > CURVES else ""
    text = f"<p>Red: where the label's threshold lies. Beside the name: AUROC.{more}</p>"
    return f"<h2 id=roc>ROC curves</h2>{text}<div class=curves>{''.join(drawn)}</div>"
