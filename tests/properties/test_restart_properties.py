"""A partition whose owner dies at any moment: what is published in the end is what one undisturbed worker publishes.

The machine writes a log (chunks in and out of order, twice, with holes, jumps and silence), takes and publishes some of it,
commits, and dies, again and again; each new owner knows only the log, the findings that are out and the last commit.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from structlog.testing import capture_logs

from encoders.signal import Layout
from stream_worker.errors import BadInput
from stream_worker.ledger import decode_metadata
from stream_worker.partition import Partition, Work
from stream_worker.records import Chunk, Closed, Finding, RunKey, Window, identity
from stream_worker.recovery import recover
from stream_worker.run import Rules
from stream_worker.seam import Headers, Position, Record
from stream_worker.settings import Settings, load_settings
from tests.support import layout, run_key, signal

OF: Layout = layout(fs_mhz=50_000, leads=("II",))
SIGNAL = signal(OF, 200_000)
DEVICES = ("a", "b", "c")
REREAD_MS = 43_000  # window, grace, idle time, and the second that chunks may share in the books
FAR = 3001  # samples, just beyond the 60 s that a run may jump


def spelled(event: Window | Closed) -> bytes:
    """The finding of an event, with all that recovery reads."""
    stream, session, start_ns, _ = event.key
    window = isinstance(event, Window)
    body = {
        "v": 1, "id": identity(event.key, "x", event.first), "kind": "scored" if window else "closed", "time": "t",
        "stream": stream, "session": session, "session_start_ns": start_ns, "first_sample": event.first,
        "layout": {"fs_mhz": OF.fs_mhz, "leads": OF.leads, "gain": OF.gain, "baseline": OF.baseline, "unit": OF.unit},
        "next": event.next if isinstance(event, Window) else event.first, "closed": event.closed or None,
        "input": {"first": event.input.first, "last": event.input.last, "last_timestamp": event.input.last_timestamp_ms},
        "window_digest": hashlib.sha256(event.samples.tobytes()).hexdigest() if isinstance(event, Window) else "",
    }  # fmt: skip
    return json.dumps(body).encode()


class Log:
    """What outlives an owner, and as much of a broker as recovery asks."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.chunks: dict[int, Chunk] = {}  # those that can be read, by offset
        self.findings: dict[int, bytes] = {}  # by position: an aborted transaction leaves positions out
        self.findings_end = 0
        self.letters: list[tuple[int, str]] = []
        self.position: Position | None = None

    def append(self, chunk: Chunk | None, timestamp_ms: int) -> None:
        offset = len(self.records)
        self.records.append(Record(0, offset, timestamp_ms, b"", str(offset).encode()))
        if chunk is not None:
            self.chunks[offset] = chunk

    def decode(self, key: bytes | None, value: bytes | None) -> Chunk:
        chunk = self.chunks.get(int(value or b""))
        if chunk is None:
            raise BadInput("schema")
        return chunk

    async def fence(self, partition: int) -> None:
        """Nobody else writes here."""

    def partitions(self, topic: str) -> int:
        return 1

    async def committed(self, partition: int) -> Position | None:
        return self.position

    async def beginning_offset(self, partition: int) -> int:
        return 0

    async def end_offset(self, partition: int) -> int:
        return len(self.records)

    async def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        for at, value in self.findings.items():
            if at >= start:
                yield Record(partition, at, 0, b"", value), ()


