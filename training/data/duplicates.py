"""Whether a signal was seen before, also as a copy with another gain or rounding, whose bits differ everywhere.

A copy has its largest sample at the same place; of the few records that share such a place with it, one correlates. Each record
costs about 500 bytes. Copies that were filtered, shifted or cut otherwise are not found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.signal import LEADS, WINDOW

__all__ = ["Seen"]

BLOCK = 40  # samples in a value of the outline: 80 ms
PLACES = 2  # leads whose largest sample is looked at: in one of them rounding may prefer another beat
ALIKE = 0.995  # correlation of outlines; copies have 1.000, of 3,000 different recordings no two have more than 0.904


class Seen:
    """Signals so far, by record."""

    def __init__(self) -> None:
        self._records: list[tuple[str, int]] = []  # name, fold
        self._outlines: list[NDArray[np.float16]] = []
        self._places: dict[tuple[int, int], list[int]] = {}  # (lead, sample) -> positions in both lists

    def first(self, x: NDArray[np.float32], mask: int, record: str, fold: int) -> tuple[str, int]:
        """x: (12, 5000) with the leads of `mask` -> (record, fold) that had this signal first, or these, if none had."""
        leads = [c for c in range(len(LEADS)) if mask >> c & 1][:PLACES]
        outline = _outline(x[leads[0]])
        places = [(c, int(np.abs(x[c]).argmax())) for c in leads]
        for i in sorted({i for place in places for i in self._places.get(place, ())}):
            if float(outline @ self._outlines[i].astype(np.float32)) > ALIKE:
                return self._records[i]
        for place in places:
            self._places.setdefault(place, []).append(len(self._records))
        self._records.append((record, fold))
        self._outlines.append(outline.astype(np.float16))
        return record, fold


def _outline(lead: NDArray[np.float32]) -> NDArray[Any]:
    """(5000,) -> (125,) block means as a unit vector."""
    means = lead.reshape(WINDOW // BLOCK, BLOCK).mean(axis=1)
    return np.asarray(means / max(1e-9, float(np.linalg.norm(means))))
