"""The short form of `make soak`: a few faults of each run's own choice, and the audit has the last word."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import soak, well


@pytest.mark.timeout(900)
def test_three_minutes_of_faults_lose_nothing_and_double_nothing() -> None:
    told = soak(minutes=3, workers=2, streams=40, partitions=4, client="aiokafka", delivery="exactly_once", seed=2)
    assert told["faults"] >= 4
    assert told["chunks"] > 8_000
    assert well(told), told
