"""The gate on what 8 bits may cost, and what stands in the graph of each form; u8s8 is served where an artifact is made."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from encoders.model import EcgEncoder, EncoderConfig
from training.data.dataset import DataSet
from training.evaluation.evaluate import Predictions
from training.evaluation.metrics import MetricError
from training.release.quantize import S8S8, U8S8, Form, QuantizeError, check_auroc, int8_graph
from training.vocabulary import Statement, select

LABELS = tuple(Statement(n, n, n, (), (), "routine", "any", True, i) for i, n in enumerate(("A", "B", "RARE")))


def predictions() -> Predictions:
    y = np.zeros((110, 3), dtype=bool)
    y[:10, :2] = y[0, 2] = True
    logits = np.where(y, 1.0, -1.0).astype(np.float32)
    return Predictions(logits, y, np.ones_like(y), [{"patient": "p"}] * 110, LABELS)


def test_what_may_be_lost_by_hand() -> None:
    exact = predictions()
    rough = exact.logits.copy()
    rough[50:53, 0] = 2  # 3 of 100 negatives above each positive: 0.03 of A, 0.015 of the mean of A and B
    both = np.array([True, True, True])
    with pytest.raises(
        QuantizeError,
        match=r"encoder\.u8s8\.onnx .*at most 0\.003 of macro AUROC .* lost 0\.0150 \(1\.0000 .* 0\.9850 in 8 bits, 2 la",
    ):
        check_auroc(exact, rough, both, U8S8)
    only_b = np.array([False, True, True])
    assert check_auroc(exact, rough, only_b, U8S8) == {"labels": 1, "macro_auroc": 1.0, "int8_macro_auroc": 1.0, "loss": 0.0}
    rough = exact.logits.copy()
    rough[50, 0] = 0.5  # still below every positive
    rough[0, 0], rough[51, 0] = 0.2, 0.3  # one pair of 1,000 in A: 0.0005 of the mean
    rough[52, 0] = 0.1
    assert check_auroc(exact, rough, both, U8S8)["loss"] == pytest.approx(0.001)  # 0.2 lies below 0.5 and 0.3: two pairs


def test_where_nothing_can_be_measured_nothing_is_written() -> None:
    exact = predictions()
    with pytest.raises(QuantizeError, match="what it costs cannot be measured; use more data or --crossval"):
        check_auroc(exact, exact.logits, np.array([False, False, True]), U8S8)
    broken = np.full_like(exact.logits, np.nan)
    with pytest.raises(MetricError, match="110 of 110 scores of a label are not finite"):
        check_auroc(exact, broken, np.array([True, True, True]), S8S8)


def test_windows_of_one_recording_measure_nothing() -> None:
    exact = predictions()
    one = Predictions(exact.logits, exact.y, exact.known, [{"patient": "p", "window": i} for i in range(110)], LABELS)
    with pytest.raises(QuantizeError, match=r"s8s8.* no label has 10 positives .* or export without --s8s8"):
        check_auroc(one, exact.logits, np.array([True, True, True]), S8S8)


@pytest.fixture(scope="module")
def graphs(
    prepared: Path, vocabulary: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, list[float]]]]:
    """By form: a file and its ranges, of an encoder that has learned nothing."""
    labels, out = select(vocabulary, "core98"), tmp_path_factory.mktemp("int8")
    train, held_out = DataSet(prepared, labels, (1, 2)), DataSet(prepared, labels, (8,))
    torch.manual_seed(0)
    model = EcgEncoder(EncoderConfig(dim=16)).eval()
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.release.quantize.WINDOWS", 16)
        for form in (U8S8, S8S8):
            graph, told = int8_graph(model, train, held_out, form)
            assert min(told["median_cosine"].values()) > 0.98
            (out / form.file).write_bytes(graph)
            made[form.name] = (out / form.file, told["ranges"])
    return made


def test_s8s8_is_symmetric_and_float32_outside_convolutions(graphs: dict[str, tuple[Path, dict[str, list[float]]]]) -> None:
    graph = onnx.load(graphs["s8s8"][0]).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    by_output = {node.output[0]: node for node in graph.node}
    rounding = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in rounding:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.name != "decimate"]
    assert len(convolutions) == 20
    for node in convolutions:
        signal, weight = (by_output[name] for name in node.input[:2])
        assert (signal.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert values[weight.input[0]].dtype == np.int8
        assert len(values[weight.input[1]]) == len(values[weight.input[0]])  # a scale a channel
        assert np.abs(values[weight.input[0]]).max() == 127
        assert values[node.input[2]].dtype == np.float32  # its bias
    rounded = [by_output[node.input[0]].op_type for node in rounding if node.op_type == "QuantizeLinear"]
    assert set(rounded) == {"Conv", "MaxPool", "Relu"}
    assert rounded.count("Conv") == 1  # the decimation filter's, which itself is float32


def test_ranges_are_what_eight_bits_can_hold(graphs: dict[str, tuple[Path, dict[str, list[float]]]]) -> None:
    path, signed = graphs["s8s8"]
    values = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    assert signed["decimate"] == pytest.approx([-128 * values["decimate_scale"], 127 * values["decimate_scale"]], rel=1e-5)
    for low, high in signed.values():
        assert low / high == pytest.approx(-128 / 127, rel=1e-4)
    unsigned = graphs["u8s8"][1]
    assert unsigned["stem"][0] == 0  # behind a ReLU nothing is below 0
    assert signed["pool"][1] == pytest.approx(unsigned["stem"][1], rel=0.01)  # the same highest value seen
    assert len(signed) == 17
    assert len(unsigned) == 30


@pytest.mark.parametrize("form", [U8S8, S8S8])
def test_a_form_too_far_from_float32_is_not_written(
    prepared: Path, vocabulary: tuple[Statement, ...], form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.release.quantize.WINDOWS", 4)
    monkeypatch.setattr("training.release.quantize.LEAST_COSINE", 1.1)
    data = DataSet(prepared, select(vocabulary, "core98"), (8,))
    with pytest.raises(QuantizeError, match=rf"encoder\.{form.name}\.onnx is not written: .*export without {form.option}"):
        int8_graph(EcgEncoder(EncoderConfig(dim=16)).eval(), data, data, form)


TENSORRT = """
import sys
import tensorrt_rtx as trt
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse(open(sys.argv[1], "rb").read()):
    sys.exit("refused: " + parser.get_error(0).desc())
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)  # named, so that no GPU is asked
profile = builder.create_optimization_profile()
profile.set_shape("x", (1, 12, 5000), (8, 12, 5000), (64, 12, 5000))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
layers = [network.get_layer(i).type for i in range(network.num_layers)]
print("built", engine.nbytes, layers.count(trt.LayerType.QUANTIZE), layers.count(trt.LayerType.DEQUANTIZE))
"""


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install tensorrt-rtx")
def test_tensorrt_takes_s8s8_and_not_u8s8(graphs: dict[str, tuple[Path, dict[str, list[float]]]]) -> None:
    """As a strongly typed network, built ahead of time; in a process of its own, which a foreign runtime may take down."""
    done = {
        name: subprocess.run([sys.executable, "-c", TENSORRT, str(path)], capture_output=True, text=True)
        for name, (path, _) in graphs.items()
    }
    assert done["s8s8"].returncode == 0, done["s8s8"].stderr
    said, size, quantize, dequantize = done["s8s8"].stdout.split()[-4:]
    assert (said, int(quantize), int(dequantize)) == ("built", 17, 17 + 20)
    assert int(size) > 4_000_000
    assert done["u8s8"].returncode != 0
    assert "refused: " in done["u8s8"].stderr
    assert "conv1.bias" in done["u8s8"].stderr  # in 32 bits there
