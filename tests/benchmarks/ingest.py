"""Bytes on a real Kafka to closed windows, by both clients and by two processes, against a bare aiokafka `getmany` loop."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

from rich.console import Console

from deploy.local import LocalServices
from tests.benchmarks.topic import Reading, filled, read

ROUNDS = 5


def measure() -> dict[str, float]:
    """ingest_vs_getmany: chunks/s of the default client's ingest over the bare loop's; ingest_fast_vs_ingest: the client of the
    extra `fast` over the default one; ..._two_processes: two over one. ingest_..._us: CPU time of a chunk, microseconds."""
    with LocalServices() as services:
        settings, total = asyncio.run(filled(services.kafka))

        def reader(kind: str, processes: int = 1) -> Callable[[], Reading]:
            return lambda: read(["-m", "tests.benchmarks.reader", kind], settings, total, processes)

        kinds = {
            "bare": reader("bare"), "aiokafka": reader("aiokafka"), "confluent": reader("confluent"),
            "aiokafka x 2": reader("aiokafka", 2), "confluent x 2": reader("confluent", 2),
        }  # fmt: skip
        kinds["bare"]()  # the broker's first answers are slow
        rounds = [{name: kind() for name, kind in kinds.items()} for _ in range(ROUNDS)]
    for taken in rounds:
        shown = (f"{name} {1e6 / r.rate:.0f} us, {1e6 * r.cpu_s / r.chunks:.0f} CPU" for name, r in taken.items())
        Console(stderr=True).print("a chunk: " + "; ".join(shown))
    return figures(rounds)


def figures(rounds: list[dict[str, Reading]]) -> dict[str, float]:
    def over(ours: str, reference: str) -> float:
        return statistics.median(r[ours].rate / r[reference].rate for r in rounds)

    def cpu_us(name: str) -> float:
        return statistics.median(1e6 * r[name].cpu_s / r[name].chunks for r in rounds)

    return {
        "ingest_vs_getmany": over("aiokafka", "bare"),
        "ingest_fast_vs_ingest": over("confluent", "aiokafka"),
        "ingest_two_processes": over("aiokafka x 2", "aiokafka"),
        "ingest_fast_two_processes": over("confluent x 2", "confluent"),
        "ingest_bare_us": cpu_us("bare"),
        "ingest_us": cpu_us("aiokafka"),
        "ingest_fast_us": cpu_us("confluent"),
    }
