"""The four topics: how they should be, how they are, and what to do about the difference.

    all                LogAppendTime: windows close and streams fall silent by the log's clock, not by a device's, and a host
                       whose clock is wrong can publish all the same
    ecg.findings       as many partitions as chunks: a finding lies in the partition of its chunks, under the same number
    ecg.dead-letters   as many partitions as chunks, for the same reason
    ecg.alerts         as many partitions as findings: an episode lies where its stream does

The judgement is pure; only `apply` and `inspect` ask a cluster, through `broker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stream_worker.errors import ConfigError
from stream_worker.ledger import SHARED_MS
from stream_worker.run import Rules
from stream_worker.seam import TopicState
from stream_worker.settings import Settings

__all__ = ["Applied", "TopicNames", "apply", "command", "differences", "grow", "inspect", "plan", "problems", "reread_ms"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_RULES = Rules()
_REMEMBERED_MS = _RULES.memory_ms + _RULES.idle_ms  # for which the latest finding of a run may be needed
_TIME_TYPE = "message.timestamp.type"
_RETENTION = "retention.ms"
_CLEANUP = "cleanup.policy"


class TopicNames(NamedTuple):
    """What the four topics are called."""

    chunks: str = "ecg.chunks"
    findings: str = "ecg.findings"
    dead_letters: str = "ecg.dead-letters"
    alerts: str = "ecg.alerts"

    @classmethod
    def of(cls, settings: Settings) -> TopicNames:
        return cls(settings.chunks_topic, settings.findings_topic, settings.dead_letters_topic, settings.alerts_topic)


class Applied(NamedTuple):
    """What `apply` did: topics it created, and sentences about those that exist and differ."""

    created: Sequence[TopicState]
    differs: Sequence[str]


def plan(partitions: int, replication: int, names: TopicNames = TopicNames()) -> list[TopicState]:  # noqa: B008 - immutable
    """The four topics as they should be. `replication`: copies of each partition; -1 takes the cluster's default."""
    safe = {"min.insync.replicas": "2"} if replication >= 3 else {}

    def topic(name: str, days: int) -> TopicState:
        kept = {_CLEANUP: "delete", _RETENTION: str(days * _DAY_MS), _TIME_TYPE: "LogAppendTime", **safe}
        return TopicState(name, partitions, replication, kept)

    return [
        topic(names.chunks, 1),
        topic(names.findings, 7),
        topic(names.dead_letters, 14),
        topic(names.alerts, 30),
    ]


def problems(found: Mapping[str, TopicState], names: TopicNames, commit_interval_ms: int = 500) -> list[str]:
    """What keeps the worker from keeping its promises: each a sentence with its remedy; empty when all is well."""
    said = [f"topic {name} does not exist: ecg-worker topics --apply" for name in names if name not in found]
    chunks = found.get(names.chunks)
    if chunks is not None:
        said += _chunk_problems(chunks, reread_ms(commit_interval_ms))
        said += [_count_problem(chunks, found[name]) for name in (names.findings, names.dead_letters) if name in found]
    if names.findings in found:
        said.append(_findings_problem(found[names.findings]))
    said += [
        f"topic {name} has {_TIME_TYPE}={found[name].settings[_TIME_TYPE]}, so a host whose clock is an hour ahead cannot "
        f"publish: {_alter(name, _TIME_TYPE, 'LogAppendTime')}"
        for name in names[1:]
        if name in found and found[name].settings.get(_TIME_TYPE, "LogAppendTime") != "LogAppendTime"
    ]
    said += [
        f"topic {name} has {_CLEANUP}={found[name].settings[_CLEANUP]}, so of several messages of one stream only the last "
        f"is kept: {_alter(name, _CLEANUP, 'delete')}"
        for name in names
        if "compact" in found.get(name, _NOTHING).settings.get(_CLEANUP, "")
    ]
    return [sentence for sentence in said if sentence]


_NOTHING = TopicState("", 0, 0, {})


def _chunk_problems(chunks: TopicState, reread: int) -> list[str]:
    said = []
    time_type = chunks.settings.get(_TIME_TYPE, "CreateTime")
    if time_type != "LogAppendTime":
        said.append(
            f"topic {chunks.name} has {_TIME_TYPE}={time_type}, so a device's clock would decide when streams are silent: "
            f"{_alter(chunks.name, _TIME_TYPE, 'LogAppendTime')}"
        )
    kept_ms = int(chunks.settings.get(_RETENTION, -1))
    if 0 <= kept_ms < reread:
        said.append(
            f"topic {chunks.name} keeps chunks for {kept_ms / 1000:g} s, and an open window may be {reread / 1000:g} s old "
            f"(window, grace, idle, commit interval): a restart would lose it. {_alter(chunks.name, _RETENTION, str(_DAY_MS))}"
        )
    elif 0 <= kept_ms < _HOUR_MS:
        said.append(
            f"topic {chunks.name} keeps chunks for {kept_ms / 60_000:g} min, too short to come back from an outage "
            f"(1 h is the least, 24 h is planned): {_alter(chunks.name, _RETENTION, str(_DAY_MS))}"
        )
    if int(chunks.settings.get("retention.bytes", -1)) >= 0:
        said.append(
            f"topic {chunks.name} has retention.bytes={chunks.settings['retention.bytes']}, so chunks may go early: "
            f"{_alter(chunks.name, 'retention.bytes', '-1')}"
        )
    return said


def reread_ms(commit_interval_ms: int = 500) -> int:
    """Log time that a restart re-reads at most: a window, the grace, the idle time, one commit interval, and the second that
    chunks of a run may share in the books."""
    return _RULES.stalled_ms + SHARED_MS + commit_interval_ms


