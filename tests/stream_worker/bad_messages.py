"""Messages that the worker must refuse, each with the reason code it gives."""

from __future__ import annotations

import math
from typing import Any

from stream_worker.proto import ecg_chunk_pb2 as pb
from tests.support import layout, signal


def fields(**changes: Any) -> dict[str, Any]:
    """Of a good chunk; changes to the layout's fields go there."""
    inner: dict[str, Any] = {"fs_mhz": 500_000, "leads": ["I", "II"], "gain": [1000.0]}
    inner |= {name: changes.pop(name) for name in ("fs_mhz", "leads", "gain", "baseline", "unit") if name in changes}
    good = {"stream_id": "s", "session_id": "1", "first_sample": 0, "layout": pb.Layout(**inner)}
    return good | {"samples": signal(layout(), 100).tobytes()} | changes


CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("sample_count", {"samples": b"\0" * 402}),
    ("sample_count", {"samples": b"\0" * 401}),
    ("no_samples", {"samples": b""}),
    ("duration", {"samples": b"\0" * 4 * 3001, "fs_mhz": 50_000}),
    ("unknown_lead", {"leads": ["_" * 4000 + "x", "II"]}),
    ("session_id", {"session_id": "心" * 43}),
    ("gain_range", {"gain": [math.nan]}),
    ("gain_range", {"gain": [0.0]}),
    ("gain_range", {"gain": [1e12]}),
    ("layout_shape", {"gain": [1.0, 1.0, 1.0]}),
    ("layout_shape", {"gain": []}),
    ("baseline_range", {"baseline": [math.inf]}),
    ("unknown_lead", {"leads": ["I", "X9"]}),
    ("unknown_lead", {"leads": ["I", "-aVR"]}),
    ("doubled_lead", {"leads": ["II", "MLII"]}),
    ("no_lead", {"leads": []}),
    ("fs_range", {"fs_mhz": 49_999}),
    ("fs_range", {"fs_mhz": 2_000_001}),
    ("index_range", {"first_sample": -1}),
    ("index_range", {"first_sample": 2**53}),
    ("start_range", {"session_start_ns": -1}),
    ("session_id", {"session_id": "x" * 200}),
    ("schema", {"order": 7}),
    ("unknown_unit", {"unit": 9}),
    ("layout_shape", {"leads": ["I"] * 2000}),
    ("stream_id", {"stream_id": ""}),
]
BYTES: list[tuple[str, bytes | None, bytes | None]] = [
    ("empty", b"s", None),
    ("empty", b"s", b""),
    ("oversize", b"s", b"\0" * 2_000_000),
    ("schema", b"s", b"\xff\xff\xff\xff not protobuf"),
    ("schema", b"s", pb.Chunk(**fields()).SerializeToString()[:-30]),
    ("key_mismatch", b"t", pb.Chunk(**fields()).SerializeToString()),
    ("key_mismatch", None, pb.Chunk(**fields()).SerializeToString()),
    ("stream_id", b"x" * 10_000, pb.Chunk(**fields(stream_id="x" * 10_000)).SerializeToString()),
]


def refused() -> list[tuple[str, bytes | None, bytes | None]]:
    """(code, key, value) of all of them."""
    changed = [(code, pb.Chunk(**fields(**changes))) for code, changes in CHANGED]
    return [(code, chunk.stream_id.encode(), chunk.SerializeToString()) for code, chunk in changed] + BYTES
