"""Micro-batches: full at `size`, or due `deadline_s` after the first item came. Pure: the caller brings the time."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Batcher"]

T = TypeVar("T")


class Batcher(Generic[T]):
    """Collects weighted items in order. One of weight 0 rides along: it never fills a batch, and alone it is due at once."""

    def __init__(self, size: int, deadline_s: float) -> None:
        self.size, self.deadline_s = size, deadline_s
        self._items: list[T] = []
        self._weight = 0
        self._due: float | None = None

    def __len__(self) -> int:
        return self._weight

    def add(self, item: T, weight: int, now: float) -> None:
        """now: seconds on any steady clock."""
        self._items.append(item)
        self._weight += weight
        if self._due is None and weight:
            self._due = now + self.deadline_s

    def wait(self, now: float) -> float | None:
        """Seconds until a batch must leave; 0 when one is ready, None when nothing waits."""
        if not self._items:
            return None
        if self._weight >= self.size or self._due is None:
            return 0.0
        return max(0.0, self._due - now)

    def take(self) -> list[T]:
        """All that waits, in order."""
        items, self._items, self._weight, self._due = self._items, [], 0, None
        return items
