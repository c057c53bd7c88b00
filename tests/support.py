"""Small stand-ins and builders that several tests share. The encoder is a real function of its input, only a cheap one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from encoders.bank import Label, LabelBank, TextModel
from encoders.signal import LEADS, Layout
from stream_worker.devices.encode import encode_chunk
from stream_worker.records import Chunk, Closed, Event, Rejected, RunKey, Window
from stream_worker.run import Rules
from stream_worker.window import Windower

DIM = 16


class ProjectionEncoder:
    """A fixed random projection of the window: cheap, deterministic, and different for different windows."""

    backend = "projection"

    def __init__(self, seed: int = 0, dim: int = DIM) -> None:
        self.dim = dim
        self.digest = hashlib.sha256(f"projection {seed} {dim}".encode()).hexdigest()
        self._matrix = np.random.default_rng(seed).standard_normal((12 * 50, dim)).astype(np.float32)

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        pooled = np.abs(x).reshape(len(x), 12, 50, 100).mean(axis=3).reshape(len(x), 600) + 1e-3  # (B, 600)
        e = pooled @ self._matrix
        return np.asarray(e / np.linalg.norm(e, axis=1, keepdims=True), dtype=np.float32)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def label(id: str, **changes: object) -> Label:
    fields: dict[str, object] = {
        "id": id,
        "name_en": f"{id} in English",
        "name_ja": f"{id}の所見",
        "codes": {"scp": (id,)},
        "urgency": "routine",
        "leads_needed": "any",
        "tier": "trained",
        "positives": 50,
        "bias": -1.0,
        "calibration": (1.0, 0.0),
        "threshold": 0.5,
    }
    return Label.model_validate(fields | changes)


def bank(encoder: ProjectionEncoder, labels: Sequence[Label] | None = None, seed: int = 1) -> LabelBank:
    labels = labels or (
        label("NORM", leads_needed="12", urgency="normal"),
        label("AFIB", urgency="urgent"),
        label("LVOLT"),
        label("RARE", tier="unsupported", calibration=None, threshold=None, positives=3),
    )
    rows = np.random.default_rng(seed).standard_normal((len(labels), encoder.dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    text = TextModel(model="random rows", pooling="mean", prompt="{label}", language="en")
    return LabelBank(tuple(labels), rows.astype(np.float32), 10.0, encoder.digest, text)


def layout(fs_mhz: int = 500_000, leads: Sequence[str] = ("I", "II"), gain: float = 1000.0, unit: str = "mV") -> Layout:
    return Layout.of(fs_mhz, leads, [gain], [], unit)


def run_key(of: Layout, stream: str = "s", session: str = "1", start_ns: int = 0) -> RunKey:
    return (stream, session, start_ns, of.digest)


def signal(of: Layout, n: int, seed: int = 0) -> NDArray[np.int16]:
    """(C, n) random counts that never are ABSENT."""
    return np.random.default_rng(seed).integers(-2000, 2000, (len(of.leads), n)).astype(np.int16)


def push(
    windower: Windower,
    of: Layout,
    samples: NDArray[np.int16],
    first: int,
    end: int,
    offset: int,
    ts: int = 0,
    last: bool = False,
    **key: str,
) -> list[Event]:
    """Samples [first, end) of a session as one chunk."""
    return windower.push(Chunk(run_key(of, **key), of, first, samples[:, first:end], last), offset, ts)  # type: ignore[arg-type]


def message(
    of: Layout, first: int, samples: NDArray[np.int16], stream: str = "s", session: str = "1", last: bool = False
) -> tuple[bytes, bytes]:
    """(key, value) as a device publishes it."""
    return stream.encode(), encode_chunk(stream, session, 0, of, first, samples, last)


def windows_of(events: Sequence[Event]) -> list[Window]:
    return [e for e in events if isinstance(e, Window)]


def closings_of(events: Sequence[Event]) -> list[Closed]:
    return [e for e in events if isinstance(e, Closed)]


def codes_of(events: Sequence[Event]) -> list[str]:
    return [e.code for e in events if isinstance(e, Rejected)]


__all__ = [
    "DIM", "LEADS", "ProjectionEncoder", "Rules", "Windower", "bank", "closings_of", "codes_of", "label", "layout", "message",
    "push", "run_key", "signal", "windows_of",
]  # fmt: skip
