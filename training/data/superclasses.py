"""PTB-XL's five superclasses as further columns of the loss: S:NORM, S:MI, S:STTC, S:CD, S:HYP. They never reach a bank.

A superclass is true where any member is known to be true. It is false where the record's source annotates at least half of the
members and every one of those is known to be false: a source that annotates three of eleven conduction disorders cannot say
that there is none. Else it is unknown. Members are all statements of labels.csv with that superclass, also those outside the
bank. What the leads drawn do not allow to assess is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.targets import Bools, assessable_from, declares, label_targets
from training.vocabulary import Statement, read_vocabulary

__all__ = ["NAMES", "Superclasses", "mean_of_members"]

NAMES = ("NORM", "MI", "STTC", "CD", "HYP")
LEAST_DECLARED = 0.5  # share of the members that a source must annotate to deny the superclass


@dataclass(frozen=True)
class Superclasses:
    """members: V statements. belongs: bool (S, V). y, known, declared: bool (N, V) of the members."""

    members: tuple[Statement, ...]
    belongs: Bools
    y: Bools
    known: Bools
    declared: Bools

    @classmethod
    def of(cls, index: Sequence[Mapping[str, Any]], declared: Mapping[str, Sequence[str]]) -> Superclasses:
        """index: N rows of a data set; declared: label ids by source."""
        members = tuple(s for s in read_vocabulary() if s.superclass in NAMES)
        belongs = np.array([[s.superclass == name for s in members] for name in NAMES])
        return cls(members, belongs, *label_targets(index, declared, members), declares(index, declared, members))

    def targets(self, rows: NDArray[np.int64], masks: NDArray[np.int64]) -> tuple[Bools, Bools]:
        """rows: (B,) positions, masks: (B,) lead bits -> y, known: bool (B, S)."""
        known = self.known[rows] & assessable_from(masks, self.members)  # (B, V)
        true, false, declared = self.y[rows] & known, ~self.y[rows] & known, self.declared[rows]
        y = _any(true, self.belongs)
        enough = declared.astype(int) @ self.belongs.T >= LEAST_DECLARED * self.belongs.sum(axis=1)  # (B, S)
        denied = enough & ~_any(declared & ~false, self.belongs)
        return y, y | denied


def _any(of: Bools, belongs: Bools) -> Bools:
    """of: bool (B, V) -> bool (B, S), whether it holds for any member."""
    return np.asarray((of.astype(int) @ belongs.T.astype(int)) > 0)


def mean_of_members(labels: Sequence[Statement]) -> NDArray[np.float32]:
    """(S, L) weights that average a bank's rows over each superclass; a zero row where the bank holds no member."""
    weight = np.array([[s.superclass == name for s in labels] for name in NAMES], dtype=np.float32)
    return np.asarray(weight / np.maximum(weight.sum(axis=1, keepdims=True), 1), dtype=np.float32)
