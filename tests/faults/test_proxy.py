"""The proxy itself, by plain sockets."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it receives, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EchoHandler)
        self.received = b""


class EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(4096):
                self.server.received += data  # type: ignore[attr-defined]
                self.request.sendall(data)
        except OSError:
            return  # the proxy was cut


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(f"127.0.0.1:{echo.server_address[1]}") as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def receive(link: socket.socket, n: int) -> bytes:
    """`n` bytes, or what came before the end."""
    out = b""
    while len(out) < n:
        try:
            part = link.recv(n - len(out))
        except ConnectionResetError:
            return out
        if not part:
            return out
        out += part
    return out


def answers(link: socket.socket, data: bytes) -> bool:
    link.sendall(data)
    return receive(link, len(data)) == data


def test_bytes_pass_both_ways_unchanged_and_ends_are_passed_on(proxy: Proxy) -> None:
    sent = bytes(range(256)) * 4000
    with connected(proxy) as link:
        writer = threading.Thread(target=link.sendall, args=(sent,))
        writer.start()
        assert receive(link, len(sent)) == sent
        writer.join()
        assert proxy.connections == 1
    deadline = time.monotonic() + 10
    while proxy.connections:
        assert time.monotonic() < deadline, "the proxy keeps a connection whose client has gone"
        time.sleep(0.01)


def test_a_cut_resets_what_is_open_and_refuses_what_is_new_until_healed(proxy: Proxy) -> None:
    with connected(proxy) as link:
        assert answers(link, b"before")
        proxy.cut()
        assert receive(link, 1) == b""
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.cut()  # twice is as once
    proxy.heal()
    with connected(proxy) as link:
        assert answers(link, b"after")


def test_a_stall_swallows_and_keeps_quiet(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as busy, connected(proxy) as idle:
        assert answers(busy, b"1")
        assert answers(idle, b"2")
        proxy.stall()
        busy.sendall(b"lost")
        with connected(proxy) as late:  # a connection is accepted all the same
            late.sendall(b"lost too")
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.recv(1)
        busy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            busy.recv(1)
        assert b"lost" not in echo.received
        proxy.heal()
        busy.settimeout(10)
        assert receive(busy, 1) == b""  # bytes are missing in it
        assert answers(idle, b"3")  # none are missing here


def test_a_delay_holds_each_direction(proxy: Proxy) -> None:
    with connected(proxy) as link:
        assert answers(link, b"x")
        proxy.delay(0.2)
        begun = time.monotonic()
        assert answers(link, b"y")
        assert time.monotonic() - begun >= 0.4
        proxy.heal()
        assert answers(link, b"z")


def test_truncation_ends_one_connection_in_the_middle_of_an_answer(proxy: Proxy, echo: Echo) -> None:
    proxy.truncate(5)
    with connected(proxy) as link:
        link.sendall(b"a whole message")
        assert receive(link, 99) == b"a who"
    assert echo.received == b"a whole message"
    assert proxy.truncated == 1
    with connected(proxy) as link:
        assert answers(link, b"once only")


def test_truncation_of_a_request_counts_over_messages(proxy: Proxy, echo: Echo) -> None:
    proxy.truncate(9, towards="server")
    with connected(proxy) as link:
        assert answers(link, b"first")
        link.sendall(b"second")
        receive(link, 99)
    patience = time.monotonic() + 10  # the client hears of the end before the server has read what came before it
    while len(echo.received) < 9 and time.monotonic() < patience:
        time.sleep(0.01)
    assert echo.received == b"firstseco"


def test_a_proxy_to_nowhere_ends_connections_and_another_target_may_follow(proxy: Proxy, echo: Echo) -> None:
    there = proxy.target
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy.target = f"127.0.0.1:{nobody.getsockname()[1]}"
        with connected(proxy) as link:
            assert receive(link, 1) == b""
    proxy.target = there
    with connected(proxy) as link:
        assert answers(link, b"here")


def test_damage_alters_one_bit_of_one_answer(proxy: Proxy, echo: Echo) -> None:
    proxy.damage(b"whole")
    with connected(proxy) as link:
        link.sendall(b"a whole message")
        assert receive(link, 15) == b"a vhole message"
        assert answers(link, b"a whole message")
    assert echo.received == 2 * b"a whole message"
    assert proxy.damaged == 1
