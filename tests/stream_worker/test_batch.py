"""Full or due, in order; time is the caller's."""

from __future__ import annotations

from stream_worker.batch import Batcher


def test_full_or_due() -> None:
    b: Batcher[str] = Batcher(4, 0.1)
    assert b.wait(0.0) is None
    b.add("a", 2, now=10.0)
    assert round(b.wait(10.0) or 0, 6) == 0.1
    b.add("b", 1, now=10.06)
    assert round(b.wait(10.06) or 0, 6) == 0.04  # the deadline is the first item's
    b.add("c", 1, now=10.07)
    assert b.wait(10.07) == 0.0
    assert b.take() == ["a", "b", "c"]
    assert (b.wait(10.07), len(b)) == (None, 0)


def test_items_without_windows_ride_along_or_leave_alone_at_once() -> None:
    b: Batcher[str] = Batcher(4, 0.1)
    b.add("only a commit", 0, now=0.0)
    assert b.wait(0.0) == 0.0
    b.add("a window", 1, now=0.0)
    assert b.wait(0.0) == 0.1