class Owner:
    """One worker's hold on the partition, from recovery to death."""

    def __init__(self, log: Log, rules: Rules, config: Settings, exactly_once: bool) -> None:
        self.log, self.exactly_once = log, exactly_once
        self.part = Partition(0)
        waiting = recover(log, 0, config, rules)  # type: ignore[arg-type]
        try:
            with capture_logs():
                waiting.send(None)  # nothing in it ever waits
        except StopIteration as done:
            self.part.restore(done.value)
        self.works: list[tuple[Work, list[Window | Closed]]] = []  # taken, with the events that are not out
        if log.position is None:
            self.commit()  # the worker commits where it begins before anything can be out

    def take(self, count: int) -> None:
        records = self.log.records[self.part.taken : self.part.taken + count]
        if records:
            self._submit(self.part.take(records, self.log.decode, False))  # type: ignore[arg-type]

    def conclude_idle(self) -> None:
        work = self.part.conclude_idle()
        if work is not None:
            self._submit(work)

    def _submit(self, work: Work) -> None:
        self.part.in_flight += 1
        self.works.append((work, list(work.events)))

    def publish(self, count: int) -> None:
        """Up to `count` messages, in order; a work is done when all of its are out."""
        while count > 0 and self.works:
            work, left = self.works[0]
            while left and count > 0:
                event, count = left.pop(0), count - 1
                value, at = spelled(event), self.log.findings_end
                self.log.findings[at] = value
                self.log.findings_end = at + 1
                body = json.loads(value)
                self.part.published(Finding(event.key, 0, body["next"], body), at)
            if not left:
                count -= 1
                self.log.letters += [(letter.offset, letter.code) for letter in work.letters]
                self.part.done(work)
                del self.works[0]

    def commit(self) -> None:
        """With exactly-once delivery all that waits goes out with the commit, in one transaction."""
        if self.exactly_once:
            self.publish(1 << 30)
        before = self.log.position
        self.log.position = after = Position(*self.part.position())
        if before is not None:  # W, P and F only rise
            assert after.offset >= before.offset
            assert decode_metadata(after.metadata, 0)[0] >= decode_metadata(before.metadata, 0)[0]
            assert decode_metadata(after.metadata, 0)[1] >= decode_metadata(before.metadata, 0)[1]
        assert after.offset <= decode_metadata(after.metadata, 0)[0] <= len(self.log.records)
        assert len(after.metadata) < 200
        taken = self.part.taken
        if self.exactly_once and after.offset < taken and taken >= self.part.quiet_below:
            at, now = (self.log.records[offset].timestamp_ms for offset in (after.offset, taken - 1))
            assert now - at <= REREAD_MS


