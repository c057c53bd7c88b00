"""The short form of `make soak`: a few faults of each run's own choice, and the audit has the last word."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import soak, well


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "minutes", "faults", "chunks"), [("aiokafka", 3.0, 4, 8_000), ("confluent", 1.0, 1, 2_000)])
def test_minutes_of_faults_lose_nothing_and_double_nothing(client: str, minutes: float, faults: int, chunks: int) -> None:
    told = soak(minutes=minutes, workers=2, streams=40, partitions=4, client=client, delivery="exactly_once", seed=2)
    assert told["faults"] >= faults
    assert told["chunks"] > chunks
    assert well(told), told
