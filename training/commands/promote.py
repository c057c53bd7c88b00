"""`ecg-train promote`: the command line of training/release/promote.py. Heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands.terminal import command_line, plain_errors, progress

__all__ = ["promote"]

REFUSED = 1


def promote(
    candidate: Annotated[Path, typer.Argument(help="The new artifact, or the directory of it alone.", exists=True)],
    against: Annotated[Path, typer.Option(help="The running artifact.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option("--data", help="What `prepare` wrote.")],
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="ECG_REDIS_URL",
            help="Compare with the bank that is active there, and, if promoted, make the candidate's the active one.",
        ),
    ] = None,
    folds: Annotated[list[int] | None, typer.Option("--fold", help="Folds to compare on; may be repeated. Default: 9.")] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            help="A protected label whose AUROC or decisions may become worse by more than 0.02, or that may lose its "
            "probability or threshold."
        ),
    ] = None,
    protected: Annotated[
        str, typer.Option(help="Labels by commas, or `all`. Default: all but those of urgency routine and normal.")
    ] = "",
    dry_run: Annotated[bool, typer.Option(help="Compare and say; write no file and leave Redis alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole decision as one JSON object on stdout.")] = False,
) -> None:
    """Let a candidate take the running artifact's place, or refuse: both on the same records, patients resampled in pairs.

    Refused when the 95 % interval of a protected label's AUROC difference lies below 0; when its AUROC falls by more than 0.02,
    its decisions become worse, or it loses its probability or threshold, without --accept; when the macro difference may be
    below -0.005. Labels with fewer than 10 positives are listed as not testable. The decision is written beside the candidate.
    Exit code 0: promoted, 1: refused, 2: could not be compared.
    """
    with plain_errors():
        from encoders.artifact import Artifact
        from training.data.dataset import DataSet
        from training.data.targets import cases_of
        from training.evaluation.prevalence import own_bank, own_of
        from training.release import promote as work
        from training.release.publish import active_bank, publish
        from training.vocabulary import read_vocabulary, select

        new, old = Artifact.load(candidate), Artifact.load(against)
        chosen = tuple(folds or (9,))
        work.check_folds(new, chosen, "candidate")
        work.check_folds(old, chosen, "running")
        active = active_bank(redis) if redis else None
        bank = work.running_bank(old, active)
        own = {id: share for id, share in own_of(bank).items() if id in work.served(new.bank())}
        ready = own_bank(new, own)
        if ready.digest == bank.digest:
            raise work.PromoteError(f"{candidate}: its bank {bank.digest[:16]} is the running one; nothing to promote")
        names = dict.fromkeys(label.id for b in (bank, ready) for label in b.labels)
        records = DataSet(data, select(read_vocabulary(), ",".join(names)), chosen)
        ids = [s.id for s in records.labels]
        guarded = set(ids) if protected == "all" else {p.strip() for p in protected.split(",") if p.strip()}
        guarded = guarded or set(work.default_protected(bank) | work.default_protected(ready))
        work.check_names(ids, guarded, accept or ())  # before the work
        with progress("scoring", 2 * len(records)) as advance:
            (ours, theirs), y, known = work.score([(new, ready), (old, bank)], records, advance)
        patients = [row["patient"] for row in records.index]
        cases = cases_of(records.index)
        decision = work.compare(ours, theirs, y, known, patients, ids, guarded, accept or (), cases)
        decision |= {"folds": list(chosen), "own_prevalence": own}
        typer.echo(json.dumps(decision, ensure_ascii=False)) if as_json else _show(decision)
        published = ""
        if redis and decision["promoted"] and not dry_run:
            published = publish(redis, ready, instead_of=active)
            typer.echo(f"active label bank: {published}", err=as_json)
        if not dry_run:
            path = work.keep(decision, (new, ready), (old, bank), command_line(), records.digest, published)
            typer.echo(f"written: {path}", err=as_json)
        if not decision["promoted"]:
            raise typer.Exit(REFUSED)
        if new.encoder_digest != old.encoder_digest:
            typer.echo(
                "The encoder is another: running workers refuse this bank and go on with theirs; start workers with the new "
                "artifact, then stop the others (docs/training.md, Promote and publish).",
                err=as_json,
            )


def _show(decision: dict[str, Any]) -> None:
    """The table of labels and the decision, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{decision['records']} records of {decision['patients']} patients, folds {decision['folds']}")
    for name in ("label", "positives", "candidate", "running", "difference", "95 %", ""):
        table.add_column(name, justify="left" if name in ("label", "") else "right")
    shown = [label for label in decision["labels"] if label["state"] not in ("not served", "not testable")]
    for label in sorted(shown, key=lambda x: (not x["protected"], x["difference"] if x["difference"] is not None else -1)):
        mark = "protected" if label["protected"] else ""
        table.add_row(f"{label['id']} {mark}".strip(), str(label["positives"]), *_numbers(label), label["state"])
    table.add_section()
    table.add_row("macro", f"{decision['macro']['labels']} labels", *_numbers(decision["macro"]), "")
    console = Console()
    console.print(table)
    guarded = [x["id"] for x in decision["labels"] if x["state"] == "not testable" and x["protected"]]
    others = [x["id"] for x in decision["labels"] if x["state"] == "not testable" and not x["protected"]]
    if guarded:
        console.print(f"not testable, protected: {', '.join(guarded)}", highlight=False)
    if others:
        console.print(f"not testable: {', '.join(others)}", highlight=False)
    if decision["own_prevalence"]:
        told = ", ".join(f"{id} {share:g}" for id, share in decision["own_prevalence"].items())
        console.print(f"with the running bank's own prevalence of {told}", highlight=False)
    for reason in decision["reasons"]:
        console.print(f"refused: {reason}", highlight=False)
    console.print("promoted" if decision["promoted"] else "not promoted", style="bold", highlight=False)


def _numbers(entry: dict[str, Any]) -> list[str]:
    if entry["difference"] is None:
        return ["-"] * 4
    low, high = entry["interval"]
    return [f"{entry['candidate']:.3f}", f"{entry['running']:.3f}", f"{entry['difference']:+.4f}", f"{low:+.3f} to {high:+.3f}"]
