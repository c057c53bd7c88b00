"""What was measured -> what this machine carries: a table, JSON, a picture. Pure but for the picture's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stream_worker.bench.stages import CHUNK_MS, Lane, Stages
from stream_worker.bench.through_kafka import Latency, Saturated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Capacity", "Carried", "draw", "latency_table", "streams_table"]

CHUNKS = 10_000 // CHUNK_MS  # of a window
STAGES = ("client", "decode", "prepare", "engine")
PADDING = (0, 1, 0, 0)  # of a cell: with more the names of so many columns are cut at 120 characters


@dataclass(frozen=True)
class Carried:
    """One kind of stream. whole: through Kafka; None: not measured."""

    lane: Lane
    stages: Stages
    whole: Saturated | None = None

    def parts(self) -> dict[str, float]:
        """CPU seconds of a window by stage. engine: the fused graph, preprocessing in it, where the worker uses it."""
        told = {
            "client": CHUNKS * self.whole.client_s if self.whole is not None else 0.0,
            "decode": CHUNKS * self.stages.decode.cpu_s,
            "prepare": self.stages.prepare.cpu_s,
            "engine": self.stages.scoring.cpu_s,
        }
        return {name: cost for name, cost in told.items() if cost}

    @property
    def limit(self) -> str:
        """The stage that takes most of the processor."""
        parts = self.parts()
        return max(parts, key=lambda name: parts[name])

    @property
    def windows_per_s(self) -> float:
        """Through Kafka, else what the scorer alone reaches."""
        return self.whole.windows_per_s if self.whole is not None else 1 / self.stages.score.wall_s

    def streams(self, hop_ms: int) -> int:
        """In real time: each gives a window every hop."""
        return int(self.windows_per_s * hop_ms / 1000)


@dataclass(frozen=True)
class Capacity:
    """Of one machine with one model. hop_ms: of the streams. latencies: by rate, first lane."""

    cores: int
    backend: str
    encoder: str
    hop_ms: int
    batch_size: int
    batch_deadline_ms: int
    commit_interval_ms: int
    carried: Sequence[Carried]
    latencies: Sequence[Latency]

    def allowed_s(self, found: Latency) -> float:
        """The longest that the p99 should be: the batch's deadline, three batches, one commit."""
        return (self.batch_deadline_ms + self.commit_interval_ms) / 1000 + 3 * found.scoring_s

    def as_json(self) -> dict[str, Any]:
        """One object; times in seconds, rates per second, memory in MB."""
        told = {
            name: getattr(self, name)
            for name in ("cores", "backend", "encoder", "hop_ms", "batch_size", "batch_deadline_ms", "commit_interval_ms")
        }
        lanes = [
            {
                "lane": one.lane.name,
                "streams": one.streams(self.hop_ms),
                "windows_per_s": round(one.windows_per_s, 1),
                "through_kafka": one.whole is not None,
                "limit": one.limit,
                "cpu_s_per_window": {name: float(f"{cost:.3g}") for name, cost in one.parts().items()},
                "engine_windows_per_s": round(1 / one.stages.engine.wall_s, 1),
                "fused_windows_per_s": round(1 / one.stages.fused.wall_s, 1) if one.stages.fused is not None else None,
                "scorer_windows_per_s": round(1 / one.stages.score.wall_s, 1),
                **({"first_finding_s": one.whole.first_s, "rss_mb": one.whole.rss_mb} if one.whole is not None else {}),
            }
            for one in self.carried
        ]
        latency = [
            asdict(x)
            | {"p50_waiting_s": x.waiting_s(x.p50_s), "p99_waiting_s": x.waiting_s(x.p99_s), "allowed_s": self.allowed_s(x)}
            for x in self.latencies
        ]
        return {**told, "lanes": lanes, "latency": latency}


