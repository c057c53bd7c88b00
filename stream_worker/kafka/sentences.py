"""What a cluster's refusals mean, in sentences with a remedy. Pure: imports no client."""

from __future__ import annotations

from stream_worker.errors import BrokerUnavailable

__all__ = ["unread"]


def unread(topic: str, partition: int, place: int, end: int | None, bootstrap: str) -> BrokerUnavailable:
    """Reading got to `place` and no further, short of the `end` of the log (None: not even that was told)."""
    where = f"reading {topic}[{partition}] at {bootstrap}"
    if end is None:
        return BrokerUnavailable(f"{where}: no answer")
    return BrokerUnavailable(
        f"{where}: offsets {place} to {end} cannot be read yet: a transaction of another producer is open there or before. It "
        "ends with its producer, at the latest after that one's transaction.timeout.ms (kafka-transactions.sh find-hanging)"
    )
