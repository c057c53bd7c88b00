"""`ecg-train report`: the command line of training/report/report.py. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.terminal import command_line, plain_errors, progress

__all__ = ["report"]


def report(
    target: Annotated[Path, typer.Argument(help="A run (with --text) or an artifact directory.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option("--data", help="What `prepare` wrote.")],
    out: Annotated[Path, typer.Option(help="The page, such as report.html; metrics.json is written beside it.")],
    text: Annotated[Path | None, typer.Option(help="What `labels` wrote; needed for a run.")] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--fold", "--folds", help="Folds to score; may be repeated. Default: 9.")
    ] = None,
) -> None:
    """Evaluate, and write one HTML page for people: by leads, label and subgroup, calibration, the worst errors as ECG.

    The page fetches nothing and holds up to 12 recordings of the data set as drawings, with their names: keep it and pass it
    on as you would the recordings. metrics.json holds their names too, no waveform; what has these names is replaced.
    """
    with plain_errors():
        from training.evaluation.evaluate import LEAD_SETS
        from training.evaluation.scorers import open_scorer
        from training.learning.checkpoint import write_whole
        from training.report import report as work
        from training.report.one_file import render

        beside = work.check_place(out)
        out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be made is told before the work
        score, records, evidence = open_scorer(target, data, text, tuple(folds or (9,)))
        subject = work.subject_of(target, data, text)
        with progress("scoring", len(records) * len(LEAD_SETS)) as advance:
            found = work.measure(subject, score, records, evidence, command_line(), advance)
        for path, body in ((beside, work.told(found)), (out, render(found))):
            write_whole(path, lambda part, body=body: part.write_text(body, encoding="utf-8"))  # type: ignore[misc]
        typer.echo(
            f"{out}: {out.stat().st_size / 1e6:.1f} MB, holds waveforms of {records.directory.name}; {beside.name} beside"
        )
