"""Which findings are worth a second look: the rule by which `collect` chooses windows for reviewing. Pure: knows no Kafka."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Chosen", "Rule", "RuleError"]


class RuleError(ValueError):
    """A rule that chooses nothing."""


@dataclass(frozen=True)
class Rule:
    """positive: labels above their threshold. near: labels within `margin` of it. share: of all scored windows, by their id.

    Raises RuleError.
    """

    positive: frozenset[str] = frozenset()
    near: frozenset[str] = frozenset()
    margin: float = 0.1
    share: float = 0.0

    def __post_init__(self) -> None:
        if not (self.positive or self.near or self.share > 0):
            raise RuleError("nothing would be chosen; give --positive LABEL, --near LABEL or --share 0.01")
        if not 0 <= self.share <= 1 or self.margin <= 0:
            raise RuleError(f"--share must lie in 0 to 1 and --margin above 0, not {self.share:g} and {self.margin:g}")

    def why(self, finding: Mapping[str, Any]) -> str:
        """ "" or the reason, in words, why this finding is chosen. The share is random, but the same at every run."""
        if finding.get("kind") != "scored":
            return ""
        for label in finding["labels"]:
            name, p, threshold = label["id"], label["probability"], label["threshold"]
            if name in self.positive and label["positive"]:
                return f"positive {name} {p:.3f}"
            if name in self.near and threshold is not None and abs(p - threshold) <= self.margin:
                return f"near {name} {p:.3f}, threshold {threshold:.3f}"
        return f"share {self.share:g}" if int(str(finding["id"])[:8], 16) < self.share * 2**32 else ""


class Chosen:
    """At most `limit` findings, each id once: of more, those with the smallest ids, which are hashes and so a fair sample."""

    def __init__(self, rule: Rule, limit: int) -> None:
        self.rule, self.limit = rule, limit
        self.seen = self.matched = 0
        self._held: dict[str, tuple[dict[str, Any], str]] = {}
        self._largest: list[tuple[int, str]] = []  # heap of negated ids

    def offer(self, finding: dict[str, Any]) -> None:
        self.seen += 1
        why, name = self.rule.why(finding), str(finding.get("id", ""))
        if not why or name in self._held:
            return
        self.matched += 1
        self._held[name] = (finding, why)
        heapq.heappush(self._largest, (-int(name, 16), name))
        if len(self._held) > self.limit:
            del self._held[heapq.heappop(self._largest)[1]]

    def findings(self) -> list[tuple[dict[str, Any], str]]:
        """(finding, why), in no order."""
        return list(self._held.values())
