"""The alert stage: a Faust application that reads findings, keeps the episodes of each stream in a table and publishes alerts.

The decision is in `episodes`; this module wires it to Kafka. Alerts of a finding are acknowledged before its episodes are
stored, so a crash in between repeats alerts with the same ids and never loses one.

Run one process of it. When a second joins or leaves, Faust hands partitions over while findings are under way: in 3 of 14
trials the recovery stood still, in 1 a finding was not counted and 4 of 240 alerts named other windows.

Faust reads aborted messages unless its own exactly-once mode is on (which doubles messages when a worker dies): the transport
here reads committed ones only, without that mode.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faust
import jsonschema
import structlog
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from jsonschema import Draft202012Validator

from stream_worker.alerting.episodes import Policy, StreamState, step
from stream_worker.errors import BadInput, BrokerUnavailable, ConfigError
from stream_worker.settings import Settings
from stream_worker.wire import parse_finding, schema, to_json

__all__ = ["build_app", "run"]

log = structlog.get_logger(__name__)

_FETCH_WAIT_MS = 100
_STUCK_S = 20.0


class _ReadCommittedThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer, told before it starts what Faust has no setting for."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        for attribute, value in (("_isolation_level", "read_committed"), ("_fetch_max_wait_ms", _FETCH_WAIT_MS)):
            if not hasattr(consumer, attribute):
                raise ConfigError(f"this version of aiokafka keeps no {attribute}: alerts would be made of aborted findings")
            setattr(consumer, attribute, value)
        return consumer


class _ReadCommittedConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)


class _ReadCommittedTransport(driver.Transport):
    Consumer = _ReadCommittedConsumer


class _Recovery(Recovery):
    """When the table is there again, Faust seeks to the committed offsets, then empties the agents' queues, while findings
    flow: what comes in between is never worked on (in one of five restarts on a busy machine an episode missed a finding).
    Kept shut until the seek is done, nothing stands in a queue that could be emptied."""

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        consumer: Any = self.app.consumer
        self.app.flow_control.suspend()
        consumer.stop_flow()
        await consumer.wait_for_stopped_flow()
        log.info("the episodes are there")
        await super().on_recovery_completed(generation_id)


class _TableManager(TableManager):
    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = _Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class _AlertsApp(faust.App):
    def _new_transport(self) -> Any:
        return _ReadCommittedTransport(self.conf.broker_consumer, self)


def build_app(
    settings: Settings,
    *,
    partitions: int,
    folder: Path,
    replication: int = 1,
    web_port: int | None = None,
    policy: Policy | None = None,
) -> faust.App:
    """The application over `partitions` partitions of findings (the table and the alerts have as many).

    `folder`: where Faust makes its directories (they stay empty); `replication`: copies of the table's changelog;
    `web_port`: Faust's own pages about itself, off by default.
    Without a committed offset it starts where `settings.start` says (a time counts as latest: old alerts page nobody).
    """
    app = _AlertsApp(
        f"{settings.group}-alerts",
        broker=[f"kafka://{server.strip()}" for server in settings.kafka.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        datadir=folder,
        autodiscover=False,
        TableManager=_TableManager,
        processing_guarantee="at_least_once",
        topic_partitions=partitions,
        topic_replication_factor=replication,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest" if settings.start == "earliest" else "latest",
        consumer_max_fetch_size=4 << 20,
        producer_acks=-1,
        producer_linger=0.005,
        producer_max_batch_size=1 << 20,
        broker_commit_interval=1.0,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=3.0,
        stream_wait_empty=False,
        web_enabled=web_port is not None,
        web_port=web_port or 6066,
    )
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    findings = app.topic(settings.findings_topic, partitions=partitions, **raw)
    alerts = app.topic(settings.alerts_topic, partitions=partitions, **raw)
    # One row a stream, not one a label: a finding speaks of all labels at once, and costs one write of the changelog.
    # Keys and rows are plain JSON: with value_type=dict Faust's recovery fails on every row, and then waits for ever.
    episodes = app.Table("episodes", partitions=partitions)
    limits = policy or Policy()

    async def watch(events: Any) -> None:
        async for event in events.events():
            where = f"{event.message.topic}[{event.message.partition}]@{event.message.offset}"
            try:
                finding = parse_finding(event.value or b"")
                state, raised = _decide(episodes, finding, limits)
            except BadInput as error:
                log.warning("not a finding", where=where, reason=str(error))
                continue
            key = finding["stream"].encode()
            for alert in raised:
                sent = await alerts.send(
                    key=key, value=to_json(alert), partition=event.message.partition, headers=_headers(alert)
                )
                await sent
                log.info("alert", kind=alert["kind"], label=alert["label"]["id"], alert=alert["id"], where=where)
            episodes[finding["stream"]] = state

    app.agent(findings, name="watch")(watch)
    app.task(_end_when_stuck(app))
    return app


def _end_when_stuck(app: Any) -> Any:
    """A task that ends the process when the table's recovery stands still: after a rebalance Faust's sometimes waits for ever
    (3 of 11 seen). Everything is kept in Kafka, so a restart goes on where it stood; silence would go unnoticed."""

    async def watch_recovery() -> None:
        recovery: Any = app.tables.recovery
        seen, since = None, time.monotonic()
        while not app.should_stop:
            await asyncio.sleep(1.0)
            now = dict(recovery.active_offsets) if recovery.in_recovery else None
            if now is None or now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > _STUCK_S:
                log.error("the recovery of the episodes stands still: ending, to be started again", seconds=_STUCK_S)
                await app.crash(BrokerUnavailable(f"the episodes were not recovered: no progress for {_STUCK_S:.0f} s"))
                return

    return watch_recovery


def _decide(episodes: Any, finding: dict[str, Any], policy: Policy) -> tuple[StreamState, list[dict[str, Any]]]:
    """One step of the finding's stream. Raises BadInput when the step fails on something that is no finding by its schema."""
    try:
        if not all(isinstance(finding[name], str) for name in ("id", "time", "stream", "session")):
            raise TypeError("an identity that is no text")
        return step(episodes.get(finding["stream"]), finding, policy)
    except (KeyError, TypeError, AttributeError, ValueError):
        error = jsonschema.exceptions.best_match(Draft202012Validator(schema("finding")).iter_errors(finding))
        if error is None:
            raise  # a finding as it should be: the defect is ours
        raise BadInput("finding", f"against its schema at {error.json_path}") from None


