"""Joining a group with aiokafka when more than one assignor is offered.

The client (0.14.0) asks once for each assignor, with one more of them each time, and each question with another offer throws
the group into another round: members that join at the same time kept each other out for up to a minute. Here the last question,
which offers all of them, is the only one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.group import JoinGroupRequest

__all__ = ["JOINING", "ask_once"]

JOINING = 4  # times as long as a start may take, for a group that lets nobody in though the cluster answers
_NEXT = SimpleNamespace(error_code=0)  # the client goes on to its next assignor


def ask_once(consumer: AIOKafkaConsumer, assignors: int) -> AIOKafkaConsumer:
    """The same consumer, not yet started, which asks with all of its assignors or not at all."""
    send = consumer._client.send

    async def asked(node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, JoinGroupRequest) and len(request._group_protocols) < assignors:
            return _NEXT
        return await send(node, request, **options)

    consumer._client.send = asked
    return consumer
