"""What the reading stage looks at between two polls: ends of partitions where silence counts, and a broker that is away."""

from __future__ import annotations

from collections.abc import Callable, Set

import structlog

from stream_worker.errors import BrokerUnavailable
from stream_worker.holding import Holdings
from stream_worker.partition import Partition, Work
from stream_worker.seam import Broker
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics

__all__ = ["EndWatch", "OutageWatch"]

log = structlog.get_logger(__name__)
IDLE_AT_END_S = 35.0  # longer than the idle time of the log plus its clock's jitter
AWAKE_S = 2.0  # the reading stage turns at least this often unless the process is held up


class EndWatch:
    """A reader that stood at the end of a partition for 35 s may conclude that its runs are idle.

    It must have stood there awake: a process that was stopped, or cut off from the partition, knows nothing of that time.
    """

    def __init__(self, broker: Broker, holdings: Holdings, metrics: Metrics, submit: Callable[[Work], None]) -> None:
        self._broker, self._holdings, self._metrics, self._submit = broker, holdings, metrics, submit
        self._looked: float | None = None

    async def look(self, now: float, busy: Set[int]) -> None:
        """busy: partitions of which something was delivered, or waits to be cut."""
        asleep, self._looked = self._looked is not None and now - self._looked > AWAKE_S, now
        for part in list(self._holdings.parts.values()):
            lag = self._broker.lag(part.number) if part.ready else None
            if lag is not None:
                self._metrics.lag.labels(str(part.number)).set(lag)
                part.delay.note(now, part.taken, part.delivered + lag)
            away = asleep or part.number in self._holdings.held_back or not self._broker.connected
            if lag != 0 or part.number in busy or away:
                part.at_end_since = None
            elif part.at_end_since is None:
                part.at_end_since = now
            elif now - part.at_end_since > IDLE_AT_END_S and part.windower is not None and part.windower.runs:
                part.at_end_since = None
                if await self._is_end(part) and (work := part.conclude_idle()) is not None:
                    self._submit(work)

    async def _is_end(self, part: Partition) -> bool:
        """Asks the broker, since what was heard with the last records may be old."""
        try:
            return part.ready and await self._broker.end_offset(part.number) == part.taken
        except BrokerUnavailable:
            return False


class OutageWatch:
    """Says once that the broker is away, once that it is back, and gives up in time."""

    def __init__(self, broker: Broker, settings: Settings, metrics: Metrics) -> None:
        self._broker, self._settings, self._metrics = broker, settings, metrics
        self._down_since: float | None = None

    def look(self, now: float) -> None:
        """Raises BrokerUnavailable when it has been away for longer than the settings allow."""
        self._metrics.broker_up.set(self._broker.connected)
        if self._broker.connected:
            if self._down_since is not None:
                log.info("kafka answers again")
            self._down_since = None
            return
        s = self._settings
        if self._down_since is None:
            self._down_since = now
            log.error("kafka does not answer", servers=s.kafka, gives_up_after_s=s.outage_limit_s)
        if now - self._down_since > s.outage_limit_s:
            raise BrokerUnavailable(
                f"kafka at {s.kafka} has not answered for {s.outage_limit_s:g} s; nothing is lost: "
                "start the worker again when it does"
            )
