"""`ecg-train compare`: the command line of training/compare/runs.py. Heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.commands.terminal import STOPPED, by_run, command_line, plain_errors, progress

if TYPE_CHECKING:
    from training.compare.runs import Row

__all__ = ["compare"]


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
    table: Annotated[bool, typer.Option("--table", help="Train nothing: the table of what has been run.")] = False,
) -> None:
    """Train each recipe of configs/compare.toml on folds 1 to 6, judge all on the same records of folds 7 and 8, and of fold 9.

    Ends where it was stopped and goes on from there when given again: finished runs are kept. About 10 minutes a run of 40
    passes on two cores for 2,000 records. Choose a recipe by folds 7 and 8 only; fold 9 is for reporting.
    """
    with plain_errors():
        import torch

        from training.compare import runs as work
        from training.compare.page import draw, markdown
        from training.compare.table import tabulate
        from training.config import read_config
        from training.data.dataset import DataSet
        from training.learning.checkpoint import write_whole, writing
        from training.text.labels import TextBank
        from training.vocabulary import read_vocabulary, select

        if threads:
            torch.set_num_threads(threads)
        rows, reference = work.read_rows()
        base = read_config(Path(__file__).parents[1] / "configs" / "default.toml")
        labels = select(read_vocabulary(), base.labels)
        bank = TextBank.load(text)
        train = DataSet(data, labels, work.TRAINED)
        wanted = [] if table else _wanted(rows, only, gpu, set(train.folders.tolist()))
        most = max((row.seeds for row in wanted), default=0)
        order = [(row, seed) for seed in range(1, 1 + most) for row in wanted if seed <= row.seeds]
        planned = [row.recipe(base, seed, epochs) for row, seed in order if not work.is_finished(out, row, seed)]
        steps = sum(c.epochs * (len(train.for_training(c)) // c.batch) for c in planned)
        with progress("comparing", steps) as advance:
            report = by_run(advance)
            for row, seed in order:
                if not work.run_row(row, seed, base, data, labels, bank, out, epochs, report, command_line()):
                    raise typer.Exit(STOPPED)
        told = tabulate(rows, reference, data, labels, out)
        told["command"] = command_line()
        table_json = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(out / "compare.json", lambda part: part.write_text(table_json, encoding="utf-8"))
        write_whole(out / "compare.md", lambda part: part.write_text(markdown(told), encoding="utf-8"))
        with writing(out / "compare.png"):
            draw(told, out / "compare.png")
        typer.echo(markdown(told))


def _wanted(rows: Sequence[Row], only: str, gpu: bool, folders: set[str]) -> list[Row]:
    """Those named; else all but what is too slow and what leaves out folders that this data set has not."""
    from training.compare.runs import CompareError

    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := sorted(set(names) - {row.name for row in rows}):
        raise CompareError(f"--rows {', '.join(unknown)}: no such row; rows are {', '.join(row.name for row in rows)}")
    by_name = {row.name: row for row in rows}
    return [by_name[name] for name in names] or [
        row for row in rows if (gpu or not row.gpu) and set(row.left_sources) < folders
    ]