def streams_table(capacity: Capacity) -> Table:
    """What it carries, by kind of stream."""
    title = f"{capacity.cores} cores, {capacity.backend}, a window every {capacity.hop_ms / 1000:g} s"
    table = Table(
        title=title,
        caption="client to engine: CPU milliseconds of a window; engine: the fused graph, preprocessing in it, where there is "
        "one, else the encoder alone. Limit: the stage that takes most of them.",
        padding=PADDING,
    )
    for name in ("stream", "streams", "windows/s", "scorer alone", "fused graph", "encoder alone", *STAGES, "limit", "memory"):
        table.add_column(name, justify="left" if name in ("stream", "limit") else "right", no_wrap=name == "stream")
    for one in capacity.carried:
        rss = one.whole.rss_mb if one.whole is not None else None
        table.add_row(
            one.lane.name,
            f"{one.streams(capacity.hop_ms):,}",
            f"{one.windows_per_s:.0f}" if one.whole is not None else "-",
            *(
                f"{1 / cost.wall_s:.0f}" if cost is not None else "-"
                for cost in (one.stages.score, one.stages.fused, one.stages.engine)
            ),
            *(f"{1000 * one.parts()[name]:.2g}" if name in one.parts() else "-" for name in STAGES),
            one.limit,
            f"{rss:.0f} MB" if rss is not None else "-",
        )
    return table


def latency_table(capacity: Capacity) -> Table:
    """From the last sample sent to the finding readable."""
    deadline, commit = capacity.batch_deadline_ms, capacity.commit_interval_ms
    table = Table(
        title=f"{capacity.carried[0].lane.name}: last sample sent to finding readable",
        caption=f"Allowed: batch deadline {deadline} ms + 3 batches + one commit interval {commit} ms. Scoring and publishing: "
        "means of a batch. Waiting: the rest of p50 and of p99: for the batch and, exactly once, for the commit.",
        padding=PADDING,
    )
    times = ("p50", "p99", "allowed", "scoring", "publishing", "waiting, p50", "waiting, p99", "sender late")
    for name in ("windows/s", "delivery", *times, "missing"):
        table.add_column(name, justify="right")
    for x in capacity.latencies:
        waiting = x.waiting_s(x.p50_s), x.waiting_s(x.p99_s)
        spent = (x.p50_s, x.p99_s, capacity.allowed_s(x), x.scoring_s, x.publishing_s, *waiting, x.late_s)
        table.add_row(
            f"{x.windows_per_s:.0f}", x.delivery.replace("_", " "), *(f"{1000 * s:.0f} ms" for s in spent), str(x.missing)
        )
    return table


def draw(capacity: Capacity, path: Path) -> None:
    """The CPU time of a window by stage and, through Kafka, throughput against latency. Needs matplotlib (extra `view`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11 if capacity.latencies else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if capacity.latencies else 1, squeeze=False)[0]
    _draw_stages(capacity, panels[-1])
    if capacity.latencies:
        _draw_latency(capacity, panels[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _draw_latency(capacity: Capacity, axes: Axes) -> None:
    first = capacity.carried[0]
    steady = sorted(
        (x for x in capacity.latencies if x.delivery == capacity.latencies[0].delivery), key=lambda x: x.windows_per_s
    )
    rates = [x.windows_per_s for x in steady]
    for name, marker in (("p50_s", "o"), ("p99_s", "s")):
        axes.plot(rates, [1000 * getattr(x, name) for x in steady], marker=marker, label=name[:3])
    axes.plot(rates, [1000 * capacity.allowed_s(x) for x in steady], "--", color="grey", label="allowed p99")
    axes.axvline(first.windows_per_s, color="grey", linewidth=1)
    where = (first.windows_per_s, 0.97)
    axes.annotate("as fast as it goes", where, xycoords=("data", "axes fraction"), ha="right", va="top", rotation=90)
    title = f"{first.lane.name}: last sample sent to finding readable"
    axes.set(xlabel="windows/s", ylabel="ms", yscale="log", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)


def _draw_stages(capacity: Capacity, axes: Axes) -> None:
    names = [one.lane.name for one in capacity.carried]
    base = [0.0] * len(names)
    for stage in STAGES:
        widths = [1000 * one.parts().get(stage, 0.0) for one in capacity.carried]
        if any(widths):
            whole = stage == "engine" and all(one.stages.fused is not None for one in capacity.carried)
            axes.barh(names, widths, left=base, label="engine: fused graph" if whole else stage)
        base = [a + b for a, b in zip(base, widths, strict=True)]
    for y, (one, end) in enumerate(zip(capacity.carried, base, strict=True)):
        axes.annotate(f" {one.streams(capacity.hop_ms):,} streams", (end, y), va="center")
    axes.set(xlabel="CPU ms of a window", xlim=(0, max(base) * 1.35), title=f"{capacity.cores} cores, {capacity.backend}")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)  # below: the bars fill the rest
