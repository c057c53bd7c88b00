"""Every rule of docs/semantics.md, one test each."""

from __future__ import annotations

import numpy as np
import pytest

from encoders.signal import ABSENT
from stream_worker.records import Chunk, Closed, Window
from stream_worker.run import Run
from tests.support import Rules, Windower, closings_of, codes_of, layout, push, run_key, signal, windows_of

L = layout()  # 2 leads, 500 Hz: a window is 5000 samples, the grace 1000
X = signal(L, 200_000)


def feed(windower: Windower, pieces: list[tuple[int, int]], start: int = 0, ts: int = 0, **key: str) -> list:
    out = []
    for i, (first, end) in enumerate(pieces):
        out += push(windower, L, X, first, end, start + i, ts, **key)
    return out


def test_a_complete_window_closes_at_the_chunk_that_completes_it() -> None:
    w = Windower(0, Rules())
    assert feed(w, [(i * 500, i * 500 + 500) for i in range(9)]) == []
    (window,) = feed(w, [(4500, 5000)], start=9)
    assert isinstance(window, Window)
    assert (window.first, window.next, window.closed) == (0, 5000, "")
    assert np.array_equal(window.samples, X[:, :5000])
    assert (window.input.first, window.input.last) == (0, 9)


def test_one_long_chunk_is_the_same_as_its_pieces() -> None:
    long = feed(Windower(0, Rules()), [(0, 32_000)])
    short = feed(Windower(0, Rules()), [(i, i + 250) for i in range(0, 32_000, 250)])
    assert [x.first for x in long] == [0, 5000, 10_000, 15_000, 20_000, 25_000]
    for a, b in zip(long, short, strict=True):
        assert a.first == b.first
        assert np.array_equal(a.samples, b.samples)


def test_the_grid_is_counted_from_sample_0_wherever_the_reader_begins() -> None:
    events = feed(Windower(0, Rules()), [(i, i + 500) for i in range(7000, 21_000, 500)])
    assert [x.first for x in events] == [5000, 10_000, 15_000]
    head = events[0]
    assert (head.samples[:, :2000] == ABSENT).all()
    assert np.array_equal(head.samples[:, 2000:], X[:, 7000:10_000])


def test_grid_and_window_length_in_integers_at_an_odd_rate() -> None:
    odd = layout(fs_mhz=333_333)
    x = signal(odd, 40_000)
    w = Windower(0, Rules(hop_ms=7000))
    events = []
    for i in range(0, 39_900, 300):
        events += push(w, odd, x, i, i + 300, i // 300)
    starts = [n * 7000 * 333_333 // 1_000_000 for n in range(len(events))]
    assert len(events) > 10
    assert [e.first for e in events] == starts
    assert {e.samples.shape[1] for e in events} == {3333}
    assert all(np.array_equal(e.samples, x[:, e.first : e.first + 3333]) for e in events)


def test_an_incomplete_window_waits_for_its_end_plus_the_grace_and_no_longer() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 1000), (1500, 5000), (5000, 5999)])
    assert feed(w, [(5999, 6000)], start=9) == []  # highest index 5999, end + grace is 6000
    (window,) = feed(w, [(6000, 6001)], start=10)
    assert (window.samples[:, 1000:1500] == ABSENT).all()
    assert np.array_equal(window.samples[:, 1500:], X[:, 1500:5000])


def test_a_delayed_chunk_within_the_grace_completes_the_window() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 1000), (1500, 6000)])
    (window,) = feed(w, [(1000, 1500)], start=5)
    assert np.array_equal(window.samples, X[:, :5000])


def test_overlapping_hops() -> None:
    events = feed(Windower(0, Rules(hop_ms=2000)), [(i, i + 500) for i in range(0, 12_000, 500)])
    assert [e.first for e in events] == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]
    assert all(np.array_equal(e.samples, X[:, e.first : e.first + 5000]) for e in events)


def test_late_duplicate_conflict_and_jump() -> None:
    w = Windower(0, Rules())
    feed(w, [(i, i + 1000) for i in range(0, 7000, 1000)])
    assert codes_of(feed(w, [(0, 1000)], start=20)) == ["late"]
    assert feed(w, [(6000, 7000)], start=21) == []  # same bytes
    other = X.copy()
    other[0, 6500] += 1
    assert codes_of(push(w, L, other, 6400, 6600, 22)) == ["conflict"]
    assert codes_of(feed(w, [(7000 + 30_001, 7000 + 30_101)], start=23)) == ["index_jump"]
    windows = windows_of(feed(w, [(7000, 10_000)], start=24))
    assert np.array_equal(windows[0].samples, X[:, 5000:10_000])  # the first copy won, the jump left no trace


def test_a_chunk_that_straddles_the_frontier_is_late_below_and_accepted_above() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 5000)])
    assert codes_of(feed(w, [(4500, 6000)], start=1)) == ["late"]
    assert np.array_equal(windows_of(feed(w, [(6000, 10_000)], start=2))[0].samples, X[:, 5000:10_000])


