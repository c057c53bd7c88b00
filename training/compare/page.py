"""What `compare` found, to read and to look at: compare.md and compare.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "markdown"]

LOOKS = {"held_out": ("folds 7 and 8", "#1f5fa8"), "reported": ("fold 9", "#c0562f")}


def markdown(told: Mapping[str, Any]) -> str:
    """The tables as they stand in docs: a row a recipe, "not run" where there is no run; learning curve; what was left out."""
    held, reported = told["parts"]["held_out"], told["parts"]["reported"]
    lines = [
        f"Macro AUROC with 95 % interval over {len(held['labels'])} labels in folds 7 and 8 ({held['records']} records) and "
        f"{len(reported['labels'])} in fold 9 ({reported['records']}); difference to `{told['reference']}`, paired. "
        "Superclasses: PTB-XL's five, in fold 9, each as likely as its most likely label, calibrated on folds 7 and 8.",
        "",
        "| row | recipe | passes, seeds | folds 7-8 | difference | fold 9 | difference | superclasses |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        if not row["run"]:
            lines.append(f"| {row['name']} | {row['what']} | not run | | | | | |")
            continue
        entries = [part["rows"][row["name"]] for part in (held, reported)]
        supers = entries[1]["superclasses"]
        shown = [cell for e in entries for cell in (_value(e), _gap(e))] + [f"{supers:.3f}" if supers is not None else "-"]
        lines.append(f"| {row['name']} | {row['what']} | {row['epochs']}, {len(row['run'])} | {' | '.join(shown)} |")
    left = [*_left_out(told["left_out"], told["reference"]), *_by_sentence(told["by_sentence"])]
    return "\n".join([*lines, *_on_gpu(told["rows"]), *_curve(told), *left]) + "\n"


def _on_gpu(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    there = [row for row in rows if "gpu" in row]
    if not there:
        return []
    lines = ["", "On a GPU: training, median of the passes, and PyTorch's highest peak.", "", "| row | records/s | memory |"]
    return [
        *lines, "|---|---|---|",
        *(f"| {row['name']} | {row['gpu']['records_per_s']:,.0f} | {row['gpu']['memory_mb']:,} MB |" for row in there),
    ]  # fmt: skip


def _curve(told: Mapping[str, Any]) -> list[str]:
    if not told["curve"]:
        return []
    lines = [
        "",
        "Learning curve: the same recipe and as many steps on a share of the training patients; same labels and records.",
        "",
        "| patients | training records | row | folds 7-8 | fold 9 |",
        "|---|---|---|---|---|",
    ]
    for point in told["curve"]:
        cells = " | ".join(_value(told["parts"][part]["rows"][point["row"]]) for part in LOOKS)
        lines.append(f"| {point['share']:.0%} | {point['records']} | {point['row']} | {cells} |")
    return lines


def _left_out(rows: Sequence[Mapping[str, Any]], reference: str) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        f"Left-out folders: macro AUROC on their records of folds 7, 8 and 9. The row has seen nothing of these folders, "
        f"`{reference}` their other records; difference paired.",
        "",
        f"| row | without | records, labels | never seen | `{reference}` | difference |",
        "|---|---|---|---|---|---|",
    ]
    few = "{records}, 0 | too few cases | | |"
    return lines + [_left(row, few, lambda row: f"{row['records']}, {len(row['labels'])}") for row in rows]


def _left(row: Mapping[str, Any], few: str, count: Callable[[Mapping[str, Any]], str]) -> str:
    """A line of what was left out. few: its cells without enough cases; count: how much there is to judge by."""
    begin = f"| {row['name']} | {', '.join(row['left'])} |"
    if not row["run"]:
        return f"{begin} not run | | | |"
    if "unseen" not in row:
        return f"{begin} {few.format_map(row)}"
    seen = _value(row["seen"]) if row["seen"] else "not run"
    return f"{begin} {count(row)} | {_value(row['unseen'])} | {seen} | {_gap(row['unseen'])} |"


def _by_sentence(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "Left-out labels, known by their sentence alone: AUROC in folds 7, 8 and 9. The row was never told of the label; "
        "another that is else the same was; difference paired.",
        "",
        "| row | label | positives | by its sentence alone | trained | difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_left(row, "too few cases | | | |", lambda row: str(row["positives"])) for row in rows]
    found = [row for row in rows if "unseen" in row]
    if len(found) > 1:
        unseen = sum(row["unseen"]["macro_auroc"] for row in found) / len(found)
        both = [row["seen"]["macro_auroc"] for row in found if row["seen"]]
        seen = f"{sum(both) / len(both):.3f}" if len(both) == len(found) else ""
        lines.append(f"| mean of {len(found)} | | | {unseen:.3f} | {seen} | |")
    return lines


def _value(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['macro_auroc']:.3f} ({low:.3f}-{high:.3f})"


def _gap(entry: Mapping[str, Any]) -> str:
    if "difference" not in entry:
        return ""
    low, high = entry["difference_interval"]
    return f"{entry['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def draw(told: Mapping[str, Any], path: Path) -> None:
    """Each row's value and interval, folds 7 and 8 and fold 9 side by side; below them the learning curve, if there is one."""
    from matplotlib.figure import Figure

    names = [row["name"] for row in told["rows"] if row["run"]]
    tall = 1.2 + 0.42 * len(names)
    if told["curve"]:
        figure = Figure(figsize=(7, tall + 2.8), layout="constrained")
        axes, below = figure.subplots(2, height_ratios=[tall, 2.8])
        _draw_curve(told, below)
    else:
        figure = Figure(figsize=(7, tall), layout="constrained")
        axes = figure.subplots()
    _draw_rows(told, names, axes)
    figure.savefig(path, dpi=150)


def _errors(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """-> values, and how far the interval reaches below and above each."""
    value = [e["macro_auroc"] for e in entries]
    pairs = list(zip(value, (e["interval"] for e in entries), strict=True))
    return value, [[v - low for v, (low, _) in pairs], [high - v for v, (_, high) in pairs]]


def _draw_rows(told: Mapping[str, Any], names: Sequence[str], axes: Axes) -> None:
    for shift, (part, (label, color)) in zip((-0.12, 0.12), LOOKS.items(), strict=True):
        entries = [told["parts"][part]["rows"][name] for name in names]
        at = [i + shift for i in range(len(names))]
        value, error = _errors(entries)
        axes.errorbar(value, at, xerr=error, fmt="o", ms=4, lw=1.2, capsize=2, color=color, label=label)
        for place, e in zip(at, entries, strict=True):
            axes.plot(e["seeds"], [place] * len(e["seeds"]), "|", ms=7, color=color, alpha=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("macro AUROC, 95 % interval over patients; strokes are seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)  # above: rows fill the rest


def _draw_curve(told: Mapping[str, Any], axes: Axes) -> None:
    points = told["curve"]
    for part, (label, color) in LOOKS.items():
        value, error = _errors([told["parts"][part]["rows"][point["row"]] for point in points])
        axes.errorbar(
            [100 * point["share"] for point in points], value, yerr=error, fmt="o-", ms=4, lw=1.2, capsize=2, color=color,
            label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks([100 * p["share"] for p in points], [f"{p['share']:.0%}\n{p['records']} records" for p in points])
    axes.set_xlabel("training patients")
    axes.set_ylabel("macro AUROC")
    axes.grid(alpha=0.3)
