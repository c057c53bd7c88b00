"""`make soak`: workers under mixed faults, then the audit. The last line is JSON, exit code 1 unless all is well."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections import Counter
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
CALM_S = (1.0, 12.0)  # between a recovery and the next fault


def soak(minutes: float, workers: int, streams: int, partitions: int, client: str, delivery: str, seed: int) -> dict[str, Any]:
    """What happened, and what the audit found."""
    console, rng = Console(stderr=True), np.random.default_rng([seed, 29])
    with Proxy() as proxy, LocalServices(kafka_proxy=proxy.address) as services:
        proxy.target = services.kafka_behind_proxy
        direct = World(services.kafka, ECG_DELIVERY=delivery)
        direct.command("topics", "--apply", "--partitions", str(partitions))
        through = World(services.kafka, services.redis, ECG_CLIENT=client, ECG_LOG_LEVEL="warning")
        through.env |= {k: v for k, v in direct.env.items() if k.endswith(("_TOPIC", "_GROUP", "_DELIVERY"))}
        through.env |= {"ECG_KAFKA": proxy.address, "ECG_COMMIT_INTERVAL_MS": "500"}
        crew = Crew(services, proxy, through, Artifact.load(load_settings().artifact_dir()), workers, seed)
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
            _settle(direct)
        finally:
            crew.dismiss()
        report = _audit(direct)
    counts, parts = report["counts"], report["partitions"]
    return {
        "minutes": minutes, "client": client, "delivery": delivery, "seed": seed, "chunks": feeder.sent,
        "windows": sum(part["windows"] for part in parts), "refused": sum(part["refused"] for part in parts),
        "faults": sum(faults.values()), "kinds": dict(faults), "lost": counts["missing"] + counts["missing_letters"],
        "doubled": counts["doubled"] + counts["doubled_letters"], "differing": counts["differing"], "audit": counts,
        "consistent": report["consistent"], "pending": report["pending"], "died": crew.died, "gave_up": crew.gave_up,
        "recover_s": {"median": round(statistics.median(recovered), 1), "most": round(max(recovered), 1)},
        "memory_growth": round(crew.growth, 3),
    }  # fmt: skip


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
    """Nothing lost, doubled or different, nothing left over, nobody dead."""
    return bool(told["consistent"] and not told["pending"] and not told["died"] and told["windows"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--streams", type=int, default=80, help="half in chunks of 1 s, half of 0.5 s: 120 chunks a second")
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--client", choices=("aiokafka", "confluent"), default="aiokafka")
    parser.add_argument("--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument("--seed", type=int, default=1)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the devices' client tells of every broker that is away
    told = soak(**vars(parser.parse_args()))
    print(json.dumps(told))
    raise SystemExit(0 if well(told) else 1)


if __name__ == "__main__":
    main()
