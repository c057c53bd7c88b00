"""The encoder in 8-bit integers for CPUs: activations unsigned, weights signed and scaled by channel, ranges by observation.

What has no weights to save (the mean, the projection of 512 numbers, the norm) and the decimation filter, whose error would be
in all that follows, stay float32. Weights use 7 bits: without VNNI the CPU's 8-bit product of unsigned and signed saturates.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from encoders.model import EcgEncoder
from encoders.onnx_backend import OnnxEncoder
from training.data import DataSet, Floats
from training.evaluate import LEAD_SETS
from training.onnx_graph import encoder_graph

__all__ = ["LEAST_COSINE", "QuantizeError", "int8_graph"]

LEAST_COSINE = 0.98  # median over held-out windows; below it calibration and thresholds of the float model do not carry over
WINDOWS, BATCH = 128, 16  # observed, and compared, over all lead sets together
QUANTIZED = ["Conv", "Add", "MaxPool", "Relu"]


class QuantizeError(ValueError):
    """The 8-bit encoder is too far from the float one; the text gives both values."""


def int8_graph(encoder: EcgEncoder, train: DataSet, held_out: DataSet, seed: int = 0) -> tuple[bytes, dict[str, Any]]:
    """-> bytes of an ONNX file like `encoder_graph`'s, and how near it comes to the float32 embeddings of `held_out`, by leads.

    Ranges are the extremes seen on windows of `train`. Raises QuantizeError below the least cosine.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "encoder.fp32.onnx", Path(folder) / "encoder.u8s8.onnx"
        source.write_bytes(_marked(encoder_graph(encoder, half=False)))
        seen = [x for name in LEAD_SETS for x in _windows(train, WINDOWS // len(LEAD_SETS), name, seed)]
        _quantize(source, target, seen)
        measured: dict[str, Any] = {"windows": 0, "median_cosine": {}, "least_cosine": {}}
        with _open(source) as exact, _open(target) as rough:
            for name in LEAD_SETS:
                cosine = np.concatenate(
                    [
                        _cosine(exact.encode(x), rough.encode(x))
                        for x in _windows(held_out, WINDOWS // len(LEAD_SETS), name, seed)
                    ]
                )
                measured["windows"] += len(cosine)
                measured["median_cosine"][name] = float(np.median(cosine))
                measured["least_cosine"][name] = float(cosine.min())
        worst = min(measured["median_cosine"], key=measured["median_cosine"].__getitem__)
        if not (value := measured["median_cosine"][worst]) >= LEAST_COSINE:
            raise QuantizeError(
                f"encoder.u8s8.onnx is not written: median cosine with the float32 embeddings of at least {LEAST_COSINE} "
                f"expected, found {value:.4f} with leads {worst}; export without --int8"
            )
        return target.read_bytes(), measured


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


def _quantize(source: Path, target: Path, seen: list[Floats]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(seen)

        def get_next(self) -> dict[str, Floats] | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x}

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=QUANTIZED,
        nodes_to_exclude=["decimate"],
    )
