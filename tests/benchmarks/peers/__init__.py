"""Other stream libraries at the windows job without scoring, beside the worker's own, through one Kafka: chunks a CPU second.

quixstreams needs another librdkafka than the extra `fast`: it lives in an environment of its own, made by `make peers`, which
has no aiokafka. So nothing of ours is imported before `measure` is called.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.topic import Reading

__all__ = ["measure"]

ROUNDS = 5
SLOW = 6  # the Faust agent reads one chunk in so many: enough for its rate
HERE = Path(__file__).parent
QUIX = HERE.parents[2] / "build" / "peers" / "bin" / "python"


def measure() -> dict[str, float]:
    """ours over theirs, in chunks a CPU second of the process (ten make a window): the worker by its two clients over a Faust
    agent and over quixstreams. Without the environment of quixstreams its rows are left out."""
    from rich.console import Console

    from deploy.local import LocalServices
    from tests.benchmarks.topic import filled, read

    commands: dict[str, list[str]] = {
        "ingest": ["-m", "tests.benchmarks.reader", "aiokafka"],
        "ingest_fast": ["-m", "tests.benchmarks.reader", "confluent"],
        "faust": [str(HERE / "faust_agent.py")],
    }
    if QUIX.exists():
        commands |= {"quix": [str(HERE / "quix.py")], "quix_plain": [str(HERE / "quix.py"), "plain"]}
    with LocalServices() as services:
        settings, total = asyncio.run(filled(services.kafka))

        def one(name: str) -> Reading:
            most = total // SLOW if name == "faust" else total
            return read(commands[name], settings, most, python=str(QUIX) if name.startswith("quix") else sys.executable)

        one("ingest")
        rounds = [{name: one(name) for name in commands} for _ in range(ROUNDS)]
    costs = {name: statistics.median(1e6 * r[name].cpu_s / r[name].chunks for r in rounds) for name in commands}
    Console(stderr=True).print("CPU of a chunk, us: " + "; ".join(f"{name} {cost:.0f}" for name, cost in costs.items()))
    peers = [name for name in commands if not name.startswith("ingest")]
    return {
        f"{ours}_vs_{peer}": statistics.median(_per_cpu(r[ours]) / _per_cpu(r[peer]) for r in rounds)
        for peer in peers
        for ours in ("ingest", "ingest_fast")
    }


def _per_cpu(reading: Reading) -> float:
    return reading.chunks / reading.cpu_s
