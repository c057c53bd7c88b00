"""A thread for calls that block: in order, one at a time, and no hindrance to the end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from stream_worker.kafka.lane import Lane

STANDS = """
import asyncio, threading
from stream_worker.kafka.lane import Lane

async def main():
    standing = threading.Event()
    Lane("stands").give(lambda: (standing.set(), threading.Event().wait()))
    standing.wait()

asyncio.run(main())
"""


async def test_calls_are_made_in_order_and_their_outcomes_come_back() -> None:
    lane, seen = Lane("one"), list[int]()

    def note(number: int) -> int:
        seen.append(number)
        if number == 3:
            raise ValueError("three")
        return 10 * number

    given = [lane.give(note, number) for number in range(6)]
    lane.end()
    outcomes = await asyncio.gather(*given, return_exceptions=True)
    assert seen == list(range(6))
    assert str(outcomes.pop(3)) == "three"
    assert outcomes == [0, 10, 20, 40, 50]


async def test_what_is_cancelled_before_its_turn_is_not_begun() -> None:
    lane, free, seen = Lane("one"), threading.Event(), list[str]()
    first, second = lane.give(free.wait), lane.give(seen.append, "second")
    second.cancel()
    await asyncio.sleep(0)
    free.set()
    await lane.give(seen.append, "third")
    assert await first
    assert seen == ["third"]
    with pytest.raises(asyncio.CancelledError):
        await second
    lane.end()


def test_a_call_that_never_comes_back_does_not_keep_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", STANDS], timeout=20).returncode == 0
