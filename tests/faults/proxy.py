"""A TCP proxy that can be cut, stalled, slowed, made to stop in the middle of a message and to alter one.

It runs in a thread of its own, so that a test may block while it works. A Kafka client goes on at the addresses the broker
names, so put it in front of a listener that names this proxy: LocalServices(kafka_proxy=proxy.address).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["Proxy"]

Side = Literal["client", "server"]
_PIECE = 1 << 16
_CONTROL_S = 10.0


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers: dict[Side, asyncio.StreamWriter] = {"client": client}
        self.swallowed = False  # bytes are missing: whatever followed would be garbage

    def drop(self) -> None:
        for writer in self.writers.values():
            writer.transport.abort()


class Proxy:
    """Passes connections on to `target` ("host:port"; may be set or changed later) from a port that it keeps all its life.

    with Proxy(target) as proxy:
        connect(proxy.address)
        proxy.cut()                  # all connections are reset, new ones refused
        proxy.heal()                 # whatever was done is undone; the same port
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.truncated = 0  # connections ended by `truncate`
        self.damaged = 0  # pieces altered by `damage`
        self._socket = _bound(0)
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: dict[_Link, asyncio.Task[Any] | None] = {}
        self._stalled, self._delay_s = False, 0.0
        self._left: int | None = None  # bytes to pass towards `_short` before the connection ends
        self._short: Side = "client"
        self._prey = b""  # bytes on their way to the client that are altered

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._run(self._cut())

    def heal(self) -> None:
        """Pass everything on again. Connections that lost bytes to `stall` are reset: nothing sensible could follow."""
        self._run(self._heal())

    def stall(self) -> None:
        """Accept connections and bytes, pass nothing on and answer nothing: a network that loses every packet."""
        self._stalled = True

    def delay(self, seconds: float) -> None:
        """Hold each piece (of at most 64 kB) this long, in each direction."""
        self._delay_s = seconds

    def truncate(self, after_bytes: int, towards: Side = "client") -> None:
        """End the connection that carries the `after_bytes`-th byte from now towards that side, right behind it; once."""
        self._short, self._left = towards, after_bytes

    def damage(self, prey: bytes) -> None:
        """Flip a bit of the next such bytes towards the client, if they come in one piece; once."""
        self._prey = prey

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONTROL_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CONTROL_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._socket)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket = _bound(self.port)  # bound, not listening: connections are refused, and nobody else gets the port
        await self._drop(list(self._links))

    async def _heal(self) -> None:
        self._stalled, self._delay_s, self._left, self._prey = False, 0.0, None, b""
        await self._drop([link for link in self._links if link.swallowed])
        if self._server is None:
            await self._listen()

    async def _close(self) -> None:
        await self._cut()
        self._socket.close()

    async def _drop(self, links: list[_Link]) -> None:
        tasks = [task for link in links if (task := self._links.get(link)) is not None]
        for link in links:
            link.drop()
        if tasks:
            await asyncio.wait(tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links[link] = asyncio.current_task()
        try:
            host, _, port = self.target.rpartition(":")
            with contextlib.suppress(OSError):
                if not port:
                    raise ConnectionRefusedError("no target yet")
                behind, link.writers["server"] = await asyncio.open_connection(host, int(port))
                pumps = [
                    asyncio.create_task(self._pump(link, reader, "server")),
                    asyncio.create_task(self._pump(link, behind, "client")),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for end in link.writers.values():
                end.close()  # what was written still goes out
            del self._links[link]

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, towards: Side) -> None:
        """Pass bytes on until either side ends, or until `truncate` has its way."""
        writer = link.writers[towards]
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if self._stalled:
                    link.swallowed = True
                    continue
                whole = len(data)
                if self._left is not None and towards == self._short:
                    data = data[: self._left]
                    self._left -= len(data)
                if self._prey and towards == "client" and (at := data.find(self._prey)) >= 0:
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    self._prey = b""
                    self.damaged += 1
                writer.write(data)
                await writer.drain()
                if len(data) < whole or (self._left == 0 and towards == self._short):
                    self._left = None
                    self.truncated += 1
                    return


def _bound(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held
