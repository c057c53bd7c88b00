"""An artifact's label bank -> Redis, where running workers see it change: first the bytes, then the pointer to them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import redis

from encoders.artifact import Artifact

__all__ = ["ACTIVE_KEY", "PublishError", "bank_key", "publish"]

ACTIVE_KEY = "ecg:bank:active"
TIMEOUT_S = 5.0


class PublishError(ValueError):
    """Redis could not be reached or did not keep what it was given; the pointer was not moved."""


def bank_key(digest: str) -> str:
    """The Redis key of a bank."""
    return f"ecg:bank:{digest}"


def publish(url: str, directory: Path) -> str:
    """Verify the artifact, store its bank, read it back, point `ecg:bank:active` at it -> the bank's digest.

    Raises ArtifactError, leaving Redis untouched, or PublishError.
    """
    artifact = Artifact.load(directory)
    bank = artifact.bank()
    data = bank.to_bytes()
    try:
        with redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
            client.set(bank_key(bank.digest), data)
            stored = client.get(bank_key(bank.digest))
            found = hashlib.sha256(stored).hexdigest() if isinstance(stored, bytes) else "nothing"
            if found != bank.digest:
                raise PublishError(f"Redis was given bank {bank.digest} and holds {found}; the active bank was not changed")
            client.set(ACTIVE_KEY, bank.digest)
    except (redis.RedisError, ValueError) as error:
        if isinstance(error, PublishError):
            raise
        raise PublishError(
            f"Redis cannot be used ({type(error).__name__}: {error}); check the address and that it runs"
        ) from None
    return bank.digest
