"""The published wire format of `ecg.v1.Chunk`, for readers of the topic. Its schema, stream_worker/proto/ecg_chunk.proto, may
not be imported by this package; a test compares the two field by field.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from encoders.signal import Layout, SignalError

__all__ = ["ChunkError", "WireChunk", "decode", "message_class"]

_KINDS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "enum": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,  # the same on the wire
}
_MESSAGES = {  # name -> fields in the order of their numbers; * repeated
    "Layout": ("uint32 fs_mhz", "string* leads", "double* gain", "double* baseline", "enum unit"),
    "ChunkRecord": (
        *("string stream_id", "string session_id", "int64 session_start_ns", "int64 first_sample"),
        *("bytes layout", "bytes samples", "enum order", "bool last"),
    ),
}
_UNITS = ("mV", "NU")
_INTERLEAVED = 1


class ChunkError(ValueError):
    """Bytes that are no chunk."""


class WireChunk(NamedTuple):
    """run: stream, session, session start ns, layout digest. samples: int16 (C, n), the first at index `first`."""

    run: tuple[str, str, int, bytes]
    first: int
    samples: NDArray[np.int16]


@cache
def message_class(name: str) -> type[Any]:
    """Layout or ChunkRecord: the chunk with its layout unparsed."""
    file = descriptor_pb2.FileDescriptorProto(name="training/chunk.proto", package="ecg.v1", syntax="proto3")
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for number, spelled in enumerate(fields, 1):
            kind, field = spelled.split()
            many = kind.endswith("*")
            label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED if many else None
            made.field.add(name=field, number=number, type=_KINDS[kind.rstrip("*")], label=label)
    pool = descriptor_pool.DescriptorPool()  # its own: the worker's schema may stand in the default pool
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"ecg.v1.{name}")
    made_class: type[Any] = message_factory.GetMessageClass(found)
    return made_class


@cache
def _layout(spelled: bytes) -> Layout:
    fields = message_class("Layout").FromString(spelled)
    unit = _UNITS[fields.unit] if 0 <= fields.unit < len(_UNITS) else "unknown"
    return Layout.of(fields.fs_mhz, fields.leads, fields.gain, fields.baseline, unit)


def decode(value: bytes) -> WireChunk:
    """Raises ChunkError."""
    try:
        m = message_class("ChunkRecord").FromString(value)
        layout = _layout(m.layout)
        flat = np.frombuffer(m.samples, "<i2")
        n = len(layout.leads)
        samples = flat.reshape(-1, n).T if m.order == _INTERLEAVED else flat.reshape(n, -1)
    except (DecodeError, SignalError, ValueError) as error:
        raise ChunkError(f"{type(error).__name__}: {error}") from None
    return WireChunk((m.stream_id, m.session_id, m.session_start_ns, layout.digest), m.first_sample, samples)
