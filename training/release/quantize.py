"""The encoder in 8-bit integers, weights signed and scaled by channel, ranges of activations by observation. Two forms:

u8s8, for CPUs: unsigned activations. Weights use 7 bits: without VNNI the CPU's 8-bit product of unsigned and signed saturates.

s8s8, for TensorRT as a strongly typed network: the activations that enter a convolution are signed and symmetric, all zero
points are 0, biases stay float32. Outputs of convolutions and additions are not rounded, so that convolution, addition and
ReLU become one kernel; behind a ReLU half of the range is unused, which the gates measure.

What has no weights to save (the mean, the projection of 512 numbers, the norm) and the decimation filter, whose error would be
in all that follows, stay float32 in both.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from encoders.model import EcgEncoder
from encoders.onnx_backend import OnnxEncoder
from training.data.dataset import DataSet, Floats
from training.data.targets import cases_of
from training.evaluation.evaluate import LEAD_SETS, Predictions, predict
from training.evaluation.metrics import aurocs, enough
from training.learning.trainee import Trainee
from training.release.onnx_graph import encoder_graph

__all__ = [
    "LEAST_COSINE",
    "MOST_LOSS",
    "S8S8",
    "U8S8",
    "Form",
    "QuantizeError",
    "check_auroc",
    "int8_graph",
    "int8_logits",
    "quantized",
]

LEAST_COSINE = 0.98  # median over windows; below it calibration and thresholds of the float model do not carry over
MOST_LOSS = 0.003  # of macro AUROC against float32, on records that no weight was fitted on
WINDOWS, BATCH = 128, 16  # observed, and compared, over all lead sets together


@dataclass(frozen=True)
class Form:
    """name: in the file's name. option: of `export`. activations, settings: of onnxruntime's quantizer."""

    name: str
    option: str
    activations: str
    settings: Mapping[str, Any]

    @property
    def file(self) -> str:
        """In the artifact."""
        return f"encoder.{self.name}.onnx"


U8S8 = Form("u8s8", "--int8", "QUInt8", {"op_types_to_quantize": ["Conv", "Add", "MaxPool", "Relu"], "reduce_range": True})
S8S8 = Form(
    "s8s8",
    "--s8s8",
    "QInt8",
    {
        "op_types_to_quantize": ["Conv"],
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    },
)


class QuantizeError(ValueError):
    """The 8-bit encoder is too far from the float one; the text gives both values."""


def int8_graph(
    encoder: EcgEncoder, train: DataSet, compared: DataSet, form: Form, seed: int = 0
) -> tuple[bytes, dict[str, Any]]:
    """-> bytes of an ONNX file like `encoder_graph`'s, and how near it comes to the float32 embeddings of `compared`, by leads.

    compared: records that the encoder never saw, where there are any; of one fitted on all of folds 1 to 8 (`--crossval`) they
    are its training records, some of them also in the ranges: there only the AUROC is measured on records not seen.
    ranges: lowest and highest value of each activation in 8 bits, from the extremes seen on windows of `train`. Raises
    QuantizeError below the least cosine.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "encoder.fp32.onnx", Path(folder) / form.file
        source.write_bytes(exact_graph := encoder_graph(encoder, half=False))
        seen = [x for name in LEAD_SETS for x in _windows(train, WINDOWS // len(LEAD_SETS), name, seed)]
        target.write_bytes(quantized(exact_graph, seen, form))
        measured: dict[str, Any] = {"windows": 0, "median_cosine": {}, "least_cosine": {}}
        with _open(source) as exact, _open(target) as rough:
            for name in LEAD_SETS:
                cosine = np.concatenate(
                    [
                        _cosine(exact.encode(x), rough.encode(x))
                        for x in _windows(compared, WINDOWS // len(LEAD_SETS), name, seed + 1)
                    ]
                )
                measured["windows"] += len(cosine)
                measured["median_cosine"][name] = float(np.median(cosine))
                measured["least_cosine"][name] = float(cosine.min())
        worst = min(measured["median_cosine"], key=measured["median_cosine"].__getitem__)
        if not (value := measured["median_cosine"][worst]) >= LEAST_COSINE:
            raise QuantizeError(
                f"{form.file} is not written: median cosine with the float32 embeddings of at least {LEAST_COSINE} "
                f"expected, found {value:.4f} with leads {worst}; export without {form.option}"
            )
        graph = target.read_bytes()
        return graph, {**measured, "ranges": _ranges(graph)}


def int8_logits(model: Trainee, graph: bytes, data: DataSet, advance: Callable[[int], None] = lambda n: None) -> Floats:
    """(N, L) logits of `model` with its encoder replaced by `graph`, all leads."""
    model.eval()
    with torch.inference_mode():
        rows, bias, scale = model.rows().numpy(), model.bias.numpy(), model.scale
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.int8.onnx"
        path.write_bytes(graph)
        with _open(path) as encoder:
            return predict(lambda x: scale * (encoder.encode(x) @ rows.T) + bias, data, advance=advance).logits


def check_auroc(exact: Predictions, rough: Floats, counted: NDArray[np.bool_], form: Form) -> dict[str, Any]:
    """exact: float32 predictions of held-out records; rough: (N, L) logits in 8 bits; counted: bool (L,), labels with evidence.

    -> labels, macro_auroc, int8_macro_auroc, loss. Raises QuantizeError: more than 0.003 lost, or nothing to measure.
    """
    known, once = exact.known & counted, np.ones((1, len(rough)))
    use = enough(exact.y, known, cases_of(exact.index))
    if not (labels := int(use.sum())):
        raise QuantizeError(
            f"{form.file} is not written: no label has 10 positives and 10 negatives among the held-out records, so what "
            f"it costs cannot be measured; use more data or --crossval, or export without {form.option}"
        )
    before, after = (float(aurocs(z[:, use], exact.y[:, use], known[:, use], once).mean()) for z in (exact.logits, rough))
    told = {"labels": labels, "macro_auroc": before, "int8_macro_auroc": after}
    if not (loss := before - after) <= MOST_LOSS:
        raise QuantizeError(
            f"{form.file} is not written: it may lose at most {MOST_LOSS} of macro AUROC on held-out records, "
            f"lost {loss:.4f} ({before:.4f} in float32, {after:.4f} in 8 bits, {labels} labels); export without {form.option}"
        )
    return {**told, "loss": loss}


def _open(path: Path) -> OnnxEncoder:
    return OnnxEncoder(path, hashlib.sha256(path.read_bytes()).hexdigest(), threads=1)


def _cosine(a: Floats, b: Floats) -> NDArray[np.float64]:
    return np.asarray((a.astype(np.float64) * b).sum(axis=1))


def _windows(data: DataSet, count: int, lead_set: str, seed: int) -> Iterator[Floats]:
    """Batches of at most `count` whole windows, chosen by seed and the lead set's name."""
    rng = np.random.default_rng([seed, *lead_set.encode()])
    rows = np.sort(rng.permutation(len(data))[:count])
    for start in range(0, len(rows), BATCH):
        yield data.kept(rows[start : start + BATCH], lead_set)[0]


def _marked(graph: bytes) -> bytes:
    """With the mark by which the quantizer knows that batch norms are folded and shapes inferred."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return bytes(model.SerializeToString(deterministic=True))


def quantized(graph: bytes, seen: Sequence[Floats], form: Form) -> bytes:
    """graph: float32, of `encoder_graph`. seen: batches (B, 12, 5000) that the ranges of activations are taken from."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(seen)

        def get_next(self) -> dict[str, Floats] | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "exact.onnx", Path(folder) / form.file
        source.write_bytes(_marked(graph))
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType[form.activations],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=["decimate"],
            **form.settings,
        )
        return target.read_bytes()


def _ranges(graph: bytes) -> dict[str, list[float]]:
    """By activation, what its 8 bits can hold: (lowest code - zero point) * scale to (highest code - zero point) * scale."""
    proto = onnx.load_model_from_string(graph).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in proto.initializer}
    out = {}
    for node in proto.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[name] for name in node.input[1:3])
            codes = np.iinfo(zero.dtype)
            out[node.input[0]] = [float(f"{(code - int(zero)) * float(scale):.6g}") for code in (codes.min, codes.max)]
    return out
