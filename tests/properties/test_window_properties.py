"""Split, duplication and reordering within the grace change nothing, to the bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_worker.records import Chunk, Window
from tests.support import Rules, Windower, layout, run_key, signal

FS = (50_000, 128_000, 250_000, 333_333)


def cut(total: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = [0, *sorted({c % total for c in cuts} - {0}), total]
    return list(itertools.pairwise(edges))


def windows(of: Any, x: Any, pieces: list[tuple[int, int]], rules: Rules) -> list[Window]:
    windower, out = Windower(0, rules), []
    for offset, (first, end) in enumerate(pieces):
        chunk = Chunk(run_key(of), of, first, x[:, first:end], end == x.shape[1])
        out += [e for e in windower.push(chunk, offset, offset) if isinstance(e, Window)]
    return out


def delayed(pieces: list[tuple[int, int]], delays: list[int], grace: int) -> list[tuple[int, int]]:
    """Each piece may be overtaken by others, but never by a sample at or beyond its own first sample + grace."""
    order: list[tuple[int, int]] = []
    waiting: list[tuple[int, tuple[int, int]]] = []
    for i, piece in enumerate(pieces):
        due = [w for w in waiting if w[0] <= i or piece[1] - 1 >= w[1][0] + grace]
        order += [p for _, p in due]
        waiting = [w for w in waiting if w not in due]
        delay = delays[i % len(delays)]
        if delay and piece[1] - piece[0] < grace:
            waiting.append((i + delay, piece))
        else:
            order.append(piece)
    return order + [p for _, p in waiting]


@settings(max_examples=150, deadline=None)
@given(
    fs_mhz=st.sampled_from(FS),
    hop_ms=st.sampled_from((1000, 2500, 5000, 10_000)),
    seconds=st.integers(3, 45),
    coarse=st.lists(st.integers(0, 10**6), max_size=8),
    fine=st.lists(st.integers(0, 10**6), min_size=5, max_size=120),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    doubles=st.lists(st.integers(0, 10**6), max_size=10),
)
def test_windows_do_not_depend_on_how_the_log_was_cut(
    fs_mhz: int, hop_ms: int, seconds: int, coarse: list[int], fine: list[int], delays: list[int], doubles: list[int]
) -> None:
    of = layout(fs_mhz=fs_mhz)
    x = signal(of, of.samples(seconds * 1000) + 7)
    rules = Rules(hop_ms=hop_ms)
    plain = windows(of, x, cut(x.shape[1], coarse), rules)
    pieces = delayed(cut(x.shape[1], fine), delays, of.samples(rules.grace_ms))
    for d in doubles:
        at = d % len(pieces)
        pieces.insert(min(len(pieces), at + 1 + d % 3), pieces[at])
    shuffled = windows(of, x, pieces, rules)
    assert [(w.first, w.next, w.closed) for w in shuffled] == [(w.first, w.next, w.closed) for w in plain]
    for a, b in zip(plain, shuffled, strict=True):
        assert np.array_equal(a.samples, b.samples)


@settings(max_examples=100, deadline=None)
@given(
    hop_ms=st.sampled_from((1000, 4000, 10_000)),
    lost=st.lists(st.integers(0, 59), min_size=1, max_size=25, unique=True),
    fine=st.integers(1, 5),
)
def test_lost_chunks_give_the_same_windows_however_the_rest_is_cut(hop_ms: int, lost: list[int], fine: int) -> None:
    of = layout(fs_mhz=100_000)
    x = signal(of, 6000)
    kept = [i for i in range(60) if i not in lost]
    whole = [(i * 100, i * 100 + 100) for i in kept]
    parts = [(a, min(a + 100 // fine + 1, b)) for s, b in whole for a in range(s, b, 100 // fine + 1)]
    one, other = windows(of, x, whole, Rules(hop_ms=hop_ms)), windows(of, x, parts, Rules(hop_ms=hop_ms))
    assert [(w.first, w.samples.tobytes(), w.closed) for w in one] == [(w.first, w.samples.tobytes(), w.closed) for w in other]
    for w in one:  # what is there is right, nothing is made up
        for t in range(w.samples.shape[1]):
            here = (w.first + t) // 100 in kept
            assert np.array_equal(w.samples[:, t], x[:, w.first + t]) if here else (w.samples[:, t] == -32768).all()
