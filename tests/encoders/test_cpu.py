"""Plans by trial, calls in parts, and what a graph of a rate is refused for; the library is a stand-in that counts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders import cpu
from encoders.cpu import CpuEncoder, Plan, calibrated


class Sums:
    """(B, 12, 5000) -> the sum of each window, twice."""

    inputs = (("x", (None, 12, 5000)),)
    outputs = (("embedding", (None, 2)),)

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sizes, self.threads = plan, list[int](), set[str]()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        x = feeds["x"]
        self.sizes.append(len(x))
        self.threads.add(threading.current_thread().name)
        return [np.repeat(x.sum(axis=(1, 2))[:, None], 2, axis=1)]


def opened(plan: Plan, made: list[Sums] | None = None, digest: str = "ab" * 32) -> CpuEncoder:
    def load(graph: bytes, plan: Plan) -> Sums:
        one = Sums(plan)
        if made is not None:
            made.append(one)
        return one

    return CpuEncoder(b"", digest, "sums", load, plan)


@pytest.mark.parametrize(("windows", "plan", "sizes"), [
    (9, Plan(1, 1, 4), [3, 3, 3]),
    (9, Plan(2, 1, 32), [4, 5]),
    (1, Plan(2, 1, 4), [1]),
    (3, Plan(1, 1, 4), [3]),
])  # fmt: skip
def test_a_batch_is_cut_into_calls_and_comes_back_in_order(windows: int, plan: Plan, sizes: list[int]) -> None:
    made: list[Sums] = []
    x = np.random.default_rng(0).standard_normal((windows, 12, 5000), dtype=np.float32)
    with opened(plan, made) as encoder:
        out = encoder.encode(x)
    np.testing.assert_allclose(out[:, 0], x.sum(axis=(1, 2)), rtol=1e-4, atol=1e-3)
    assert sorted(made[0].sizes) == sizes


def test_the_plan_is_tried_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_plans", {})
    monkeypatch.setattr(cpu, "_seconds", lambda encoder, x: 1.0 if encoder.plan.threads > 1 else abs(encoder.plan.batch - 8.5))
    made: list[Sums] = []
    with calibrated(lambda plan: opened(plan, made), 2) as encoder:
        assert encoder.plan == Plan(2, 1, 8)
        assert sorted((one.plan.calls, one.plan.threads) for one in made) == [(1, 2), (2, 1)]
    monkeypatch.setattr(cpu, "_seconds", lambda encoder, x: pytest.fail("tried again"))
    with calibrated(lambda plan: opened(plan), 2) as encoder:
        assert encoder.plan == Plan(2, 1, 8)


def test_a_graph_that_cannot_be_made_is_refused_with_the_reason_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with opened(Plan()) as encoder:
        encoder._fused = dict.fromkeys(range(cpu.RATES), encoder._plain)  # type: ignore[assignment]
        assert [encoder.serves(360_000) for _ in range(2)] == [False, False]
        assert "8 rates" in encoder.refused[360_000]
        assert [one.getMessage().partition(":")[0] for one in caplog.records] == ["windows at 360 Hz are prepared step by step"]
        assert encoder.serves(3)
