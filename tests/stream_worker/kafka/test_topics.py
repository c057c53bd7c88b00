"""The topics as they should be, and what is said about those that are not."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from stream_worker.errors import BrokerUnavailable, ConfigError
from stream_worker.kafka.admin import create_topics, describe_topics
from stream_worker.kafka.topics import TopicNames, apply, command, differences, grow, inspect, plan, problems
from stream_worker.seam import TopicState
from stream_worker.settings import Settings

NAMES = TopicNames()


def found(**changed: TopicState) -> dict[str, TopicState]:
    return {topic.name: topic for topic in plan(6, 1)} | {topic.name: topic for topic in changed.values()}


def altered(name: str, partitions: int = 6, **settings: str) -> TopicState:
    (base,) = (topic for topic in plan(6, 1) if topic.name == name)
    return TopicState(name, partitions, 1, {**base.settings, **{k.replace("_", "."): v for k, v in settings.items()}})


def test_the_plan_has_no_problems_and_equal_counts() -> None:
    assert problems(found(), NAMES) == []
    assert {topic.partitions for topic in plan(6, 1)} == {6}
    assert plan(6, 3)[0].settings["min.insync.replicas"] == "2"
    assert "min.insync.replicas" not in plan(6, 1)[0].settings


def test_every_missing_topic_is_named() -> None:
    said = problems({}, NAMES)
    assert len(said) == 4
    assert all("ecg-worker topics --apply" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (altered("ecg.chunks", message_timestamp_type="CreateTime"), "message.timestamp.type=LogAppendTime"),
        (altered("ecg.findings", message_timestamp_type="CreateTime"), "a host whose clock is an hour ahead cannot publish"),
        (altered("ecg.chunks", retention_ms="3599999"), "60 min, too short"),
        (altered("ecg.chunks", retention_bytes="1000000"), "retention.bytes=-1"),
        (altered("ecg.chunks", cleanup_policy="compact,delete"), "only the last"),
        (altered("ecg.alerts", cleanup_policy="compact"), "only the last"),
        (altered("ecg.findings", partitions=4), "ecg-worker topics --grow 6"),
        (altered("ecg.findings", partitions=8), "delete ecg.findings"),
        (altered("ecg.dead-letters", partitions=1), "ecg-worker topics --grow 6"),
        (altered("ecg.chunks", retention_ms="43499"), "an open window may be 43.5 s old"),
        (altered("ecg.chunks", retention_ms="43500"), "too short to come back from an outage"),
        (altered("ecg.findings", retention_ms="629999"), "needs those of the last 10.5 min"),
    ],
)
def test_each_problem_is_one_sentence_with_its_remedy(topic: TopicState, says: str) -> None:
    (sentence,) = problems(found(changed=topic), NAMES)
    assert says in sentence
    assert topic.name in sentence


@pytest.mark.parametrize("kept", ["-1", "3600000", "604800000"])
def test_long_enough_retention_is_no_problem(kept: str) -> None:
    assert problems(found(changed=altered("ecg.chunks", retention_ms=kept)), NAMES) == []


def test_differences_leave_alone_and_say_so() -> None:
    there = found(changed=altered("ecg.findings", retention_ms="1000"))
    said = differences(there, plan(12, 3))
    assert any("ecg.findings has retention.ms=1000, planned is 604800000" in sentence for sentence in said)
    assert sum("planned are 12: left as it is" in sentence for sentence in said) == 4
    assert sum("1 copies, planned are 3" in sentence for sentence in said) == 4
    assert differences({}, plan(12, 3)) == []


@pytest.fixture
def settings(kafka: str) -> Settings:
    mark = uuid.uuid4().hex[:8]
    return Settings(
        kafka=kafka,
        chunks_topic=f"chunks-{mark}",
        findings_topic=f"findings-{mark}",
        dead_letters_topic=f"dead-{mark}",
        alerts_topic=f"alerts-{mark}",
    )


async def test_apply_on_a_cluster_creates_what_inspect_accepts(settings: Settings) -> None:
    assert len(await inspect(settings, None)) == 4
    done = await apply(settings, None, partitions=3, replication=1)
    assert [topic.name for topic in done.created] == list(TopicNames.of(settings))
    assert done.differs == []
    assert await inspect(settings, None) == []
    there = await describe_topics(settings.kafka, [settings.chunks_topic])
    chunks = there[settings.chunks_topic]
    assert (chunks.partitions, chunks.replication) == (3, 1)
    assert chunks.settings["message.timestamp.type"] == "LogAppendTime"
    assert chunks.settings["retention.ms"] == "86400000"

    again = await apply(settings, None, partitions=5, replication=1)
    assert again.created == []
    assert sum("planned are 5: left as it is" in sentence for sentence in again.differs) == 4


async def test_missing_topics_follow_the_count_of_those_that_exist(settings: Settings) -> None:
    await create_topics(settings.kafka, [TopicState(settings.chunks_topic, 2, 1, {})])
    done = await apply(settings, None, partitions=9, replication=1)
    assert {topic.partitions for topic in done.created} == {2}
    assert any("LogAppendTime" in sentence for sentence in done.differs)
    (sentence,) = await inspect(settings, None)
    assert "LogAppendTime" in sentence


async def test_topics_grow_together_and_never_shrink(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await grow(settings, None, 4)
    await apply(settings, None, partitions=2, replication=1)
    done = await grow(settings, None, 4)
    assert [sentence.split(": ")[1] for sentence in done] == ["2 -> 4 partitions"] * 4
    assert settings.chunks_topic in done[-1]  # the last: nothing may arrive where no finding can go
    found = await describe_topics(settings.kafka, TopicNames.of(settings))
    assert {topic.partitions for topic in found.values()} == {4}
    assert await grow(settings, None, 3) == []
    assert await inspect(settings, None) == []


async def test_what_the_cluster_refuses_is_named(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=settings.chunks_topic):
        await create_topics(settings.kafka, [TopicState(settings.chunks_topic, 1, 3, {})])
    with pytest.raises(ConfigError, match="InvalidConfig"):
        await create_topics(settings.kafka, [TopicState(settings.chunks_topic, 1, 1, {"retention.ms": "soon"})])


async def test_no_cluster_is_said_in_time() -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9"):
        await describe_topics("127.0.0.1:9", ["x"], timeout_s=1.0)


def test_the_lines_of_the_command(settings: Settings) -> None:
    planned = command(settings, None, False, 6, -1)
    assert len(planned) == 4
    assert "LogAppendTime" in planned[0]
    assert "the cluster's default" in planned[0]
    created = command(settings, None, True, 2, 1)
    assert all(line.startswith("created ") for line in created)
    assert command(settings, None, True, 2, 1) == ["nothing to do"]
    assert asyncio.run(inspect(settings, None)) == []
