"""Findings of one stream -> few, stable alert episodes: the decision alone. It knows no Kafka, no Faust and no clock.

A label's episode begins when enough of the last scored windows reach its threshold, and ends when enough in a row stay below
it; in between it says again from time to time that it goes on. After an end the label is quiet for a while. What was not
scored neither raises nor clears. When the last open run of the stream is closed nobody watches any more, and every episode
ends with the reason `blind`.

The state of a stream is a JSON object, so that any store can keep it. Time is that of the log (ms).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

__all__ = ["Policy", "Rule", "StreamState", "step"]

_RUNS = 16  # remembered runs of a stream; the worker keeps at most 8 open
_EVIDENCE = 16  # finding ids that one alert names


class Rule(NamedTuple):
    """An episode begins at `onset` of the last `of` scored windows."""

    onset: int
    of: int


@dataclass(frozen=True, slots=True)
class Policy:
    """When to speak. Engineering defaults for 10 s windows, not medical advice.

    rules: by urgency; labels of other urgencies raise nothing. `routine_new_urgent` does once a session.
    offset: scored windows below the threshold, in a row, that end an episode.
    refractory_ms: after such an end the label begins no episode for this long.
    update_ms: while an episode goes on, at least this long between two alerts about it.
    """

    rules: Mapping[str, Rule] = field(
        default_factory=lambda: {"critical": Rule(2, 3), "urgent": Rule(3, 5), "routine_new_urgent": Rule(3, 5)}
    )
    offset: int = 3
    refractory_ms: int = 60_000
    update_ms: int = 300_000

    def __post_init__(self) -> None:
        for urgency, rule in self.rules.items():
            if not 1 <= rule.onset <= rule.of:
                raise ValueError(f"rule for {urgency}: {rule.onset} of {rule.of} windows cannot begin an episode")
        if self.offset < 1 or self.refractory_ms < 0 or self.update_ms < 0:
            raise ValueError("offset must be at least 1, refractory_ms and update_ms at least 0")


class _Run(TypedDict):
    next: int  # the frontier: findings that begin below it were seen
    open: bool


class _Episode(TypedDict):
    id: str
    onset_time: str
    told_ms: int
    windows: int  # at or above the threshold
    below: int  # in a row
    probability: float
    peak: float
    evidence: list[str]  # since the last alert


class _Label(TypedDict):
    about: dict[str, Any]
    recent: list[tuple[str, str, float]]  # (finding id, time, probability); an empty id stands for a window below
    episode: _Episode | None
    ended_ms: int | None
    session: str | None  # of the last onset


class StreamState(TypedDict):
    """What is remembered of a stream between two findings."""

    runs: dict[str, _Run]
    labels: dict[str, _Label]


def step(state: StreamState | None, finding: Mapping[str, Any], policy: Policy) -> tuple[StreamState, list[dict[str, Any]]]:
    """Take one finding into account; returns the new state and the alerts to publish, in order.

    `finding`: an object of finding.schema.json. A repeated or outdated one changes nothing. The same findings give the same
    alerts with the same ids, however often they are worked through.
    """
    new: StreamState = copy.deepcopy(state) if state is not None else {"runs": {}, "labels": {}}
    if not _is_news(new["runs"], finding):
        return new, []
    alerts: list[dict[str, Any]] = []
    if finding["kind"] == "scored":
        alerts += _scored(new["labels"], finding, policy)
    if finding["closed"] is not None and not any(run["open"] for run in new["runs"].values()):
        for name in sorted(new["labels"]):
            label = new["labels"][name]
            if label["episode"] is not None:
                alerts.append(_alert("offset", label, label["episode"], finding, "blind"))
                label["episode"] = None
            label["recent"] = []
    _forget(new["labels"], finding, policy)
    return new, alerts


def _is_news(runs: dict[str, _Run], finding: Mapping[str, Any]) -> bool:
    """False for what was seen: findings of a run come in order, so its frontier tells. Notes what is new."""
    identity = [finding["session"], finding["session_start_ns"], finding["layout"]]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    run = runs.pop(key, None)
    news = run is None or (finding["first_sample"] >= run["next"] and (finding["kind"] != "closed" or run["open"]))
    if news:
        run = {"next": finding["next"], "open": finding["closed"] is None}
    if run is not None:
        runs[key] = run  # the last one written stands last
    while len(runs) > _RUNS:
        del runs[next(iter(runs))]
    return news


def _scored(labels: dict[str, _Label], finding: Mapping[str, Any], policy: Policy) -> list[dict[str, Any]]:
    listed = {label["id"]: label for label in finding["labels"] if label["urgency"] in policy.rules}
    unknown = {name for names in finding.get("not_assessable", {}).values() for name in names}
    for name, about in listed.items():
        if name in labels or _reaches(about):
            kept = {part: about[part] for part in ("id", "name_en", "name_ja", "urgency", "threshold")}
            fresh: _Label = {"about": kept, "recent": [], "episode": None, "ended_ms": None, "session": None}
            labels.setdefault(name, fresh)["about"] = kept
    alerts = []
    for name in sorted(labels.keys() - unknown):
        # A label that is not listed is not among the most probable and not above its threshold.
        above = name in listed and _reaches(listed[name])
        probability = listed[name]["probability"] if name in listed else None
        alert = _advance(labels[name], above, probability, finding, policy)
        if alert is not None:
            alerts.append(alert)
    return alerts


def _reaches(label: Mapping[str, Any]) -> bool:
    probability, threshold = label["probability"], label["threshold"]
    return probability is not None and threshold is not None and probability >= threshold


def _advance(
    label: _Label, above: bool, probability: float | None, finding: Mapping[str, Any], policy: Policy
) -> dict[str, Any] | None:
    """One scored window of one label; returns the alert it gives rise to, if any."""
    rule = policy.rules.get(label["about"]["urgency"], Rule(1, 1))  # no rule any more: never listed, so it ends
    seen = (finding["id"], finding["time"], probability or 0.0) if above else ("", "", 0.0)
    label["recent"] = [*label["recent"], seen][-rule.of :]
    episode = label["episode"]
    if episode is None:
        return _onset(label, rule, finding, policy) if above else None
    if above:
        assert probability is not None
        episode["windows"] += 1
        episode["below"] = 0
        episode["peak"] = max(episode["peak"], probability)
        episode["evidence"] = [*episode["evidence"], finding["id"]][-_EVIDENCE:]
    else:
        episode["below"] += 1
    if probability is not None:
        episode["probability"] = probability
    now = finding["input"]["last_timestamp"]
    if episode["below"] >= policy.offset:
        label["episode"], label["ended_ms"], label["recent"] = None, now, []
        return _alert("offset", label, episode, finding, "below")
    if above and now - episode["told_ms"] >= policy.update_ms:
        alert = _alert("update", label, episode, finding, None)
        episode["told_ms"], episode["evidence"] = now, []
        return alert
    return None


def _onset(label: _Label, rule: Rule, finding: Mapping[str, Any], policy: Policy) -> dict[str, Any] | None:
    now = finding["input"]["last_timestamp"]
    above = [seen for seen in label["recent"] if seen[0]]
    if len(above) < rule.onset:
        return None
    if label["ended_ms"] is not None and now - label["ended_ms"] < policy.refractory_ms:
        return None
    if label["about"]["urgency"] == "routine_new_urgent" and label["session"] == finding["session"]:
        return None  # not new in this session
    first_id, first_time, _ = above[0]
    episode: _Episode = {
        "id": _digest(finding["stream"], label["about"]["id"], first_id),
        "onset_time": first_time,
        "told_ms": now,
        "windows": len(above),
        "below": 0,
        "probability": above[-1][2],
        "peak": max(probability for _, _, probability in above),
        "evidence": [name for name, _, _ in above][-_EVIDENCE:],
    }
    alert = _alert("onset", label, episode, finding, None)
    label["episode"], label["session"] = {**episode, "evidence": []}, finding["session"]
    return alert


def _alert(
    kind: Literal["onset", "update", "offset"],
    label: _Label,
    episode: _Episode,
    finding: Mapping[str, Any],
    reason: Literal["below", "blind"] | None,
) -> dict[str, Any]:
    return {
        "v": 1,
        "id": _digest(episode["id"], kind, finding["id"]),
        "kind": kind,
        "episode": episode["id"],
        "stream": finding["stream"],
        "session": finding["session"],
        "label": label["about"],
        "onset_time": episode["onset_time"],
        "time": finding["time"],
        "windows": episode["windows"],
        "probability": episode["probability"],
        "peak": episode["peak"],
        "evidence": episode["evidence"],
        "finding": finding["id"],
        "reason": reason,
    }


def _forget(labels: dict[str, _Label], finding: Mapping[str, Any], policy: Policy) -> None:
    """Drop labels that would behave the same if they were met for the first time."""
    now = finding["input"]["last_timestamp"]
    for name, label in list(labels.items()):
        resting = label["ended_ms"] is not None and now - label["ended_ms"] < policy.refractory_ms
        told = label["about"]["urgency"] == "routine_new_urgent" and label["session"] == finding["session"]
        if label["episode"] is None and not any(seen[0] for seen in label["recent"]) and not resting and not told:
            del labels[name]


def _digest(*fields: str) -> str:
    """First 16 bytes, hex, of sha256 over the length-prefixed fields."""
    data = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in ("v1", *fields))
    return hashlib.sha256(data).hexdigest()[:32]
