"""The breaks keep up with the document and with the code, and a break that nobody notices is told. `make breaks` makes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.breaks.book import DOCUMENT, ROOT, Break, BreakError, applied, breaks, named
from tests.breaks.trial import broken

BREAKS = breaks()


def test_every_test_that_the_document_names_has_its_break() -> None:
    """One for each promise: a test that is named in two rows has two."""
    text = DOCUMENT.read_text("utf-8")
    names, files = named(text)
    assert len(names) > 30
    assert files
    assert [row for row in text.splitlines() if row.endswith("| the same |")] == []
    assert not Counter(names) - Counter(one.name for one in BREAKS)
    assert set(files) <= {one.path for one in BREAKS}


def test_every_break_is_of_a_test_that_the_document_names() -> None:
    names, files = named(DOCUMENT.read_text("utf-8"))
    assert [one.name for one in BREAKS if one.name not in names and one.path not in files] == []


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: f"{one.name[:60]}-{Path(one.file).stem}")
def test_what_is_broken_stands_once_and_the_test_is_there(one: Break) -> None:
    defect = applied(one)
    assert defect != (ROOT / one.file).read_text("utf-8")
    compile(defect, one.file, "exec")
    written = (ROOT / one.path).read_text("utf-8")
    assert f"def {one.name}(" in written or f"{one.name} = " in written
    assert (one.says and one.defect).strip()


MODULE = "def half(n):\n    return n // 2\n"
TEST = """
import time

from halves import half

def test_halves():
    assert half(8) == 4
    {more}
"""


@pytest.mark.parametrize(
    ("stands", "becomes", "more", "noticed", "how"),
    [
        ("n // 2", "n // 3", "", True, "test_halves.py:7: assert half(8) == 4: assert 2 == 4"),
        ("n // 2", "n / 2", "", False, "the test passed"),
        ("def half", "def third", "", False, "pytest gave no verdict (exit code"),
        ("n // 2", "n // 2", "time.sleep(9)", False, "ran into its limit of 2 s"),
    ],
)
def test_a_break_counts_where_the_test_itself_fails(
    stands: str, becomes: str, more: str, noticed: bool, how: str, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "halves.py").write_text(MODULE)
    (tmp_path / "tests" / "test_halves.py").write_text(TEST.format(more=more))
    one = Break("", "tests/test_halves.py::test_halves", "halves.py", stands, becomes, "", seconds=2)
    outcome = broken(one, tmp_path)
    assert outcome.noticed == noticed
    assert how in outcome.how


def test_a_text_that_is_gone_or_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for stands in ("y = 1", "x = 1"):
        with pytest.raises(BreakError, match=f"stands . times in a.py, must be once: '{stands}'"):
            applied(Break("", "tests/test_a.py::test_a", "a.py", stands, "", ""), tmp_path)
