"""Which folds may be used for what, and the guard that keeps folds 9 and 10 out of everything that is fitted."""

from __future__ import annotations

from training.data import DataSet
from training.sources import TEST_FOLD, VALIDATION_FOLD

__all__ = ["DEVELOPMENT", "GROUPS", "ProtocolError", "check_development", "check_disjoint"]

GROUPS = ((1, 2), (3, 4), (5, 6), (7, 8))  # held out in turn
DEVELOPMENT = tuple(fold for group in GROUPS for fold in group)


class ProtocolError(ValueError):
    """Records were about to be used for what they are not for; the text names the folds or the patient."""


def check_development(data: DataSet, use: str) -> None:
    """Raises ProtocolError when a record of fold 9 or 10, which are for reporting, would reach `use`."""
    if reporting := {row["fold"] for row in data.index} & {VALIDATION_FOLD, TEST_FOLD}:
        folds = ", ".join(map(str, sorted(reporting)))
        raise ProtocolError(f"records of fold {folds} must not reach {use}: folds 9 and 10 are for reporting; use folds 1 to 8")


def check_disjoint(train: DataSet, held_out: DataSet, use: str) -> None:
    """Raises ProtocolError when a patient is in both."""
    if crossing := {r["patient"] for r in train.index} & {r["patient"] for r in held_out.index}:
        raise ProtocolError(
            f"{len(crossing)} patients are in training and {use} folds, 0 are allowed: {sorted(crossing)[0]}; "
            "give each patient one fold and prepare again"
        )
