"""A cluster with an authorizer: nobody but the administrator may do anything until he is allowed to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from deploy.local import LocalServices
from deploy.local.processes import free_port
from stream_worker.kafka.librdkafka import configuration

__all__ = ["PASSWORD", "USER", "Guarded", "guarded"]

USER, PASSWORD = "worker", "secret of the worker"


class Guarded:
    """`kafka`: for the administrator, without a password. `door`: for USER, by SASL."""

    def __init__(self, kafka: str, door: str) -> None:
        self.kafka, self.door = kafka, door

    def _bindings(self, rights: Iterable[tuple[str, str, str]]) -> list[AclBinding]:
        return [
            AclBinding(
                ResourceType[kind.upper()], name, ResourcePatternType.LITERAL, f"User:{USER}", "*",
                AclOperation[operation.upper()], AclPermissionType.ALLOW,
            )
            for kind, name, operation in rights
        ]  # fmt: skip

    def allow(self, *rights: tuple[str, str, str]) -> None:
        """(kind of resource, its name, operation) each."""
        admin = AdminClient(configuration(self.kafka, {}, "administrator"))  # gone before the broker is
        for done in admin.create_acls(self._bindings(rights)).values():
            done.result(20)


@contextmanager
def guarded() -> Iterator[Guarded]:
    port = free_port()
    services = LocalServices()
    kafka, controller = services._ports["kafka"], services._ports["controller"]
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    services._settings |= {
        "listeners": f"PLAINTEXT://127.0.0.1:{kafka},DOOR://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka},DOOR://127.0.0.1:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,DOOR:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.door.plain.sasl.jaas.config": login,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    services.start_kafka()
    try:
        yield Guarded(services.kafka, f"127.0.0.1:{port}")
    finally:
        services.stop()
