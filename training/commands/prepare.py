"""`ecg-train prepare`: folders of recordings -> a prepared set, from the command line. Heavy imports happen inside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.commands.terminal import command_line, plain_errors, progress

__all__ = ["prepare"]

KINDS = 8  # reasons shown


class Likelihood(StrEnum):
    """What a None among PTB-XL's likelihoods means."""

    unknown = "unknown"
    stated = "stated"


def prepare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of WFDB, EDF, DICOM or CSV recordings with a table of labels (labels.csv in it, or --labels), or "
            "in the own layout of PTB-XL, the CinC Challenges 2011, 2017, 2020 and 2021, CODE-15% (HDF5), or annotated long "
            "recordings (WFDB with .atr).",
            exists=True,
            file_okay=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="New directory for shards, index, manifest and statistics.html.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a row a recording: record,labels and, where known, patient,fold,sex,age,unknown. Labels are ids of "
            "labels.csv or scheme:code (scp, snomed_ct), separated by ';'. Looked for here, then in the folder.",
            dir_okay=False,
        ),
    ] = None,
    declares: Annotated[
        str,
        typer.Option(
            help="Labels that the table annotates in every row, separated by commas, or a file of them. Default: those that "
            "any row states. What is declared and not stated of a recording is denied."
        ),
    ] = "",
    unknown_likelihood: Annotated[
        Likelihood,
        typer.Option(help="A None among PTB-XL's likelihoods: the label is `unknown` (masked), or `stated` all the same."),
    ] = Likelihood.unknown,
    hdf5_unit: Annotated[str, typer.Option(help="Of HDF5 tracings: mV, 1e-4V, uV or V. Checked against their size.")] = "mV",
    window_step: Annotated[
        float, typer.Option(help="Seconds from one window of a long recording to the next; 10 or more.")
    ] = 10.0,
) -> None:
    """Read recordings, bring them to the encoder's input, split them by patient.

    Folds 1 to 7 train, 8 calibrates, 9 reports, 10 is left alone: as the table or PTB-XL's strat_fold says, elsewhere a hash
    of the patient. A patient in two folds is refused. Records that cannot be read are left out and listed in the manifest with
    the reason. A label that a data set does not annotate is unknown there, not negative. Read statistics.html before you train.
    """
    with plain_errors():
        from training.data import prepare as work
        from training.data.statistics_page import left_out, write_page
        from training.sources.annotated import SourceError
        from training.sources.folders import read_source
        from training.vocabulary import read_vocabulary

        work.check_new(out)
        if labels is not None and len(folders) > 1:
            raise SourceError(
                f"--labels {labels} speaks of one folder, {len(folders)} are given; put it into its folder as labels.csv"
            )
        vocabulary, table = read_vocabulary(), _table(labels, folders[0])
        sources = [
            read_source(folder, vocabulary, unknown_likelihood.value, table, declares, hdf5_unit, window_step)
            for folder in folders
        ]
        with progress("reading", sum(len(s.records) for s in sources)) as advance:
            manifest = work.prepare(sources, out, command_line(), advance)
        page = write_page(out, vocabulary)
        splits = ", ".join(f"{n} {name}" for name, n in manifest["splits"].items())
        typer.echo(f"{out}: {manifest['records']} records ({splits}), {len(manifest['skipped'])} left out")
        kinds = left_out(manifest["skipped"])
        for entries in kinds[:KINDS]:
            typer.echo(
                f"  left out {len(entries):>5}: {entries[0]['reason']}  ({entries[0]['record']}{', ...' * (len(entries) > 1)})"
            )
        if len(kinds) > KINDS:
            typer.echo(f"  left out {sum(map(len, kinds[KINDS:])):>5}: for {len(kinds) - KINDS} other reasons")
        for entry in manifest["incomplete"][:KINDS]:
            first = entry["first"][0] + ", ..." * (entry["records"] > 1)
            typer.echo(f"  not used of {entry['records']:>3}: {entry['kind']} {entry['name']}  ({first})")
        typer.echo(f"read {page} before you train; manifest.json names every record left out")


def _table(labels: Path | None, folder: Path) -> Path | None:
    """The table as named from the working directory or, where there is none, from the folder. Raises SourceError."""
    from training.sources.annotated import SourceError

    if labels is None or labels.is_file():
        return labels
    if (folder / labels).is_file():
        return folder / labels
    raise SourceError(
        f"--labels {labels}: no such file, neither here nor in {folder}; it needs a row a recording with the columns record "
        "and labels"
    )