def run(settings: Settings, web_port: int | None = None) -> None:
    """Run the stage until a signal. Raises ConfigError when the topics are missing, BrokerUnavailable without a broker."""
    found = asyncio.run(_describe(settings))
    for name in (settings.findings_topic, settings.alerts_topic):
        if name not in found:
            raise ConfigError(f"topic {name} does not exist: ecg-worker topics --apply")
    findings, alerts = found[settings.findings_topic], found[settings.alerts_topic]
    if alerts.partitions < findings.partitions:
        raise ConfigError(
            f"topic {alerts.name} has {alerts.partitions} partitions, fewer than the {findings.partitions} of {findings.name}: "
            f"kafka-topics.sh --bootstrap-server HOST --alter --topic {alerts.name} --partitions {findings.partitions}"
        )
    with tempfile.TemporaryDirectory(prefix="ecg-alerts-") as folder:
        app = build_app(
            settings, partitions=findings.partitions, folder=Path(folder), replication=findings.replication, web_port=web_port
        )
        faust.Worker(app, override_logging=False, redirect_stdouts=False, quiet=True).execute_from_commandline()


async def _describe(settings: Settings) -> Mapping[str, Any]:
    from stream_worker.kafka.admin import describe_topics
    from stream_worker.kafka.security import security_of

    return await describe_topics(settings.kafka, [settings.findings_topic, settings.alerts_topic], security_of(settings))


def _credentials(settings: Settings) -> Any:
    if settings.kafka_security == "PLAINTEXT":
        return None
    context = None
    if settings.kafka_security in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=settings.kafka_ca_file)
    if settings.kafka_security == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        mechanism=settings.kafka_sasl_mechanism,
        username=settings.kafka_username,
        password=settings.kafka_password.get_secret_value() if settings.kafka_password else None,
        ssl_context=context,
    )


def _headers(alert: Mapping[str, Any]) -> dict[str, bytes]:
    """CloudEvents in binary mode."""
    return {
        "ce_specversion": b"1.0",
        "ce_type": f"ecg.alert.{alert['kind']}.v1".encode(),
        "ce_source": b"/ecg-worker/alerts",
        "ce_id": alert["id"].encode(),
        "ce_time": alert["time"].encode(),
        "content-type": b"application/json",
    }
