"""A linear operator that a reference function computes, as the few matrices that say all of it.

What is computed in the middle of a signal is the same everywhere; near its ends it is not. Unit impulses are pushed through the
function itself, so nothing of it is written a second time. Knows no ECG and no graph format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["LocalError", "LocalOperator", "responses"]

Floats = NDArray[np.float32]
Function = Callable[[Floats], Floats]  # (R, T) -> (R, N), row by row
CHUNK = 128  # impulses at a time
EQUAL = 2e-5  # of the largest output: nearer than this is rounding


class LocalError(ValueError):
    """The function has too long a memory, or too odd a ratio of rates, to be written in blocks."""


@dataclass(frozen=True)
class LocalOperator:
    """(R, T) -> (R, N). The signal is cut into blocks of `stride` samples, each of which is seen by two blocks of outputs:

        P = blocks @ middle             (R, blocks, 2 * outputs)
        out[first + m * outputs ...] = P[m, outputs:] + P[m + 1, :outputs]

    Outputs near an end see no sample further inside than they would in the middle. Those before `begin` come from the first
    samples by `head` (h, begin), those from `end` on from the last by `tail` (t, N - end).
    """

    n_in: int
    n_out: int
    stride: int
    blocks: int
    first: int
    begin: int
    end: int
    middle: Floats
    head: Floats
    tail: Floats

    @property
    def outputs(self) -> int:
        """Of a block."""
        return int(self.middle.shape[1]) // 2

    @classmethod
    def of(cls, function: Function, n_in: int, step: int, outputs: int, again: int = 0) -> LocalOperator:
        """function: takes (R, n_in). step, outputs: so many samples give so many outputs. Raises LocalError.

        again: so many outputs at the very end are no continuation but lie between the last ones before them.
        """
        seen = np.flatnonzero(responses(function, n_in, n_in // 2, n_in // 2 + 1)[0])
        stride = _stride(n_in, step, (int(seen[-1] - seen[0]) + 2) * step // outputs)
        per, blocks = stride // step * outputs, n_in // stride
        if blocks < 3:
            raise LocalError(f"{n_in} samples hold fewer than three blocks of {stride}")
        m = blocks // 2
        inner = responses(function, n_in, m * stride, (m + 1) * stride)  # (stride, N)
        seen = np.flatnonzero(inner.any(axis=0))
        first = int(seen[-1]) + 1 - per * (m + 1)
        if seen[0] < first + per * (m - 1):
            raise LocalError(f"{stride} samples are seen by outputs {seen[0]} to {seen[-1]}, more than two blocks of {per}")
        n_out = inner.shape[1]
        middle = np.ascontiguousarray(inner[:, first + per * (m - 1) : first + per * (m + 1)])
        nothing = np.zeros((0, 0), dtype=np.float32)
        alone = cls(
            n_in, n_out, stride, blocks, first, max(first, 0), min(first + per * (blocks - 1), n_out), middle, nothing, nothing
        )
        begin, end = alone._valid(function)
        low, high = _extent(inner)
        sample = np.arange(n_in)
        shift = per * (sample // stride - m)
        head = int(np.flatnonzero(low[sample % stride] + shift < begin).max(initial=-1)) + 1  # samples that its outputs see
        tail = int(np.flatnonzero(high[sample % stride] + shift >= min(end, n_out - 2 * again - 1)).min(initial=n_in))
        return replace(
            alone,
            begin=begin,
            end=end,
            head=np.ascontiguousarray(responses(function, n_in, 0, head)[:, :begin]),
            tail=np.ascontiguousarray(responses(function, n_in, tail, n_in)[:, end:]),
        )

    def _valid(self, function: Function) -> tuple[int, int]:
        """The outputs that the middle gives as the function does."""
        noise = np.random.default_rng(0).standard_normal((4, self.n_in)).astype(np.float32)
        true = function(noise)[:, self.begin : self.end]
        off = np.abs(self._middle(noise) - true).max(axis=0) > EQUAL * np.abs(true).max()
        half = len(off) // 2
        before = int(np.flatnonzero(off[:half]).max(initial=-1)) + 1
        behind = int(np.flatnonzero(off[half:]).min(initial=len(off) - half)) + half
        return self.begin + before, self.begin + behind

    def _middle(self, x: Floats) -> Floats:
        """(R, T) -> (R, end - begin)."""
        p = (x[:, : self.blocks * self.stride].reshape(len(x), self.blocks, self.stride) @ self.middle).reshape(len(x), -1)
        k = self.outputs
        pairs = p[:, k:-k].reshape(len(x), self.blocks - 1, 2, k).sum(axis=2).reshape(len(x), -1)
        return np.asarray(pairs[:, self.begin - self.first : self.end - self.first])

    def __call__(self, x: Floats) -> Floats:
        """(R, T) -> (R, N), by the matrices: what a graph of them computes."""
        h, t = len(self.head), len(self.tail)
        return np.concatenate([x[:, :h] @ self.head, self._middle(x), x[:, self.n_in - t :] @ self.tail], axis=1)


def _extent(inner: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """inner: (R, N) -> first and last output of each row; rows without any: none."""
    low, high = np.full(len(inner), inner.shape[1]), np.full(len(inner), -1)
    rows = np.flatnonzero(inner.any(axis=1))
    low[rows] = [np.flatnonzero(row)[0] for row in inner[rows]]
    high[rows] = [np.flatnonzero(row)[-1] for row in inner[rows]]
    return low, high


def _stride(n_in: int, step: int, least: int) -> int:
    """The shortest multiple of `step` from `least` on, or one a little longer that divides the signal."""
    shortest = -(-least // step) * step
    even = [s for s in range(shortest, min(shortest * 5 // 4, n_in // 3) + 1, step) if n_in % s == 0]
    return even[0] if even else shortest


def responses(function: Function, n_in: int, begin: int, end: int) -> Floats:
    """What unit impulses at samples [begin, end) give, a row each."""
    out = []
    for at in range(begin, end, CHUNK):
        unit = np.zeros((min(CHUNK, end - at), n_in), dtype=np.float32)
        unit[np.arange(len(unit)), at + np.arange(len(unit))] = 1
        out.append(function(unit))
    return np.concatenate(out) if out else function(np.zeros((1, n_in), dtype=np.float32))[:0]
