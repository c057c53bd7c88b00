"""What `make bench` prints: a figure that could not be measured is a row that says so, and never looks like a target met."""

from __future__ import annotations

import time

import pytest

from tests.benchmarks.__main__ import MODULES, NEEDS, tabled, target_of, with_not_run
from tests.benchmarks.timing import ratios


def test_what_this_machine_cannot_measure_is_a_row_and_a_line() -> None:
    found, why = with_not_run(["fused", "gpu", "peers"], {"ingest_vs_faust": 6.0, "gpu_p99_batch8_ms": 4.0})
    rows = list(zip(*(column.cells for column in tabled(found).columns), strict=True))
    assert ("TensorRT on a GPU: the same", "not run", ">= 0.6", "") in rows
    assert [row[1] for row in rows].count("not run") == 2 + 4
    assert ("Kafka to closed windows, a CPU second: the default client over a Faust agent", "6", ">= 5", "ok") in rows
    assert any("gpu_tensorrt_plain_512: needs a GPU" in line for line in why)
    assert any("make peers" in line for line in why)
    assert with_not_run(["windower"], {"memory_per_run": 0.9}) == ({"memory_per_run": 0.9}, [])


def test_a_missed_target_is_said_and_a_ratio_by_cpu_time_has_none() -> None:
    rows = list(zip(*(c.cells for c in tabled({"replay_vs_fused_cpu": 0.5, "replay_vs_fused": 0.5}).columns), strict=True))
    assert [row[1:] for row in rows] == [("0.5", ">= 0.9", "missed"), ("0.5", "", "")]
    assert rows[1][0] == rows[0][0] + "; by CPU time"


def test_every_figure_that_a_group_may_lack_has_a_text() -> None:
    assert set(NEEDS) < set(MODULES)
    assert all(target_of(figure) for figures, _ in NEEDS.values() for figure in figures)


def test_a_ratio_is_taken_by_both_clocks() -> None:
    def work(seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    found = ratios(lambda: (work(0.02), time.sleep(0.2)), lambda: work(0.04), rounds=3)
    assert found.cpu == pytest.approx(0.5, rel=0.2)
    assert found.wall > found.cpu
    assert found.rates("x") == {"x": 1 / found.wall, "x_cpu": 1 / found.cpu}
