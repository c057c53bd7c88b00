"""A cluster with an authorizer: what is missing is said with principal, operation and resource, one right after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from stream_worker.errors import ConfigError
from stream_worker.pipeline import Pipeline
from tests.stream_worker.kafka.guarded import PASSWORD, USER, Guarded, guarded
from tests.stream_worker.on_cluster import Cluster
from tests.stream_worker.test_pipeline import X, running, until
from tests.support import layout, message


@pytest.fixture(scope="module")
def cluster_with_rights() -> Iterator[Guarded]:
    with guarded() as started:
        yield started


def worker(cluster: Cluster, given: Guarded) -> Pipeline:
    login = {"kafka_sasl_mechanism": "PLAIN", "kafka_username": USER, "kafka_password": PASSWORD}
    return cluster.pipeline(kafka=given.door, kafka_security="SASL_PLAINTEXT", **login)


async def test_every_missing_right_is_named_with_principal_operation_and_resource(cluster_with_rights: Guarded) -> None:
    given = cluster_with_rights
    cluster = await Cluster(given.kafka).create(1)
    await cluster.send([message(layout(), 0, X[:, :5000])], 1)
    needed = [
        ("topic", cluster.chunks, "Describe"),
        ("topic", cluster.findings, "Describe"),
        ("topic", cluster.letters, "Describe"),
        ("topic", cluster.letters, "Write"),
        ("group", cluster.group, "Read"),
        ("transactional-id", f"{cluster.group}/{cluster.chunks}/0", "Write"),
        ("topic", cluster.chunks, "Read"),
        ("topic", cluster.findings, "Write"),
        ("topic", cluster.findings, "Read"),  # a restart reads back what was published
    ]
    for kind, name, operation in needed:
        with pytest.raises(ConfigError) as raised:
            async with asyncio.timeout(60):
                await worker(cluster, given).run()
        said = str(raised.value)
        if (name, operation) == (cluster.letters, "Write"):
            assert "no right to Write any topic" in said  # before it is known which
        else:
            assert f"as User:{USER}: no right to {operation} {kind} {name}:" in said
            assert f"--allow-principal User:{USER} --operation {operation} --{kind} {name}" in said
        assert PASSWORD not in said
        given.allow((kind.replace("-", "_"), name, operation))
        await asyncio.sleep(1.0)  # until the broker goes by it
    async with running(worker(cluster, given)) as p:
        await until(lambda: p.publisher.published == 1, 60)
