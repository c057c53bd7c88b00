"""What every chunk of a stream repeats, as bytes: one that repeats it is read without being parsed, and its samples stay where
they are. Pure; equal to Protobuf by construction, and fuzzed against it.

A repeat is written from the fields of a chunk that has been parsed and found good, in the order of their numbers. Bytes of
this form hold these fields, whatever stands for the first sample and the samples; bytes of any other form go to Protobuf.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from encoders.signal import Layout
from stream_worker.proto.ecg_chunk_pb2 import INTERLEAVED, ChunkRecord
from stream_worker.records import Chunk, RunKey

__all__ = ["INT16", "MAX_CHUNK_S", "MAX_INDEX", "Repeat"]

INT16 = np.dtype("<i2")
MAX_CHUNK_S = 60
MAX_INDEX = 1 << 53  # a JSON number can hold it exactly

_FIRST_SAMPLE, _SAMPLES = b"\x20", b"\x32"  # tags of field 4, a varint, and of field 6, counted bytes
_MOST = 1024  # bytes remembered of a stream
_SHIFT = 56  # where reading a number ends: one that goes on is beyond every limit by then


class Repeat(NamedTuple):
    """The form: head, varint of the first sample, middle, varint of the bytes of samples, samples, tail."""

    head: bytes
    middle: bytes
    tail: bytes
    leads: int
    longest: int  # samples a lead that a chunk may hold
    interleaved: bool
    run: RunKey
    layout: Layout

    @classmethod
    def of(cls, message: ChunkRecord, chunk: Chunk) -> Repeat | None:
        """message: a good one, which `chunk` was made from. None where there is too much to remember."""
        ids = ChunkRecord(stream_id=chunk.key[0], session_id=chunk.key[1], session_start_ns=chunk.key[2])
        head = ids.SerializeToString() + _FIRST_SAMPLE
        middle = ChunkRecord(layout=message.layout).SerializeToString() + _SAMPLES
        if len(head) + len(middle) > _MOST:
            return None
        tail, layout = ChunkRecord(order=message.order).SerializeToString(), chunk.layout
        longest, interleaved = MAX_CHUNK_S * layout.fs_mhz // 1000, message.order == INTERLEAVED
        return cls(head, middle, tail, len(layout.leads), longest, interleaved, chunk.key, layout)

    def read(self, value: bytes) -> Chunk | None:
        """The chunk; None when the bytes are not of this form or hold what a chunk must not: Protobuf finds out which."""
        head, middle, tail, leads, longest, interleaved, run, layout = self
        if not value.startswith(head):
            return None
        try:
            at, first, shift = len(head), 0, 0  # both numbers are read here: a call costs as much as two of their bytes
            while (byte := value[at]) > 127 and shift < _SHIFT:
                first |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
            first |= byte << shift
            if not value.startswith(middle, at + 1):
                return None
            at, size, shift = at + 1 + len(middle), 0, 0
            while (byte := value[at]) > 127 and shift < _SHIFT:
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
            size |= byte << shift
        except IndexError:
            return None
        at += 1
        count, rest = divmod(size, 2 * leads)
        if rest or at + size + len(tail) != len(value) or not value.endswith(tail):
            return None
        if not 0 < count <= longest or first > MAX_INDEX - count:
            return None
        if interleaved:
            return Chunk(run, layout, first, np.ndarray((count, leads), INT16, value, at).T, False)
        return Chunk(run, layout, first, np.ndarray((leads, count), INT16, value, at), False)
