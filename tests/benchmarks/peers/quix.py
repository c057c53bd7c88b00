"""quixstreams cutting windows, as its documentation writes applications: `quix.py [plain] KAFKA TOPIC GROUP PARTITIONS CHUNKS`.

The buffers live in its own state, as the documentation suggests; with the word in a plain dict, which a restart loses.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile

import numpy as np
from quixstreams import Application, State

from stream_worker.proto.ecg_chunk_pb2 import Chunk
from tests.benchmarks.peers.plain import LEADS, Windows

*options, kafka, topic, group, _, chunks = sys.argv[1:]
app = Application(
    broker_address=kafka,
    consumer_group=group,
    auto_offset_reset="earliest",
    loglevel=logging.ERROR,
    state_dir=tempfile.mkdtemp(),
    consumer_extra_config={"isolation.level": "read_committed"},
)
windows = Windows(int(chunks), lambda: os._exit(0))


def cut(value: bytes, state: State) -> int:
    """The open window's chunks in the state, as bytes; the window when there are ten."""
    chunk = Chunk.FromString(value)
    held = state.get_bytes("held", b"") + chunk.samples
    at = chunk.first_sample // 500 % 10
    if at == 9:
        np.frombuffer(held, "<i2").reshape(-1, LEADS, 500).transpose(1, 0, 2).reshape(LEADS, -1)
    state.set_bytes("held", b"" if at == 9 else held)
    windows.count(at == 9)
    return at


stream = app.dataframe(app.topic(topic, key_deserializer="str", value_deserializer="bytes"))
stream = stream.update(windows.add) if options else stream.apply(cut, stateful=True)

if __name__ == "__main__":
    app.run()
