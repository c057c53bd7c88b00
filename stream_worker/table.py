"""Findings for people: a live table in the terminal, one row a stream, and one line a finding elsewhere."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["NOTICE", "FindingsTable", "alert_line", "line"]

NOTICE = "Decision support and research software. Not a medical device, not a monitor."
COLOURS = {"critical": "bold red", "urgent": "red", "routine_new_urgent": "yellow", "routine": "yellow", "normal": "green"}


LIMIT = 2  # labels shown of a finding


def _labels(body: dict[str, Any]) -> list[tuple[Text, Text]]:
    """(probability, names in Japanese and English) of the most probable labels; those above their threshold with a dot, in
    their urgency's colour. What else is to be said comes without a probability.
    """
    if body["kind"] == "unscorable":
        return [(Text(), Text(f"unscorable: {body['reason']}", style="dim"))]
    if body["kind"] == "closed":
        return [(Text(), Text("stream closed, nobody watches it now", style="dim"))]
    out = []
    for label in ([x for x in body["labels"] if x["positive"]] or body["labels"][:1])[:LIMIT]:
        style = COLOURS.get(label["urgency"], "") if label["positive"] else "dim"
        dot = "● " if label["positive"] else "  "
        value = Text(f"{label['probability']:.2f}", style="bold" if label["positive"] else "dim")
        out.append((value, Text(f"{dot}{label['name_ja']} {label['name_en']}", style=style)))
    return out or [(Text(), Text("no label can be assessed from these leads", style="dim"))]


def _leads(body: dict[str, Any]) -> str:
    recorded = body["layout"]["leads"]
    return ",".join(recorded) if len(recorded) <= 3 else f"{len(recorded)} leads"


def line(body: dict[str, Any]) -> Text:
    """One finding as a line."""
    rate = body.get("quality", {}).get("heart_rate")
    seconds = body["first_sample"] * 1000 // body["layout"]["fs_mhz"]
    head = f"{body['stream']:<12.12} {seconds:>5d} s  {'--' if rate is None else round(rate):>3} bpm  "
    said = (Text.assemble(name, " ", value) if value else name for value, name in _labels(body))
    return Text(head) + Text(", ").join(said)


def alert_line(body: dict[str, Any]) -> Text:
    """One alert as a line."""
    label = body["label"]
    head = f"{body['stream']:<12.12} {body['time'][:19]}Z  {body['kind']:<6} "
    why = f", {body['reason']}" if body["reason"] else ""
    return Text(f"{head} {label['name_ja']} {label['name_en']} {body['probability']:.2f}, {body['windows']} windows{why}")


class FindingsTable:
    """The latest finding of each stream. `add` a finding's body, render with rich."""

    def __init__(self, title: str) -> None:
        self.title, self.count = title, 0
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, body: dict[str, Any]) -> None:
        """Keep what is newest of a stream; a closing does not hide the last scored window."""
        self.count += 1
        if body["kind"] != "closed" or body["stream"] not in self._rows:
            self._rows[body["stream"]] = body

    def __rich__(self) -> Table:
        table = Table(title=f"{self.title}  ({self.count} findings)", caption=NOTICE, expand=True)
        for name in ("stream", "at", "signal", "bpm", "p"):
            table.add_column(name, no_wrap=name != "signal")
        table.add_column("label (● above threshold)", no_wrap=True, ratio=1)  # cut off where the terminal is narrow, `p` is not
        for stream, body in sorted(self._rows.items()):
            rate = body.get("quality", {}).get("heart_rate")
            fs = body["layout"]["fs_mhz"]
            values, names = zip(*_labels(body), strict=True)
            table.add_row(
                stream,
                f"{body['first_sample'] * 1000 // fs} s",
                f"{_leads(body)} {fs / 1000:g} Hz",
                "--" if rate is None else str(round(rate)),
                Text("\n").join(values),
                Text("\n").join(names),
            )
        return table