def test_a_jump_within_60_s_closes_what_it_passes_and_gives_no_window_without_samples() -> None:
    w = Windower(0, Rules())
    events = feed(w, [(0, 2000), (27_000, 28_000)])
    assert [e.first for e in events] == [0]
    assert (events[0].samples[:, 2000:] == ABSENT).all()
    more = feed(w, [(28_000, 36_000)], start=5)
    assert [e.first for e in more] == [25_000, 30_000]


@pytest.mark.parametrize(("extra", "tail"), [(2499, False), (2500, True), (4999, True)])
def test_the_end_of_a_run_gives_a_tail_from_5_s(extra: int, tail: bool) -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 5000)])
    (event,) = push(w, L, X, 5000, 5000 + extra, 1, last=True)
    assert (event.first, event.closed) == (5000 if tail else 10_000, "last")
    if tail:
        assert isinstance(event, Window)
        assert event.next == 10_000
        assert np.array_equal(event.samples, X[:, 5000 : 5000 + extra])
    else:
        assert isinstance(event, Closed)
        assert (w.tails_dropped(), w.tails_dropped()) == (1, 0)


def test_a_session_that_ends_on_the_grid_gives_its_window_and_a_closing() -> None:
    window, closing = push(Windower(0, Rules()), L, X, 0, 5000, 0, last=True)
    assert isinstance(window, Window)
    assert isinstance(closing, Closed)
    assert closing.first == 5000


def test_a_last_chunk_that_overtakes_others_waits_for_them() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 6500)])
    assert push(w, L, X, 7000, 7900, 2, last=True) == []
    (tail,) = feed(w, [(6500, 7000)], start=3)
    assert tail.closed == "last"
    assert np.array_equal(tail.samples, X[:, 5000:7900])


def test_after_the_end_what_comes_below_the_frontier_is_late() -> None:
    w = Windower(0, Rules())
    push(w, L, X, 0, 7500, 0, last=True)
    assert codes_of(feed(w, [(5000, 7500)], start=1)) == ["late"]
    assert feed(w, [(10_000, 12_000)], start=2) == []  # the session goes on after all: a new run of the same key
    assert w.runs[run_key(L)].frontier == 10_000


def test_idle_is_judged_by_the_logs_time_at_any_record() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 7500)], ts=1_000)
    feed(w, [(0, 500)], start=1, ts=31_000, stream="other")
    assert run_key(L) in w.runs  # exactly 30 s is not more
    events = w.tick(31_001)
    assert [(e.first, e.closed) for e in events] == [(5000, "idle")]
    assert isinstance(events[0], Window)
    assert w.tick(100_000)[0].closed == "idle"  # the other stream, too short for a tail
    assert not w.runs


def test_nothing_refused_feeds_the_idle_clock() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 6000)], ts=0)
    for i, piece in enumerate([(0, 1000), (5000, 6000), (80_000, 80_100)]):
        feed(w, [piece], start=1 + i, ts=29_000)
    assert closings_of(w.tick(30_001))[0].closed == "idle"


def test_an_idle_run_may_come_back_far_ahead() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 6000)], ts=0)
    events = feed(w, [(80_000, 86_000)], start=1, ts=40_000)
    assert [type(e).__name__ for e in events] == ["Closed", "Window"]
    assert events[1].first == 80_000


def test_a_ninth_run_of_a_stream_evicts_the_one_heard_longest_ago() -> None:
    w = Windower(0, Rules())
    for i in range(8):
        feed(w, [(0, 1000)], start=i, session=str(i))
    feed(w, [(1000, 2000)], start=8, session="0")
    (event,) = feed(w, [(0, 1000)], start=9, session="8")
    assert (event.key[1], event.closed) == ("1", "evicted")
    assert len(w.runs) == 8


def test_runs_never_influence_each_other() -> None:
    alone = feed(Windower(0, Rules()), [(i, i + 500) for i in range(0, 12_000, 500)])
    mixed, w = [], Windower(0, Rules())
    for n, i in enumerate(range(0, 12_000, 500)):
        mixed += feed(w, [(i, i + 500)], start=3 * n)
        feed(w, [(i + 50_000, i + 50_500)], start=3 * n + 1, session="2")
        feed(w, [(i, i + 500)], start=3 * n + 2, stream="t")
    mine = [e for e in mixed if e.key == run_key(L)]
    assert [e.first for e in mine] == [e.first for e in alone]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(mine, alone, strict=True))


def test_a_reader_at_the_end_may_conclude_idleness() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 8000)])
    (tail,) = w.conclude_idle()
    assert (tail.closed, tail.next) == ("idle", 10_000)


