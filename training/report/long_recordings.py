"""The report's sections on long recordings: what is said wrongly an hour, and what each recording shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.evaluation.recordings import FEW_PATIENTS, SILENT
from training.report.figures import axis, span
from training.report.page import number, table
from training.report.report import Report
from training.report.tables import figure, spread

__all__ = ["by_recording", "false_positives"]


def false_positives(report: Report) -> str:
    """How often a label is said wrongly on long recordings."""
    told = report.full.get("false_positives")
    if told is None:
        return ""
    rows = [
        [escape(name), f"{m['per_hour']:.1f}", _rate(m["per_hour_interval"]), f"{m['hours']:.1f}", number(m["patients"])]
        for name, m in sorted(told["per_label"].items(), key=lambda item: -item[1]["per_hour"])
    ]
    head = ["label", "windows an hour", "95 %", "hours without it", "patients"]
    return (
        "<h2 id=false-positives>False positives on long recordings</h2><p>Windows at or above the label's threshold among "
        f"those known not to have the finding, an hour of such signal; {told['hours']:.1f} h of {number(told['patients'])} "
        f"patients in all. A window is 10 s: 360 an hour would be all of them.</p><div class=narrow>{table(head, rows)}</div>"
    )


def _rate(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"<span class=nowrap>{interval[0]:.1f}&ndash;{interval[1]:.1f}</span>"


def by_recording(report: Report) -> str:
    """What is found on each recording that has it."""
    told = report.full.get("recordings")
    if told is None:
        return ""
    rows, each = [], []
    for name, m in sorted(told["per_label"].items(), key=lambda item: -item[1]["windows"]):
        auroc, low_high = m["few_patients_auroc"], m["few_patients_auroc_interval"]
        cells = [f"<b>{escape(name)}</b>", "" if auroc is None else span(auroc, low_high)]
        cells += [number(m[key]) for key in ("windows", "recordings", "patients")]
        cells += [f"{figure(auroc)}<span class=span>{spread(low_high)}</span>"]
        cells += [figure(m["within_auroc_median"]), str(m["within_recordings"])]
        rows.append([*cells, figure(m["sensitivity"], 2), figure(m["said_wrongly"])])
        for recording, counts in m["per_recording"].items():
            if counts["windows"]:
                shown = (number(counts[key]) for key in ("windows", "found", "without", "wrong"))
                each.append([f"<b>{escape(name)}</b>", escape(recording), *shown])
    head = [
        "label",
        axis(),
        "windows",
        "recordings",
        "patients",
        "AUROC, few<br>patients",
        "within one,<br>median",
        "<br>of so many",
    ]
    first = table([*head, "found", "said<br>wrongly"], rows, 2)
    more = table(["label", "recording", "windows", "found", "without it", "said wrongly"], each, 2)
    silent = ""
    for key, why in SILENT.items():
        if told[key]:
            listed = ", ".join(f"{escape(label)} {number(n)}" for label, n in told[key].items())
            silent += f"<p>Stated, but {why}, windows: {listed}.</p>"
    return (
        f"<h2 id=recordings>By recording</h2><p>{number(told['windows'])} windows of {number(told['recordings'])} long "
        f"recordings, {number(told['patients'])} patients. AUROC over all of them where {FEW_PATIENTS} patients have the "
        f"finding and {FEW_PATIENTS} lack it: few patients, wide intervals. Within one: of the windows of a recording that "
        "holds both kinds. Found and said wrongly: shares of the windows with and without it, at the threshold.</p>"
        f"{first}{silent}<details><summary>Each recording that has the finding</summary><div class='narrow small'>{more}</div>"
        "</details>"
    )
