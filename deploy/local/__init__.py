"""A real Kafka and a real Redis on this machine, without Docker: for tests, trials and outages on purpose.

python -m deploy.local start | stop | status        for a person: the services outlive the command
with LocalServices() as services: ...               for a test: the services end with the block, or with the process
"""

from __future__ import annotations

from deploy.local.processes import LocalServiceError
from deploy.local.services import LocalServices

__all__ = ["LocalServiceError", "LocalServices"]
