"""What is not used of the records that a data set keeps: channels that are no lead, leads with gaps or flat ones, codes without
a label. Counted by name, not listed by record: the respiration of a folder is one entry, however many records have it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from encoders.preprocess import Calibrated
from encoders.recordings import Recording
from training.sources.annotated import Annotated

__all__ = ["CHANNEL", "FLAT", "GAPS", "Unused", "unused_parts"]

CHANNEL, GAPS, FLAT = "channel", "lead with gaps", "flat lead"
FIRST = 5  # records named


def unused_parts(recording: Recording, calibrated: Calibrated) -> tuple[tuple[str, str], ...]:
    """(kind, name) of each channel that was left out and each recorded lead that is not usable."""
    leads = zip(recording.layout.leads, calibrated.usable, calibrated.flat, strict=True)
    lost = [(FLAT if flat else GAPS, lead) for lead, usable, flat in leads if not usable]
    return (*((CHANNEL, name) for name in dict.fromkeys(recording.skipped)), *lost)


class Unused:
    """Counts over the records of a data set, for its manifest."""

    def __init__(self) -> None:
        self._parts: Counter[tuple[str, str, str]] = Counter()  # (source, kind, name)
        self._first: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._codes: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, record: Annotated, parts: tuple[tuple[str, str], ...]) -> None:
        """parts: of `unused_parts`."""
        for kind, name in parts:
            key = (record.source, kind, name)
            self._parts[key] += 1
            if len(self._first[key]) < FIRST:
                self._first[key].append(record.record)
        if record.unmapped:
            self._codes[record.source].update(record.unmapped)

    @property
    def incomplete(self) -> list[dict[str, Any]]:
        """Channels and leads, the most frequent first: source, kind, name, records, and the first of them."""
        return [
            {"source": key[0], "kind": key[1], "name": key[2], "records": n, "first": self._first[key]}
            for key, n in self._parts.most_common()
        ]

    @property
    def unmapped(self) -> dict[str, dict[str, int]]:
        """By source: scheme:code -> records."""
        return {source: dict(codes.most_common()) for source, codes in sorted(self._codes.items())}
