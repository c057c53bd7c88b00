"""Both architectures are as long-sighted as said, start as they should, fold, and come out of ONNX Runtime as from torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from encoders.model import ARCHITECTURES, EcgEncoder, EncoderConfig, count_multiply_adds, fold, receptive_field_s
from encoders.onnx_backend import OnnxEncoder
from encoders.signal import FS
from training.data.prepare import file_digest
from training.release.onnx_graph import encoder_graph


def warmed(architecture: str, form: str = "decimated", dim: int = 32) -> EcgEncoder:
    """A model whose blocks and BatchNorm statistics are not those of the start."""
    torch.manual_seed(0)
    model = EcgEncoder(EncoderConfig(architecture=architecture, form=form, dim=dim)).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for block in model.layers:
            torch.nn.init.uniform_(block.bn2.weight, 0.5, 1.5)  # type: ignore[arg-type]
        for _ in range(3):
            model(torch.randn(4, 12, 1250))
    return model.eval()


def seen(model: EcgEncoder, length: int = 1400) -> int:
    """Samples that one feature in the middle depends on, found by raising the signal before or after a place.

    With positive weights alone the network only rises, so nothing that is seen can hide behind a maximum or a ReLU.
    """
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()

    def feature(x: torch.Tensor) -> torch.Tensor:
        y = model.decimate(x.unsqueeze(2))
        for conv, norm in model.stem():
            y = torch.relu(norm(conv(y)))
        z = model.layers(model.pool(y))
        return torch.as_tensor(z[0, :, 0, z.shape[-1] // 2])

    def depends(first: int, last: int) -> bool:
        x = torch.zeros(1, 12, length, dtype=torch.float64)
        x[:, :, first:last] = 1e3
        with torch.inference_mode():
            return not torch.equal(feature(x), feature(torch.zeros_like(x)))

    def search(low: int, high: int, inside: bool) -> int:
        """The least place in low to high from which on `depends` is `inside`."""
        while low < high:
            middle = (low + high) // 2
            found = depends(0, middle) if inside else not depends(middle, length)
            low, high = (low, middle) if found else (middle + 1, high)
        return low

    after_last, after_first = search(0, length, inside=False), search(0, length, inside=True)
    return after_last - after_first + 1


@pytest.mark.parametrize(("architecture", "samples"), [("resnet1d18", 435), ("xresnet1d18", 873)])
def test_receptive_field_is_what_the_network_sees(architecture: str, samples: int) -> None:
    model = EcgEncoder(EncoderConfig(architecture=architecture, form="plain", dim=8))  # type: ignore[arg-type]
    with torch.no_grad():
        for block in model.layers:
            torch.nn.init.ones_(block.bn2.weight)  # type: ignore[arg-type]
    assert receptive_field_s(model.config) == pytest.approx(samples / FS)
    assert seen(model) == samples


def test_xresnet_in_figures() -> None:
    model = EcgEncoder(EncoderConfig(architecture="xresnet1d18"))
    assert receptive_field_s(model.config) == pytest.approx(8.73)
    stem = 500 * 5 * (12 * 32 + 32 * 32 + 32 * 64)
    decimation = 12 * 1000 * 81
    blocks = 250 * 5 * 4 * 64 * 64  # four convolutions of the first layer, at 250 samples
    for c, t in ((128, 125), (256, 63), (512, 32)):
        blocks += t * (5 * c * c // 2 + 3 * 5 * c * c + c * c // 2)  # the shortcut is of width 1
    assert count_multiply_adds(model) == stem + decimation + blocks + 512 * 256


def test_xresnet_blocks_start_as_the_identity() -> None:
    model = EcgEncoder(EncoderConfig(architecture="xresnet1d18")).train()
    x = torch.relu(torch.randn(2, 64, 1, 50))
    torch.testing.assert_close(model.layers[0](x), x)
    assert model.layers[2](x).shape == (2, 128, 1, 25)
    assert model.layers[2](x[..., :49]).shape == (2, 128, 1, 25)


def test_the_papers_encoder_kept_its_names() -> None:
    """Checkpoints and artifacts name tensors so."""
    names = set(EcgEncoder().state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layers.2.short.0.weight",
        "layers.2.short.1.bias",
        "projection.weight",
    } <= names
    assert not any(name.startswith(("conv2", "conv3")) for name in names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_and_onnx_change_nothing(architecture: str, tmp_path: Path) -> None:
    model = warmed(architecture)
    x = np.random.default_rng(3).standard_normal((2, 12, 5000)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()
        folded = fold(model)
        np.testing.assert_allclose(folded(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    path = tmp_path / "encoder.onnx"
    for half, tolerance in ((False, 2e-6), (True, 5e-3)):
        path.write_bytes(encoder_graph(model, half))
        with OnnxEncoder(path, file_digest(path), 1) as encoder:
            np.testing.assert_allclose(encoder.encode(x), expected, atol=tolerance)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("AveragePool" in kinds) == ARCHITECTURES[architecture].averaged


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match="architecture must be one of resnet1d18, xresnet1d18, got 'vit'"):
        EncoderConfig(architecture="vit")  # type: ignore[arg-type]
