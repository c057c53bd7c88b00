"""A chunk that repeats its stream's form is read without Protobuf: the same chunk, or the same refusal, for any bytes."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.signal import LEADS
from stream_worker.errors import BadInput
from stream_worker.proto import ecg_chunk_pb2 as pb
from stream_worker.wire import Decoder
from tests.support import layout, signal


def value(leads: int = 2, order: int = 0, count: int = 20, first: int = 500, **fields: Any) -> bytes:
    of = pb.Layout(fs_mhz=500_000, leads=LEADS[:leads], gain=[1000.0])
    samples = signal(layout(leads=LEADS[:leads]), count, seed=abs(first)).tobytes()
    fields = {"stream_id": "s", "session_id": "1", "session_start_ns": 7, "layout": of, **fields}
    return pb.Chunk(first_sample=first, samples=samples, order=order, **fields).SerializeToString()  # type: ignore[arg-type]


def outcome(decode: Decoder, data: bytes) -> object:
    """All there is to know of a decoded chunk, or why it was refused."""
    try:
        key, of, first, samples, last = decode(b"s", data)
    except BadInput as error:
        return error.code, str(error)
    return key, of, first, samples.shape, samples.tobytes(), last


def learnt(**form: Any) -> Decoder:
    decode = Decoder()
    decode(b"s", value(**form))
    return decode


def unparsed(decode: Decoder, data: bytes) -> object:
    """As `outcome`, with no parser at hand."""
    with patch("stream_worker.wire.ecg_chunk_pb2", None):  # parsing would raise AttributeError
        return outcome(decode, data)


FORMS = st.fixed_dictionaries({"leads": st.integers(1, 12), "order": st.sampled_from((0, 1))})


@settings(max_examples=300, deadline=None)
@given(form=FORMS, first=st.integers(1, 2**53 - 500), count=st.integers(1, 500))
def test_a_repeat_is_what_protobuf_reads(form: dict[str, int], first: int, count: int) -> None:
    data = value(first=first, count=count, **form)
    assert unparsed(learnt(**form), data) == outcome(Decoder(), data)


def test_samples_stay_where_they_are() -> None:
    data = value(first=1000)
    samples = learnt()(b"s", data).samples
    assert np.shares_memory(samples, np.frombuffer(data, np.uint8))
    assert not samples.flags.writeable


@settings(max_examples=1500, deadline=None)
@given(
    form=FORMS,
    first=st.integers(-5, 2**53),
    count=st.integers(0, 4),
    last=st.booleans(),
    session=st.sampled_from(("1", "2", "")),
    at=st.integers(0, 400),
    drop=st.integers(0, 3),
    put=st.binary(max_size=3),
)
def test_whatever_the_bytes_a_decoder_that_has_learnt_says_the_same(
    form: dict[str, int], first: int, count: int, last: bool, session: str, at: int, drop: int, put: bytes
) -> None:
    data = value(first=first, count=count, last=last, session_id=session, **form)
    at %= len(data) + 1
    data = data[:at] + put + data[at + drop :]
    assert outcome(learnt(**form), data) == outcome(Decoder(), data)


@pytest.mark.parametrize("count", [30_000, 30_001])
def test_the_longest_chunk(count: int) -> None:
    data = value(leads=1, count=count)
    assert outcome(learnt(leads=1), data) == outcome(Decoder(), data)


@pytest.mark.parametrize("first", [2**53 - 20, 2**53 - 19, 2**62, -1])
def test_the_highest_index(first: int) -> None:
    data = value(first=1).replace(b"\x20\x01", b"\x20" + varint(first))
    assert outcome(learnt(), data) == outcome(Decoder(), data)


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ({"order": 1}, value(order=1)[:-1] + b"\x00"),  # the other order, spelled out
        ({"order": 1}, value(order=1)[:-2] + b"\x40\x01"),  # the last of its session
        ({}, value().replace(b"\x32\x50", b"\x32\x4f")[:-1]),  # half a sample
        ({}, value() + b"\x38\x01"),
        ({}, value().replace(b"\x32\x50", b"\x32\xd0\x80\x00")),  # the same number, in more bytes
        ({}, value().replace(b"\x32\x50", b"\x32" + b"\xd0" + b"\x80" * 8 + b"\x00")),
    ],
)
def test_nearly_a_repeat(form: dict[str, int], data: bytes) -> None:
    assert outcome(learnt(**form), data) == outcome(Decoder(), data)


def test_a_number_without_end_is_given_up_at_once() -> None:
    decode, head = learnt(), value(first=1).partition(b"\x20\x01")[0] + b"\x20"
    began = time.process_time()
    assert outcome(decode, head + b"\xff" * 1_000_000)[0] == "schema"  # type: ignore[index]
    assert time.process_time() - began < 0.5


def test_the_last_chunk_of_a_session_says_so() -> None:
    decode = learnt()
    assert decode(b"s", value(first=1000, last=True)).last
    assert not decode(b"s", value(first=2000)).last


def test_another_run_is_learnt_and_the_key_still_counts() -> None:
    decode = learnt()
    assert unparsed(decode, value(first=1000)) == outcome(Decoder(), value(first=1000))
    decode(b"s", value(session_id="2"))
    assert unparsed(decode, value(session_id="2", first=1000)) == outcome(Decoder(), value(session_id="2", first=1000))
    with pytest.raises(BadInput, match="key"):
        decode(b"t", value(first=1000))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_worker.wire.MAX_STREAMS", 10)
    decode = Decoder()
    for i in range(35):
        decode(b"s%d" % i, value(stream_id=f"s{i}"))
    assert 0 < len(decode._repeats) <= 10


def test_a_form_that_is_too_long_is_parsed_each_time() -> None:
    long = pb.Layout(fs_mhz=500_000, leads=["ECG " * 15 + name for name in LEADS], gain=[1.0] * 12, baseline=[0.0] * 12)
    ids = {"stream_id": "s" * 128, "session_id": "心" * 42}
    data = value(leads=12, layout=long, **ids)
    decode = Decoder()
    assert decode(b"s" * 128, data).samples.shape == (12, 20)
    assert not decode._repeats
