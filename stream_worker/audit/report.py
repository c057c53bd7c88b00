"""What an audit found: for machines one JSON object, for people a table. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from stream_worker.records import RunKey

__all__ = ["KINDS", "PartReport", "Report"]

KINDS = {
    "missing": "windows that the chunks hold, the group has passed, and no finding tells of",
    "doubled": "a second finding for one window, whatever its model and bank",
    "differing": "findings that are not what their chunks say",
    "unexpected": "findings that no chunks explain",
    "early_committed": "committed offsets (W, P, F) beyond what a restart needs",
    "missing_letters": "refused records without a dead letter",
    "doubled_letters": "a second dead letter for one refusal",
    "unexpected_letters": "dead letters for records that the rules accept",
    "split": "runs in two partitions: the partition count grew under them",
}
KEPT = 1000  # items of a kind and partition that are kept; all are counted


@dataclass
class PartReport:
    """One partition. start, end: chunk offsets judged. low, processed, findings_from: W, P and F as committed.

    chunks: records in the range. findings, letters: records read. windows, refused: what was judged. pending: windows that
    must exist once the group has come so far. lost: ranges [first, end) that retention took before they were read.
    runs: (first sample, end of samples) by run, for `split`.
    """

    number: int
    start: int
    low: int
    processed: int
    findings_from: int
    end: int = 0
    chunks: int = 0
    findings: int = 0
    letters: int = 0
    windows: int = 0
    refused: int = 0
    pending: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    forgivable: Counter[str] = field(default_factory=Counter)
    items: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[RunKey, tuple[int, int]] = field(default_factory=dict)

    def add(self, kind: str, **detail: Any) -> None:
        """One inconsistency. A repeat that a reader of at-least-once delivery can tell by its id is counted as forgivable."""
        self.counts[kind] += 1
        self.forgivable[kind] += kind == "doubled_letters" or bool(detail.get("same_id"))
        if self.counts[kind] <= KEPT:
            self.items.append({"kind": kind, "partition": self.number, **detail})

    def row(self) -> dict[str, Any]:
        """For JSON."""
        where = {"partition": self.number, "from": self.start, "to": self.end}
        committed = {"W": self.low, "P": self.processed, "F": self.findings_from}
        names = ("chunks", "findings", "letters", "windows", "refused", "pending")
        return where | committed | {name: getattr(self, name) for name in names} | {"lost": self.lost}


class Report:
    """All partitions. `add` each as it is done: what is kept of it is small."""

    def __init__(self, delivery: str = "exactly_once") -> None:
        self.delivery = delivery
        self.parts: list[PartReport] = []
        self.splits: list[dict[str, Any]] = []
        self._where: dict[RunKey, tuple[int, int, int]] = {}

    def add(self, part: PartReport) -> None:
        """Take a finished partition in; a run that another one holds too is split."""
        for key, (first, end) in part.runs.items():
            there = self._where.setdefault(key, (part.number, first, end))
            if there[0] != part.number:
                sides = [
                    dict(zip(("partition", "from_sample", "to_sample"), at, strict=True))
                    for at in (there, (part.number, first, end))
                ]
                self.splits.append({"kind": "split", "stream": key[0], "session": key[1], "sides": sides})
        part.runs = {}
        self.parts.append(part)

    @property
    def counts(self) -> dict[str, int]:
        """By kind, zeros included."""
        total = sum((part.counts for part in self.parts), Counter({"split": len(self.splits)}))
        return {kind: total[kind] for kind in KINDS}

    @property
    def judged(self) -> int:
        """Windows and refusals that could be judged."""
        return sum(part.windows + part.refused for part in self.parts)

    @property
    def consistent(self) -> bool:
        """Nothing found that the delivery rules out. A split is the operator's doing, and told apart."""
        forgiven = self.delivery == "at_least_once"
        return not any(part.counts[kind] - (part.forgivable[kind] if forgiven else 0) for part in self.parts for kind in KINDS)

    def items(self) -> Iterator[dict[str, Any]]:
        """What was found, by partition, at most KEPT of a kind in each."""
        for part in self.parts:
            yield from part.items
        yield from self.splits[:KEPT]

    def body(self) -> dict[str, Any]:
        """The JSON object; docs/reliability.md lists its keys."""
        items = list(self.items())
        return {
            "v": 1,
            "consistent": self.consistent,
            "delivery": self.delivery,
            "counts": self.counts,
            "judged": self.judged,
            "pending": sum(part.pending for part in self.parts),
            "partitions": [part.row() for part in self.parts],
            "items": items,
            "items_left_off": sum(self.counts.values()) - len(items),
        }

    def table(self) -> Table:
        """One row a partition; a column for each kind that was found."""
        kinds = [kind for kind, count in self.counts.items() if count and kind != "split"]
        table = Table(title=f"audit, {self.delivery.replace('_', ' ')} delivery")
        numbers = ("chunk offsets", "committed W, P, F", "windows", "pending", "refused")
        for name in ("partition", *numbers, *(kind.replace("_", " ") for kind in kinds)):
            table.add_column(name, justify="right")
        for part in self.parts:
            shown = (f"{part.start} to {part.end}", f"{part.low}, {part.processed}, {part.findings_from}")
            judged = (part.windows, part.pending, part.refused, *(part.counts[kind] for kind in kinds))
            table.add_row(str(part.number), *shown, *map(str, judged))
        return table
