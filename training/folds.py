"""Which folds may be used for what, and the guard that keeps folds 9 and 10 out of everything that is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.sources.annotated import TEST_FOLD, VALIDATION_FOLD

if TYPE_CHECKING:
    from training.data.dataset import DataSet

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
    """Raises ProtocolError when a patient, or a signal under two names, is in both."""
    for key, what in (("patient", "patients"), ("signal", "signals")):
        first = {row[key]: row["record"] for row in train.index}
        if crossing := [row for row in held_out.index if row[key] in first]:
            raise ProtocolError(
                f"{len(crossing)} records have {what} that are in training and {use} folds, 0 are allowed: "
                f"{first[crossing[0][key]]} and {crossing[0]['record']}; give them one fold and prepare again"
            )
