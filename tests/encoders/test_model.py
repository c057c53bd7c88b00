"""The encoder is the size the paper names, its cheap form sees more, and folding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoders.model import (
    Decimate,
    EcgEncoder,
    EncoderConfig,
    count_multiply_adds,
    count_parameters,
    fold,
    receptive_field_s,
)


def warmed(form: str, dim: int = 256) -> EcgEncoder:
    """A model whose BatchNorm statistics are those of data, not of the start."""
    torch.manual_seed(0)
    model = EcgEncoder(EncoderConfig(form=form, dim=dim)).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 12, 1250))
    return model.eval()


def test_plain_form_is_the_papers() -> None:
    model = EcgEncoder(EncoderConfig(form="plain"))
    assert count_multiply_adds(model) == pytest.approx(866e6, rel=0.001)
    assert count_parameters(model) == pytest.approx(3.98e6, rel=0.001)
    assert receptive_field_s(model.config) == pytest.approx(435 / 500)


def test_decimated_form_costs_a_fifth_and_sees_five_times_as_much() -> None:
    model = EcgEncoder()
    assert model.config.form == "decimated"
    assert count_multiply_adds(model) == pytest.approx(173e6, rel=0.03)
    assert count_parameters(model) == pytest.approx(3.98e6, rel=0.001)
    assert receptive_field_s(model.config) == pytest.approx(4.35)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = EcgEncoder().train()
    count_multiply_adds(model)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("form", ["plain", "decimated"])
def test_folding_batchnorm_changes_nothing(form: str) -> None:
    model = warmed(form, dim=32)
    x = torch.randn(2, 12, 5000)
    folded = fold(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-4)


def test_embeddings_are_unit_and_lengths_may_differ() -> None:
    model = warmed("decimated")
    for samples in (1250, 5000):
        with torch.inference_mode():
            e = model(torch.randn(3, 12, samples))
        assert e.shape == (3, 256)
        np.testing.assert_allclose(e.norm(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize(("hz", "lowest", "highest"), [(10, 0.99, 1.01), (30, 0.9, 1.01), (60, 0.0, 0.01), (90, 0.0, 0.01)])
def test_decimation_passes_the_ecg_and_stops_what_would_alias(hz: float, lowest: float, highest: float) -> None:
    t = torch.arange(5000) / 500
    x = torch.sin(2 * torch.pi * hz * t).repeat(1, 12, 1).unsqueeze(2)
    y = Decimate()(x)
    assert y.shape == (1, 12, 1, 1000)
    assert lowest <= float(y[..., 50:-50].std() * 2**0.5) <= highest


@pytest.mark.parametrize(("values", "key"), [({"form": "fast"}, "form"), ({"dim": 4}, "dim"), ({"dropout": 1.0}, "dropout")])
def test_bad_config_names_the_key(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} must be"):
        EncoderConfig(**values)  # type: ignore[arg-type]