class Restarts(RuleBasedStateMachine):
    """Rules are what happens to a partition and its owners; the promise is checked at the end."""

    strays = False  # one that was refused, and is read again when its run has been closed, is believed: docs/semantics.md

    @initialize(
        hop_ms=st.sampled_from((1000, 3500, 10_000)), runs=st.sampled_from((1, 2, 8)), exactly_once=st.booleans()
    )  # fmt: skip
    def begin(self, hop_ms: int, runs: int, exactly_once: bool) -> None:
        self.rules = Rules(hop_ms=hop_ms, runs=runs)
        delivery: Any = "exactly_once" if exactly_once else "at_least_once"
        self.config = load_settings(start="earliest", delivery=delivery)
        self.exactly_once = exactly_once
        self.log = Log()
        self.now_ms = 1_000_000
        self.next: dict[RunKey, int] = {}  # the sample each device sends next
        self.heard: dict[RunKey, int] = {}  # the log time of what last went beyond a grid point
        self.owner = Owner(self.log, self.rules, self.config, exactly_once)

    # ---- devices

    @rule(
        device=st.sampled_from(DEVICES),
        session=st.sampled_from("123"),
        length=st.integers(1, 200),
        shift=st.sampled_from((0, 0, 0, 0, 20, 70, 150, 600, -20, -70, -150)),
        dt_ms=st.sampled_from((200, 1000, 1000, 3000)),
        changed=st.sampled_from((0, 0, 0, 1)),
        last=st.sampled_from((False, False, False, False, True)),
    )
    def send(self, device: str, session: str, length: int, shift: int, dt_ms: int, changed: int, last: bool) -> None:
        """shift: samples ahead of what is due: holes, and what came before, as it was or `changed`."""
        self.now_ms += dt_ms
        key, hop = run_key(OF, stream=device, session=session), self.rules.hop_ms * 50 // 1000
        if self.now_ms - self.heard.setdefault(key, self.now_ms) > 300_000:  # old samples after ten minutes are not promised
            self.next[key] = self.next.get(key, 0) + 20_000
            self.heard[key] = self.now_ms
            shift = max(shift, 0)
        due = self.next.get(key, 0)
        first = max(0, due + shift)
        end = first + length
        samples = SIGNAL[:, np.arange(first, end) % SIGNAL.shape[1]] + np.int16(changed if shift < 0 else 0)
        self.log.append(Chunk(key, OF, first, samples, last), self.now_ms)
        if end // hop > due // hop:
            self.heard[key] = self.now_ms
        if shift < FAR:
            self.next[key] = max(due, end)

    @rule(devices=st.sets(st.sampled_from(DEVICES), min_size=1), seconds=st.integers(2, 25))
    def stream(self, devices: set[str], seconds: int) -> None:
        """A stretch of orderly chunks of a second."""
        for _ in range(seconds):
            for device in sorted(devices):
                self.send(device, "1", 50, 0, 300, 0, False)

    @rule(device=st.sampled_from(DEVICES), count=st.integers(2, 8), gap=st.integers(1, 60))
    def scatter(self, device: str, count: int, gap: int) -> None:
        """Short stretches with holes between them."""
        for _ in range(count):
            self.send(device, "1", 3, gap, 100, 0, False)

    @rule(device=st.sampled_from(DEVICES), count=st.integers(2, 12), dt_ms=st.sampled_from((5_000, 20_000, 29_000)))
    def drip(self, device: str, count: int, dt_ms: int) -> None:
        """Next to nothing, but never silent."""
        for _ in range(count):
            self.send(device, "1", 2, 0, dt_ms, 0, False)

    @precondition(lambda self: self.strays)
    @rule(device=st.sampled_from(DEVICES), ahead=st.integers(FAR, FAR + 1000))
    def stray(self, device: str, ahead: int) -> None:
        """A corrupt index: refused where the run is open, believed where nothing contradicts it."""
        self.send(device, "1", 50, ahead, 300, 0, False)

    @rule(dt_ms=st.sampled_from((1000, 31_000, 200_000)))
    def unreadable(self, dt_ms: int) -> None:
        """A record that is no chunk; after a while, so that runs fall silent."""
        self.now_ms += dt_ms
        self.log.append(None, self.now_ms)

    # ---- the owner

    @rule(count=st.integers(1, 60))
    def take(self, count: int) -> None:
        self.owner.take(count)

    @precondition(lambda self: not self.exactly_once)
    @rule(count=st.integers(1, 6))
    def publish(self, count: int) -> None:
        self.owner.publish(count)

    @rule()
    def commit(self) -> None:
        self.owner.commit()

    @precondition(lambda self: self.owner.part.taken == len(self.log.records))
    @rule()
    def stand_at_the_end(self) -> None:
        """For longer than the idle time: no later record can bear an earlier time."""
        self.now_ms += 36_000
        self.owner.conclude_idle()

    @rule()
    def die(self) -> None:
        self.owner = Owner(self.log, self.rules, self.config, self.exactly_once)

    # ---- the promise

    def teardown(self) -> None:
        if not hasattr(self, "owner"):
            return
        self.owner.take(len(self.log.records))
        self.owner.commit()  # whatever stands open now: a restart re-reads little
        for _ in range(2):
            self.unreadable(40_000)
        self.owner.take(len(self.log.records))
        self.owner.publish(1 << 30)
        self.owner.commit()
        undisturbed = worked_off(unread(self.log), self.rules, self.config, self.exactly_once)
        found, expected = facts(self.log), facts(undisturbed)
        assert expected.total() == len(expected), "an undisturbed worker publishes something twice"
        assert found == expected
        if self.exactly_once:
            assert Counter(self.log.letters) == Counter(undisturbed.letters)
        else:
            assert {offset for offset, _ in self.log.letters} >= {offset for offset, _ in undisturbed.letters}