def _findings_problem(findings: TopicState) -> str:
    kept_ms = int(findings.settings.get(_RETENTION, -1))
    if not 0 <= kept_ms < _REMEMBERED_MS:
        return ""
    return (
        f"topic {findings.name} keeps findings for {kept_ms / 60_000:g} min, and a restart needs those of the last "
        f"{_REMEMBERED_MS / 60_000:g} min to know what is published: {_alter(findings.name, _RETENTION, str(7 * _DAY_MS))}"
    )


def _count_problem(chunks: TopicState, other: TopicState) -> str:
    if other.partitions == chunks.partitions:
        return ""
    counts = (
        f"topic {other.name} has {other.partitions} partitions and {chunks.name} has {chunks.partitions}; they must be equal"
    )
    if other.partitions < chunks.partitions:
        return f"{counts}: ecg-worker topics --grow {chunks.partitions}"
    return f"{counts}, and partitions cannot be taken away: delete {other.name}, then ecg-worker topics --apply"


def differences(found: Mapping[str, TopicState], wanted: Sequence[TopicState]) -> list[str]:
    """How existing topics differ from the plan where the worker can live with it: sentences, each with what to do."""
    said = []
    for topic in wanted:
        there = found.get(topic.name)
        if there is None:
            continue
        if there.partitions != topic.partitions:
            said.append(f"topic {topic.name} has {there.partitions} partitions, planned are {topic.partitions}: left as it is")
        if topic.replication not in (-1, there.replication):
            said.append(f"topic {topic.name} has {there.replication} copies, planned are {topic.replication}: left as it is")
        said += [
            f"topic {topic.name} has {name}={there.settings[name]}, planned is {value}: {_alter(topic.name, name, value)}"
            for name, value in topic.settings.items()
            if name not in (_TIME_TYPE, _CLEANUP) and there.settings.get(name, value) != value
        ]
    return said


def _alter(topic: str, name: str, value: str) -> str:
    add = f"--add-config {name}={value}"
    return f"kafka-configs.sh --bootstrap-server HOST --alter --entity-type topics --entity-name {topic} {add}"


async def apply(settings: Settings, security: Mapping[str, Any] | None, partitions: int, replication: int) -> Applied:
    """Create the topics that are missing; say what differs in the others. Nothing that exists is changed.

    When chunks or findings exist, the missing ones get their partition count, whatever `partitions` says: the counts must
    be equal. Raises BrokerUnavailable or ConfigError.
    """
    from stream_worker.kafka import admin as kafka_admin

    names = TopicNames.of(settings)
    found = await kafka_admin.describe_topics(settings.kafka, names, security)
    given = found.get(names.chunks) or found.get(names.findings)
    wanted = plan(given.partitions if given else partitions, replication, names)
    missing = [topic for topic in wanted if topic.name not in found]
    if missing:
        await kafka_admin.create_topics(settings.kafka, missing, security)
    told = problems({**found, **{topic.name: topic for topic in missing}}, names, settings.commit_interval_ms)
    return Applied(missing, [*told, *differences(found, plan(partitions, replication, names))])


async def grow(settings: Settings, security: Mapping[str, Any] | None, partitions: int) -> list[str]:
    """Give every topic at least so many partitions, the chunks last: nothing may arrive where no finding can go.

    Returns what was done, in sentences. Raises ConfigError or BrokerUnavailable; what was done until then stays done.
    """
    from stream_worker.kafka import admin as kafka_admin

    names = TopicNames.of(settings)
    found = await kafka_admin.describe_topics(settings.kafka, names, security)
    if missing := [name for name in names if name not in found]:
        raise ConfigError(f"topic {missing[0]} does not exist: ecg-worker topics --apply")
    done = []
    for name in (names.findings, names.dead_letters, names.alerts, names.chunks):
        if found[name].partitions < partitions:
            await kafka_admin.add_partitions(settings.kafka, name, partitions, security)
            done.append(f"topic {name}: {found[name].partitions} -> {partitions} partitions")
    return done


async def inspect(settings: Settings, security: Mapping[str, Any] | None) -> list[str]:
    """`problems` of the topics as the cluster has them. Raises BrokerUnavailable or ConfigError."""
    from stream_worker.kafka import admin as kafka_admin

    names = TopicNames.of(settings)
    found = await kafka_admin.describe_topics(settings.kafka, names, security)
    return problems(found, names, settings.commit_interval_ms)


def command(
    settings: Settings,
    security: Mapping[str, Any] | None,
    create: bool,
    partitions: int,
    replication: int,
    more: int | None = None,
) -> list[str]:
    """The lines that `ecg-worker topics` prints: the plan, or with `create` what was done and what differs; or with `more`
    partitions what has grown."""
    names = TopicNames.of(settings)
    if more is not None:
        return asyncio.run(grow(settings, security, more)) or [f"nothing to do: every topic has {more} partitions or more"]
    if not create:
        return [_described(topic) for topic in plan(partitions, replication, names)]
    done = asyncio.run(apply(settings, security, partitions, replication))
    return [*(f"created {_described(topic)}" for topic in done.created), *done.differs] or ["nothing to do"]


def _described(topic: TopicState) -> str:
    copies = "the cluster's default of" if topic.replication < 0 else str(topic.replication)
    settings = " ".join(f"{name}={value}" for name, value in topic.settings.items())
    return f"{topic.name}: {topic.partitions} partitions, {copies} copies, {settings}"
