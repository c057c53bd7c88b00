"""Batches over one accelerator: cut to what fits, padded to powers of two, on two lanes by turns. Knows no library and no GPU.

A lane is one stream with its own buffers. While one computes, the other's windows are copied, so a batch larger than a piece
hides its transfers. Batches are padded to powers of two so that few shapes occur: each has its own recorded graph.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.base import DeviceLost
from encoders.engine.cuda_calls import OutOfMemory

__all__ = ["Arrays", "Lane", "Lanes", "bucket_of"]

Arrays = dict[str, NDArray[Any]]
PIECE = 1024  # windows a lane takes at once: 2048 are two pieces, one copied while the other is computed
log = logging.getLogger(__name__)


class Lane(Protocol):
    """One queue of the accelerator."""

    def submit(self, feeds: Mapping[str, NDArray[Any]], rows: int, bucket: int) -> None:
        """Begin: `rows` rows, computed as `bucket` rows. Inputs are free again on return. Raises OutOfMemory, DeviceLost."""
        ...

    def collect(self, rows: int) -> Arrays:
        """Wait -> outputs (rows, ...), copies. Raises DeviceLost."""
        ...

    def release(self) -> None:
        """Give all memory back; the next submit takes what it needs."""
        ...


def bucket_of(rows: int) -> int:
    """The power of two that is not below."""
    return 1 << (rows - 1).bit_length()


class Lanes:
    """`run` computes any number of rows. constants: inputs that have no row a window (label embeddings): handed on whole."""

    def __init__(self, lanes: Sequence[Lane], piece: int = PIECE, constants: frozenset[str] = frozenset()) -> None:
        self.piece = piece
        self._lanes, self._constants = list(lanes), constants
        self._halved = False
        self._lost: DeviceLost | None = None
        self._lock = Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """feeds: (B, ...) each -> outputs (B, ...). Where memory ends the piece is halved, once.

        Raises DeviceLost, and from then on always: a caller that tries again must not be served by what is left.
        """
        rows = {len(value) for name, value in feeds.items() if name not in self._constants}
        if len(rows) != 1:
            raise ValueError(f"inputs with one number of rows expected, found {sorted(rows)}")
        with self._lock:
            if self._lost is not None:
                raise self._lost
            try:
                return self._within_memory(feeds, *rows)
            except DeviceLost as error:
                self._lost = error
                raise

    def _within_memory(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> Arrays:
        try:
            return self._run(feeds, rows)
        except OutOfMemory as error:
            self._halve(bucket_of(min(self.piece, rows)), error)
        try:
            return self._run(feeds, rows)
        except OutOfMemory as error:
            raise DeviceLost(f"no memory on the accelerator, not for {self.piece} windows at once either ({error})") from None

    def _halve(self, tried: int, error: OutOfMemory) -> None:
        if self._halved or tried == 1:
            raise DeviceLost(f"no memory on the accelerator for {tried} windows at once ({error})") from None
        for lane in self._lanes:
            lane.release()
        self._halved, self.piece = True, tried // 2
        log.warning("no memory on the accelerator for %d windows at once: %d from now on (%s)", tried, self.piece, error)

    def _run(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> Arrays:
        out: list[Arrays] = []
        busy: deque[tuple[Lane, int]] = deque()
        for turn, first in enumerate(range(0, rows, self.piece)):
            lane, n = self._lanes[turn % len(self._lanes)], min(self.piece, rows - first)
            if len(busy) == len(self._lanes):
                out.append(_collect(busy))
            part = {k: v if k in self._constants else v[first : first + n] for k, v in feeds.items()}
            try:
                lane.submit(part, n, bucket_of(n))
            except Exception:
                while busy:  # what is under way is finished before its memory goes or is written again
                    with suppress(DeviceLost):
                        _collect(busy)
                raise
            busy.append((lane, n))
        while busy:
            out.append(_collect(busy))
        return {name: np.concatenate([one[name] for one in out]) for name in out[0]}

    def close(self) -> None:
        """Release all lanes."""
        for lane in self._lanes:
            lane.release()


def _collect(busy: deque[tuple[Lane, int]]) -> Arrays:
    lane, rows = busy.popleft()
    return lane.collect(rows)
