"""One thread for calls that block, in the order in which they are given.

Not a pool of the standard library: the process cannot end before its threads have, and librdkafka may stand in a call for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["Lane"]

_T = TypeVar("_T")


class Lane:
    """`give` is called in an event loop. A daemon thread: one that stands does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def give(self, work: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        """What becomes of work(*args), after all that was given before. Cancelled before its turn, it is not begun."""
        outcome: Future[_T] = Future()

        def do() -> None:
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(work(*args))
                except BaseException as error:
                    outcome.set_exception(error)

        self._work.put(do)
        return asyncio.wrap_future(outcome)

    def end(self) -> None:
        """The thread ends when it has done what it was given; nothing may be given any more."""
        self._work.put(None)

    def _run(self) -> None:
        while (do := self._work.get()) is not None:
            do()
            del do
