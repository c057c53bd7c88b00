"""What the worker holds of one partition it owns, and how its records become work. Pure: knows no Kafka and no clock."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Self

import structlog

from stream_worker.errors import BadInput
from stream_worker.ledger import Ledger
from stream_worker.records import Chunk, Closed, DeadLetter, Event, Finding, Rejected, Window
from stream_worker.recovery import Recovered
from stream_worker.seam import Record
from stream_worker.shed import Delay, Share
from stream_worker.window import Windower
from stream_worker.wire import Decoder, dead_letter

__all__ = ["Partition", "Work"]

log = structlog.get_logger(__name__)


class Work(NamedTuple):
    """What some records of one partition gave rise to; `processed` is the offset after the last of them."""

    part: Partition
    events: list[Window | Closed]
    letters: list[DeadLetter]
    processed: int
    shed: frozenset[int] = frozenset()  # places in `events` of windows that are not scored

    @property
    def to_score(self) -> list[Window | Closed]:
        """The others."""
        return [event for at, event in enumerate(self.events) if at not in self.shed] if self.shed else self.events


class Partition:
    """State from assignment to revocation. It is of use only once `restore` has been called."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.owned, self.ready = True, False
        self.leaving = False  # being taken away
        self.voids = 0  # transactions that failed since the last that did not
        self.windower: Windower | None = None
        self.ledger = Ledger(0, 0)
        self.waits_for = ""  # what holds its recovery up
        self.delivered = 0  # offset after the last record delivered
        self.taken = 0  # offset after the last record taken
        self.findings_end = 0  # one past the last finding of this partition that we know of
        self.quiet_below = 0  # dead letters of records below were written by a former owner
        self.in_flight = 0  # works submitted, not yet published
        self.dirty = False
        self.at_end_since: float | None = None
        self.delay, self.share = Delay(), Share()

    def restore(self, state: Recovered) -> None:
        """Go on where the former owner stopped. The position is committed at once: a crash starts here again."""
        self.windower, self.ledger, self.findings_end = state.windower, state.ledger, state.findings_end
        self.quiet_below, self.dirty = state.ledger.processed, True
        self.taken = self.delivered = state.start

    def resumed(self) -> Self:
        """The same state for another term of ownership; what is still under way for the former one does not count."""
        again = copy.copy(self)
        again.owned, again.ready, again.leaving = True, True, False
        again.delivered, again.at_end_since = self.taken, None
        return again

    def take(self, records: Sequence[Record], decode: Decoder, keep_payload: bool, lags: bool = False) -> Work:
        """Records in offset order -> one Work. lags: windows beyond a stream's share are not to be scored."""
        events, letters, shed = list[Window | Closed](), list[DeadLetter](), list[int]()
        for record in records:
            outcome = self._read(record, decode)
            for event in outcome:
                if not isinstance(event, Rejected):
                    if isinstance(event, Window) and self._beyond_share(event, lags):
                        shed.append(len(events))
                    events.append(event)
                elif record.offset >= self.quiet_below:
                    letters.append(dead_letter(self.number, event.offset, event.code, record.value, keep_payload))
        self.taken = records[-1].offset + 1
        return Work(self, events, letters, self.taken, frozenset(shed))

    def _read(self, record: Record, decode: Decoder) -> list[Event]:
        """A record that makes our own code raise is refused like any other that is of no use; the log says where we failed."""
        assert self.windower is not None
        chunk: Chunk | None = None
        try:
            chunk = decode(record.key, record.value)
            return self.windower.push(chunk, record.offset, record.timestamp_ms)
        except BadInput as error:
            return [*self.windower.tick(record.timestamp_ms), Rejected(record.offset, error.code)]
        except MemoryError:
            raise
        except Exception:
            log.exception("a record could not be read", partition=self.number, offset=record.offset)
            if chunk is not None:
                return self.windower.break_off(chunk, record.offset, self.windower.underway)
            return [*self.windower.tick(record.timestamp_ms), Rejected(record.offset, "defect")]

    def _beyond_share(self, window: Window, lags: bool) -> bool:
        assert self.windower is not None
        return self.share.exceeded(window.key[0], self.windower.rules.hop_ms, self.windower.clock_ms, lags)

    def conclude_idle(self) -> Work | None:
        """The reader stood at the end for longer than the idle time: end what is open."""
        if self.windower is None or not self.windower.runs:
            return None
        events = [event for event in self.windower.conclude_idle() if not isinstance(event, Rejected)]
        return Work(self, events, [], self.taken)

    def published(self, finding: Finding, offset: int) -> None:
        """A finding of ours stands at `offset` of the findings topic."""
        assert self.windower is not None
        self.findings_end = max(self.findings_end, offset + 1)
        track = self.windower.track(finding.key)
        if track is not None:
            track.publish(finding.next, offset)

    def done(self, work: Work) -> None:
        """All that `work` gave rise to is out."""
        self.ledger.advance(work.processed)
        self.in_flight -= 1
        self.dirty = True

    def position(self) -> tuple[int, str]:
        """What to commit now: W, and P and F as metadata."""
        assert self.windower is not None
        self.dirty = False
        return self.ledger.position(self.windower.tracks(), self.findings_end)
