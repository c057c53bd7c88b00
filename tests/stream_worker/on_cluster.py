"""A worker in this process over topics of its own on a real cluster: what a test sends, sees and may break."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from stream_worker.audit.report import Report
from stream_worker.audit.source import KafkaSource
from stream_worker.audit.time_range import examine
from stream_worker.kafka.admin import create_topics, describe_topics
from stream_worker.labels import FixedBank
from stream_worker.operate import kafka_broker
from stream_worker.pipeline import Pipeline
from stream_worker.score import Scorer
from stream_worker.seam import TopicState, partition_for
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from tests.stream_worker.kafka_world import KafkaWorld
from tests.stream_worker.test_pipeline import settings
from tests.support import ProjectionEncoder, bank

__all__ = ["Cluster"]


class Cluster(KafkaWorld):
    """A `KafkaWorld` with all the topics of a worker."""

    async def create(self, partitions: int) -> Cluster:
        self.letters = self.findings.replace("findings", "letters")
        await super().create(partitions)
        await create_topics(
            self.bootstrap, [TopicState(self.letters, partitions, 1, {"message.timestamp.type": "LogAppendTime"})]
        )
        return self

    def settings(self, **changes: Any) -> Settings:
        names = {"chunks_topic": self.chunks, "findings_topic": self.findings, "dead_letters_topic": self.letters}
        chosen = {"kafka": self.bootstrap, "group": self.group, "client": self.client, "delivery": "exactly_once", **names}
        return settings(**chosen | changes)

    def pipeline(self, encoder: ProjectionEncoder | None = None, **changes: Any) -> Pipeline:
        encoder, chosen = encoder or ProjectionEncoder(), self.settings(**changes)
        labels = FixedBank(bank(encoder))
        return Pipeline(kafka_broker(chosen), lambda: Scorer(encoder, labels.bank), chosen, Metrics(), labels)

    async def send(self, messages: Iterable[tuple[bytes, bytes]], partitions: int) -> None:
        """By key, over so many partitions."""
        async with AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, acks="all", linger_ms=5, max_batch_size=1 << 20
        ) as producer:
            sent = [await producer.send(self.chunks, value, key, partition_for(key, partitions)) for key, value in messages]
            for one in sent:
                await one

    async def read(self, topic: str, isolation: str = "read_committed") -> list[dict[str, Any]]:
        """Every message of the topic, doubles included."""
        found: list[dict[str, Any]] = []
        async with AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level=isolation, fetch_max_wait_ms=20
        ) as reader:
            counts = await describe_topics(self.bootstrap, [topic])
            parts = [TopicPartition(topic, number) for number in range(counts[topic].partitions)]
            reader.assign(parts)
            ends = await reader.end_offsets(parts)
            for tp in parts:
                reader.seek(tp, 0)
                while await reader.position(tp) < ends[tp]:
                    found += [json.loads(r.value) for r in (await reader.getmany(tp, timeout_ms=50)).get(tp, ())]
        return found

    async def audit(self, **changes: Any) -> Report:
        chosen = self.settings(**changes)
        async with KafkaSource(chosen.kafka, {}, timeout_s=5.0) as source:
            return await examine(source, chosen)
