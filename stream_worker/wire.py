"""Bytes <-> records: chunks in, findings and dead letters out. Limits are checked before anything is decoded.

Every refusal is BadInput with a reason code; no message, log line or dead letter holds a sample.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from encoders.signal import Layout, SignalError
from stream_worker.errors import BadInput
from stream_worker.proto import ecg_chunk_pb2
from stream_worker.records import Chunk, DeadLetter, Finding
from stream_worker.repeat import INT16, MAX_CHUNK_S, MAX_INDEX, Repeat

__all__ = ["MAX_CHUNK_BYTES", "Decoder", "dead_letter", "dead_letter_message", "finding_message", "parse_finding", "schema"]

MAX_CHUNK_BYTES = 1 << 20
MAX_ID_BYTES = 128
MAX_LAYOUT_BYTES = 4096
MAX_PAYLOAD_BYTES = 400_000
UNITS = ("mV", "NU")
MAX_STREAMS = 1 << 15  # whose repeats are remembered

Headers = tuple[tuple[str, bytes], ...]


class Decoder:
    """Protobuf bytes -> Chunk, whose samples may lie in the bytes. What a stream repeats in every chunk is looked up."""

    def __init__(self, max_bytes: int = MAX_CHUNK_BYTES, max_layouts: int = 4096) -> None:
        self.max_bytes, self.max_layouts = max_bytes, max_layouts
        self._layouts: dict[bytes, Layout] = {}  # by its bytes on the wire
        self._repeats: dict[bytes, Repeat] = {}  # by key

    def __call__(self, key: bytes | None, value: bytes | None) -> Chunk:
        """Raises BadInput: empty, oversize, schema, key_mismatch, stream_id, session_id, index_range, start_range,
        sample_count, no_samples, duration, or a SignalError code (unknown_lead, doubled_lead, fs_range, gain_range, ...)."""
        if not value:
            raise BadInput("empty", "the message has no value")
        if len(value) > self.max_bytes:
            raise BadInput("oversize", f"{len(value)} bytes, the limit is {self.max_bytes}")
        known = self._repeats.get(key) if key is not None else None
        return (known and known.read(value)) or self._parsed(key, value)

    def _parsed(self, key: bytes | None, value: bytes) -> Chunk:
        try:
            message = ecg_chunk_pb2.ChunkRecord.FromString(value)  # six times as fast as ParseFromString on a new message
        except DecodeError:
            raise BadInput("schema", "the bytes are not an ecg.v1.Chunk") from None
        stream, session = message.stream_id.encode(), message.session_id
        if not 0 < len(stream) <= MAX_ID_BYTES:
            raise BadInput("stream_id", f"stream id of {len(stream)} bytes; 1 to {MAX_ID_BYTES} are allowed")
        if key != stream:
            raise BadInput("key_mismatch", "the message key is not the stream id")
        if len(session.encode()) > MAX_ID_BYTES:
            raise BadInput("session_id", f"session id of {len(session.encode())} bytes; at most {MAX_ID_BYTES} are allowed")
        layout = self._layouts.get(message.layout) or self._layout(message.layout)
        first, data = message.first_sample, message.samples
        count, rest = divmod(len(data), 2 * len(layout.leads))
        if rest:
            raise BadInput("sample_count", f"{len(data)} bytes do not divide into {len(layout.leads)} leads of int16")
        if count == 0:
            raise BadInput("no_samples", "the chunk holds no samples")
        if count * 1000 > MAX_CHUNK_S * layout.fs_mhz:
            raise BadInput("duration", f"a chunk of {count} samples; at most {MAX_CHUNK_S} s are allowed")
        if not 0 <= first <= MAX_INDEX - count:
            raise BadInput("index_range", f"first sample {first} is negative or beyond 2^53")
        if message.session_start_ns < 0:
            raise BadInput("start_range", "the session starts before 1970")
        if message.order == ecg_chunk_pb2.LEAD_MAJOR:
            samples = np.ndarray((len(layout.leads), count), INT16, data)  # half the time of frombuffer and reshape
        elif message.order == ecg_chunk_pb2.INTERLEAVED:
            samples = np.ndarray((count, len(layout.leads)), INT16, data).T
        else:
            raise BadInput("schema", f"unknown sample order {message.order}")
        run = (message.stream_id, session, message.session_start_ns, layout.digest)
        chunk = Chunk(run, layout, first, samples, message.last)
        self._remember(stream, message, chunk)
        return chunk

    def _remember(self, key: bytes, message: ecg_chunk_pb2.ChunkRecord, chunk: Chunk) -> None:
        known = self._repeats.get(key)
        if known is not None and known.run == chunk.key:
            return  # spelled in another way, or the last of its session
        repeat = Repeat.of(message, chunk)
        if repeat is None:
            return
        if len(self._repeats) >= MAX_STREAMS:
            self._repeats.clear()
        self._repeats[key] = repeat

    def _layout(self, spelled: bytes) -> Layout:
        """A layout not seen before."""
        if len(spelled) > MAX_LAYOUT_BYTES:
            raise BadInput("layout_shape", f"a layout of {len(spelled)} bytes; at most {MAX_LAYOUT_BYTES} are allowed")
        try:
            fields = ecg_chunk_pb2.Layout.FromString(spelled)
            unit = UNITS[fields.unit] if fields.unit in (0, 1) else "unknown"
            layout = Layout.of(fields.fs_mhz, fields.leads, fields.gain, fields.baseline, unit)
        except DecodeError:
            raise BadInput("schema", "the layout is not an ecg.v1.Layout") from None
        except SignalError as error:
            raise BadInput(error.code, str(error)) from None
        if len(self._layouts) >= self.max_layouts:
            self._layouts.clear()
        self._layouts[spelled] = layout
        return layout


def finding_message(finding: Finding) -> tuple[bytes, bytes, Headers]:
    """(key, value, CloudEvents binary headers) of a finding."""
    body = finding.body
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", body["id"].encode()),
        ("ce_type", f"ecg.finding.{body['kind']}.v1".encode()),
        ("ce_source", b"ecg-worker"),
        ("ce_subject", body["stream"].encode()),
        ("ce_time", body["time"].encode()),
        ("content-type", b"application/json"),
    )
    return body["stream"].encode(), to_json(body), headers


def dead_letter_message(letter: DeadLetter, topic: str) -> tuple[bytes, bytes, Headers]:
    """(key, value, headers) of a dead letter; the key is where the refused record stands."""
    body: dict[str, Any] = {
        "v": 1,
        "reason": letter.code,
        "topic": topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "sha256": letter.digest,
        "bytes": letter.size,
    }
    if letter.lost_until is not None:
        body["lost_until"] = letter.lost_until
    if letter.payload is not None:
        body["payload_hex"] = letter.payload.hex()
    return f"{topic}/{letter.partition}/{letter.offset}".encode(), to_json(body), (("content-type", b"application/json"),)


def dead_letter(partition: int, offset: int, code: str, value: bytes | None, keep: bool = False) -> DeadLetter:
    """What is kept of a refused record. A payload that would not fit into a message as hex is left out all the same."""
    data = value or b""
    keep = keep and len(data) <= MAX_PAYLOAD_BYTES
    return DeadLetter(partition, offset, code, hashlib.sha256(data).hexdigest(), len(data), data if keep else None)


def to_json(body: dict[str, Any]) -> bytes:
    """Compact UTF-8 JSON. Raises TypeError for what JSON does not have; a NaN would become null, so let none come here."""
    return orjson.dumps(body)


def parse_finding(value: bytes) -> dict[str, Any]:
    """A finding's JSON object. Raises BadInput("finding") when it is not one of ours."""
    try:
        body = orjson.loads(value)
        if not all(isinstance(body[name], str) for name in ("id", "stream", "session", "time")):
            raise BadInput("finding", "not a finding: its identity is no text")
        if body["v"] != 1 or body["kind"] not in ("scored", "unscorable", "closed"):
            raise BadInput("finding", f"unknown finding version {body['v']!r} or kind {body['kind']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput("finding", f"not a finding: {type(error).__name__}") from None
    return dict(body)


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of what is published: "finding" or "dead-letter"."""
    return dict(json.loads(resources.files("stream_worker.proto").joinpath(f"{name}.schema.json").read_text("utf-8")))
