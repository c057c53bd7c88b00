"""What may be committed: W, P and F only rise, and W never passes a sample that is not published."""

from __future__ import annotations

import pytest

from stream_worker.errors import ConfigError
from stream_worker.ledger import Ledger, Track, decode_metadata, encode_metadata


def test_w_is_the_lowest_offset_with_an_unpublished_sample() -> None:
    track, ledger = Track(0, quantum=500), Ledger(0, 0)
    for i in range(12):
        track.accept(100 + i, (i + 1) * 500)
    ledger.advance(112)
    assert ledger.position([track], 0)[0] == 100
    track.publish(5000, 7)
    assert ledger.position([track], 8) == (110, encode_metadata(112, 7))
    track.publish(6000, 8)
    assert ledger.position([track], 9)[0] == 112  # nothing pending: P


def test_small_chunks_share_entries_and_keep_the_lower_offset() -> None:
    track = Track(0, quantum=500)
    for i in range(1000):
        track.accept(i, (i + 1) * 10)
    assert len(track.offsets) <= 21
    for frontier in range(0, 10_000, 130):
        low = track.low(frontier)
        assert low is not None
        assert low <= frontier // 10
        assert low >= frontier // 10 - 51


def test_a_chunk_that_fills_a_gap_needs_no_entry_of_its_own() -> None:
    track = Track(0, quantum=100)
    track.accept(1, 1000)
    track.accept(2, 500)
    assert track.offsets == [1]


def test_frontiers_and_offsets_never_fall() -> None:
    track, ledger = Track(0, quantum=500), Ledger(0, 0)
    track.accept(5, 500)
    ledger.advance(6)
    track.publish(500, 3)
    track.publish(200, 1)
    assert (track.published, track.position) == (500, 3)
    first = ledger.position([track], 4)
    ledger.advance(5)
    assert ledger.position([track], 4) == first


def test_w_waits_until_what_was_read_before_has_been_read_again() -> None:
    ledger = Ledger(start=10, processed=80, findings=4)
    assert ledger.position([], 5) == (10, encode_metadata(80, 5))  # the tracks are empty only because nothing was read yet
    track = Track(5000, quantum=500)
    track.accept(12, 5500)
    ledger.advance(40)
    assert ledger.position([track], 5)[0] == 12
    track.publish(10_000, 6)
    assert ledger.position([track], 7)[0] == 40
    ledger.advance(90)
    assert ledger.position([track], 7) == (90, encode_metadata(90, 6))


def test_metadata() -> None:
    text = encode_metadata(2**62, 2**62)
    assert len(text) < 200
    assert decode_metadata(text, 5) == (2**62, 2**62, 0)
    assert decode_metadata("", 5) == (5, 0, 0)
    assert decode_metadata(encode_metadata(7, 1, 12) + "\0", 5) == (7, 1, 12)  # by librdkafka, read by aiokafka
    assert decode_metadata(encode_metadata(3, 1, 12), 5) == (5, 1, 12)
    assert decode_metadata('{"v":1,"P":7,"F":1}', 5) == (7, 1, 0)  # of a version before
    for other in ("{", "null", '{"P": 1}', "someone else"):
        with pytest.raises(ConfigError, match="another group"):
            decode_metadata(other, 5)
