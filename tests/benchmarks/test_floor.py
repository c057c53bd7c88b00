"""The floor counts the arithmetic that the model's own count finds, and knows which layers wait for memory."""

from __future__ import annotations

import pytest

from encoders.model import EcgEncoder, EncoderConfig, count_multiply_adds
from tests.benchmarks.floor import FLOPS, layers, windows_per_s


@pytest.mark.parametrize(("form", "floor"), [("plain", 344_000), ("decimated", 1_614_000)])
def test_the_floor(form: str, floor: float) -> None:
    model = EcgEncoder(EncoderConfig(form=form))  # type: ignore[arg-type]
    found = layers(model)
    assert sum(layer.flop for layer in found) == 2 * count_multiply_adds(model)
    assert windows_per_s(model) == pytest.approx(floor, rel=0.01)
    assert windows_per_s(model) < FLOPS / sum(layer.flop for layer in found)