def unread(log: Log) -> Log:
    """The same chunks, and nothing published yet."""
    other = Log()
    other.records, other.chunks = log.records, log.chunks
    return other


def worked_off(log: Log, rules: Rules, config: Settings, exactly_once: bool = True) -> Log:
    """One owner, from recovery on, publishes and commits all there is; the same log."""
    owner = Owner(log, rules, config, exactly_once)
    owner.take(len(log.records))
    owner.publish(1 << 30)
    owner.commit()
    return log


def facts(log: Log) -> Counter[tuple[Any, ...]]:
    bodies = map(json.loads, log.findings.values())
    return Counter((b["stream"], b["session"], b["first_sample"], b["next"], b["closed"], b["window_digest"]) for b in bodies)


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_the_promise_notices_a_window_that_is_lost_and_one_that_comes_twice() -> None:
    """What the machine above rests on."""
    log = Log()
    for i in range(12):
        log.append(Chunk(run_key(OF), OF, 50 * i, SIGNAL[:, 50 * i : 50 * i + 50], False), 1000 * i)
    owner = Owner(log, Rules(), load_settings(start="earliest"), exactly_once=False)
    owner.take(12)
    owner.publish(9)
    assert facts(log).total() == 1
    log.position = Position(12, '{"v":1,"P":12,"F":1}')  # a commit that forgets the finding and the samples behind it
    again = Owner(log, Rules(), load_settings(start="earliest"), exactly_once=False)
    again.take(12)
    log.append(None, 100_000)
    again.take(1)
    again.publish(9)
    assert facts(log).total() == 1  # the tail and its closing are lost
    log.position = Position(0, '{"v":1,"P":0,"F":1}')
    again = Owner(log, Rules(), load_settings(start="earliest"), exactly_once=False)
    again.take(13)
    again.publish(9)
    assert facts(log).most_common(1)[0][1] == 2


def test_a_jump_that_was_refused_is_refused_again_after_a_restart() -> None:
    """Otherwise the run goes on behind the jump: the windows before it are lost, and one is made up."""
    log, rules, config = Log(), Rules(), load_settings(start="earliest")

    def send(device: str, firsts: list[int]) -> None:
        for first in firsts:
            key = run_key(OF, stream=device)
            log.append(Chunk(key, OF, first, SIGNAL[:, first : first + 50], False), 1000 + 100 * len(log.records))

    send("a", [0])  # holds the commit down: its window is not complete
    send("b", [*range(0, 250, 50), 250 + FAR, *range(250, 500, 50)])
    worked_off(log, rules, config)
    assert log.letters == [(6, "index_jump")]
    assert facts(log).total() == 1  # the window of b before sample 500
    send("b", list(range(500, 1000, 50)))
    log.append(None, 60_000)
    worked_off(log, rules, config)
    undisturbed = worked_off(unread(log), rules, config)
    assert facts(log) == facts(undisturbed)


def test_no_run_is_made_up_of_a_chunk_that_many_holes_came_before() -> None:
    """Whether a chunk counts must not depend on what has been forgotten since: there is no limit on holes but the page's."""
    log, rules, config = Log(), Rules(), load_settings(start="earliest")

    def send(device: str, first: int, end: int, at_ms: int) -> None:
        log.append(Chunk(run_key(OF, stream=device), OF, first, SIGNAL[:, first:end], False), at_ms)

    send("p", 0, 50, 1000)  # holds the commit down
    for n in range(290):
        send("b", 2 * n, 2 * n + 1, 2000 + n)
    send("b", 1010, 1060, 2300)  # beyond the grid point at which b is closed
    send("p", 50, 100, 25_000)
    log.append(None, 33_000)  # b is idle
    worked_off(log, rules, config)
    log.append(None, 34_000)
    worked_off(log, rules, config)
    log.append(None, 100_000)
    worked_off(log, rules, config)
    undisturbed = worked_off(unread(log), rules, config)
    assert facts(log) == facts(undisturbed)
    assert log.letters == undisturbed.letters
