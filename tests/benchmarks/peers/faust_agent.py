"""A Faust agent that cuts windows, as Faust's user guide writes agents: `faust_agent.py KAFKA TOPIC GROUP PARTITIONS CHUNKS`.

Its buffers live in a plain dict: a Faust table would be safer and many times slower.
"""

from __future__ import annotations

import os
import sys
import tempfile

import faust

from tests.benchmarks.peers.plain import Windows

kafka, topic, group, _, chunks = sys.argv[1:]
app = faust.App(
    group,
    broker=f"kafka://{kafka}",
    store="memory://",
    datadir=tempfile.mkdtemp(),
    consumer_auto_offset_reset="earliest",
    consumer_max_fetch_size=2 << 20,  # a message of the default size would be too large for it
    topic_disable_leader=True,
    web_enabled=False,
)
windows = Windows(int(chunks), lambda: os._exit(0))


@app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw", value_type=bytes))
async def cut(stream):
    async for value in stream:
        windows.add(value)


if __name__ == "__main__":
    faust.Worker(app, loglevel="ERROR").execute_from_commandline()
