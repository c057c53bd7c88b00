"""What a GPU could do at most with an encoder: layer by layer, the longer of its arithmetic and its bytes.

Each activation is written once and read once in 16 bits, an addition reads one more, weights cost nothing at large batches.
Convolution, bias, addition and ReLU are one kernel, as TensorRT builds them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from encoders.model import DECIMATION_TAPS, BasicBlock, Decimate, EcgEncoder, fold
from encoders.signal import LEADS, WINDOW

FLOPS, BYTES_S = 790e12, 4.3e12  # an H200: dense 16-bit products and copies, both as measured on one
HALF = 2  # bytes


class Layer(NamedTuple):
    """For one window. bytes: read and written."""

    name: str
    flop: float
    bytes: float

    @property
    def seconds(self) -> float:
        return max(self.flop / FLOPS, self.bytes / BYTES_S)


def layers(model: EcgEncoder) -> list[Layer]:
    """Those of one window, counted by running it."""
    found: list[Layer] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moved = HALF * (inputs[0].numel() + output.numel())
        if isinstance(module, BasicBlock):
            last = max(i for i, layer in enumerate(found) if layer.name != "MaxPool2d")
            found[last] = found[last]._replace(bytes=found[last].bytes + HALF * output.numel())
            return
        weight = getattr(module, "weight", None)
        taps = DECIMATION_TAPS if isinstance(module, Decimate) else 0 if weight is None else weight.numel() // weight.shape[0]
        found.append(Layer(type(module).__name__, 2.0 * output.numel() * taps, moved))

    folded = fold(model).eval()
    for module in folded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d | Decimate | BasicBlock):
            module.register_forward_hook(count)
    with torch.inference_mode():
        folded(torch.zeros(1, len(LEADS), WINDOW))
    return found


def windows_per_s(model: EcgEncoder) -> float:
    """No implementation with these kernels is faster, transfers left out."""
    return 1 / sum(layer.seconds for layer in layers(model))
