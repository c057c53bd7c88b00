"""Every target with its seeds, with what was ever found, and with some inputs near them. `make fuzz` looks further."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import KEPT, SEEDS
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("ECG_FUZZ_EXAMPLES", "60"))
FOUND = [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted(KEPT.glob("*/*"))]


def test_every_target_has_seeds() -> None:
    assert set(SEEDS) == set(TARGETS)


@pytest.mark.parametrize("path", FOUND)
def test_what_was_found_once(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_inputs_near_the_seeds(name: str) -> None:
    seeds = SEEDS[name]()
    for data in seeds:
        TARGETS[name].__wrapped__(data)  # type: ignore[attr-defined]  # what is well-formed is not refused

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(seeds))
    def look(data: bytes) -> None:
        TARGETS[name](data)

    look()
