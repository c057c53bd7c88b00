"""`make soak`: workers under mixed faults, then the audit. The last line is JSON, exit code 1 unless all is well."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deploy.local import LocalServices
from encoders.artifact import Artifact
from stream_worker.settings import load_settings
from tests.faults.proxy import Proxy
from tests.processes import World
from tests.soak.crew import Crew
from tests.soak.feed import Feeder

SETTLE_S = 180.0
MOST_GROWTH = 0.05  # of a worker's memory, once it is warm
CALM_S = (1.0, 12.0)  # between a recovery and the next fault


def soak(
    minutes: float, workers: int, streams: int, partitions: int, client: str, delivery: str, seed: int, keep: Path | None = None
) -> dict[str, Any]:
    """What happened, and what the audit found."""
    console, rng = Console(stderr=True), np.random.default_rng([seed, 29])
    with Proxy() as proxy, _services(keep, proxy) as services:
        proxy.target = services.kafka_behind_proxy
        direct = World(services.kafka, ECG_DELIVERY=delivery)
        direct.command("topics", "--apply", "--partitions", str(partitions))
        second = World(services.kafka, ECG_DELIVERY=delivery, ECG_CHUNKS_TOPIC=direct.env["ECG_CHUNKS_TOPIC"])
        second.command("topics", "--apply")
        through = [_through(world, services, proxy, client) for world in (direct, second)]
        crew = Crew(services, proxy, *through, Artifact.load(load_settings().artifact_dir()), workers, seed)
        faults, recovered = Counter[str](), list[float]()
        try:
            crew.recovered(partitions)
            feeder = Feeder(services.kafka, direct.env["ECG_CHUNKS_TOPIC"], streams, minutes * 60, seed)
            feeder.start()
            end, names = time.monotonic() + minutes * 60, list[str]()
            while time.monotonic() < end and feeder.is_alive():
                names = names or list(rng.permutation(list(crew.faults)))
                name = str(names.pop())
                console.print(f"{feeder.sent:8d} chunks, {sum(faults.values()):3d} faults; now: {name}")
                crew.faults[name]()
                faults[name] += 1
                recovered.append(crew.recovered(partitions))
                time.sleep(rng.uniform(*CALM_S))
                while len(crew.workers) < workers:
                    crew.hire()
            feeder.join(SETTLE_S)
            if feeder.failure is not None or feeder.is_alive():
                raise RuntimeError("the feeder did not come to an end") from feeder.failure
            crew.recovered(partitions)
            for world in (direct, second):
                _settle(world)
            grown = crew.grown()
        finally:
            crew.dismiss()
        reports = [_audit(world) for world in (direct, second)]
    parts = reports[0]["partitions"]
    counts = {kind: sum(report["counts"][kind] for report in reports) for kind in reports[0]["counts"]}
    return {
        "minutes": minutes, "client": client, "delivery": delivery, "seed": seed, "chunks": feeder.sent,
        "windows": sum(part["windows"] for part in parts), "refused": sum(part["refused"] for part in parts),
        "faults": sum(faults.values()), "kinds": dict(faults), "lost": counts["missing"] + counts["missing_letters"],
        "doubled": counts["doubled"] + counts["doubled_letters"], "differing": counts["differing"], "audit": counts,
        "consistent": all(report["consistent"] for report in reports), "pending": sum(report["pending"] for report in reports),
        "died": crew.died, "kafka_reloads": crew.reloads, "found": _found(reports),
        "recover_s": {"median": round(statistics.median(recovered), 1), "most": round(max(recovered), 1)},
        "memory_growth": round(max((growth for _, growth in grown), default=0.0), 3),
        "memory": [{"lived_s": lived, "growth": round(growth, 3)} for lived, growth in grown],
    }  # fmt: skip


def _services(keep: Path | None, proxy: Proxy) -> LocalServices:
    """With Kafka's own session time: a node that is late by two seconds on a busy machine must not lose its partitions."""
    return LocalServices(keep, kafka_proxy=proxy.address, kafka_settings={"broker.session.timeout.ms": "9000"})


def _through(world: World, services: LocalServices, proxy: Proxy, client: str) -> World:
    """The same topics and group for a worker: behind the proxy, with Redis."""
    through = World(proxy.address, services.redis, ECG_CLIENT=client, ECG_LOG_LEVEL="warning", ECG_COMMIT_INTERVAL_MS="500")
    through.env |= {k: v for k, v in world.env.items() if k.endswith(("_TOPIC", "_GROUP", "_DELIVERY"))}
    return through


def _found(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What the audits list, by kind and reason: how often, and one of them."""
    items = [item for report in reports for item in report["items"]]
    kinds = [f"{item['kind']} {item.get('reason', item.get('why', ''))}" for item in items]
    return {kind: {"count": kinds.count(kind), "one": items[kinds.index(kind)]} for kind in dict.fromkeys(kinds)}


def _audit(world: World) -> dict[str, Any]:
    done = world.command("audit", "--json", check=False, timeout=600)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the audit could not be made: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _settle(world: World) -> None:
    """Wait until nothing is pending, but not for ever."""
    end = time.monotonic() + SETTLE_S
    while _audit(world)["pending"] and time.monotonic() < end:
        time.sleep(2)


def well(told: dict[str, Any]) -> bool:
    """Nothing lost, doubled or different, nothing left over, nobody dead, nothing grown."""
    lives = not told["died"] and told["memory_growth"] <= MOST_GROWTH
    return bool(told["consistent"] and not told["pending"] and told["windows"] and lives)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--streams", type=int, default=80, help="half in chunks of 1 s, half of 0.5 s: 120 chunks a second")
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--client", choices=("aiokafka", "confluent"), default="aiokafka")
    parser.add_argument("--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder where what Kafka held stays, to look into")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the devices' client tells of every broker that is away
    told = soak(**vars(parser.parse_args()))
    print(json.dumps(told))
    raise SystemExit(0 if well(told) else 1)


if __name__ == "__main__":
    main()
