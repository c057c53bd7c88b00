"""Residual networks over 12-lead ECG, written with Conv2d of height 1: two architectures in two forms.

``resnet1d18`` is the paper's (arXiv 2504.09302): a stem of one convolution of width 7, blocks of width 3.
``xresnet1d18`` follows xresnet1d (Strodthoff et al., arXiv 2004.13701; He et al., arXiv 1812.01187) at depth 18: a stem of
three convolutions, width 5 throughout, shortcuts that average before they convolve, blocks that start as the identity.

``plain`` takes 500 Hz: the paper's encoder has 866 M multiply-adds at (12, 5000) and a receptive field of 0.87 s.
``decimated`` (the default) puts a fixed anti-aliased 5 x decimation before the same network: the signal holds nothing above
50 Hz after preprocessing, the cost falls to a fifth and the network sees 4.35 s, several beats instead of less than one.
Needs torch (extra `train`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoders.signal import FS, LEADS, WINDOW

__all__ = [
    "ARCHITECTURES",
    "DECIMATION",
    "FEATURES",
    "EcgEncoder",
    "EncoderConfig",
    "count_multiply_adds",
    "count_parameters",
    "fold",
    "receptive_field_s",
]

DECIMATION = 5  # 500 -> 100 Hz
DECIMATION_TAPS, DECIMATION_HZ = 81, 42.0  # Hamming, 20 Hz transition: -6 dB at 42 Hz, stop band from 52 Hz
WIDTHS = (64, 128, 256, 512)
FEATURES = WIDTHS[-1]
BLOCKS = 2  # BasicBlocks a layer
NORM_FLOOR = 1e-6


@dataclass(frozen=True)
class Architecture:
    """stem: (channels, kernel, stride) of its convolutions. kernel: of the blocks. averaged: shortcuts average before they
    convolve, and the last BatchNorm of a block starts at 0.
    """

    name: str
    stem: tuple[tuple[int, int, int], ...]
    kernel: int
    averaged: bool


ARCHITECTURES = {
    "resnet1d18": Architecture("ResNet1d-18", ((WIDTHS[0], 7, 2),), 3, False),
    "xresnet1d18": Architecture("XResNet1d-18", ((32, 5, 2), (32, 5, 1), (WIDTHS[0], 5, 1)), 5, True),
}
PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))  # of a stem or a block, as far as it has them


@dataclass(frozen=True)
class EncoderConfig:
    """architecture: of ARCHITECTURES. form: "decimated" or "plain". dim: D, length of the embedding. dropout: share of
    features dropped in training.
    """

    form: Literal["decimated", "plain"] = "decimated"
    dim: int = 256
    dropout: float = 0.2
    architecture: Literal["resnet1d18", "xresnet1d18"] = "resnet1d18"

    def __post_init__(self) -> None:
        if self.form not in ("decimated", "plain"):
            raise ValueError(f"form must be 'decimated' or 'plain', got {self.form!r}")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        if not 8 <= self.dim <= 4096:
            raise ValueError(f"dim must be 8 to 4096, got {self.dim}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be 0 to below 1, got {self.dropout}")


def _conv(c_in: int, c_out: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, (1, width), (1, stride), (0, width // 2), bias=False)


class Decimate(nn.Module):
    """Low-pass and keep every 5th sample, per lead; constant taps. (B, 12, 1, T) -> (B, 12, 1, ceil(T / 5))."""

    taps: Tensor

    def __init__(self) -> None:
        super().__init__()
        t = np.arange(DECIMATION_TAPS) - DECIMATION_TAPS // 2
        taps = np.sinc(2 * DECIMATION_HZ / FS * t) * np.hamming(DECIMATION_TAPS)
        kernel = torch.tensor(taps / taps.sum(), dtype=torch.float32)
        self.register_buffer("taps", kernel.repeat(len(LEADS), 1).reshape(len(LEADS), 1, 1, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.taps, stride=(1, DECIMATION), padding=(0, DECIMATION_TAPS // 2), groups=len(LEADS))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut. (B, C, 1, T) -> (B, C', 1, ceil(T / stride))."""

    def __init__(self, c_in: int, c_out: int, stride: int, kernel: int = 3, averaged: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c_out, kernel, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = _conv(c_out, c_out, kernel), nn.BatchNorm2d(c_out)
        self.short: nn.Module = nn.Identity()
        if averaged:
            nn.init.zeros_(self.bn2.weight)
        if stride != 1 or c_in != c_out:
            pool = [nn.AvgPool2d((1, stride), (1, stride), ceil_mode=True, count_include_pad=False)] if averaged else []
            self.short = nn.Sequential(*pool, _conv(c_in, c_out, 1, 1 if averaged else stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.short(x))


class EcgEncoder(nn.Module):
    """(B, 12, T) at 500 Hz -> (B, D) unit-norm; T is 5000 in service, shorter crops are allowed in training."""

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or EncoderConfig()
        made_as = ARCHITECTURES[self.config.architecture]
        self.decimate: nn.Module = Decimate() if self.config.form == "decimated" else nn.Identity()
        c_in = len(LEADS)
        for (conv, norm), (c_out, kernel, stride) in zip(PAIRS, made_as.stem, strict=False):
            self.add_module(conv, _conv(c_in, c_out, kernel, stride))
            self.add_module(norm, nn.BatchNorm2d(c_out))
            c_in = c_out
        self.pool = nn.MaxPool2d((1, 3), (1, 2), (0, 1))
        blocks: list[nn.Module] = []
        for layer, width in enumerate(WIDTHS):
            for block in range(BLOCKS):
                blocks.append(BasicBlock(c_in, width, 2 if layer and not block else 1, made_as.kernel, made_as.averaged))
                c_in = width
        self.layers = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(self.config.dropout)
        self.projection = nn.Linear(FEATURES, self.config.dim)

    def stem(self) -> list[tuple[nn.Module, nn.Module]]:
        """Its convolutions, each with the BatchNorm that follows; between them and after them stands a ReLU."""
        named = dict(self.named_children())
        return [(named[conv], named[norm]) for conv, norm in PAIRS if conv in named]

    def features(self, x: Tensor) -> Tensor:
        """(B, 12, T) -> (B, 512), mean over time."""
        y = self.decimate(x.unsqueeze(2))  # (B, 12, 1, T / 5)
        for conv, norm in self.stem():
            y = F.relu(norm(conv(y)))
        return torch.as_tensor(self.layers(self.pool(y))).mean(dim=(2, 3))

    def project(self, features: Tensor) -> Tensor:
        """(B, 512) -> (B, D) unit-norm."""
        return F.normalize(self.projection(self.dropout(features)), dim=-1, eps=NORM_FLOOR)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.features(x))


def fold(model: EcgEncoder) -> EcgEncoder:
    """A copy in eval mode with every BatchNorm folded into the convolution before it; same output, fewer operations."""
    out = copy.deepcopy(model).eval()
    for module in [out, *out.layers]:
        for conv, norm in PAIRS:
            if hasattr(module, norm):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
        short = getattr(module, "short", None)
        if isinstance(short, nn.Sequential):
            *pool, conv_in, norm_in = short
            assert isinstance(conv_in, nn.Conv2d)
            assert isinstance(norm_in, nn.BatchNorm2d)
            folded = fuse_conv_bn_eval(conv_in, norm_in)
            module.short = nn.Sequential(*pool, folded) if pool else folded
    return out


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: EcgEncoder, samples: int = WINDOW) -> int:
    """Multiply-adds of all convolutions and the projection for one window of `samples`, counted by running it."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, Decimate):
            total += output.numel() * DECIMATION_TAPS
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            total += output.numel() * (weight.numel() // weight.shape[0])

    counted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | Decimate)]
    hooks = [m.register_forward_hook(count) for m in counted]
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, len(LEADS), samples))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total


def receptive_field_s(config: EncoderConfig) -> float:
    """Seconds of signal that one feature before the mean depends on (without the decimation filter's own 0.16 s)."""
    made_as = ARCHITECTURES[config.architecture]
    steps = [*((kernel, stride) for _, kernel, stride in made_as.stem), (3, 2)]  # (kernel, stride) of stem and pool
    for layer in range(len(WIDTHS)):
        for block in range(BLOCKS):
            steps += [(made_as.kernel, 2 if layer and not block else 1), (made_as.kernel, 1)]
    field, jump = 1, 1
    for kernel, stride in steps:
        field += (kernel - 1) * jump
        jump *= stride
    return field * (DECIMATION if config.form == "decimated" else 1) / FS
