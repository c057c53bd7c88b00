"""Which findings are chosen for review."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from training.collect.choose import Chosen, Rule, RuleError


def finding(number: int = 0, kind: str = "scored", **p: float) -> dict[str, Any]:
    labels = [{"id": k, "probability": v, "threshold": 0.5, "positive": v >= 0.5} for k, v in p.items()]
    return {"id": hashlib.sha256(str(number).encode()).hexdigest()[:32], "kind": kind, "labels": labels}


def test_positive_and_near() -> None:
    rule = Rule(frozenset({"AFIB"}), frozenset({"PVC"}), margin=0.1)
    assert rule.why(finding(AFIB=0.7)) == "positive AFIB 0.700"
    assert rule.why(finding(AFIB=0.4)) == ""
    assert rule.why(finding(SR=0.9, PVC=0.41)) == "near PVC 0.410, threshold 0.500"
    assert rule.why(finding(PVC=0.39)) == ""
    assert rule.why({"kind": "unscorable", "id": "00"}) == ""
    unsupported = finding(PVC=0.41)
    unsupported["labels"][0]["threshold"] = None
    assert rule.why(unsupported) == ""


def test_the_share_is_random_but_always_the_same() -> None:
    rule = Rule(share=0.1)
    chosen = {i for i in range(5000) if rule.why(finding(i, SR=0.9))}
    assert len(chosen) / 5000 == pytest.approx(0.1, abs=0.02)
    assert chosen == {i for i in range(5000) if rule.why(finding(i, SR=0.9))}
    assert Rule(share=1.0).why(finding(3, SR=0.9)) == "share 1"


def test_a_rule_that_chooses_nothing_is_refused() -> None:
    with pytest.raises(RuleError, match=r"nothing would be chosen; give --positive LABEL"):
        Rule()
    with pytest.raises(RuleError, match=r"--share must lie in 0 to 1"):
        Rule(share=2)


def test_the_limit_keeps_a_fair_sample_and_each_id_once() -> None:
    chosen = Chosen(Rule(share=1.0), 10)
    for i in [*range(100), *range(100)]:
        chosen.offer(finding(i, SR=0.9))
    ids = sorted(finding(i)["id"] for i in range(100))
    assert sorted(f["id"] for f, _ in chosen.findings()) == ids[:10]
    assert chosen.seen == 200
