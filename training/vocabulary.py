"""labels.csv: the statements, their names and codes. Codes map by (scheme, code); bare abbreviations are never looked up."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from encoders.bank import rests_on_amplitude

__all__ = [
    "DEFAULT_MODEL",
    "LABELS_CSV",
    "PROMPT",
    "Statement",
    "VocabularyError",
    "by_code",
    "listing",
    "read_vocabulary",
    "select",
]

LABELS_CSV = Path(__file__).with_name("labels.csv")
DEFAULT_MODEL = "EQUES/MedLLama3-JP-v2"  # its card forbids medical use: read it before shipping what it made
PROMPT = "This ECG shows {label}."
SCP, SNOMED = "scp", "snomed_ct"


class VocabularyError(ValueError):
    """labels.csv contradicts itself or a name is not in it; the text names the row."""


@dataclass(frozen=True)
class Statement:
    """One row. scp, snomed: codes that mean it. core: in the default set of 98. order: row number, the order of captions.

    superclass: PTB-XL's, or "".
    """

    id: str
    name_en: str
    name_ja: str
    scp: tuple[str, ...]
    snomed: tuple[str, ...]
    urgency: str
    leads_needed: str
    core: bool
    order: int
    superclass: str = ""

    def codes(self) -> dict[str, tuple[str, ...]]:
        """Codes by scheme."""
        return {SNOMED: self.snomed, SCP: self.scp}

    @property
    def rests_on_amplitude(self) -> bool:
        """Whether it says nothing about a record whose amplitude is lost."""
        return rests_on_amplitude(self.codes())


def _codes(*fields: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(code.strip() for field in fields for code in field.split(";") if code.strip()))


def read_vocabulary(path: Path = LABELS_CSV) -> tuple[Statement, ...]:
    """All rows in file order. Raises VocabularyError when an id or a (scheme, code) stands twice."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    statements = tuple(
        Statement(
            id=row["id"],
            name_en=row["name_en"],
            name_ja=row["name_ja"],
            scp=_codes(row["scp_code"]),
            snomed=_codes(row["snomed_ct"], row["snomed_equiv"]),
            urgency=row["urgency"],
            leads_needed=row["leads_needed"],
            core=row["core98"] == "1",
            order=i,
            superclass=row["ptbxl_superclass"],
        )
        for i, row in enumerate(rows)
    )
    if len({s.id for s in statements}) != len(statements):
        raise VocabularyError(f"{path.name}: an id stands twice among {len(statements)} rows")
    by_code(statements)
    return statements


def by_code(statements: Iterable[Statement]) -> dict[tuple[str, str], str]:
    """(scheme, code) -> label id. Raises VocabularyError when a code of one scheme names two labels."""
    out: dict[tuple[str, str], str] = {}
    for s in statements:
        for scheme, codes in s.codes().items():
            for code in codes:
                other = out.setdefault((scheme, code), s.id)
                if other != s.id:
                    raise VocabularyError(f"{scheme} code {code} names both {other} and {s.id}")
    return out


def select(statements: Iterable[Statement], which: str) -> tuple[Statement, ...]:
    """which: "core98", "all", or label ids separated by commas; always in file order. Raises VocabularyError."""
    rows = tuple(statements)
    if which == "all":
        return rows
    if which == "core98":
        return tuple(s for s in rows if s.core)
    wanted = [name.strip() for name in which.split(",") if name.strip()]
    unknown = sorted(set(wanted) - {s.id for s in rows})
    if unknown or not wanted:
        raise VocabularyError(f"labels must be core98, all or ids of labels.csv, not {', '.join(unknown) or repr(which)}")
    return tuple(s for s in rows if s.id in wanted)


def listing(statements: Iterable[Statement]) -> str:
    """A line a label: id, Japanese name, English name, codes; separated by tabs."""
    return "\n".join(
        "\t".join((s.id, s.name_ja, s.name_en, ";".join(f"{scheme}:{c}" for scheme, group in s.codes().items() for c in group)))
        for s in statements
    )
