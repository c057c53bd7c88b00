"""Every kind of bad input has its reason code; good bytes come back as they went in; nothing leaks a sample."""

from __future__ import annotations

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.signal import LEADS
from stream_worker.devices.encode import encode_chunk
from stream_worker.errors import BadInput
from stream_worker.proto import ecg_chunk_pb2 as pb
from stream_worker.wire import Decoder, dead_letter, dead_letter_message, schema
from tests.stream_worker.bad_messages import fields, refused
from tests.support import layout, signal

L = layout(leads=LEADS)
X = signal(L, 500)


def test_round_trip() -> None:
    chunk = Decoder()(b"s", encode_chunk("s", "1", 123, L, 42, X, last=True))
    assert chunk.key == ("s", "1", 123, L.digest)
    assert (chunk.layout, chunk.first, chunk.last) == (L, 42, True)
    assert np.array_equal(chunk.samples, X)


def test_interleaved_samples() -> None:
    message = pb.Chunk(**fields(order=pb.INTERLEAVED, samples=signal(layout(), 100).T.tobytes()))
    assert np.array_equal(Decoder()(b"s", message.SerializeToString()).samples, signal(layout(), 100))


def test_vendor_spellings_feed_the_same_run() -> None:
    a = Decoder()(b"s", pb.Chunk(**fields()).SerializeToString())
    b = Decoder()(
        b"s", pb.Chunk(**fields(leads=["MDC_ECG_LEAD_I", "MLII"], gain=[1000.0, 1000.0], baseline=[0.0])).SerializeToString()
    )
    assert a.key == b.key


@pytest.mark.parametrize(("code", "key", "value"), refused(), ids=[code for code, _, _ in refused()])
def test_refused(code: str, key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(BadInput) as caught:
        Decoder()(key, value)
    assert caught.value.code == code


def test_a_limit_is_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_worker.wire.ecg_chunk_pb2", None)  # decoding would raise AttributeError
    with pytest.raises(BadInput, match="limit"):
        Decoder(max_bytes=1000)(b"s", b"\0" * 1001)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_decoded_but_never_raise_anything_else(data: bytes) -> None:
    try:
        Decoder()(b"s", data)
    except BadInput as error:
        assert error.code in schema("dead-letter")["properties"]["reason"]["enum"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_one_altered_byte_is_refused_or_decoded_but_never_raises_anything_else(at: int, byte: int) -> None:
    data = bytearray(pb.Chunk(**fields()).SerializeToString())
    data[at % len(data)] = byte
    try:
        Decoder()(b"s", bytes(data))
    except BadInput as error:
        assert error.code in schema("dead-letter")["properties"]["reason"]["enum"]


def test_a_dead_letter_names_the_record_and_holds_no_payload_unless_told() -> None:
    import json

    value = pb.Chunk(**fields()).SerializeToString()
    for keep in (False, True):
        _, data, _ = dead_letter_message(dead_letter(3, 17, "late", value, keep), "ecg.chunks")
        body = json.loads(data)
        jsonschema.validate(body, schema("dead-letter"))
        assert (body["partition"], body["offset"], body["reason"], body["bytes"]) == (3, 17, "late", len(value))
        assert ("payload_hex" in body) is keep


def test_a_payload_that_would_not_fit_into_a_message_is_left_out() -> None:
    _, small, _ = dead_letter_message(dead_letter(0, 0, "late", b"x" * 400_000, keep=True), "ecg.chunks")
    _, large, _ = dead_letter_message(dead_letter(0, 0, "late", b"x" * 400_001, keep=True), "ecg.chunks")
    assert b"payload_hex" in small
    assert len(small) < 1_000_000  # the producer's limit is 1 MB
    assert b"payload_hex" not in large


def test_what_the_worker_reads_is_the_same_on_the_wire() -> None:
    value = pb.Chunk(**fields(last=True, order=pb.INTERLEAVED, session_start_ns=5)).SerializeToString()
    assert pb.ChunkRecord.FromString(value).SerializeToString() == value
    assert [f.name for f in pb.Chunk.DESCRIPTOR.fields] == [f.name for f in pb.ChunkRecord.DESCRIPTOR.fields]
    assert [f.number for f in pb.Chunk.DESCRIPTOR.fields] == [f.number for f in pb.ChunkRecord.DESCRIPTOR.fields]


def test_a_layout_that_is_no_layout() -> None:
    value = pb.ChunkRecord(stream_id="s", layout=b"\xff\xff", samples=b"\0\0").SerializeToString()
    with pytest.raises(BadInput) as caught:
        Decoder()(b"s", value)
    assert caught.value.code == "schema"


def test_layouts_are_bounded() -> None:
    decoder = Decoder(max_layouts=8)
    for i in range(50):
        decoder(b"s", pb.Chunk(**fields(gain=[100.0 + i])).SerializeToString())
    assert len(decoder._layouts) <= 8
