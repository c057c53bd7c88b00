"""Recorded counts to embeddings and logits as one ONNX graph, for one sampling rate; built where it runs, from encoder.onnx.

    counts    int16 (B, C, T): C recorded leads of a whole window, none of its samples missing in a lead that is used
              or, as planes, uint8 (B, C, T, 2): the same little-endian bytes, for engines without int16
    mix       float32 (B, 12, C): recorded leads -> the encoder's leads (`preprocess.mixing`)
    least     float32 (B, 1, 1): the least scale of a lead (`preprocess.FLOOR`, by unit)
    labels    float32 (L, D) and bias (L): rows of the bank times its scale, and its biases
    ->
    embedding float32 (B, D), rows of norm 1       logits float32 (B, L)
    band      float32 (B, C, 1000): the recorded leads in counts, 0.5 to 40 Hz, at 100 Hz, which quality looks at

What it computes is `preprocess` and the encoder; `front` has the matrices. Imports onnx, which takes 0.2 s: import this late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from encoders.graph.front import STEP, Front, front_of
from encoders.graph.local import LocalOperator
from encoders.signal import LEADS, WINDOW

__all__ = ["BAND", "INPUTS", "OUTPUTS", "Nodes", "decimation", "front_graph", "fused_graph"]

INPUTS = ("counts", "mix", "least", "labels", "bias")
OUTPUTS = ("embedding", "logits", "band")
BAND = WINDOW // STEP  # samples of `band`
OPSET, IR_VERSION = 18, 9


class Nodes:
    """Collects nodes and initializers; each method returns the name of its output."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.prefix = prefix
        self._known: set[str] = set()

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        name = self.prefix + name
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: NDArray[Any]) -> str:
        name = self.prefix + name
        if name not in self._known:
            self._known.add(name)
            self.weights.append(numpy_helper.from_array(values, name))
        return name

    def numbers(self, *values: int) -> str:
        """Shapes and indices."""
        return self.weight("i" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def part(self, name: str, x: str, begin: int, end: int, axis: int = 1, step: int = 1) -> str:
        """x[begin:end:step] along an axis."""
        return self.op("Slice", name, x, *(self.numbers(v) for v in (begin, end, axis, step)))

    def products(self, name: str, x: str, operators: Sequence[LocalOperator]) -> str:
        """x: (R, T) -> (R, blocks, columns of all): the blocks that these operators share, by their middles side by side."""
        o = operators[0]
        y = x if o.blocks * o.stride == o.n_in else self.part(f"{name}.whole", x, 0, o.blocks * o.stride)
        y = self.op("Reshape", f"{name}.blocks", y, self.numbers(-1, o.blocks, o.stride))
        kernel = self.weight(f"{name}.kernel", np.concatenate([other.middle for other in operators], axis=1))
        return self.op("MatMul", f"{name}.products", y, kernel)

    def local(self, name: str, x: str, operator: LocalOperator, products: str, column: int = 0) -> str:
        """x: (R, T) -> (R, N), see LocalOperator. column: where its middle begins in `products`."""
        o, k, n = operator, operator.outputs, operator.blocks - operator.spans + 1
        late = [
            self.op("Slice", f"{name}.part{j}", products, self.numbers(j, at), self.numbers(j + n, at + k), self.numbers(1, 2))
            for j in range(o.spans)
            for at in [column + (o.spans - 1 - j) * k]
        ]
        y = self.op("Sum", f"{name}.sum", *late) if len(late) > 1 else late[0]
        y = self.op("Reshape", f"{name}.row", y, self.numbers(-1, n * k))
        if (o.begin, o.end) != (o.first, o.first + n * k):
            y = self.part(f"{name}.valid", y, o.begin - o.first, o.end - o.first)
        parts = [y]
        if o.begin:
            head = self.part(f"{name}.first", x, 0, len(o.head))
            parts.insert(0, self.op("MatMul", f"{name}.head", head, self.weight(f"{name}.head.kernel", o.head)))
        if o.end < o.n_out:
            tail = self.part(f"{name}.last", x, o.n_in - len(o.tail), o.n_in)
            parts.append(self.op("MatMul", f"{name}.tail", tail, self.weight(f"{name}.tail.kernel", o.tail)))
        return self.op("Concat", name, *parts, axis=1) if len(parts) > 1 else y


def _centred(g: Nodes, samples: int, planes: bool) -> str:
    """counts -> float32 (B * C, T) without their means."""
    x = g.op("Cast", "float", "counts", to=TensorProto.FLOAT)
    if planes:
        low, high = (g.op("Squeeze", f"byte{i}", g.part(f"plane{i}", x, i, i + 1, 3), g.numbers(3)) for i in (0, 1))
        half = g.op("Floor", "negative", g.op("Mul", "halved", high, g.weight("c128", np.array([1 / 128], dtype=np.float32))))
        signed = g.op("Sub", "signed", high, g.op("Mul", "wrap", half, g.weight("c256", np.array([256], dtype=np.float32))))
        x = g.op("Add", "decoded", low, g.op("Mul", "upper", signed, g.weight("c256", np.array([256], dtype=np.float32))))
    x = g.op("Reshape", "rows", x, g.numbers(-1, samples))
    return g.op("Sub", "centred", x, g.op("ReduceMean", "mean", x, g.numbers(1), keepdims=1))


def _front(g: Nodes, front: Front, planes: bool) -> tuple[str, str]:
    """-> names of the encoder's signal (B, 12, 1000 or 5000) and of the band (B, C, 1000)."""
    x = _centred(g, front.samples, planes)
    products = g.products("forward", x, [front.low, front.slow])
    slow = g.local("slow", x, front.slow, products, front.low.middle.shape[1])
    last = g.part("right.last", x, front.samples - len(front.right), front.samples)
    right = g.op("MatMul", "right", last, g.weight("right.kernel", front.right))
    both = g.op("Concat", "slow.all", slow, right, axis=1)
    drift = g.op("MatMul", "drift", both, g.weight("drift.kernel", front.drift))
    pair = g.part("pair", g.op("Shape", "shape", "counts"), 0, 2, 0)  # B, C

    def by_window(name: str, y: str, n: int) -> str:
        return g.op("Reshape", name, y, g.op("Concat", name + ".shape", pair, g.numbers(n), axis=0))

    back = g.local("back", drift, front.back, g.products("back", drift, [front.back]))
    rows = g.op("Sub", "rows.band", g.local("low", x, front.low, products), back)  # (B * C, N)
    band = by_window("band.all", rows, front.low.n_out)  # (B, C, N)
    lead = g.op("MatMul", "lead", "mix", band)  # (B, 12, N)
    power = g.op("MatMul", "power", g.op("Mul", "square", lead, lead), g.weight("weights", front.weights[:, None]))
    scale = g.op("Max", "scale", g.op("Sqrt", "rms", power), "least")  # (B, 12, 1)
    if front.decimation is None:
        signal = g.op("Div", "signal", lead, scale)
    else:
        cut = g.local("cut", rows, front.decimation, g.products("cut", rows, [front.decimation]))
        cut = by_window("cut.all", cut, front.decimation.n_out)
        signal = g.op("MatMul", "signal", g.op("Div", "gain", "mix", scale), cut)
    return signal, g.part("band", band, 0, BAND * STEP // front.step, 2, STEP // front.step)


def _inputs(front: Front, planes: bool) -> list[Any]:
    tail = [2] if planes else []
    kind = TensorProto.UINT8 if planes else TensorProto.INT16
    return [
        helper.make_tensor_value_info("counts", kind, ["B", "C", front.samples, *tail]),
        helper.make_tensor_value_info("mix", TensorProto.FLOAT, ["B", len(LEADS), "C"]),
        helper.make_tensor_value_info("least", TensorProto.FLOAT, ["B", 1, 1]),
    ]


def _model(name: str, g: Nodes, inputs: list[Any], outputs: list[Any], weights: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(g.nodes, name, inputs, outputs, [*g.weights, *weights])
    opset = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, opset_imports=opset, producer_name="ecg-encoders", ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return proto


def front_graph(fs_mhz: int, taps: NDArray[np.float32] | None, planes: bool = False) -> onnx.ModelProto:
    """counts, mix, least -> signal float32 (B, 12, 1000), what the encoder's network takes after its decimation by `taps`
    (`decimation`), or (B, 12, 5000) where `taps` is None; and band. Raises FrontError for a rate that is too odd.
    """
    g = Nodes()
    front = front_of(fs_mhz, taps)
    _front(g, front, planes)
    signal = helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["B", len(LEADS), WINDOW // front.step])
    return _model("ecg-front", g, _inputs(front, planes), [signal, _band()], [])


def _band() -> Any:
    return helper.make_tensor_value_info("band", TensorProto.FLOAT, ["B", "C", BAND])


def _first(graph: onnx.GraphProto) -> tuple[Any, Any, NDArray[np.float32] | None]:
    """The node that takes the windows, the decimation after it or None, and its taps."""
    rows = next(node for node in graph.node if graph.input[0].name in node.input)
    conv = next(node for node in graph.node if rows.output[0] in node.input)
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    if conv.op_type != "Conv" or attributes.get("group") != len(LEADS) or attributes.get("strides") != [1, STEP]:
        return rows, None, None
    weight = next(numpy_helper.to_array(w) for w in graph.initializer if w.name == conv.input[1]).astype(np.float32)
    taps = weight.reshape(len(LEADS), -1)
    half = taps.shape[1] // 2
    if len(conv.input) > 2 or attributes.get("pads") != [0, half, 0, half] or (taps != taps[0]).any():
        return rows, None, None
    return rows, conv, taps[0]


def decimation(encoder: onnx.ModelProto) -> NDArray[np.float32] | None:
    """Taps (K,) of the fixed 5 x decimation that an encoder begins with; None where it takes 500 Hz."""
    return _first(encoder.graph)[2]


def fused_graph(encoder: bytes, fs_mhz: int, planes: bool = False) -> onnx.ModelProto:
    """encoder: the bytes of encoder.onnx or of one of its 8-bit forms -> the graph of this module's first lines.

    Raises FrontError for a rate that is too odd.
    """
    body = onnx.load_model_from_string(encoder)
    rows, conv, taps = _first(body.graph)
    front = front_of(fs_mhz, taps)
    g = Nodes("front/")
    signal, _ = _front(g, front, planes)
    del g.nodes[-1].output[:]
    g.nodes[-1].output.append("band")
    entry = rows if conv is None else conv
    g.nodes.append(helper.make_node("Unsqueeze", [signal, g.numbers(2)], [entry.output[0]], name="front/entry"))
    gone = [rows] if conv is None else [rows, conv]
    g.nodes += [node for node in body.graph.node if all(node is not other for other in gone)]
    embedding = body.graph.output[0]
    g.nodes.append(helper.make_node("Gemm", [embedding.name, "labels", "bias"], ["logits"], name="front/logits", transB=1))
    dim = embedding.type.tensor_type.shape.dim[1].dim_value
    labels = [
        helper.make_tensor_value_info("labels", TensorProto.FLOAT, ["L", dim]),
        helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["L"]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "L"])
    used = {name for node in g.nodes for name in node.input}
    weights = [w for w in body.graph.initializer if w.name in used]
    model = _model("ecg-fused", g, [*_inputs(front, planes), *labels], [embedding, logits, _band()], weights)
    model.opset_import[0].version = max(model.opset_import[0].version, *(o.version for o in body.opset_import if not o.domain))
    return model
