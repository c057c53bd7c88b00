"""What a finding says and what its chunks say, side by side. Pure: knows no Kafka and no clock."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.preprocess import VERSION, calibrate, derive
from encoders.signal import LEADS, Layout, lead_bits
from stream_worker.records import Closed, RunKey, Window
from stream_worker.score import window_digest
from stream_worker.seam import Record
from stream_worker.wire import parse_finding

__all__ = ["Due", "Told", "differences", "due_of", "pack", "place_and_id", "settle", "told_by", "unpack"]

CLOSED = ("", "last", "idle", "evicted", "defect")
REASONS = ("", "missing_head", "gap", "sparse", "flat", "amplitude")  # what the samples themselves decide
OTHER_REASON = 255  # the worker's own: the engine failed, the load was shed
_TOLD = struct.Struct("<q16s32sHiqBqqqiB?")
_MET = struct.calcsize("<q16s")


class Told(NamedTuple):
    """What a finding says. closed, reason: places in CLOSED and REASONS. known: preprocessed as this program does it."""

    position: int
    id: bytes
    digest: bytes
    mask: int
    samples: int
    next: int
    closed: int
    first: int
    last: int
    last_ms: int
    partition: int
    reason: int
    known: bool


class Due(NamedTuple):
    """A window that must exist, as cut here. trigger: the record that closed it; None: silence at the end of the log may.

    digests: by lead mask. lowest: the earliest `input.first` that a worker may name.
    """

    trigger: int | None
    digests: dict[int, bytes]
    mask: int
    samples: int
    next: int
    closed: int
    lowest: int
    first: int
    last: int
    last_ms: int
    reason: int


def pack(told: Told) -> bytes:
    """110 bytes instead of 600."""
    return _TOLD.pack(*told)


def settle(raw: bytes) -> bytes:
    """What is kept of a finding once it is matched: its place and its id."""
    return raw[:_MET]


def unpack(raw: bytes) -> Told | None:
    """None when it was settled."""
    return Told._make(_TOLD.unpack(raw)) if len(raw) > _MET else None


def place_and_id(raw: bytes) -> tuple[int, bytes]:
    """Of a finding, settled or not."""
    place, mark = struct.unpack_from("<q16s", raw)
    return int(place), bytes(mark)


def told_by(record: Record) -> tuple[RunKey, int, Told]:
    """(run, slot, what it says) of a finding. A slot is twice the first sample, and one more for a closing."""
    body = parse_finding(record.value or b"")
    layout, source, cut = body["layout"], body["input"], body["kind"] != "closed"
    spelled = (layout["fs_mhz"], *(tuple(layout[name]) for name in ("leads", "gain", "baseline")), layout["unit"])
    key = (str(body["stream"]), str(body["session"]), int(body["session_start_ns"]), _layout_digest(*spelled))
    reason = str(body["reason"]) if body["kind"] == "unscorable" else ""
    told = Told(
        position=record.offset,
        id=bytes.fromhex(body["id"]),
        digest=bytes.fromhex(body["window_digest"]) if cut else bytes(32),
        mask=body["lead_mask"] if cut else 0,
        samples=body["samples"] if cut else 0,
        next=body["next"],
        closed=CLOSED.index(body["closed"] or ""),
        first=source["first"],
        last=source["last"],
        last_ms=source["last_timestamp"],
        partition=source["partition"],
        reason=REASONS.index(reason) if reason in REASONS else OTHER_REASON,
        known=body["preprocess"] == VERSION,
    )
    return key, 2 * int(body["first_sample"]) + (not cut), told


@lru_cache(maxsize=4096)
def _layout_digest(
    fs_mhz: int, leads: tuple[str, ...], gain: tuple[float, ...], baseline: tuple[float, ...], unit: str
) -> bytes:
    return Layout(int(fs_mhz), leads, gain, baseline, unit).digest


def due_of(event: Window | Closed, trigger: int | None, lowest: int, told: Told | None) -> Due:
    """told: the finding, where it is at hand; else the digests are kept for the masks that one may come with."""
    source = event.input
    where = (lowest, source.first, source.last, source.last_timestamp_ms)
    closed = CLOSED.index(event.closed)
    if isinstance(event, Closed):
        return Due(trigger, {0: bytes(32)}, 0, 0, event.first, closed, *where, 0)
    mask, reason = _mask(event.samples, event.layout)
    masks = {mask, 0} if told is None else {told.mask}
    digests = {m: bytes.fromhex(window_digest(event.samples, m)) for m in masks}
    return Due(trigger, digests, mask, event.samples.shape[1], event.next, closed, *where, REASONS.index(reason))


def _mask(samples: NDArray[np.int16], layout: Layout) -> tuple[int, str]:
    """(12-bit mask of the leads that can be used, derived ones included; why none can) of a window (C, T)."""
    calibrated = calibrate(samples, layout)
    mask = lead_bits([lead for lead, usable in zip(layout.leads, calibrated.usable, strict=True) if usable])
    if mask and layout.unit == "mV":
        mask |= derive(np.empty((len(LEADS), 0), dtype=np.float32), mask)  # the bits alone: which leads follow from which
    return mask, calibrated.reason or ""


def differences(due: Due, told: Told, partition: int) -> list[str]:
    """Names of the finding's fields that are not what the chunks say."""
    own = told.reason == OTHER_REASON
    wrong = {
        "window_digest": due.digests.get(told.mask) != told.digest,
        "samples": told.samples != due.samples,
        "lead_mask": told.known and told.mask != due.mask and not (own and told.mask == 0),
        "reason": told.known and told.reason != due.reason and not own,
        "next": told.next != due.next,
        "closed": told.closed != due.closed,
        "input.partition": told.partition != partition,
        "input.first": not due.lowest <= told.first <= due.first,
        "input.last": told.last != due.last,
        "input.last_timestamp": told.last_ms != due.last_ms,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]
