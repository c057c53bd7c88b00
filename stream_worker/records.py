"""The vocabulary of the worker: Chunk, Window, Closed, Rejected, Finding. Plain immutable data; knows no Kafka and no clock."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.signal import Layout

__all__ = ["Chunk", "Closed", "DeadLetter", "Event", "Finding", "Input", "Rejected", "RunKey", "Window", "identity"]

RunKey = tuple[str, str, int, bytes]  # stream id, session id, session start ns, layout digest


class Chunk(NamedTuple):
    """A decoded message. samples: int16 (C, n); first: index of its first sample since sample 0 of the session."""

    key: RunKey
    layout: Layout
    first: int
    samples: NDArray[np.int16]
    last: bool


class Input(NamedTuple):
    """Which records of the log a window was cut from. `first` may stand up to a second of signal early, never late."""

    partition: int
    first: int
    last: int
    last_timestamp_ms: int


class Window(NamedTuple):
    """A closed window. samples: int16 (C, n), ABSENT where none came; n is shorter than 10 s only for a tail.

    next: the run's frontier after it. closed: "" or why the run ended with it (last, idle, evicted).
    """

    key: RunKey
    layout: Layout
    first: int
    samples: NDArray[np.int16]
    next: int
    closed: str
    input: Input


class Closed(NamedTuple):
    """A run that ended without a tail: from here on nobody watches this stream."""

    key: RunKey
    layout: Layout
    first: int
    closed: str
    input: Input


class Rejected(NamedTuple):
    """A record, or a part of one, that feeds no window: the reason code of its dead letter."""

    offset: int
    code: str


Event = Window | Closed | Rejected


@dataclass(frozen=True, slots=True)
class Finding:
    """What is published for a window. body: the JSON object of finding.schema.json; time: RFC 3339."""

    key: RunKey
    partition: int
    next: int
    body: dict[str, Any]

    @property
    def id(self) -> str:
        """Deterministic: the same samples, model and bank give the same id wherever and whenever they are scored."""
        return str(self.body["id"])


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record: where it stands and a digest of its bytes, never the bytes unless configured."""

    partition: int
    offset: int
    code: str
    digest: str
    size: int
    payload: bytes | None = None
    lost_until: int | None = None  # lost_range: one past the last lost offset


@lru_cache(maxsize=4096)
def _run_hash(key: RunKey) -> bytes:
    stream, session, start_ns, layout_digest = key
    return b"".join(
        _prefixed(f) for f in (b"v1", stream.encode(), session.encode(), struct.pack("<q", start_ns), layout_digest)
    )


def _prefixed(field: bytes) -> bytes:
    return struct.pack("<I", len(field)) + field


def identity(key: RunKey, kind: str, first: int, model: str = "", bank: str = "") -> str:
    """First 16 bytes, hex, of sha256 over length-prefixed fields; without model and bank, a window's identity for audit."""
    h = hashlib.sha256(_run_hash(key))
    for field in (kind.encode(), struct.pack("<q", first), *(d.encode() for d in (model, bank) if d)):
        h.update(_prefixed(field))
    return h.hexdigest()[:32]
