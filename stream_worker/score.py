"""Windows -> findings: preprocess, one encoder call a batch, similarity to the label bank, calibrated probabilities.

Pure but for the encoder it is given: knows no Kafka, no Redis and no clock. A window that cannot be scored says why; a label
that cannot be assessed from these leads, from this amplitude, or for want of evidence has no probability.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from encoders import preprocess as chain
from encoders.bank import Label, LabelBank, rests_on_amplitude
from encoders.base import DeviceLost, Encoder, Floats, WholeEncoder
from encoders.graph.whole import can_be_whole
from encoders.quality import Looked, Quality, assess, look
from encoders.signal import LEADS, WINDOW, Layout, lead_names
from stream_worker.records import Closed, Finding, Window, identity

__all__ = ["Options", "Ready", "Scorer", "assessability"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Whole:
    """A window that the encoder's graph prepares itself. mix: see `fused`. mask, derived: 12-bit lead masks."""

    looked: Looked
    mix: Floats
    mask: int
    derived: int


Done = tuple[chain.Prepared, Quality]
Ready = Done | Whole  # a window after the first half of the work


@dataclass(frozen=True)
class Options:
    """top: labels a finding lists besides those above their threshold. all_scores: add every label's probability. stepwise:
    never give a window to a graph that prepares it itself; to compare.
    """

    top: int = 5
    all_scores: bool = False
    stepwise: bool = False


def assessability(labels: Sequence[Label], mask: int, amplitude_lost: bool) -> list[str]:
    """For each label "" or why it cannot be assessed: evidence (too few training cases), leads, amplitude."""
    out = []
    for label in labels:
        if label.tier == "unsupported":
            out.append("evidence")
        elif not label.assessable(mask):
            out.append("leads")
        elif amplitude_lost and rests_on_amplitude(label.codes):
            out.append("amplitude")
        else:
            out.append("")
    return out


_NOTHING = np.zeros((len(LEADS), WINDOW), dtype=np.float32)


def _amplitude(layout: Layout) -> Literal["mV", "lost"]:
    return "mV" if layout.unit == "mV" else "lost"


def _unprepared(window: Window, reason: str) -> Done:
    return chain.Prepared(_NOTHING, 0, 0, 0, reason), Quality({}, 0, None, False, _amplitude(window.layout))


