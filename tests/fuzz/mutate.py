"""Bytes near a well-formed input, as a hypothesis strategy that shrinks towards fewer and smaller changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

__all__ = ["mutated"]

TELLING = (
    b"0", b"-1", b"1e999", b"-inf", b"nan", b"Infinity", b"null", b"true", b"{}", b"[]", b'""', b"\n", b"\0", b",", b" ", b"=",
    b"/", b"..", b"%", b"9" * 20, b"9" * 400, b"[" * 2000, b"\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xe2\x80\xae",
)  # fmt: skip


class Change(NamedTuple):
    """At `where` of the whole length (0 to 1), `cut` bytes give way to `put`."""

    where: float
    cut: int
    put: bytes


def _applied(data: bytes, changes: Sequence[Change]) -> bytes:
    for where, cut, put in changes:
        at = int(where * (len(data) + 1))
        data = data[:at] + put + data[at + cut :]
    return data


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with up to five changes; now and then bytes of no form at all."""
    lengths = st.one_of(st.integers(0, 4), st.sampled_from((8, 16, 100, 1 << 20)))  # the last cuts all that follows
    put = st.one_of(st.binary(max_size=4), st.sampled_from(TELLING), st.integers(0, 10**7).map(lambda n: str(n).encode()))
    change = st.builds(Change, st.floats(0, 1, exclude_max=True), lengths, put)
    near = st.builds(_applied, st.sampled_from(list(seeds)), st.lists(change, min_size=1, max_size=5))
    return st.one_of(near, near, near, st.binary(max_size=200))
