"""`ecg-train compare`: the command line of training/compare.py. Heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.terminal import by_run, command_line, plain_errors, progress

if TYPE_CHECKING:
    from training.compare import Row

__all__ = ["compare", "markdown"]


def compare(
    data: Annotated[Path, typer.Option("--data", help="What `prepare` wrote.")],
    text: Annotated[Path, typer.Option("--text", help="What `labels --data` wrote, captions included.")],
    out: Annotated[Path, typer.Option(help="Directory of the runs and the table; what is there already is kept.")],
    only: Annotated[
        str, typer.Option("--rows", help="Rows to run now, in this order, by commas; the table holds all that have been run.")
    ] = "",
    epochs: Annotated[int | None, typer.Option(help="Instead of 40, for a quick trial in its own --out.")] = None,
    gpu: Annotated[bool, typer.Option(help="Run also the rows that are too slow without a GPU.")] = False,
    threads: Annotated[int, typer.Option(help="CPU cores; 0 means all.")] = 0,
) -> None:
    """Train each recipe of configs/compare.toml on folds 1 to 6, judge all on the same records of folds 7 and 8, and of fold 9.

    Ends where it was stopped and goes on from there when given again: finished runs are kept. About 10 minutes a run of 40
    passes on two cores for 2,000 records. Choose a recipe by folds 7 and 8 only; fold 9 is for reporting.
    """
    with plain_errors():
        import torch

        from training import compare as work
        from training.config import read_config
        from training.data import DataSet
        from training.labels import TextBank
        from training.vocabulary import read_vocabulary, select

        if threads:
            torch.set_num_threads(threads)
        rows, reference = work.read_rows()
        base = read_config(Path(__file__).with_name("configs") / "default.toml")
        labels = select(read_vocabulary(), base.labels)
        bank = TextBank.load(text)
        wanted = _wanted(rows, only, gpu)
        n = len(DataSet(data, labels, work.TRAINED))
        order = [(row, seed) for seed in range(1, 1 + max(r.seeds for r in wanted)) for row in wanted if seed <= row.seeds]
        planned = [row.config(base, seed, epochs) for row, seed in order if not work.is_finished(out, row, seed)]
        steps = sum(c.epochs * (int(c.train_share * n) // c.batch) for c in planned)
        with progress("comparing", steps) as advance:
            report = by_run(advance)
            for row, seed in order:
                if not work.run_row(row, seed, base, data, labels, bank, out, epochs, report, command_line()):
                    raise typer.Exit(143)
        told = work.tabulate(rows, reference, data, labels, out)
        told["command"] = command_line()
        (out / "compare.json").write_text(
            json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        (out / "compare.md").write_text(markdown(told), encoding="utf-8")
        _draw(told, out / "compare.png")
        typer.echo(markdown(told))


def _wanted(rows: Sequence[Row], only: str, gpu: bool) -> list[Row]:
    from training.compare import CompareError

    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := sorted(set(names) - {row.name for row in rows}):
        raise CompareError(f"--rows {', '.join(unknown)}: no such row; rows are {', '.join(row.name for row in rows)}")
    by_name = {row.name: row for row in rows}
    return [by_name[name] for name in names] or [row for row in rows if gpu or not row.gpu]


def markdown(told: dict[str, Any]) -> str:
    """The table as it stands in docs: a row a recipe, "not run" where there is no run."""
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
        cells = [_cells(part["rows"][row["name"]]) for part in (held, reported)]
        supers = reported["rows"][row["name"]]["superclasses"]
        shown = [*cells[0], *cells[1], f"{supers:.3f}" if supers is not None else "-"]
        lines.append(f"| {row['name']} | {row['what']} | {row['epochs']}, {len(row['run'])} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cells(entry: dict[str, Any]) -> tuple[str, str]:
    low, high = entry["interval"]
    gap = ""
    if "difference" in entry:
        least, most = entry["difference_interval"]
        gap = f"{entry['difference']:+.3f} ({least:+.3f} to {most:+.3f})"
    return f"{entry['macro_auroc']:.3f} ({low:.3f}-{high:.3f})", gap


def _draw(told: dict[str, Any], path: Path) -> None:
    """Each row's value and interval, folds 7 and 8 and fold 9 side by side."""
    from matplotlib.figure import Figure

    names = [row["name"] for row in told["rows"] if row["run"]]
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for shift, (part, color) in zip((-0.12, 0.12), (("held_out", "#1f5fa8"), ("reported", "#c0562f")), strict=True):
        entries = [told["parts"][part]["rows"][name] for name in names]
        at = [i + shift for i in range(len(names))]
        value = [e["macro_auroc"] for e in entries]
        error = [[v - e["interval"][0] for v, e in zip(value, entries, strict=True)]]
        error.append([e["interval"][1] - v for v, e in zip(value, entries, strict=True)])
        label = "folds " + " and ".join(map(str, told["parts"][part]["folds"])) if part == "held_out" else "fold 9"
        axes.errorbar(value, at, xerr=error, fmt="o", ms=4, lw=1.2, capsize=2, color=color, label=label)
        for place, e in zip(at, entries, strict=True):
            axes.plot(e["seeds"], [place] * len(e["seeds"]), "|", ms=7, color=color, alpha=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("macro AUROC, 95 % interval over patients; strokes are seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=150)
