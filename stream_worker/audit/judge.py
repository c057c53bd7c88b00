"""What one partition's findings and dead letters should be, against what they are. Pure: knows no Kafka and no clock.

The chunks go through the `Windower` and the rules of the worker: what it cuts must have been published, once, with these very
contents; what it refuses must have a dead letter. Samples are digested as a window is cut and then let go: what is kept are
some 250 bytes a finding of the partition at hand. Feed findings and dead letters first, then chunks, then (`late`) what was
published meanwhile, and call `finish`.

What begins before the first record read cannot be judged: a run that may have been open there is judged from 12 s of signal
after its first chunk on, a refusal from 10.5 min of log time (idle + memory) after that record on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import orjson

from stream_worker.audit.facts import Due, Told, differences, due_of, pack, place_and_id, settle, told_by, unpack
from stream_worker.audit.report import PartReport
from stream_worker.errors import BadInput
from stream_worker.ledger import Committed, decode_metadata
from stream_worker.records import Chunk, Closed, Event, Rejected, RunKey, Window
from stream_worker.run import Rules
from stream_worker.seam import Position, Record
from stream_worker.window import Windower
from stream_worker.wire import Decoder

__all__ = ["PartitionAudit"]

STATEFUL = ("late", "conflict", "index_jump")  # refusals that depend on what was read before


class _View:
    """One run: its findings and the windows without one, by slot; how far it is published; from which sample it is judged."""

    __slots__ = ("due", "end", "found", "judged_from", "low", "position", "published", "start")

    def __init__(self) -> None:
        self.found: dict[int, bytes] = {}  # packed, and shorter once settled
        self.due: dict[int, Due] = {}
        self.published = self.position = -1  # highest `next`, and the place of the latest finding
        self.low: tuple[int, int] | None = None  # (offset, end) of the first chunk beyond `published`
        self.judged_from: int | None = None  # None: no chunk of it was read
        self.start = self.end = 0  # samples seen


class PartitionAudit:
    """Judges windows and refusals that records `start` to `end` (None: the end of the log) gave rise to.

    whole: nothing was ever written before the first record that is fed. commit: of the worker's group, read before the
    findings were; raises ConfigError when its metadata is another program's.
    """

    def __init__(
        self,
        number: int,
        rules: Rules,
        commit: Position | None,
        start: int = 0,
        end: int | None = None,
        whole: bool = True,
        topic: str = "ecg.chunks",
        decode: Decoder | None = None,
    ) -> None:
        self.number, self.rules, self.start, self.end, self.topic = number, rules, start, end, topic
        self.low = commit.offset if commit else 0
        self.processed, self.findings_from, _ = decode_metadata(commit.metadata, commit.offset) if commit else Committed(0, 0)
        self.report = PartReport(number, start, self.low, self.processed, self.findings_from)
        self.next = start  # one past the last chunk record that was fed
        self._windower = Windower(number, rules)
        self._decode = decode or Decoder()
        self._views: dict[RunKey, _View] = {}
        self._copies: dict[tuple[RunKey, int], list[bytes]] = {}
        self._letters: dict[tuple[int, str], bool] = {}  # found: whether it was settled
        self._refused: dict[tuple[int, str], None] = {}  # without a letter yet
        self._sure_ms: int | None = None
        self._sure_offset: int | None = 0 if whole else None  # from here on every run that is open or remembered is known
        self._last_ms = 0  # log time of the last record of the range

    # ---- what was published

    def finding(self, record: Record, late: bool = False) -> None:
        """A record of the findings topic. late: written after the findings were read for the first time."""
        self.report.findings += 1
        try:
            key, slot, told = told_by(record)
        except (BadInput, LookupError, TypeError, ValueError, ArithmeticError, struct.error):
            self.report.add("unexpected", position=record.offset, why="it is not a finding of this worker")
            return
        view = self._views.setdefault(key, _View())
        raw, before = pack(told), view.found.get(slot)
        if before is not None:
            self._again(key, slot, before, raw, told)
            return
        view.published, view.position = max(view.published, told.next), max(view.position, told.position)
        due = view.due.pop(slot, None)
        if due is not None:
            self._compare(key, slot, due, [told])
        view.found[slot] = settle(raw) if due is not None or late else raw

    def _again(self, key: RunKey, slot: int, before: bytes, raw: bytes, told: Told) -> None:
        if unpack(before) is not None:
            self._copies.setdefault((key, slot), []).append(raw)
        if self._in_range(told.last):
            place, mark = place_and_id(before)
            detail = {"position": place, "again": told.position, "same_id": mark == told.id}
            self.report.add("doubled", **_named(key, slot), **detail)

    def letter(self, record: Record) -> None:
        """A record of the dead letters topic."""
        self.report.letters += 1
        try:
            body = orjson.loads(record.value or b"")
            topic, at, lost = body["topic"], (int(body["offset"]), str(body["reason"])), body.get("lost_until")
        except (LookupError, TypeError, ValueError):
            self.report.add("unexpected_letters", position=record.offset, why="it is not a dead letter of this worker")
            return
        if topic != self.topic:
            return
        if at in self._letters:
            if self._in_range(at[0]):
                self.report.add("doubled_letters", offset=at[0], reason=at[1], position=record.offset)
            return
        self._letters[at] = at in self._refused or lost is not None
        if self._refused.pop(at, False) is None:
            self.report.refused += self._judges_letter(*at)
        if lost is not None:
            self.report.lost.append((at[0], int(lost)))

    # ---- what must have been

    def chunk(self, record: Record) -> bool:
        """A record of the chunks topic, in offset order. False: what the range gave rise to is closed, no more is needed."""
        if self._in_range(record.offset) or record.offset < self.start:
            self._last_ms = record.timestamp_ms
            self.report.chunks += record.offset >= self.start
        self.next = record.offset + 1
        if self._sure_ms is None:
            self._sure_ms = record.timestamp_ms + self.rules.idle_ms + self.rules.memory_ms
        if self._sure_offset is None and record.timestamp_ms > self._sure_ms:
            self._sure_offset = record.offset
        for event in self._events(record):
            if isinstance(event, Rejected):
                self._refuse(event)
            else:
                self._decide(event, record.offset)
        return record.timestamp_ms <= self._last_ms + self.rules.idle_ms

    def _events(self, record: Record) -> list[Event]:
        try:
            chunk = self._decode(record.key, record.value)
        except BadInput as error:
            return [*self._windower.tick(record.timestamp_ms), Rejected(record.offset, error.code)]
        except Exception:  # where the worker fails, so does this program: it is the same code
            return [*self._windower.tick(record.timestamp_ms), Rejected(record.offset, "defect")]
        key, layout, first, samples, _ = chunk
        view, end = self._views.setdefault(key, _View()), first + samples.shape[1]
        if view.judged_from is None:
            view.start = first
            sure = self._sure_offset is not None and record.offset >= self._sure_offset
            view.judged_from = 0 if sure else end + layout.window + layout.samples(self.rules.grace_ms)
        events = self._push(chunk, record)
        view.end = max(view.end, end)
        track = self._windower.track(key)
        if track is not None:
            track.quantum = 1  # each chunk an entry of its own: the very first offset that counts
            if track.offsets and track.offsets[-1] == record.offset and end > max(view.published, view.judged_from):
                view.low = view.low or (record.offset, end)
        return events

    def _push(self, chunk: Chunk, record: Record) -> list[Event]:
        """Where the worker failed on a chunk, so does this program, which is the same code; where it is not, the worker's word
        counts."""
        events, windower = self._windower.tick(record.timestamp_ms), self._windower
        try:
            pushed = windower.push(chunk, record.offset, record.timestamp_ms)
        except Exception:
            return windower.break_off(chunk, record.offset, events + windower.underway)
        if (record.offset, "defect") in self._letters:
            return windower.break_off(chunk, record.offset, events)
        return events + pushed

    def _refuse(self, event: Rejected) -> None:
        at = event.offset, event.code
        if at in self._letters:
            self._letters[at] = True
            self.report.refused += self._judges_letter(*at)
        else:
            self._refused[at] = None

    def _judges_letter(self, offset: int, code: str) -> bool:
        sure = code not in STATEFUL or (self._sure_offset is not None and offset >= self._sure_offset)
        return sure and self._in_range(offset)

    def _decide(self, event: Window | Closed, trigger: int | None) -> None:
        view, slot = self._views[event.key], 2 * event.first + isinstance(event, Closed)
        track, second = self._windower.track(event.key), event.layout.samples(1000)
        assert track is not None
        lowest = min(event.input.first, track.offsets[0]) if track.offsets else event.input.first
        # Entries of the last second stay: a worker that counts chunks by the second may name one of them.
        track.publish(event.first if isinstance(event, Closed) else event.next - (0 if event.closed else second), None)
        raw = view.found.get(slot)
        told = None if raw is None else unpack(raw)
        due = due_of(event, trigger, lowest, told)
        if raw is None:
            view.due[slot] = due
        elif told is None:
            return  # it came late: the log has gone on since
        elif trigger is not None or not differences(due, told, self.number):
            self._compare(event.key, slot, due, [told, *filter(None, map(unpack, self._copies.pop((event.key, slot), ())))])
            view.found[slot] = settle(raw)

    def _compare(self, key: RunKey, slot: int, due: Due, copies: list[Told]) -> None:
        if not self._judges(self._views[key], slot, due):
            return
        self.report.windows += 1
        for told in copies:
            if wrong := differences(due, told, self.number):
                self.report.add("differing", **_named(key, slot), position=told.position, fields=wrong)

    def _in_range(self, offset: int) -> bool:
        return self.start <= offset and (self.end is None or offset < self.end)

    def _judges(self, view: _View, slot: int, due: Due) -> bool:
        at = due.last if due.trigger is None else due.trigger
        return self._in_range(at) and view.judged_from is not None and slot // 2 >= view.judged_from

    # ---- the verdict

    @property
    def waits(self) -> bool:
        """Something that must have been published was not found: it is worth a second look at what came meanwhile."""
        late = (due.trigger for view in self._views.values() for due in view.due.values())
        return any(t is not None and t < self.processed for t in late) or any(o < self.processed for o, _ in self._refused)

    def finish(self, findings_end: int, chunks_end: int, ended: bool = True) -> PartReport:
        """findings_end, chunks_end: where the logs end, asked for after the commit was read. ended: all chunks were fed."""
        self.report.end = self.next if self.end is None else min(self.next, self.end)
        if ended:
            for event in self._windower.conclude_idle():
                assert not isinstance(event, Rejected)
                self._decide(event, None)
        for key, view in self._views.items():
            self._lack(key, view)
            self._excess(key, view)
        self._settle_letters()
        if ended or self.next >= self.processed:
            self._check_commit(findings_end, chunks_end)
        self.report.runs = {k: (v.start, v.end) for k, v in self._views.items() if v.judged_from is not None}
        return self.report

    def _lack(self, key: RunKey, view: _View) -> None:
        for slot, due in view.due.items():
            if due.trigger is None or not self._judges(view, slot, due):
                continue
            if due.trigger >= self.processed:
                self.report.pending += 1
            else:
                self.report.windows += 1
                self.report.add("missing", **_named(key, slot), first=due.first, last=due.last, trigger=due.trigger)

    def _excess(self, key: RunKey, view: _View) -> None:
        for slot, raw in view.found.items():
            told = unpack(raw)
            if told is None:
                continue
            if told.partition != self.number:
                why = f"it names partition {told.partition}"
            elif not self._in_range(told.last) or (view.judged_from is not None and slot // 2 < view.judged_from):
                continue
            else:
                why = "no chunk of this run" if view.judged_from is None else "no such window in the chunks"
            self.report.add("unexpected", **_named(key, slot), position=told.position, why=why)

    def _settle_letters(self) -> None:
        for at in self._refused:
            if at[0] < self.processed and self._judges_letter(*at):
                self.report.refused += 1
                self.report.add("missing_letters", offset=at[0], reason=at[1])
        for at, settled in self._letters.items():
            if not settled and at[0] < self.next and self._judges_letter(*at):
                self.report.add("unexpected_letters", offset=at[0], reason=at[1])

    def _check_commit(self, findings_end: int, chunks_end: int) -> None:
        for name, committed, allowed, why in self._bounds(findings_end, chunks_end):
            if committed > allowed:
                self.report.add("early_committed", what=name, committed=committed, allowed=allowed, why=why)

    def _bounds(self, findings_end: int, chunks_end: int) -> Iterator[tuple[str, int, int, str]]:
        """(name, committed, the most it may be, why)."""
        yield "P", self.processed, chunks_end, "the end of the chunks"
        yield "F", self.findings_from, findings_end, "the end of the findings"
        held = [(v.low[0], k) for k, v in self._views.items() if v.low is not None and v.low[1] > v.published]
        if held:
            offset, key = min(held)
            yield "W", self.low, offset, f"it holds unpublished samples of stream {key[0]}"
        windower, young = self._windower, self._windower.clock_ms - self.rules.memory_ms
        remembered = (*windower.runs, *(k for k, closed in windower.memory.items() if closed.timestamp_ms >= young))
        latest = [(self._views[k].position, k) for k in remembered if self._views[k].position >= 0]
        if latest:
            position, key = min(latest)
            yield "F", self.findings_from, position, f"the latest finding of stream {key[0]}"


def _named(key: RunKey, slot: int) -> dict[str, Any]:
    stream, session, start_ns, _ = key
    what = "closed" if slot % 2 else "window"
    return {"stream": stream, "session": session, "session_start_ns": start_ns, "what": what, "first_sample": slot // 2}
