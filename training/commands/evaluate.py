"""`ecg-train evaluate`: metrics, zero-shot and agreement from the command line. Heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands.terminal import (
    plain_errors,
    progress,
    show_against,
    show_agreement,
    show_metrics,
    show_seen,
    show_zero_shot,
)

__all__ = ["evaluate"]


def evaluate(
    target: Annotated[Path, typer.Argument(help="A run (with --text) or an artifact directory.", exists=True, file_okay=False)],
    data: Annotated[
        Path | None, typer.Option(help="What `prepare` wrote; needed but for --agreement of an artifact.", show_default=False)
    ] = None,
    text: Annotated[Path | None, typer.Option(help="What `labels` wrote; needed for a run.")] = None,
    folds: Annotated[list[int] | None, typer.Option("--fold", help="Folds to score; may be repeated. Default: 9.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, per label, as one JSON object on stdout.")] = False,
    supersets: Annotated[
        bool,
        typer.Option(
            "--zero-shot",
            help="Instead: the supersets of labels.csv, by their sentences, which no run is trained on. For a run.",
        ),
    ] = False,
    other: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="DIR",
            help="Instead: what TARGET has more of macro AUROC than this run or artifact, on the same records; or, of two "
            "cross-validations, out of fold.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    agreement: Annotated[
        Path | None,
        typer.Option(
            help="Instead: long recordings, of which windows that share 5 s should be given the same probabilities.",
        ),
    ] = None,
    windows: Annotated[int, typer.Option(help="With --agreement: the most windows of a recording, spread over it.")] = 60,
) -> None:
    """Score held-out folds: AUROC, AUPRC, top-1 and top-5 by label and lead set (12, limb6, I+II, I).

    Labels with at least 10 positives and 10 negatives count; a label that the leads do not allow does not. Intervals are 95 %,
    patients drawn with replacement. --json adds every label, subgroup, PTB-XL's groups, calibration, what withholding close
    decisions would gain, PPV and NPV. Folds that fitted or calibrated TARGET are named beneath, in --json under `seen`.
    """
    with plain_errors():
        from training.evaluation.scorers import ScorerError

        chosen = tuple(folds or (9,))
        show: Callable[[dict[str, Any]], None] = show_metrics
        if (agreement is not None) + (other is not None) + supersets > 1:
            raise ScorerError("--agreement, --against and --zero-shot are three evaluations; give one of them")
        if agreement is not None:
            told, show = _agreement(target, data, text, agreement, windows), show_agreement
        elif data is None:
            raise ScorerError("--data is needed: what `ecg-train prepare` wrote")
        elif supersets:
            told, show = _zero_shot(target, data, text, chosen), show_zero_shot
        elif other is not None:
            told, show = _against(target, other, data, text, chosen), show_against
        else:
            told = _held_out(target, data, text, chosen)
        if as_json:
            typer.echo(json.dumps(told, ensure_ascii=False))
            return
        show(told)
        for name, seen in ((target, told.get("seen")), (other, told.get("against_seen"))):
            if seen:
                show_seen(str(name), seen)


def _held_out(target: Path, data: Path, text: Path | None, folds: tuple[int, ...]) -> dict[str, Any]:
    from training.evaluation import evaluate as work
    from training.evaluation.scorers import open_scorer

    score, records, evidence = open_scorer(target, data, text, folds)
    with progress("scoring", len(records) * len(work.LEAD_SETS)) as advance:
        measured = work.evaluate(score, records, evidence, advance=advance)
    return {"folds": sorted(set(folds)), "seen": _seen(target, data, text, folds), **measured}


def _against(target: Path, other: Path, data: Path, text: Path | None, folds: tuple[int, ...]) -> dict[str, Any]:
    from training.evaluation.against import against, difference
    from training.folds import DEVELOPMENT
    from training.learning.crossval import REPORT, out_of_fold

    told: dict[str, Any] = {"target": str(target), "against": str(other)}
    if (target / REPORT).is_file():
        return {"folds": list(DEVELOPMENT), **told, **difference(out_of_fold(target, data), out_of_fold(other, data))}
    from training.evaluation.scorers import open_scorer

    ours, theirs = open_scorer(target, data, text, folds), open_scorer(other, data, text, folds)
    with progress("scoring", len(ours[1]) + len(theirs[1])) as advance:
        told |= against(ours, theirs, advance)
    seen = {key: _seen(each, data, text, folds) for key, each in (("seen", target), ("against_seen", other))}
    return {"folds": sorted(set(folds)), **seen, **told}


def _seen(target: Path, data: Path, text: Path | None, folds: tuple[int, ...]) -> list[int]:
    """The folds among those scored that fitted or calibrated the target."""
    from training.report.report import subject_of

    return subject_of(target, data, text).seen(folds)


def _zero_shot(target: Path, data: Path, text: Path | None, folds: tuple[int, ...]) -> dict[str, Any]:
    from encoders.text import TextTower
    from training.data.dataset import DataSet
    from training.evaluation.scorers import ScorerError, open_run
    from training.evaluation.zero_shot import zero_shot

    if text is None or not (target / "checkpoint.json").is_file():
        raise ScorerError(f"{target}: --zero-shot needs a run, and its --text; an artifact holds the rows of its labels only")
    trained, records, bank = open_run(target, data, text)
    records = DataSet(data, records.labels, folds)
    tower = TextTower(bank.text.model, bank.text.pooling)
    with progress("scoring", len(records)) as advance:
        told = zero_shot(trained.model, bank, records, tower, advance)
    return {"folds": sorted(set(folds)), "seen": _seen(target, data, text, folds), **told}


def _agreement(target: Path, data: Path | None, text: Path | None, folder: Path, most: int) -> dict[str, Any]:
    from encoders.recordings import find_recordings
    from training.evaluation.agreement import agreement
    from training.evaluation.evaluate import model_scorer
    from training.evaluation.scorers import ScorerError, evidence_of_run, open_artifact, open_run

    if (target / "checkpoint.json").is_file():
        if data is None or text is None:
            raise ScorerError(f"{target} is a run: give --data and --text too, what it was trained with")
        trained, records, _ = open_run(target, data, text)
        score, labels, evidence = model_scorer(trained.model), records.labels, evidence_of_run(trained, records)
    else:
        score, labels, evidence = open_artifact(target)
    with progress("recordings", len(find_recordings(folder))) as advance:
        return agreement(score, labels, evidence, folder, most, advance)
