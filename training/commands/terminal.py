"""What the command line prints: one-line errors, progress bars, the table of metrics. Imports rich only when it draws."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

__all__ = [
    "STOPPED",
    "by_run",
    "command_line",
    "named",
    "plain_errors",
    "progress",
    "show_against",
    "show_agreement",
    "show_metrics",
    "show_seen",
    "show_zero_shot",
]

OURS = ("training", "encoders")
STOPPED = 143  # exit code of a run that SIGTERM stopped: 128 + 15, as a shell says of it


def named(argument: str) -> str:
    """A path inside the working directory as seen from there, one outside as its last component, of an address its scheme: no
    record names a machine or a password.
    """
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if "://" in value:
        return f"{option}{equals}{value.partition('://')[0]}://HOST"
    if "/" not in value and value != "..":
        return argument
    path = Path(os.path.abspath(value))
    shown = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return option + equals + shown


def command_line() -> str:
    """The command being run, as manifests and cards keep it."""
    return shlex.join(["ecg-train", *map(named, sys.argv[1:])])


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that name their remedy are shown as one line, exit code 2; anything else is a bug and keeps its traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        _say(f"{error.name} is not installed; pip install 'ecg-stream-worker[train]'")
    except (ValueError, OSError, FloatingPointError) as error:
        ours = type(error).__module__.split(".")[0] in OURS
        if not ours and not isinstance(error, OSError | FloatingPointError):
            raise
        _say(str(error))


def _say(problem: str) -> NoReturn:
    typer.secho(f"ecg-train: {problem}", fg=typer.colors.RED, err=True)
    raise typer.Exit(2) from None


@contextmanager
def progress(title: str, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A progress bar with the time left on stderr, where shown. Yields advance(n=1, note="")."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(title, total=total)

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, description=f"{title} {note}".strip())

        yield advance


def by_run(advance: Callable[..., None]) -> Callable[[str, Any], None]:
    """(name, training.learning.loop.Progress) of several runs -> one bar over all; a run that goes on jumps to where it was."""
    done: dict[str, int] = {}

    def report(name: str, p: Any) -> None:
        advance(p.step - done.get(name, 0), f"{name} epoch {p.epoch + 1} loss {p.loss:.4f}")
        done[name] = p.step

    return report


def show_metrics(metrics: dict[str, Any]) -> None:
    """The means by lead set, as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from training.evaluation.metrics import MIN_CASES

    counted = f"counted: labels with {MIN_CASES} positives and {MIN_CASES} negatives that the leads allow to assess"
    folds = ", ".join(map(str, metrics["folds"]))
    each = [entry["per_label"] for entry in metrics["lead_sets"].values()]
    ids = list(dict.fromkeys(label for labels in each for label in labels))
    title = f"fold {folds}: {metrics['records']} records of {metrics['patients']} patients, {len(ids)} labels counted"
    table = Table(title=title, caption=counted)
    for name in ("leads", "labels", "macro AUROC", "95 %", "same labels, 12 leads", "macro AUPRC", "top-1", "top-5"):
        table.add_column(name, justify="right", no_wrap=name == "95 %")
    for name, entry in metrics["lead_sets"].items():
        low_high = entry["macro_auroc_interval"]
        span = f"{low_high[0]:.3f}-{low_high[1]:.3f}" if low_high else "-"
        values = [entry.get("same_labels_12", {}).get("macro_auroc"), entry["macro_auprc"], entry["top1"], entry["top5"]]
        shown = ["-" if v is None else f"{v:.3f}" for v in (entry["macro_auroc"], *values)]
        table.add_row(name, str(entry["labels"]), shown[0], span, *shown[1:])
    Console().print(table)
    Console().print(f"labels: {', '.join(ids) or 'none'}", highlight=False)
    calibration = metrics["lead_sets"].get("12", {}).get("calibration", {})
    if "slope" in calibration:
        told = (("slope", "slope"), ("error", "ece"), ("noise alone", "ece_floor"))
        said = (f"{name} {calibration[key]:.3f}" for name, key in told)
        Console().print("calibration: " + ", ".join(said), highlight=False)
    if "false_positives" in metrics["lead_sets"].get("12", {}):
        _show_false_positives(metrics["lead_sets"]["12"]["false_positives"])
    if "recordings" in metrics["lead_sets"].get("12", {}):
        _show_recordings(metrics["lead_sets"]["12"]["recordings"])


