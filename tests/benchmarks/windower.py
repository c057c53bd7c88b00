"""Protobuf bytes -> closed int16 windows, against "parse + one scatter" with neither duplicate nor gap handling."""

from __future__ import annotations

import tracemalloc

import numpy as np

from encoders.signal import LEADS
from stream_worker.devices.encode import encode_chunk
from stream_worker.proto.ecg_chunk_pb2 import Chunk
from stream_worker.run import Rules
from stream_worker.window import Windower
from stream_worker.wire import INT16, Decoder
from tests.benchmarks.timing import ratio
from tests.support import layout, signal

STREAMS, SECONDS = 100, 30
L = layout(leads=LEADS)


def messages() -> list[tuple[bytes, bytes]]:
    x = signal(L, 500)
    return [
        (f"s{s}".encode(), encode_chunk(f"s{s}", "1", 0, L, second * 500, x))
        for second in range(SECONDS)
        for s in range(STREAMS)
    ]


def measure() -> dict[str, float]:
    """windower_vs_scatter (time), memory_per_run (bytes over the int16 bytes of 12 s, less 4 kB)."""
    log = messages()

    def ours() -> int:
        decode, windower = Decoder(), Windower(0, Rules())
        closed = sum(len(windower.push(decode(key, value), i, i // STREAMS * 1000)) for i, (key, value) in enumerate(log))
        assert closed == STREAMS * SECONDS // 10
        return closed

    def scatter() -> None:
        buffers = {f"s{s}": np.empty((12, 5000), dtype=np.int16) for s in range(STREAMS)}
        for _, value in log:
            message = Chunk.FromString(value)
            x = np.frombuffer(message.samples, INT16).reshape(12, -1)
            at = message.first_sample % 5000
            buffers[message.stream_id][:, at : at + x.shape[1]] = x

    return {"windower_vs_scatter": ratio(ours, scatter), "memory_per_run": memory_per_run(log)}


def memory_per_run(log: list[tuple[bytes, bytes]]) -> float:
    """Traced bytes of 100 open runs after 12 s, at the smallest hop."""
    decode, windower = Decoder(), Windower(0, Rules(hop_ms=1000))
    tracemalloc.start()
    for i, (key, value) in enumerate(log[: 12 * STREAMS]):
        windower.push(decode(key, value), i, i // STREAMS * 1000)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (used / STREAMS - 4096) / (12 * 500 * 12 * 2)
