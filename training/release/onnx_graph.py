"""An `EcgEncoder` as an ONNX graph, written node by node: BatchNorm folded, Conv2d 1 x K, weights stored as float16.

The tracing exporter gives the same operations among many others, takes twelve seconds and names nodes after stack traces.
The parity test holds this file to the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from encoders.graph.fused import Nodes
from encoders.model import DECIMATION, NORM_FLOOR, Decimate, EcgEncoder, fold
from encoders.signal import LEADS, WINDOW

__all__ = ["OPSET", "encoder_graph"]

OPSET = 18
IR_VERSION = 9
HALF_FROM = 1024  # elements; smaller tensors (biases, the decimation filter) stay float32


class _Graph(Nodes):
    """half: large weights are stored as float16."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half = half

    def weight(self, name: str, values: np.ndarray[Any, Any]) -> str:
        if not self.half or values.dtype != np.float32 or values.size < HALF_FROM:
            return super().weight(name, values)
        return self.op("Cast", name, super().weight(name + ".f16", values.astype(np.float16)), to=TensorProto.FLOAT)

    def conv(self, name: str, conv: object, x: str) -> str:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        pad = conv.padding
        assert isinstance(pad, tuple)
        w = self.weight(name + ".weight", conv.weight.detach().numpy())
        b = self.weight(name + ".bias", conv.bias.detach().numpy())
        kernel, strides = list(conv.kernel_size), list(conv.stride)
        return self.op("Conv", name, x, w, b, kernel_shape=kernel, strides=strides, pads=[*pad, *pad])

    def average(self, name: str, pool: object, x: str) -> str:
        assert isinstance(pool, nn.AvgPool2d)
        kernel, strides = [list(v) if isinstance(v, tuple) else [v, v] for v in (pool.kernel_size, pool.stride)]
        return self.op("AveragePool", name, x, kernel_shape=kernel, strides=strides, ceil_mode=int(pool.ceil_mode))


def encoder_graph(model: EcgEncoder, half: bool = True) -> bytes:
    """model -> bytes of an ONNX file: x float32 (B, 12, 5000) -> embedding float32 (B, D), rows of norm 1."""
    folded = fold(model).cpu()
    g = _Graph(half)
    x = g.op("Unsqueeze", "rows", "x", g.weight("axis2", np.array([2], dtype=np.int64)))  # (B, 12, 1, 5000)
    if isinstance(folded.decimate, Decimate):
        taps = folded.decimate.taps.numpy()
        half_width = taps.shape[-1] // 2
        w = g.weight("decimate.weight", taps)
        x = g.op("Conv", "decimate", x, w, group=len(LEADS), strides=[1, DECIMATION], pads=[0, half_width, 0, half_width])
    for i, (conv, _) in enumerate(folded.stem(), 1):
        x = g.op("Relu", "stem" if i == 1 else f"stem{i}", g.conv(f"conv{i}", conv, x))
    x = g.op("MaxPool", "pool", x, kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1])
    for i, block in enumerate(folded.layers):
        name = f"layers.{i}"
        y = g.op("Relu", f"{name}.relu1", g.conv(f"{name}.conv1", block.conv1, x))
        y = g.conv(f"{name}.conv2", block.conv2, y)
        *pool, short = block.short if isinstance(block.short, nn.Sequential) else (block.short,)
        for one in pool:
            x = g.average(f"{name}.average", one, x)
        if isinstance(short, nn.Conv2d):
            x = g.conv(f"{name}.short", short, x)
        x = g.op("Relu", name, g.op("Add", f"{name}.add", y, x))
    x = g.op("ReduceMean", "mean", x, g.weight("axes23", np.array([2, 3], dtype=np.int64)), keepdims=0)  # (B, 512)
    w = g.weight("projection.weight", folded.projection.weight.detach().numpy())
    b = g.weight("projection.bias", folded.projection.bias.detach().numpy())
    z = g.op("Gemm", "projection", x, w, b, transB=1)
    norm = g.op("ReduceL2", "norm", z, g.weight("axis1", np.array([1], dtype=np.int64)), keepdims=1)
    g.op("Div", "embedding", z, g.op("Max", "floor", norm, g.weight("eps", np.array(NORM_FLOOR, dtype=np.float32))))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", len(LEADS), WINDOW])
    target = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", model.config.dim])
    graph = helper.make_graph(g.nodes, "ecg-encoder", [source], [target], g.weights)
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="ecg-train", ir_version=IR_VERSION
    )
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))
