"""An artifact's label bank -> Redis, where running workers see it change: first the bytes, then the pointer to them.

A bank may hold a deployment's own prevalence (training/evaluation/prevalence.py). One without never replaces it unasked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from encoders.bank import BankError, LabelBank
from training.evaluation.prevalence import own_of

__all__ = ["ACTIVE_KEY", "PublishError", "active_bank", "bank_key", "check_no_own", "publish"]

ACTIVE_KEY = "ecg:bank:active"
TIMEOUT_S = 5.0


class PublishError(ValueError):
    """Redis could not be reached, did not keep what it was given or was changed by another; the pointer was not moved."""


def bank_key(digest: str) -> str:
    """The Redis key of a bank."""
    return f"ecg:bank:{digest}"


@contextmanager
def _client(url: str) -> Iterator[Any]:
    try:
        with redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
            yield client
    except (redis.RedisError, ValueError) as error:
        if type(error).__module__.startswith(("training.", "encoders.")):
            raise
        raise PublishError(
            f"Redis cannot be used ({type(error).__name__}: {error}); check the address and that it runs"
        ) from None


def active_bank(url: str) -> LabelBank | None:
    """The bank that workers are told to use; None where none was ever published. Raises PublishError, BankError."""
    with _client(url) as client:
        name: bytes | None = client.get(ACTIVE_KEY)
        if name is None:
            return None
        digest = name.decode("ascii", "replace")
        data: bytes | None = client.get(bank_key(digest))
        if data is None:
            raise PublishError(
                f"{ACTIVE_KEY} names bank {digest}, which Redis does not hold; publish the running artifact again, with "
                "--prevalence FILE.csv or --prevalence training"
            )
        return LabelBank.from_bytes(data, expect_digest=digest)


def check_no_own(url: str) -> None:
    """Raises PublishError when the active bank holds own prevalences, or cannot be read to tell."""
    choice = "say which is meant: --prevalence FILE.csv, or --prevalence training"
    try:
        own = own_of(active_bank(url))
    except BankError as error:
        raise PublishError(f"the active {error}: whether it holds own prevalences cannot be told; {choice}") from None
    if own:
        told = ", ".join(f"{id} {value:g}" for id, value in own.items())
        raise PublishError(f"the active bank holds this deployment's own prevalence of {told}; {choice}")


def publish(url: str, bank: LabelBank, instead_of: LabelBank | None = None) -> str:
    """Store a verified artifact's bank, read it back, point `ecg:bank:active` at it -> the bank's digest.

    instead_of: the pointer moves only while this bank is active. Raises PublishError.
    """
    data = bank.to_bytes()
    with _client(url) as client:
        client.set(bank_key(bank.digest), data)
        stored = client.get(bank_key(bank.digest))
        found = hashlib.sha256(stored).hexdigest() if isinstance(stored, bytes) else "nothing"
        if found != bank.digest:
            raise PublishError(f"Redis was given bank {bank.digest} and holds {found}; the active bank was not changed")
        _switch(client, bank.digest, instead_of)
    return bank.digest


def _switch(client: Any, digest: str, instead_of: LabelBank | None) -> None:
    """One transaction: look, and move the pointer unless it was moved meanwhile."""
    with client.pipeline() as pipe:
        pipe.watch(ACTIVE_KEY)
        name = pipe.get(ACTIVE_KEY)
        if instead_of is not None and name != instead_of.digest.encode():
            told = name.decode("ascii", "replace") if name else "no bank"
            raise PublishError(f"bank {instead_of.digest} was active when it was compared, now {told} is; compare again")
        pipe.multi()
        pipe.set(ACTIVE_KEY, digest)
        try:
            pipe.execute()
        except redis.WatchError:
            raise PublishError("another bank was published at the same moment; look which is meant, then try again") from None
