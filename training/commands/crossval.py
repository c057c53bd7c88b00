"""`ecg-train crossval`: the command line of training/learning/crossval.py. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands.terminal import STOPPED, by_run, command_line, plain_errors, progress

__all__ = ["crossval"]


def crossval(
    data: Annotated[Path, typer.Option("--data", help="What `prepare` wrote.")],
    text: Annotated[Path, typer.Option("--text", help="What `labels` wrote.")],
    out: Annotated[Path, typer.Option(help="Directory of the four runs, oof.safetensors and crossval.json.")],
    config: Annotated[Path | None, typer.Option(help="TOML, as for `train`. Default: default.toml.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value for the config; may be repeated.")] = None,
    leave_out: Annotated[
        str, typer.Option(help="Labels, by commas, that no model is trained on; they are scored by their sentence alone.")
    ] = "",
    resume: Annotated[bool, typer.Option(help="Continue in --out: finished runs are kept, an unfinished one goes on.")] = False,
    refit: Annotated[
        bool, typer.Option(help="Then fit the recipe on all of folds 1 to 8, in OUT/final, for `export`.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU cores; 0 means all.")] = 0,
) -> None:
    """Four models on folds 1 to 8, each judged on the two folds that it never saw; folds 9 and 10 are not touched.

    Recipes, epochs, calibration and thresholds are chosen by these out-of-fold predictions; fold 9 is for reporting only.
    `ecg-train export OUT/final --crossval OUT` makes the artifact. SIGTERM saves, stops and exits with 143.
    """
    with plain_errors():
        import torch

        from training.config import read_config
        from training.data.dataset import DataSet
        from training.folds import DEVELOPMENT, GROUPS, ProtocolError
        from training.learning import crossval as work
        from training.text.labels import TextBank
        from training.vocabulary import read_vocabulary, select

        if refit and not resume and (out / "final" / "checkpoint.json").exists():  # else told when the four are done
            raise ProtocolError(f"{out / 'final'} holds a run already; continue it with --resume or give a new --out")
        if threads:
            torch.set_num_threads(threads)
        more = [*(overrides or []), *([f"leave_out={leave_out}"] if leave_out else [])]
        settings = read_config(config or Path(__file__).parents[1] / "configs" / "default.toml", more)
        labels = select(read_vocabulary(), settings.labels)
        bank = TextBank.load(text)
        whole = DataSet(data, labels, DEVELOPMENT)
        held = [sum(row["fold"] in group for row in whole.index) for group in GROUPS]
        fitted = [*(len(whole) - n for n in held), *([len(whole)] if refit else [])]
        steps = sum(settings.epochs * (n // settings.batch) for n in fitted)
        with progress("cross-validating", steps) as advance:
            report = by_run(advance)
            try:
                told = work.crossval(settings, data, labels, bank, out, resume, report, command=command_line())
                if refit:
                    work.refit(settings, data, labels, bank, out, resume, report, command_line())
            except work.Stopped as stopped:
                typer.echo(str(stopped))
                raise typer.Exit(STOPPED) from None
        typer.echo(f"{out}: {told['records']} records, each predicted by a model that never saw its patient")
        typer.echo(_said(told))


def _said(told: dict[str, Any]) -> str:
    metrics = told["metrics"]
    tiers = [entry["tier"] for entry in told["support"].values()]
    lines = ["labels: " + ", ".join(f"{tiers.count(t)} {t}" for t in ("evaluated", "trained", "unsupported"))]
    if metrics["macro_auroc"] is not None:
        low, high = metrics["macro_auroc_interval"]
        lines.append(
            f"out of fold, {metrics['labels']} labels: macro AUROC {metrics['macro_auroc']:.3f} [{low:.3f}, {high:.3f}]"
        )
    calibration = metrics.get("calibration", {})
    if "slope" in calibration and calibration["median_brier_skill"] is not None:
        lines.append(
            f"calibration slope {calibration['slope']:.2f}, median Brier skill {calibration['median_brier_skill']:.2f}, "
            f"error {calibration['ece']:.4f} (noise alone {calibration['ece_floor']:.4f})"
        )
    lines += [f"{name}, never trained: AUROC {m['auroc']:.3f}" for name, m in told.get("left_out", {}).items()]
    return "\n".join(lines)
