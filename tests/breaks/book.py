"""The breaks as they are written down in breaks.toml, and the tests that docs/reliability.md names. Runs nothing."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Break", "BreakError", "applied", "breaks", "named"]

ROOT = Path(__file__).resolve().parents[2]
BOOK = Path(__file__).with_name("breaks.toml")
DOCUMENT = ROOT / "docs" / "reliability.md"


class BreakError(Exception):
    """A break that cannot be made: says which, in which file, and what to do."""


@dataclass(frozen=True)
class Break:
    """See the head of breaks.toml."""

    says: str
    test: str
    file: str
    stands: str
    broken: str
    defect: str
    seconds: int = 120
    hangs: bool = False

    @property
    def path(self) -> str:
        """Of the test's file."""
        return self.test.partition("::")[0]

    @property
    def name(self) -> str:
        """Of the test, or of the class that holds it, without parameters."""
        return self.test.split("::")[1].partition("[")[0]


def breaks(book: Path = BOOK) -> list[Break]:
    """All of them, in the order of the document. A field that is missing or unknown is a TypeError that names it."""
    return [Break(**fields) for fields in tomllib.loads(book.read_text("utf-8"))["break"]]


def named(text: str) -> tuple[list[str], list[str]]:
    """(tests and test classes, test files) that a document names, as often as it does."""
    return re.findall(r"`((?:test_|Test)\w+)`", text), re.findall(r"`(tests/[\w/]+\.py)`", text)


def applied(one: Break, root: Path = ROOT) -> str:
    """The text of its file with the defect. Raises BreakError where what is to be broken is not there exactly once."""
    text = (root / one.file).read_text("utf-8")
    count = text.count(one.stands)
    if count != 1:
        raise BreakError(
            f"{one.name}: what breaks it stands {count} times in {one.file}, must be once: {one.stands.strip()!r}; "
            f"the code has changed, so choose the break anew in {BOOK.relative_to(ROOT)}"
        )
    return text.replace(one.stands, one.broken)
