"""The errors of the worker.

    WorkerError
    ├── BadInput            a message that cannot be used: it becomes a dead letter with `code`; never retried
    ├── ConfigError         settings that contradict each other or the broker; exit code 2
    ├── ArtifactRefused     the model directory or a label bank is not what its digest or its encoder says; exit code 3
    ├── BrokerUnavailable   no broker, or lost for too long; retriable; exit code 4
    ├── StoreUnavailable    no Redis; retriable; exit code 5
    └── AcceleratorLost     the GPU failed in a way that only a new process mends; exit code 6

Each class says `retriable`: whether waiting may mend it. Who retries decides by that or by the class, never by the message.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AcceleratorLost",
    "ArtifactRefused",
    "BadInput",
    "BrokerUnavailable",
    "ConfigError",
    "StoreUnavailable",
    "WorkerError",
]


class WorkerError(Exception):
    """Root of the tree."""

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class BadInput(WorkerError):
    """One message cannot be used. `code` is the dead letter's reason; the text never holds samples."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code


class ConfigError(WorkerError):
    """The configuration cannot work; the text says what to change."""

    exit_code = 2


class ArtifactRefused(WorkerError):
    """Model or label bank is missing, altered, or made for another encoder; the text gives both values."""

    exit_code = 3


class BrokerUnavailable(WorkerError):
    """Kafka does not answer."""

    retriable = True
    exit_code = 4


class StoreUnavailable(WorkerError):
    """Redis does not answer, or holds no label bank yet."""

    retriable = True
    exit_code = 5


class AcceleratorLost(WorkerError):
    """The GPU failed; every further call of this process would fail too."""

    exit_code = 6
