"""When an episode begins, goes on and ends; what repeats, what is missing and what nobody watches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stream_worker.alerting.episodes import Policy, Rule, StreamState, step
from stream_worker.wire import schema
from tests.stream_worker.findings_made import finding, label

POLICY = Policy(rules={"urgent": Rule(2, 3), "critical": Rule(1, 1), "routine_new_urgent": Rule(1, 1)}, offset=2)


def play(findings: Iterable[dict[str, Any]], policy: Policy = POLICY) -> tuple[StreamState, list[dict[str, Any]]]:
    """All alerts; the state passes through JSON each time, as it does in a table."""
    state: StreamState | None = None
    alerts = []
    for one in findings:
        state, raised = step(state, one, policy)
        state = json.loads(json.dumps(state))
        alerts += raised
    assert state is not None
    return state, alerts


def af(window: int, probability: float | None, **options: Any) -> dict[str, Any]:
    return finding(window, [label("AF", probability)], **options)


def kinds(alerts: Iterable[dict[str, Any]]) -> list[str]:
    return [f"{alert['kind']}:{alert['reason']}" if alert["reason"] else alert["kind"] for alert in alerts]


def test_the_findings_of_these_tests_are_findings() -> None:
    validator = Draft202012Validator(schema("finding"))
    for one in (af(0, 0.9), finding(1, kind="unscorable"), finding(2, kind="closed", closed="idle")):
        validator.validate(one)


def test_every_alert_is_one_by_its_schema() -> None:
    policy = Policy(rules={"urgent": Rule(1, 1)}, offset=1, update_ms=20_000)
    course = [af(0, 0.9), af(1, 0.9), af(2, 0.9), finding(3, []), af(20, 0.7), finding(21, kind="closed", closed="idle")]
    _, alerts = play(course, policy)
    assert kinds(alerts) == ["onset", "update", "offset:below", "onset", "offset:blind"]
    validator = Draft202012Validator(schema("alert"))
    for alert in alerts:
        validator.validate(alert)
    assert not validator.is_valid({**alerts[0], "reason": "below"})
    assert not validator.is_valid({**alerts[2], "reason": None})


def test_one_window_is_not_an_episode_and_two_of_three_are() -> None:
    assert play([af(0, 0.9), af(1, 0.1), af(2, 0.1), af(3, 0.9), af(4, 0.1)])[1] == []
    _, (onset,) = play([af(0, 0.9), af(1, 0.1), af(2, 0.8)])
    assert onset["kind"] == "onset"
    assert onset["evidence"] == [af(0, 0.9)["id"], af(2, 0.8)["id"]]
    assert onset["onset_time"] == "2024-05-01T00:00:00Z"
    assert onset["time"] == "2024-05-01T00:00:20Z"
    assert (onset["windows"], onset["probability"], onset["peak"]) == (2, 0.8, 0.9)
    assert onset["label"]["name_ja"] == "AFの所見"
    assert onset["stream"] == "bed-7"


def test_the_threshold_itself_counts_and_a_label_without_one_never_does() -> None:
    assert kinds(play([af(0, 0.5), af(1, 0.5)])[1]) == ["onset"]
    unsupported = [finding(n, [label("AF", 0.99, threshold=None)]) for n in range(6)]
    assert play(unsupported)[1] == []
    assert play([af(n, None) for n in range(6)])[1] == []


def test_an_episode_ends_after_enough_windows_below_in_a_row() -> None:
    _, alerts = play([af(0, 0.9), af(1, 0.9), af(2, 0.1), af(3, 0.9), af(4, 0.2), finding(5, [])])
    assert kinds(alerts) == ["onset", "offset:below"]
    onset, offset = alerts
    assert offset["episode"] == onset["episode"]
    assert offset["windows"] == 3
    assert offset["evidence"] == [af(3, 0.9)["id"]]
    assert offset["finding"] == finding(5, [])["id"]


def test_a_label_that_is_no_longer_listed_is_below() -> None:
    assert kinds(play([af(0, 0.9), af(1, 0.9), finding(2, []), finding(3, [])])[1]) == ["onset", "offset:below"]


def test_unscorable_and_unassessable_windows_neither_raise_nor_clear() -> None:
    blank = [finding(n, kind="unscorable") for n in range(2, 40)]
    assert kinds(play([af(0, 0.9), *blank, af(50, 0.9), *[finding(n, kind="unscorable") for n in range(51, 60)]])[1]) == [
        "onset"
    ]
    unknown = [finding(n, [], unknown=("AF",)) for n in range(2, 40)]
    assert kinds(play([af(0, 0.9), af(1, 0.9), *unknown])[1]) == ["onset"]


def test_routine_labels_raise_nothing() -> None:
    assert play([finding(n, [label("SR", 0.99, "normal"), label("SBRAD", 0.99, "routine")]) for n in range(9)])[1] == []


def test_each_urgency_has_its_own_rule() -> None:
    assert kinds(play([finding(0, [label("VF", 0.6, "critical")])])[1]) == ["onset"]


def test_new_urgent_labels_raise_once_a_session() -> None:
    def seen(window: int, probability: float, session: str) -> dict[str, Any]:
        return finding(window, [label("MI", probability, "routine_new_urgent")], session=session)

    once = [seen(0, 0.9, "1"), seen(1, 0.1, "1"), seen(2, 0.1, "1"), *(seen(n, 0.9, "1") for n in range(30, 40))]
    assert kinds(play(once)[1]) == ["onset", "offset:below"]
    assert kinds(play([*once, seen(41, 0.9, "2")])[1]) == ["onset", "offset:below", "onset"]


def test_a_label_is_quiet_for_a_while_after_its_end() -> None:
    policy = Policy(rules={"urgent": Rule(1, 1)}, offset=1, refractory_ms=60_000)
    windows = [af(0, 0.9), af(1, 0.1), *(af(n, 0.9) for n in range(2, 9))]
    _, alerts = play(windows, policy)
    assert kinds(alerts) == ["onset", "offset:below", "onset"]
    assert alerts[2]["finding"] == af(7, 0.9)["id"]  # 60 s after window 1
    assert alerts[2]["episode"] != alerts[0]["episode"]


def test_a_long_episode_says_from_time_to_time_that_it_goes_on() -> None:
    policy = Policy(rules={"urgent": Rule(1, 1)}, offset=2, update_ms=60_000)
    _, alerts = play([af(n, 0.6 + n / 100) for n in range(14)], policy)
    assert kinds(alerts) == ["onset", "update", "update"]
    assert alerts[1]["evidence"] == [af(n, 0.5)["id"] for n in range(1, 7)]
    assert alerts[2]["peak"] == pytest.approx(0.72)
    assert len({alert["id"] for alert in alerts}) == 3
    assert len({alert["episode"] for alert in alerts}) == 1


def test_evidence_is_bounded() -> None:
    policy = Policy(rules={"urgent": Rule(1, 1)}, offset=1, update_ms=10**9)
    _, alerts = play([*(af(n, 0.9) for n in range(100)), finding(100, [])], policy)
    assert len(alerts[-1]["evidence"]) == 16
    assert alerts[-1]["windows"] == 100


def test_a_closed_stream_ends_its_episodes_as_blind_and_may_raise_again_at_once() -> None:
    end = finding(2, kind="closed", closed="idle")
    _, alerts = play([af(0, 0.9), af(1, 0.9), end, af(40, 0.9, session="2"), af(41, 0.9, session="2")])
    assert kinds(alerts) == ["onset", "offset:blind", "onset"]
    assert alerts[1]["episode"] == alerts[0]["episode"]


def test_a_tail_that_closes_is_scored_first() -> None:
    _, alerts = play([af(0, 0.9), af(1, 0.9, closed="last")])
    assert kinds(alerts) == ["onset", "offset:blind"]


def test_a_stream_is_blind_only_when_its_last_run_ends() -> None:
    other = [af(n, 0.9, session="2") for n in range(2)]
    _, alerts = play([af(0, 0.9), af(1, 0.9), *other, finding(2, kind="closed", closed="idle")])
    assert kinds(alerts) == ["onset"]
    _, alerts = play([af(0, 0.9), af(1, 0.9), *other, finding(2, kind="closed", closed="idle"),
                      finding(2, kind="closed", closed="idle", session="2")])  # fmt: skip
    assert kinds(alerts) == ["onset", "offset:blind"]


def test_windows_before_a_blind_end_do_not_count_after_it() -> None:
    _, alerts = play([af(0, 0.9), finding(1, kind="closed", closed="idle"), af(40, 0.9, session="2")])
    assert alerts == []


def test_repeated_and_outdated_findings_change_nothing() -> None:
    first = [af(0, 0.9), af(1, 0.9), af(2, 0.1)]
    state, _ = play(first)
    for repeated in first:
        again, raised = step(state, repeated, POLICY)
        assert raised == []
        assert again["labels"] == state["labels"]
    assert kinds(play([af(0, 0.9), af(0, 0.9), af(0, 0.9)])[1]) == []
    rescored = {**af(0, 0.9), "id": "f" * 32, "bank": "2" * 64}  # the same window by another bank is the same window
    assert kinds(play([af(0, 0.9), rescored])[1]) == []


def test_a_state_is_not_changed_in_place() -> None:
    state, _ = play([af(0, 0.9)])
    before = json.dumps(state)
    step(state, af(1, 0.9), POLICY)
    assert json.dumps(state) == before


def test_what_is_over_is_forgotten() -> None:
    state, _ = play([*(finding(n, [label(f"L{n % 7}", 0.9)]) for n in range(50)), *(finding(n, []) for n in range(50, 60))])
    assert state["labels"] == {}
    sessions, _ = play([finding(n, [], session=str(n), closed="last") for n in range(100)])
    assert len(sessions["runs"]) == 16


@given(
    st.lists(st.tuples(st.sampled_from(["scored", "unscorable", "closed"]), st.floats(0, 1), st.integers(0, 2)), max_size=60)
)
def test_onsets_and_offsets_alternate_and_replays_repeat_them(course: list[tuple[str, float, int]]) -> None:
    """For any course of findings, delivered once or with any earlier stretch delivered again."""
    made = [
        finding(n, [label("AF", p)] if kind == "scored" else None, kind=kind, closed="idle" if kind == "closed" else None)
        for n, (kind, p, _) in enumerate(course)
    ]
    if not made:
        return
    _, alerts = play(made)
    told = [alert["kind"] for alert in alerts if alert["kind"] != "update"]
    assert told == ["onset", "offset"] * (len(told) // 2) + ["onset"] * (len(told) % 2)
    assert len({alert["id"] for alert in alerts}) == len(alerts)
    repeated = [again for n, one in enumerate(made) for again in (one, *made[max(0, n - course[n][2]) : n + 1])]
    assert play(repeated)[1] == alerts


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="4 of 3"):
        Policy(rules={"urgent": Rule(4, 3)})
    with pytest.raises(ValueError, match="offset"):
        Policy(offset=0)
