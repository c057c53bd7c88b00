"""`ecg-train publish`: the command line of training/release/publish.py. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.terminal import plain_errors

__all__ = ["publish"]

TRAINING = "training"  # instead of a table: back to the training prevalence


def publish(
    artifact: Annotated[
        Path, typer.Argument(help="An artifact directory, or one that holds exactly one.", exists=True, file_okay=False)
    ],
    redis: Annotated[str, typer.Option(help="redis://[user:password@]host:port/db", envvar="ECG_REDIS_URL")],
    prevalence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.csv|training",
            help="How frequent findings are where this bank is used: columns label, prevalence (0.02 for 2 %). `training` goes "
            "back to what they are in the training data.",
        ),
    ] = None,
) -> None:
    """Put the artifact's label bank into Redis and make it the active one; running workers with that encoder swap to it.

    The artifact is verified first; a bank that does not fit its encoder is refused and Redis is left as it was. With
    --prevalence the probabilities of these labels are moved to it, and their thresholds with them: what is positive stays
    positive. A bank with own prevalence is not replaced by one without unless --prevalence says so.
    """
    with plain_errors():
        from encoders.artifact import Artifact
        from training.evaluation.prevalence import own_bank, read_prevalence
        from training.release.publish import check_no_own
        from training.release.publish import publish as send

        own = {} if prevalence in (None, TRAINING) else read_prevalence(Path(str(prevalence)))
        bank = own_bank(Artifact.load(artifact), own)
        if prevalence is None:
            check_no_own(redis)
        typer.echo(f"active label bank: {send(redis, bank)}")
        for id, share in bank.prevalence.labels.items() if bank.prevalence else ():
            typer.echo(f"{id}: prevalence {share.training:g} in training, {share.own:g} here")
