"""The vocabulary of data sources: one annotated recording, one source, and which fold belongs to which split."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encoders.recordings import Recording

__all__ = [
    "CALIBRATION_FOLD",
    "FOLDS",
    "TEST_FOLD",
    "VALIDATION_FOLD",
    "Annotated",
    "Source",
    "SourceError",
    "age_of",
    "fold_of",
    "inside",
    "sex_of",
]

FOLDS = 10
CALIBRATION_FOLD, VALIDATION_FOLD, TEST_FOLD = 8, 9, 10
OLDEST = 90.0  # who is older counts as this: PTB-XL hides such ages as 300
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


class SourceError(ValueError):
    """A folder that cannot be used; names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Annotated:
    """One recording before its signal is read. fold: 1 to 10. positive, unknown: label ids; the rest of `declared` is negative.

    leads: names for channels the reader does not know. window: first sample, at the recording's own rate, where only 10 s of a
    longer one are meant. sex: F or M. age: years, 90 for all above. quality: grade given by the source. None: not given.
    unmapped: codes that were stated and that no label has, as scheme:code.
    read: how the signal is read where it is not simply the file at `path`; raises RecordingError.
    """

    path: Path
    record: str
    patient: str
    fold: int
    positive: tuple[str, ...]
    unknown: tuple[str, ...]
    source: str
    leads: Mapping[str, str] = field(default_factory=dict)
    window: int | None = None
    sex: str | None = None
    age: float | None = None
    quality: str | None = None
    unmapped: tuple[str, ...] = ()
    read: Callable[[], Recording] | None = None


@dataclass(frozen=True)
class Source:
    """A folder: its layout, its records, what each sub-source declares, and records that were left out with the reason."""

    name: str
    layout: str
    records: tuple[Annotated, ...]
    declared: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[str, str], ...]


def inside(folder: Path, name: str) -> Path:
    """The path of `name`, as a table spells it, in `folder`. Raises SourceError where it leads out ("../x", "/x")."""
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir:
        raise SourceError(f"{name!r} leads out of {folder.name}; name recordings by their path inside it")
    return folder / plain


def fold_of(key: str) -> int:
    """1 to 8 or, for a fifth, 9, where no folds are published: sha256 of the patient or record id modulo 5."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return VALIDATION_FOLD if number % 5 == 4 else 1 + number // 5 % 8


def sex_of(text: str | None, codes: Mapping[str, str] = SEXES) -> str | None:
    """F, M, or None where it is not given."""
    return codes.get((text or "").strip().lower())


def age_of(text: str | None) -> float | None:
    """Years, at most 90, or None where it is not given or no age."""
    try:
        years = float(text or "nan")
    except ValueError:
        return None
    return min(years, OLDEST) if math.isfinite(years) and years >= 0 else None
