"""A linear operator that a reference function computes, as the few matrices that say all of it.

What is computed in the middle of a signal is the same everywhere; near its ends it is not. Unit impulses are pushed through the
function itself, so nothing of it is written a second time. Knows no ECG and no graph format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm

import numpy as np
from numpy.typing import NDArray

__all__ = ["LocalError", "LocalOperator", "responses"]

Floats = NDArray[np.float32]
Function = Callable[[Floats], Floats]  # (R, T) -> (R, N), row by row, for any T long enough
CHUNK = 128  # impulses at a time
EQUAL = 2e-5  # of the largest output: nearer than this is rounding
LONGER = 1.2  # times the shortest block may be long if the signal holds a whole number of them


class LocalError(ValueError):
    """The function has too long a memory, or too odd a ratio of rates, to be written in blocks."""


@dataclass(frozen=True)
class LocalOperator:
    """(R, T) -> (R, N). The signal is cut into blocks of `stride` samples; `spans` neighbours give a block of outputs:

        P = blocks @ middle             (R, blocks, spans * outputs)
        out[first + m * outputs ...] = sum over j of P[m + j, (spans - 1 - j) * outputs ...]

    Outputs near an end see no sample further inside than they would in the middle. Those before `begin` come from the first
    samples by `head` (h, begin), those from `end` on from the last by `tail` (t, N - end).
    """

    n_in: int
    n_out: int
    stride: int
    spans: int
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
        return int(self.middle.shape[1]) // self.spans

    @classmethod
    def of(
        cls,
        function: Function,
        n_in: int,
        step: int,
        outputs: int,
        stride: int | None = None,
        multiple: int = 1,
        again: int = 0,
        shortest: int = 0,
    ) -> LocalOperator:
        """step, outputs: so many samples give so many outputs. Raises LocalError.

        stride: of a block; None: a multiple of `multiple` with which two blocks see all. again: so many outputs at the very end
        are no continuation but lie between the last ones before them. shortest: samples of a signal whose ends are computed as
        those of a long one.
        """
        kernel = _Kernel(function, n_in, step, outputs)
        if stride is None:
            stride = kernel.stride(n_in, multiple)
        spans, first = kernel.spans(stride)
        per, blocks = stride // step * outputs, n_in // stride
        if blocks < spans + 1:
            raise LocalError(f"{n_in} samples are no {spans + 1} blocks of {stride}")
        last = first + per * (blocks - spans + 1)
        alone = cls(
            n_in, kernel.n_out, stride, spans, blocks, first, max(first, 0), min(last, kernel.n_out),
            kernel.matrix(stride, spans * per, first - per * (spans - 1)), *[np.zeros((0, 0), dtype=np.float32)] * 2,
        )  # fmt: skip
        begin, end = alone._valid(function)
        low, high = kernel.extent(np.arange(n_in))
        h = int(np.flatnonzero(low < begin).max(initial=-1)) + 1  # samples that the outputs of the head see
        t = n_in - int(np.flatnonzero(high >= min(end, kernel.n_out - 2 * again - 1)).min(initial=n_in))
        short = [min(n_in, -(-max(3 * k, shortest, 3 * stride) // step) * step + n_in % step) for k in (h, t)]
        tail = responses(function, short[1], short[1] - t, short[1])
        return replace(
            alone,
            begin=begin,
            end=end,
            head=np.ascontiguousarray(responses(function, short[0], 0, h)[:, :begin]),
            tail=np.ascontiguousarray(tail[:, tail.shape[1] - (kernel.n_out - end) :]),
        )

    def _valid(self, function: Function) -> tuple[int, int]:
        """The outputs that the middle gives as the function does."""
        noise = np.random.default_rng(0).standard_normal((4, self.n_in)).astype(np.float32)
        true = function(noise)[:, self.begin : self.end]
        off = np.abs(self._middle(noise) - true).max(axis=0) > EQUAL * np.abs(true).max()
        half = len(off) // 2
        before = int(np.flatnonzero(off[:half]).max(initial=-1)) + 1
        behind = int(np.flatnonzero(off[half:]).min(initial=len(off) - half)) + half
        if behind - before < half:
            raise LocalError("what the middle of a signal gives is not the same everywhere")
        return self.begin + before, self.begin + behind

    def _middle(self, x: Floats) -> Floats:
        """(R, T) -> (R, end - begin)."""
        p = x[:, : self.blocks * self.stride].reshape(len(x), self.blocks, self.stride) @ self.middle
        k, n = self.outputs, self.blocks - self.spans + 1
        parts = [p[:, j : j + n, (self.spans - 1 - j) * k :][:, :, :k] for j in range(self.spans)]
        return np.asarray(sum(parts)).reshape(len(x), n * k)[:, self.begin - self.first : self.end - self.first]

    def __call__(self, x: Floats) -> Floats:
        """(R, T) -> (R, N), by the matrices: what a graph of them computes."""
        h, t = len(self.head), len(self.tail)
        return np.concatenate([x[:, :h] @ self.head, self._middle(x), x[:, self.n_in - t :] @ self.tail], axis=1)


class _Kernel:
    """What one impulse gives in the middle of a signal, for each place in a step."""

    def __init__(self, function: Function, n_in: int, step: int, outputs: int) -> None:
        self.step, self.outputs = step, outputs
        at = n_in // 2 // step * step
        rows = responses(function, n_in, at, min(at + step, n_in))
        self.n_out = rows.shape[1]
        if len(rows) < step or not rows.any(axis=1).all():
            raise LocalError(f"{n_in} samples hold no whole step of {step}")
        seen = [np.flatnonzero(row) for row in rows]
        self._low, self._high = (np.array([s[i] for s in seen]) - at // step * outputs for i in (0, -1))
        self._rows = [row[s[0] : s[-1] + 1] for row, s in zip(rows, seen, strict=True)]

    def extent(self, sample: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last output that sees a sample."""
        shift = sample // self.step * self.outputs
        return self._low[sample % self.step] + shift, self._high[sample % self.step] + shift

    def spans(self, stride: int) -> tuple[int, int]:
        """-> blocks that a block of outputs sees, and the first output of the middle."""
        low, high = self.extent(np.arange(stride))
        per = stride // self.step * self.outputs
        return -(-int(high.max() + 1 - low.min()) // per), int(high.max()) + 1 - per

    def stride(self, n_in: int, multiple: int) -> int:
        """The shortest for two blocks, or one a little longer that divides the signal. Raises LocalError."""
        step = lcm(self.step, multiple)
        fit = [stride for stride in range(max(step, self.step), n_in // 3 + 1, step) if self.spans(stride)[0] <= 2]
        if not fit:
            raise LocalError(f"{n_in} samples are no three blocks of any length")
        return next((stride for stride in fit if n_in % stride == 0 and stride <= LONGER * fit[0]), fit[0])

    def matrix(self, stride: int, columns: int, first: int) -> Floats:
        """(stride, columns): what the samples of block 0 give to the outputs from `first` on."""
        out = np.zeros((stride, columns), dtype=np.float32)
        low, _ = self.extent(np.arange(stride))
        for sample, begin in enumerate(low - first):
            row = self._rows[sample % self.step]
            out[sample, begin : begin + len(row)] = row
        return out


def responses(function: Function, n_in: int, begin: int, end: int) -> Floats:
    """What unit impulses at samples [begin, end) give, a row each."""
    out = []
    for at in range(begin, end, CHUNK):
        unit = np.zeros((min(CHUNK, end - at), n_in), dtype=np.float32)
        unit[np.arange(len(unit)), at + np.arange(len(unit))] = 1
        out.append(function(unit))
    return np.concatenate(out) if out else function(np.zeros((1, n_in), dtype=np.float32))[:0]