class Scorer:
    """Scores batches against one bank. `with_bank` gives the same scorer for another; both raise BankError on a mismatch."""

    def __init__(self, encoder: Encoder, bank: LabelBank, options: Options | None = None) -> None:
        bank.check(encoder.digest, encoder.dim)
        self.encoder, self.bank, self.options = encoder, bank, options or Options()
        self._whole = encoder if isinstance(encoder, WholeEncoder) and not self.options.stepwise else None
        self._assess: dict[tuple[int, bool], tuple[NDArray[np.bool_], dict[str, list[str]]]] = {}

    def with_bank(self, bank: LabelBank) -> Scorer:
        """A scorer with the same encoder and options."""
        return type(self)(self.encoder, bank, self.options)

    def prepare(self, window: Window) -> Ready:
        """The first half of the work for one window; threads may run it. A defect of ours costs one window, not the stream.

        Raises DeviceLost.
        """
        try:
            layout = window.layout
            calibrated = chain.calibrate(window.samples, layout)
            if self._whole is not None and can_be_whole(calibrated, layout) and self._whole.serves(layout.fs_mhz):
                mixed = chain.mixing(layout, tuple(calibrated.usable.tolist()))
                return Whole(look(calibrated, layout), *mixed)
            prepared = chain.prepare(calibrated, layout)
            return prepared, assess(calibrated, prepared, layout)
        except DeviceLost:  # the first window of a rate opens its engine
            raise
        except Exception:
            log.exception(
                "a window could not be prepared", stream=window.key[0], first=window.first, fs_mhz=window.layout.fs_mhz
            )
            return _unprepared(window, "engine")

    def unscored(self, event: Window | Closed, reason: str) -> Finding:
        """The finding of a window that is not scored, for a reason of the worker's own: engine, shed."""
        return self._finding(event, _unprepared(event, reason) if isinstance(event, Window) else None, None)

    def __call__(self, events: Sequence[Window | Closed]) -> list[Finding]:
        """One finding an event, in order."""
        return self.finish(events, [self.prepare(e) if isinstance(e, Window) else None for e in events])

    def finish(self, events: Sequence[Window | Closed], ready: Sequence[Ready | None]) -> list[Finding]:
        """The second half: one encoder call for the windows of a rate and number of leads, and one for those prepared here."""
        done: dict[int, Done] = {i: one for i, one in enumerate(ready) if isinstance(one, tuple)}
        scorable = [i for i, (prepared, _) in done.items() if prepared.reason is None]
        rows = dict(zip(scorable, self.rows([done[i][0] for i in scorable]), strict=True)) if scorable else {}
        groups: dict[tuple[int, int], list[tuple[int, Window, Whole]]] = {}
        for i, (event, one) in enumerate(zip(events, ready, strict=True)):
            if isinstance(one, Whole) and isinstance(event, Window):
                groups.setdefault((event.layout.fs_mhz, len(event.layout.leads)), []).append((i, event, one))
        for group in groups.values():
            for (i, _, whole), (quality, row) in zip(group, self._score_whole(group), strict=True):
                done[i] = chain.Prepared(_NOTHING, whole.mask, whole.derived, WINDOW, None), quality
                rows[i] = row
        return [self._finding(event, done.get(i), rows.get(i)) for i, event in enumerate(events)]

    def _score_whole(self, group: Sequence[tuple[int, Window, Whole]]) -> Iterator[tuple[Quality, NDArray[np.float32] | None]]:
        """Windows of one rate and number of leads, by the encoder's own graph -> their quality and (L,) probabilities."""
        assert self._whole is not None
        counts, mix = np.stack([window.samples for _, window, _ in group]), np.stack([whole.mix for _, _, whole in group])
        least = np.array([chain.FLOOR[window.layout.unit] for _, window, _ in group], dtype=np.float32)[:, None, None]
        scored = self._whole.score(group[0][1].layout.fs_mhz, counts, mix, least, *self.bank.weights)
        probabilities = self.bank.calibrated(scored.logits)
        for (_, _, whole), band, e, row in zip(group, scored.band, scored.embedding, probabilities, strict=True):
            usable = whole.looked.usable
            yield whole.looked.with_band(band if usable.all() else band[usable]), row if np.isfinite(e).all() else None

    def rows(self, windows: Sequence[chain.Prepared]) -> list[NDArray[np.float32] | None]:
        """(L,) probabilities of each window, NaN without evidence; None where the encoder gave no finite embedding."""
        embeddings = self.encoder.encode(chain.stack(windows))
        probabilities = self.bank.probabilities(embeddings)
        return [row if np.isfinite(e).all() else None for e, row in zip(embeddings, probabilities, strict=True)]

    def _finding(self, event: Window | Closed, ready: Done | None, row: NDArray[np.float32] | None) -> Finding:
        if isinstance(event, Closed):
            body = self._head(event, "closed", event.first)
        else:
            assert ready is not None
            prepared, quality = ready
            reason = prepared.reason or (None if row is not None else "engine")
            body = self._head(event, "unscorable" if reason else "scored", event.next)
            body |= self._signal(event, prepared, quality)
            if row is None:
                body["reason"] = reason
            else:
                body |= self._labels(prepared.mask, event.layout.unit == "NU", row)
        return Finding(event.key, event.input.partition, int(body["next"]), body)

    def _head(self, event: Window | Closed, kind: str, frontier: int) -> dict[str, Any]:
        stream, session, start_ns, _ = event.key
        layout, source = event.layout, event.input
        return {
            "v": 1,
            "id": identity(event.key, kind, event.first, self.encoder.digest, self.bank.digest),
            "kind": kind,
            "time": rfc3339(start_ns, event.first, layout.fs_mhz),
            "stream": stream,
            "session": session,
            "session_start_ns": start_ns,
            "first_sample": event.first,
            "layout": {
                "fs_mhz": layout.fs_mhz,
                "leads": list(layout.leads),
                "gain": list(layout.gain),
                "baseline": list(layout.baseline),
                "unit": layout.unit,
            },
            "next": frontier,
            "closed": event.closed or None,
            "input": {
                "partition": source.partition,
                "first": source.first,
                "last": source.last,
                "last_timestamp": source.last_timestamp_ms,
            },
            "model": self.encoder.digest,
            "bank": self.bank.digest,
            "preprocess": chain.VERSION,
            "backend": self.encoder.backend,
        }

    def _signal(self, window: Window, prepared: chain.Prepared, quality: Quality) -> dict[str, Any]:
        n = window.samples.shape[1]
        return {
            "samples": n,
            "tail": n < window.layout.window,
            "window_digest": window_digest(window.samples, prepared.mask),
            "lead_mask": prepared.mask,
            "leads": list(lead_names(prepared.mask)),
            "derived": list(lead_names(prepared.derived)),
            "amplitude": quality.amplitude,
            "quality": {
                "good": list(lead_names(quality.good)),
                "issues": {lead: list(words) for lead, words in quality.leads.items()},
                "heart_rate": None if quality.heart_rate is None else round(quality.heart_rate, 1),
                "pacing": quality.pacing,
            },
        }

    def _labels(self, mask: int, lost: bool, row: NDArray[np.float32]) -> dict[str, Any]:
        """row: (L,) probabilities, NaN without evidence."""
        usable, why_not = self._assessable(mask, lost)
        p = np.where(usable, row, -1.0)
        order = np.argsort(-p, kind="stable")
        labels: list[dict[str, Any]] = []
        bank = self.bank.labels
        for i in order:
            label, probability = bank[i], float(p[i])
            positive = label.threshold is not None and probability >= label.threshold
            if probability < 0 or (len(labels) >= self.options.top and not positive):
                continue
            labels.append(
                {
                    "id": label.id,
                    "name_ja": label.name_ja,
                    "name_en": label.name_en,
                    "codes": {scheme: list(codes) for scheme, codes in label.codes.items()},
                    "probability": round(probability, 6),
                    "threshold": label.threshold,
                    "positive": positive,
                    "urgency": label.urgency,
                    "tier": label.tier,
                }
            )
        out: dict[str, Any] = {"labels": labels, "not_assessable": why_not}
        if self.options.all_scores:
            out["scores"] = {
                label.id: round(float(x), 6) if ok and math.isfinite(x) else None
                for label, x, ok in zip(bank, row, usable, strict=True)
            }
        return out

    def _assessable(self, mask: int, lost: bool) -> tuple[NDArray[np.bool_], dict[str, list[str]]]:
        found = self._assess.get((mask, lost))
        if found is None:
            reasons = assessability(self.bank.labels, mask, lost)
            names = {w: [x.id for x, r in zip(self.bank.labels, reasons, strict=True) if r == w] for w in set(reasons) - {""}}
            found = np.array([r == "" for r in reasons]), dict(sorted(names.items()))
            self._assess[mask, lost] = found
        return found


def window_digest(samples: NDArray[np.int16], mask: int) -> str:
    """sha256, hex, of the closed samples (C, n) as little-endian int16 and the 12-bit lead mask."""
    h = hashlib.sha256(np.ascontiguousarray(samples, dtype="<i2").data)
    h.update(struct.pack("<H", mask))
    return h.hexdigest()


def rfc3339(start_ns: int, sample: int, fs_mhz: int) -> str:
    """Device time of a sample, to the microsecond. The last moment of 9999 stands for anything later."""
    us = start_ns // 1000 + sample * 1_000_000_000 // fs_mhz
    try:
        moment = datetime.fromtimestamp(us // 1_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return "9999-12-31T23:59:59.999999Z"
    return moment.replace(microsecond=us % 1_000_000, tzinfo=None).isoformat(timespec="microseconds") + "Z"
