"""What the lanes do in which order, on a stand-in for the GPU: equal to ONNX Runtime, overlapped, padded, halved, ended."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from encoders.base import BackendUnavailable, DeviceLost, Encoder, Floats
from encoders.engine.lanes import Lanes, bucket_of
from encoders.engine.plans import Recipe
from encoders.engine.run import Engine
from encoders.model import EcgEncoder, EncoderConfig
from encoders.onnx_backend import OnnxEncoder
from encoders.signal import SignalError
from encoders.tensorrt_backend import FUSED, TensorRtEncoder
from tests.encoders.host_gpu import HostCuda, host_tensorrt
from training.release.onnx_graph import encoder_graph

RECIPE = Recipe(profiles=((1, 2), (2, 4), (4, 8)))
ROW = 12 * 5000 * 4  # bytes of a window


@pytest.fixture(scope="module")
def graph() -> bytes:
    torch.manual_seed(0)
    return encoder_graph(EcgEncoder(EncoderConfig(dim=8)).eval())


@pytest.fixture(scope="module")
def windows() -> Floats:
    return np.random.default_rng(0).standard_normal((11, 12, 5000)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(graph: bytes, windows: Floats, tmp_path_factory: pytest.TempPathFactory) -> Floats:
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    path.write_bytes(graph)
    with OnnxEncoder(path, hashlib.sha256(graph).hexdigest(), 1) as encoder:
        return encoder.encode(windows)


def opened(graph: bytes, cuda: HostCuda, piece: int = 4) -> TensorRtEncoder:
    return TensorRtEncoder(Engine(host_tensorrt(cuda, RECIPE), graph, RECIPE, cuda, piece), "ab" * 32)


def test_is_an_encoder_and_equals_onnx_runtime_at_every_batch(graph: bytes, windows: Floats, expected: Floats) -> None:
    cuda = HostCuda()
    with opened(graph, cuda) as encoder:
        assert isinstance(encoder, Encoder)
        assert (encoder.dim, encoder.backend, encoder.digest) == (8, "tensorrt", "ab" * 32)
        for rows in (1, 3, 4, 5, 8, 9, 11, 2, 11):  # up and down: buffers grow, smaller batches use their front
            np.testing.assert_allclose(encoder.encode(windows[:rows]), expected[:rows], atol=1e-5)
        np.testing.assert_allclose(encoder.encode(windows[:, :, ::-1][:2, :, ::-1]), expected[:2], atol=1e-5)  # not contiguous
        assert encoder.encode(windows[:0]).shape == (0, 8)
        with pytest.raises(SignalError):
            encoder.encode(windows[:, :11])
    assert not cuda.live
    assert not cuda.pins
    assert not cuda.graphs
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(windows[:1])


def test_one_context_and_one_graph_a_batch_size(graph: bytes, windows: Floats) -> None:
    cuda = HostCuda()
    trt = host_tensorrt(cuda, RECIPE)
    engine = Engine(trt, graph, RECIPE, cuda, piece=8)
    for rows in (8, 5, 4, 3, 2, 1, 8, 5, 4, 3, 2, 1):
        engine.run({"x": windows[:rows]})
    assert [(c.shapes["x"][0], c.profile) for c in trt.contexts] == [(8, 2), (4, 1), (2, 0), (1, 0)]
    assert len(cuda.graphs) == 4
    assert cuda.events.count(("play", 1)) == 12
    assert cuda.events.count(("run", 1)) == 4  # each shape once outside its graph, before it was recorded
    assert bucket_of(1) == 1
    assert [bucket_of(n) for n in (2, 3, 4, 5, 1024, 1025)] == [2, 4, 4, 8, 1024, 2048]


def test_a_piece_is_copied_while_the_other_computes(graph: bytes, windows: Floats) -> None:
    cuda = HostCuda()
    engine = Engine(host_tensorrt(cuda, RECIPE), graph, RECIPE, cuda, piece=2)
    engine.run({"x": windows[:8]})
    cuda.events.clear()
    engine.run({"x": windows[:8]})
    assert cuda.events == [
        ("play", 1), ("play", 2), ("wait", 1), ("play", 1), ("wait", 2), ("play", 2), ("wait", 1), ("wait", 2),
    ]  # fmt: skip


def test_where_memory_ends_the_batch_is_halved_once_and_said(
    graph: bytes, windows: Floats, expected: Floats, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = HostCuda(limit=2 * (4 * ROW + 4 * 8 * 4 + 4000) + ROW)  # two lanes of four windows, not of eight
    encoder = opened(graph, cuda, piece=8)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode(windows), expected, atol=1e-5)
        np.testing.assert_allclose(encoder.encode(windows), expected, atol=1e-5)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("no memory on the accelerator for 8 windows at once: 4 from now on (cudaMalloc")
    encoder.close()
    assert not cuda.live
    assert not cuda.pins


def test_without_memory_for_half_of_it_the_process_has_to_end(graph: bytes, windows: Floats) -> None:
    cuda = HostCuda(limit=2 * ROW)
    encoder = opened(graph, cuda, piece=8)
    with pytest.raises(DeviceLost, match="not for 4 windows at once either"):
        encoder.encode(windows)
    with pytest.raises(DeviceLost, match="no memory"):
        opened(graph, HostCuda(limit=10)).encode(windows[:1])


def test_what_cannot_be_recorded_runs_without(
    graph: bytes, windows: Floats, expected: Floats, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = HostCuda(records=False)
    encoder = opened(graph, cuda)
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(windows[:3]), expected[:3], atol=1e-5)
    assert cuda.events.count(("run", 1)) == 3
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("shapes {'x': (4, 12, 5000), ")
    assert said.endswith("run without a recorded graph: cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated (901)")


def test_a_piece_that_fails_waits_for_the_one_under_way(graph: bytes, windows: Floats) -> None:
    cuda = HostCuda()
    trt = host_tensorrt(cuda, RECIPE)
    engine = Engine(trt, graph, RECIPE, cuda, piece=4)
    engine.run({"x": windows[:5]})
    trt.refuse = True  # recorded graphs run; the second lane's first batch of three does not
    with pytest.raises(DeviceLost, match="did not enqueue"):
        engine.run({"x": windows[:7]})
    assert not cuda.queues[1]
    trt.refuse = False
    with pytest.raises(DeviceLost, match="did not enqueue"):  # from here on always, though it would work again
        engine.run({"x": windows})


def test_a_gpu_that_fails_is_lost(graph: bytes, windows: Floats) -> None:
    cuda = HostCuda()
    trt = host_tensorrt(cuda, RECIPE)
    engine = Engine(trt, graph, RECIPE, cuda)
    trt.refuse = True
    with pytest.raises(DeviceLost, match="did not enqueue"):
        engine.run({"x": windows[:1]})
    cuda = HostCuda()
    engine = Engine(host_tensorrt(cuda, RECIPE), graph, RECIPE, cuda)
    engine.run({"x": windows[:1]})
    cuda.broken = True
    with pytest.raises(DeviceLost, match="700"):
        engine.run({"x": windows[:1]})


def test_bytes_that_are_no_plan_are_refused() -> None:
    cuda = HostCuda()
    with pytest.raises(BackendUnavailable, match="the plan does not load: not a plan: "):
        Engine(host_tensorrt(cuda, RECIPE), b"\x00" * 100, RECIPE, cuda)


def scores_graph() -> bytes:
    """uint8 (B, C, 4), label embeddings (L, 4) -> float32 embedding (B, 4), sum over C; scores (B, L); band (B, C, 4)."""
    tensors = [
        helper.make_tensor_value_info("planes", TensorProto.UINT8, ["B", "C", 4]),
        helper.make_tensor_value_info("labels", TensorProto.FLOAT, ["L", 4]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "L"]),
        helper.make_tensor_value_info("band", TensorProto.FLOAT, ["B", "C", 4]),
    ]
    nodes = [
        helper.make_node("Cast", ["planes"], ["band"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["band", "axis"], ["embedding"], keepdims=0),
        helper.make_node("Transpose", ["labels"], ["columns"]),
        helper.make_node("MatMul", ["embedding", "columns"], ["scores"]),
    ]
    axis = onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    graph = helper.make_graph(nodes, "g", tensors[:2], tensors[2:], [axis])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def test_labels_are_swapped_and_leads_change_without_another_plan() -> None:
    cuda, rng = HostCuda(), np.random.default_rng(0)
    recipe = Recipe(profiles=((1, 4),), ranges=(("C", 1, 12, 12), ("L", 1, 3, 8)))
    trt = host_tensorrt(cuda, recipe)
    engine = Engine(trt, scores_graph(), recipe, cuda, piece=4, constants=frozenset(["labels"]))
    made: list[int] = []
    for n_labels, leads in ((3, 2), (3, 2), (5, 2), (3, 2), (3, 12), (3, 1)):
        labels = rng.random((n_labels, 4), dtype=np.float32)
        x = rng.integers(0, 255, (9, leads, 4)).astype(np.uint8)
        for _ in range(2):
            out = engine.run({"planes": x, "labels": labels})
            total = x.astype(np.float32).sum(axis=1)
            np.testing.assert_array_equal(out["band"], x)
            np.testing.assert_array_equal(out["embedding"], total)
            np.testing.assert_allclose(out["scores"], total @ labels.T, rtol=1e-5)
        made.append(len(trt.contexts))
    assert made[0] == made[1] == 3  # 4 + 4 + 1 windows on two lanes; other labels of the same number change nothing
    assert trt.contexts[0].engine.modes["labels"] == 1
    with pytest.raises(ValueError, match=r"the plan takes no planes of shape \(1, 13, 4\)"):
        engine.run({"planes": np.zeros((1, 13, 4), dtype=np.uint8), "labels": labels})
    with pytest.raises(ValueError, match="one number of rows"):
        Lanes([]).run({"a": x, "b": x[:1]})
    engine.close()
    assert not cuda.live
    assert not cuda.graphs


def test_labels_are_copied_when_they_change_and_not_otherwise() -> None:
    cuda = HostCuda()
    recipe = Recipe(profiles=((1, 4),), ranges=(("C", 1, 12, 12), ("L", 1, 3, 8)))
    engine = Engine(host_tensorrt(cuda, recipe), scores_graph(), recipe, cuda, constants=frozenset(["labels"]))
    x, labels = np.ones((1, 1, 4), dtype=np.uint8), np.ones((3, 4), dtype=np.float32)
    engine.run({"planes": x, "labels": labels})
    for given, copies in ((labels, 0), (labels * 2, 1), (labels, 1), (labels, 0)):
        cuda.events.clear()
        assert engine.run({"planes": x, "labels": given})["scores"][0, 0] == 4 * given[0, 0]
        assert cuda.events.count(("in", 1)) == copies  # windows go in with the recorded graph


def test_the_graph_from_counts_runs_on_the_lanes_as_on_onnx_runtime(graph: bytes) -> None:
    import onnxruntime as ort

    from encoders.graph.fused import fused_graph

    rng, recipe = np.random.default_rng(1), Recipe(profiles=((1, 2),), ranges=FUSED)
    n, samples = 3, 3600
    feeds = {
        "counts": np.cumsum(rng.integers(-30, 31, (n, 2, samples)), axis=2).astype(np.int16),
        "mix": np.tile(np.eye(12, 2, dtype=np.float32), (n, 1, 1)) / 1000,
        "least": np.full((n, 1, 1), 0.005, dtype=np.float32),
        "labels": rng.standard_normal((5, 8)).astype(np.float32),
        "bias": rng.standard_normal(5).astype(np.float32),
    }
    whole = ort.InferenceSession(fused_graph(graph, 360_000).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip((o.name for o in whole.get_outputs()), whole.run(None, feeds), strict=True))
    cuda = HostCuda()
    planes = fused_graph(graph, 360_000, planes=True).SerializeToString()
    engine = Engine(host_tensorrt(cuda, recipe), planes, recipe, cuda, constants=frozenset(["labels", "bias"]))
    feeds["counts"] = feeds["counts"].view(np.uint8).reshape(n, 2, samples, 2)
    out = engine.run(feeds)
    assert set(out) == {"embedding", "logits", "band"}
    for name, value in out.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-3 if name == "band" else 1e-4)
