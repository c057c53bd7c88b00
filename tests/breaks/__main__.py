"""Break the code once for each test that docs/reliability.md names, and see that test fail: `python -m tests.breaks`.

A promise is worth what its test notices. tests/breaks/breaks.toml holds for each of them one small defect that makes the
promise false. Each is made in a copy of the tracked files (the working tree is never touched), and its test is run there. It
must fail: not because it could not be collected or set up, and not by its time limit unless a hang is how the defect shows.
All of them take about half an hour, most of it for starting Kafka: name some.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.breaks.book import Break, BreakError, breaks
from tests.breaks.trial import Outcome, broken, copied, unbroken

EXAMPLES = """examples:
  python -m tests.breaks --list                 what would be broken, and for which test
  python -m tests.breaks kill_9 redis           the tests whose names contain these
  python -m tests.breaks --unbroken retention   first see that the test passes as it is

exit code 0: each test failed, as it should; 1: one did not, or the text to break was not found; 2: no such test
"""


def main() -> int:
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.breaks", description=__doc__, epilog=EXAMPLES, formatter_class=lines)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a test's name or of its promise; default: all")
    parser.add_argument("--list", action="store_true", help="say what would be broken, and run nothing")
    parser.add_argument("--unbroken", action="store_true", help="run each test as it is first: it must pass")
    given = parser.parse_args()
    chosen = [one for one in breaks() if not given.names or any(n in one.test or n in one.says for n in given.names)]
    if not chosen:
        parser.error(f"no test is called like {', '.join(given.names)}; --list shows all")
    if given.list:
        for one in chosen:
            print(f"{one.says}\n    {one.test}\n    {one.file}: {one.defect}")
        return 0
    return tried(chosen, given.unbroken)


def tried(chosen: Sequence[Break], look_first: bool) -> int:
    """One after the other, with a line each, and a table at the end."""
    outcomes: list[tuple[Break, Outcome]] = []
    for number, one in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {one.name}: {one.defect}", flush=True)
        outcome = trial(one, look_first)
        print(f"    {_word(outcome)} in {outcome.seconds:.0f} s: {outcome.how}", flush=True)
        outcomes.append((one, outcome))
    table = Table("promise", "broken in", "failed at")
    for one, outcome in outcomes:
        table.add_row(one.says, one.file, outcome.how[:100] if outcome.noticed else "NOT NOTICED")
    Console(width=None if sys.stdout.isatty() else 240, markup=False).print(table)
    failed, tests = sum(outcome.noticed for _, outcome in outcomes), len({one.name for one in chosen})
    print(f"{len(outcomes)} breaks of {tests} tests: {failed} noticed, {len(outcomes) - failed} not")
    return int(failed < len(outcomes))


def trial(one: Break, look_first: bool) -> Outcome:
    """In a copy of its own."""
    try:
        if look_first:
            with copied() as tree:
                if why := unbroken(one, tree):
                    return Outcome(False, why, 0.0)
        with copied() as tree:
            return broken(one, tree)
    except BreakError as error:
        return Outcome(False, str(error), 0.0)


def _word(outcome: Outcome) -> str:
    return "failed" if outcome.noticed else "NOT NOTICED"


if __name__ == "__main__":
    sys.exit(main())