def _show_false_positives(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"long recordings, {told['hours']:.1f} h of {told['patients']} patients: windows said wrongly to have a finding"
    table = Table(title=title, caption="of windows known not to have it, at the threshold; 360 windows an hour are all of them")
    for name in ("label", "an hour", "95 %", "hours without it", "patients"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for name, m in sorted(told["per_label"].items(), key=lambda item: -item[1]["per_hour"]):
        low_high = m["per_hour_interval"]
        span = f"{low_high[0]:.1f}-{low_high[1]:.1f}" if low_high else "-"
        table.add_row(name, f"{m['per_hour']:.1f}", span, f"{m['hours']:.1f}", str(m["patients"]))
    Console().print(table)


def _show_recordings(told: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from training.evaluation.recordings import SILENT

    title = f"{told['recordings']} long recordings of {told['patients']} patients, {told['windows']} windows, by recording"
    caption = "AUROC: of all windows, few patients; within: median of (n) recordings, each alone"
    table = Table(title=title, caption=caption, box=SIMPLE, pad_edge=False)
    for name in ("label", "windows", "patients", "AUROC", "95 %", "within (n)", "found", "wrong"):
        table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    for name, m in sorted(told["per_label"].items(), key=lambda item: -item[1]["windows"]):
        low_high = m["few_patients_auroc_interval"]
        values = m["few_patients_auroc"], m["within_auroc_median"], m["sensitivity"], m["said_wrongly"]
        auroc, within, found, wrong = ("-" if v is None else f"{v:.3f}" for v in values)
        span = f"{low_high[0]:.3f}-{low_high[1]:.3f}" if low_high else "-"
        counts = str(m["windows"]), str(m["patients"])
        table.add_row(name, *counts, auroc, span, f"{within} ({m['within_recordings']})", found, wrong)
    Console().print(table)
    for key, why in SILENT.items():
        if told[key]:
            silent = ", ".join(f"{label} {n}" for label, n in told[key].items())
            Console().print(f"stated, but {why} (windows): {silent}", highlight=False)


def show_seen(name: str, seen: list[int]) -> None:
    """A line on stdout: these of the scored folds fitted or calibrated it."""
    folds = f"fold{'s' * (len(seen) > 1)} {', '.join(map(str, seen))}"
    typer.echo(f"Take care: {folds} took part in fitting or calibrating {name}: if these are its own data, it looks too good.")


def show_zero_shot(told: dict[str, Any]) -> None:
    """AUROC by superset on stdout, and whether it may be called zero-shot."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{told['records']} records, by sentence alone")
    for name in ("superset", "positives", "AUROC", "95 %"):
        table.add_column(name, justify="left" if name == "superset" else "right")
    rows = [(key, str(m["positives"]), m["auroc"], m["auroc_interval"]) for key, m in told["per_superset"].items()]
    if rows:
        rows.append(("mean", "", told["macro_auroc"], told["macro_auroc_interval"]))
    for key, positives, value, (low, high) in rows:
        table.add_row(key, positives, f"{value:.3f}", f"{low:.3f}-{high:.3f}")
    Console().print(table)
    if told["whitened"]:
        Console().print("The bank of this run is whitened (whiten = true): not to be reported as zero-shot.", highlight=False)


def show_against(told: dict[str, Any]) -> None:
    """Two models and their difference, over all labels and by label, on stdout."""
    from rich.console import Console
    from rich.table import Table

    folds = ", ".join(map(str, told["folds"]))
    title = f"fold {folds}: {told['records']} records, AUROC over {len(told['labels'])} labels that both know"
    table = Table(title=title, caption="95 %: of the difference, patients drawn with replacement")
    for name in ("label", told["target"], told["against"], "difference", "95 %"):
        table.add_column(name, justify="left" if name == "label" else "right", overflow="fold")

    def row(name: str, values: list[float], low_high: list[float] | None) -> None:
        span = f"{low_high[0]:+.3f} to {low_high[1]:+.3f}" if low_high else "-"
        table.add_row(name, *(f"{v:.3f}" for v in values), f"{values[0] - values[1]:+.3f}", span)

    for name, m in told["per_label"].items():
        row(name, m["auroc"], m["difference_interval"])
    table.add_section()
    row("mean", told["macro_auroc"], told["difference_interval"])
    Console().print(table)


def show_agreement(told: dict[str, Any]) -> None:
    """By label, windows that share 5 s beside windows that share none, on stdout."""
    from rich.console import Console
    from rich.table import Table

    title = f"{told['recordings']} recordings, {told['windows']} windows; of each pair: 5 s shared, and (none shared)"
    table = Table(title=title, caption="said by both: of the windows where one of the two says it")
    for name in ("label", "pairs", "difference", "equal decisions", "said by one or both", "said by both"):
        table.add_column(name, justify="left" if name == "label" else "right")

    def shown(m: dict[str, Any], key: str, digits: int = 3) -> str:
        each = ("-" if m[kind][key] is None else f"{m[kind][key]:.{digits}f}" for kind in ("overlapping", "apart"))
        return "{} ({})".format(*each)

    rows = sorted(told["per_label"].items(), key=lambda item: -item[1]["overlapping"]["said"])
    for name, m in [*rows, ("all", told)]:
        figures = shown(m, "difference"), shown(m, "equal"), shown(m, "said", 0), shown(m, "said_by_both", 2)
        table.add_row(name, str(m["overlapping"]["pairs"]), *figures)
    Console().print(table)
    for entry in told["skipped"]:
        Console().print(f"left out: {entry['record']}: {entry['reason']}", highlight=False)
