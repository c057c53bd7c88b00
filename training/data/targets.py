"""What a prepared record says of each label: true, false or unknown. Arrays; N record, L label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.bank import assessable
from training.vocabulary import Statement

__all__ = ["Bools", "assessable_from", "cases_of", "count_cases", "count_evidence", "declares", "label_targets"]

Bools = NDArray[np.bool_]
LOST = "NU"  # unit of a record whose amplitude is lost


def declares(index: Sequence[Mapping[str, Any]], declared: Mapping[str, Sequence[str]], labels: Sequence[Statement]) -> Bools:
    """bool (N, L): whether the source of a record annotates the label. declared: label ids by source."""
    by_source = {s: np.array([x.id in set(ids) for x in labels], dtype=bool) for s, ids in declared.items()}
    nothing = np.zeros(len(labels), dtype=bool)
    return np.stack([by_source.get(row["source"], nothing) for row in index])


def label_targets(
    index: Sequence[Mapping[str, Any]], declared: Mapping[str, Sequence[str]], labels: Sequence[Statement]
) -> tuple[Bools, Bools]:
    """y, known: bool (N, L). Known: the source declares the label, and the record does not call it unknown.

    A statement that rests on amplitude is not known of a record whose amplitude is lost, though y keeps what was stated.
    """
    column = {s.id: j for j, s in enumerate(labels)}
    known = declares(index, declared, labels)
    y = np.zeros_like(known)
    for i, row in enumerate(index):
        for label in row["unknown"]:
            if label in column:
                known[i, column[label]] = False
        for label in row["positive"]:
            if label in column:
                y[i, column[label]] = known[i, column[label]] = True
    lost = np.array([row["unit"] == LOST for row in index])
    known[np.ix_(lost, np.array([s.rests_on_amplitude for s in labels]))] = False
    return y, known


def assessable_from(masks: NDArray[np.int64], labels: Sequence[Statement]) -> Bools:
    """masks: (B,) lead bits -> bool (B, L)."""
    cache = {int(m): np.array([assessable(s.leads_needed, int(m)) for s in labels]) for m in np.unique(masks)}
    return np.stack([cache[int(m)] for m in masks])


def cases_of(index: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """(N,) a number for each of the rows `index`; rows of one number show one heart and are one case.

    A record is a case of its own; a hundred windows cut from one patient's long recordings are one.
    """
    names = [f"patient {row['patient']}" if row.get("window") is not None else f"row {i}" for i, row in enumerate(index)]
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)


def count_cases(stated: Bools, cases: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """stated: bool (N, L); cases: (N,) of `cases_of`, None: each row is one -> (L,) cases of which any row is true."""
    if cases is None:
        return np.asarray(stated.sum(axis=0), dtype=np.int64)
    order = np.argsort(cases, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(cases[order]) != 0)[: len(cases)])
    return np.asarray(np.logical_or.reduceat(stated[order], first, axis=0).sum(axis=0), dtype=np.int64)


def count_evidence(stated: Bools, index: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """stated: bool (N, L) of the rows `index` -> (L,) how much speaks for each label: cases, not windows."""
    return count_cases(stated, cases_of(index))
