"""A group's commit that nothing can change any more: OffsetFetch with `require_stable` (KIP-447), which aiokafka does not know.

Without it a coordinator that was killed straight after it had acknowledged a transaction, and has come back, tells the commit
before that one, even to the producer that has fenced the former owner; with it, it says that the offset is not stable yet. Now
and then it goes on saying so until the group's next transaction has ended, so that one must not wait for ever.
"""

from __future__ import annotations

import asyncio
import time

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from stream_worker.seam import Position

__all__ = ["PATIENCE_S", "RETRY_S", "stable_commit"]

PATIENCE_S, RETRY_S = 8.0, 0.2
_UNSTABLE = 88  # UNSTABLE_OFFSET_COMMIT, unknown to aiokafka


class _Unstable(KafkaError):  # type: ignore[misc]
    """A transaction is open, or has been committed and waits for its marker."""

    retriable = True


class _Response(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 9, 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("topics", CompactArray(
            ("topic", CompactString("utf-8")),
            ("partitions", CompactArray(
                ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", CompactString("utf-8")),
                ("error_code", Int16), ("tags", TaggedFields),
            )),
            ("tags", TaggedFields),
        )),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )  # fmt: skip


class _Struct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, FLEXIBLE_VERSION = 9, 7, True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("group", CompactString("utf-8")),
        ("topics", CompactArray(
            ("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), ("tags", TaggedFields),
        )),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )  # fmt: skip


class _Ask(Request[_Struct]):  # type: ignore[misc]
    API_KEY = 9

    def __init__(self, group: str, tp: TopicPartition, stable: bool) -> None:
        self._group, self._tp, self._stable = group, tp, stable

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        return request_struct_class(self._group, [(self._tp.topic, [self._tp.partition], {})], self._stable, {})


async def stable_commit(admin: AIOKafkaAdminClient, group: str, tp: TopicPartition) -> Position | None:
    """None where the group has committed nothing. Asks again, without limit, while its coordinator starts, and for PATIENCE_S
    while a transaction ends: after that it is content with the commit before. Raises what else aiokafka does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await _asked(admin, group, tp, time.monotonic() < deadline)
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(RETRY_S)


async def _asked(admin: AIOKafkaAdminClient, group: str, tp: TopicPartition, stable: bool) -> Position | None:
    coordinator = await admin.find_coordinator(group)
    answer = await admin._send_request(_Ask(group, tp, stable), coordinator)
    _raise(answer.error_code)
    ((_, ((_, offset, _, metadata, code, _),), _),) = answer.topics
    _raise(code)
    return None if offset < 0 else Position(offset, metadata or "")


def _raise(code: int) -> None:
    if code == _UNSTABLE:
        raise _Unstable
    if code:
        raise for_code(code)()