def test_memory_of_closed_runs_lasts_ten_minutes_of_log_time() -> None:
    w = Windower(0, Rules())
    push(w, L, X, 0, 5000, 0, 0, last=True)
    w.tick(600_000)
    assert run_key(L) in w.memory
    w.tick(1_300_000)
    assert run_key(L) in w.memory  # its finding is not out yet: forgetting it would let the commit pass it
    w.memory[run_key(L)].track.publish(5000, 0)
    w.tick(1_300_001)
    assert run_key(L) not in w.memory


def test_runs_are_found_idle_whatever_the_order_of_their_last_chunks() -> None:
    """After a restart older records come again: a run restored with a later time must not hide one that is idle."""
    restored = [Run(run_key(L, stream=s), L, Rules(), 0) for s in ("a", "b")]
    restored[0].last_ms, restored[1].last_ms = 100_000, 50_000
    w = Windower(0, Rules(), restored)
    feed(w, [(0, 500)], ts=40_000, stream="b")
    feed(w, [(0, 500)], start=1, ts=40_000, stream="new")
    assert [e.key[0] for e in w.tick(70_001)] == ["new"]
    assert [e.key[0] for e in w.tick(80_001)] == ["b"]
    assert [e.key[0] for e in w.tick(130_001)] == ["a"]


def test_that_the_session_ends_may_be_said_late() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 5000)])
    events = push(w, L, X, 4500, 5000, 1, last=True)
    assert codes_of(events) == ["late"]
    assert [e.closed for e in closings_of(events)] == ["last"]


def test_the_sample_between_two_windows_of_a_rounded_grid_is_not_late() -> None:
    odd = layout(fs_mhz=333_333)
    x = signal(odd, 40_000)
    w, events = Windower(0, Rules()), []
    for i in range(12):
        events += push(w, odd, x, i * 3333, i * 3333 + 3333, i)
    assert codes_of(events) == []
    assert len(windows_of(events)) == 11


def test_a_device_clock_that_goes_back_starts_another_run() -> None:
    w = Windower(0, Rules())
    later = Chunk(run_key(L, start_ns=9_000_000_000), L, 0, X[:, :3000], False)
    earlier = Chunk(run_key(L, start_ns=1_000_000_000), L, 0, X[:, :5000], False)
    w.push(later, 0, 0)
    (window,) = windows_of(w.push(earlier, 1, 0))
    assert np.array_equal(window.samples, X[:, :5000])
    assert len(w.runs) == 2


def test_a_log_time_that_goes_back_neither_ends_nor_revives_a_run() -> None:
    w = Windower(0, Rules())
    feed(w, [(0, 3000)], ts=50_000)
    assert feed(w, [(3000, 4500)], start=1, ts=1_000) == []
    assert w.tick(80_000) == []
    assert [e.closed for e in w.tick(80_001)] == ["idle"]


def test_holes_are_bounded_by_window_and_grace() -> None:
    """Every second sample as a chunk of its own: the worst a device can do."""
    w, events = Windower(0, Rules()), []
    for i in range(0, 14_000, 2):
        events += feed(w, [(i, i + 1)], start=i)
        assert len(w.runs[run_key(L)].spans) <= 6000  # of 12 s at 500 Hz
    (first, second) = windows_of(events)
    assert (first.first, second.first) == (0, 5000)
    assert (first.samples[:, 0:5000:2] == X[:, 0:5000:2]).all()
    assert (first.samples[:, 1:5000:2] == ABSENT).all()


def test_a_run_that_brings_next_to_nothing_is_idle_when_a_silent_one_would_be() -> None:
    """Ten seconds, the grace and the idle time after its window began; else a sample in 29 s held the commit for days."""
    w, events = Windower(0, Rules()), []
    for n in range(3):
        events += feed(w, [(n, n + 1)], start=n, ts=1000 + 20_000 * n)
    assert events == []
    assert w.tick(43_000) == []
    assert [(e.closed, e.first) for e in closings_of(w.tick(43_001))] == [("idle", 5000)]
    steady = Windower(0, Rules())
    for n in range(60):  # in real time, in chunks of 5 s: each window decided is a new beginning
        assert closings_of(feed(steady, [(2500 * n, 2500 * n + 2500)], start=n, ts=5000 * n)) == []


def test_memory_per_open_run_is_the_ring_and_little_more() -> None:
    import tracemalloc

    twelve = layout(leads=("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"))
    x = signal(twelve, 500)
    for hop in (1000, 10_000):
        w = Windower(0, Rules(hop_ms=hop))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for second in range(12):
            for i in range(20):
                w.push(Chunk(run_key(twelve, stream=f"s{i}"), twelve, second * 500, x, False), second * 20 + i, second * 1000)
        used = (tracemalloc.get_traced_memory()[0] - before) / 20
        tracemalloc.stop()
        assert used <= 1.3 * 12 * 6000 * 2 + 4096, f"{used:.0f} bytes a run at hop {hop} ms"
