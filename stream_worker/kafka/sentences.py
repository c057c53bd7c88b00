"""What a cluster's refusals mean, in sentences with a remedy. Pure: imports no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream_worker.errors import BrokerUnavailable, ConfigError

__all__ = ["denied", "place", "unread"]


def place(bootstrap: str, security: Mapping[str, Any]) -> str:
    """Where, and as whom."""
    user = security.get("sasl_plain_username") or security.get("sasl.username")
    return f"{bootstrap}, as User:{user}" if user else bootstrap


def denied(operation: str, kind: str, name: str, where: str) -> ConfigError:
    """kind: topic, group or transactional-id. where: what `place` gives."""
    who = where.rpartition(" as ")[2] if " as " in where else "User:NAME"
    return ConfigError(
        f"broker {where}: no right to {operation} {kind} {name}: kafka-acls.sh --bootstrap-server HOST --add "
        f"--allow-principal {who} --operation {operation} --{kind} {name}"
    )


def unread(topic: str, partition: int, place: int, end: int | None, bootstrap: str) -> BrokerUnavailable:
    """Reading got to `place` and no further, short of the `end` of the log (None: not even that was told)."""
    where = f"reading {topic}[{partition}] at {bootstrap}"
    if end is None:
        return BrokerUnavailable(f"{where}: no answer")
    return BrokerUnavailable(
        f"{where}: offsets {place} to {end} cannot be read yet: a transaction of another producer is open there or before. It "
        "ends with its producer, at the latest after that one's transaction.timeout.ms (kafka-transactions.sh find-hanging)"
    )
