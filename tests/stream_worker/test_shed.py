"""The share of a stream by log time, and the delay of a partition by a steady clock."""

from __future__ import annotations

from stream_worker.shed import BURST_MS, Delay, Share


def test_a_stream_in_real_time_never_exceeds_its_share_and_one_at_100_times_does() -> None:
    share, shed = Share(), {"real": 0, "hot": 0}
    for second in range(600):
        for stream, windows in (("real", second % 10 == 0), ("hot", 10)):
            shed[stream] += sum(share.exceeded(stream, 10_000, 1000 * second, lags=True) for _ in range(int(windows)))
    assert shed["real"] == 0
    assert 5800 <= shed["hot"] <= 5900  # of 6000: twice what the others get


def test_a_backlog_of_a_minute_is_within_the_share_and_nothing_is_shed_without_lag() -> None:
    share = Share()
    assert not any(share.exceeded("a", 10_000, 0, lags=True) for _ in range(BURST_MS // 10_000))
    assert share.exceeded("a", 10_000, 0, lags=True)
    assert not any(share.exceeded("b", 10_000, 0, lags=False) for _ in range(1000))
    assert share.exceeded("b", 10_000, 0, lags=True)  # and from when it lags on, b has had its share
    assert not share.exceeded("b", 10_000, 5000, lags=True)  # which comes back with time


def test_streams_that_owe_nothing_are_forgotten() -> None:
    share = Share()
    for n in range(100_000):
        share.exceeded(f"s{n}", 10_000, 10 * n, lags=True)
    assert len(share._owed) < 5000


def test_the_delay_of_a_reader() -> None:
    delay = Delay()
    assert delay.seconds(100.0) == 0.0
    delay.note(100.0, taken=0, end=50)
    assert delay.seconds(103.0) == 3.0  # at least: that end has not been reached
    delay.note(104.0, taken=40, end=400)
    delay.note(107.0, taken=60, end=500)
    assert delay.seconds(107.5) == 7.0
    delay.note(108.0, taken=500, end=500)
    delay.note(108.2, taken=500, end=500)
    assert delay.seconds(108.3) == 7.0  # the longest of late
    for tenth in range(1082, 1382):
        delay.note(tenth / 10, taken=500, end=500)
    assert delay.seconds(138.3) < 0.3
