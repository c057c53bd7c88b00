"""Findings made by hand, as the schema has them, for what reads findings."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

LEADS = ["I", "II"]


def label(name: str, probability: float | None, urgency: str = "urgent", threshold: float | None = 0.5) -> dict[str, Any]:
    return {
        "id": name,
        "name_ja": f"{name}の所見",
        "name_en": f"finding of {name}",
        "codes": {},
        "probability": probability,
        "threshold": threshold,
        "positive": probability is not None and threshold is not None and probability >= threshold,
        "urgency": urgency,
    }


def finding(
    window: int,
    labels: list[dict[str, Any]] | None = None,
    *,
    kind: str = "scored",
    stream: str = "bed-7",
    session: str = "1",
    closed: str | None = None,
    unknown: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The finding of window number `window`: 10 s at 500 Hz, its log time that of the device."""
    first = window * 5000
    moment = datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=10 * window)
    digest = hashlib.sha256(f"{stream}/{session}/{kind}/{window}".encode()).hexdigest()
    made: dict[str, Any] = {
        "v": 1,
        "id": digest[:32],
        "kind": kind,
        "time": moment.isoformat().replace("+00:00", "Z"),
        "stream": stream,
        "session": session,
        "session_start_ns": 1_714_521_600_000_000_000,
        "first_sample": first,
        "layout": {"fs_mhz": 500_000, "leads": LEADS, "gain": [200.0], "baseline": [0.0], "unit": "mV"},
        "next": first + (0 if kind == "closed" else 5000),
        "closed": closed,
        "input": {"partition": 0, "first": window, "last": window, "last_timestamp": int(moment.timestamp() * 1000)},
        "model": "0" * 64,
        "bank": "1" * 64,
        "preprocess": "1",
        "backend": "none",
    }
    if kind != "closed":
        made |= {"window_digest": digest, "samples": 5000, "tail": False, "lead_mask": 3}
    if kind == "unscorable":
        made |= {"reason": "gap"}
    if kind == "scored":
        made |= {
            "labels": labels or [],
            "not_assessable": {"leads": list(unknown)},
            "leads": LEADS,
            "derived": [],
            "amplitude": "mV",
            "quality": {"good": LEADS, "issues": {}, "heart_rate": 70.0, "pacing": False},
        }
    return made
