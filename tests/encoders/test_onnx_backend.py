"""ONNX Runtime and torch give the same embeddings; wrong shapes, wrong files and closed encoders are refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from encoders.base import Encoder
from encoders.model import EcgEncoder, EncoderConfig
from encoders.onnx_backend import OnnxEncoder
from encoders.signal import SignalError
from encoders.torch_backend import TorchEncoder
from training.release.onnx_graph import encoder_graph


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, 12, 5000)).astype(np.float32)


def model_of(form: str) -> EcgEncoder:
    torch.manual_seed(1)
    model = EcgEncoder(EncoderConfig(form=form)).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 12, 1250))
    return model.eval()


def opened(data: bytes, folder: Path, threads: int = 1) -> OnnxEncoder:
    path = folder / "encoder.onnx"
    path.write_bytes(data)
    return OnnxEncoder(path, hashlib.sha256(data).hexdigest(), threads)


@pytest.mark.parametrize("form", ["plain", "decimated"])
def test_parity_with_torch(form: str, windows: np.ndarray, tmp_path: Path) -> None:
    model = model_of(form)
    reference = TorchEncoder(model).encode(windows)
    full = encoder_graph(model, half=False)
    half = encoder_graph(model, half=True)
    with opened(full, tmp_path) as encoder:
        np.testing.assert_allclose(encoder.encode(windows), reference, atol=2e-6)
    with opened(half, tmp_path) as encoder:
        e = encoder.encode(windows)
    assert np.sum(e * reference, axis=1).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)
    assert len(half) < 0.51 * len(full) < 8.2e6


def test_weights_are_stored_as_float16_and_the_graph_is_the_same_each_time(tmp_path: Path) -> None:
    model = model_of("decimated")
    data = encoder_graph(model)
    assert encoder_graph(model) == data
    graph = onnx.load_from_string(data).graph
    types = {w.name: w.data_type for w in graph.initializer}
    assert types["layers.7.conv2.weight.f16"] == TensorProto.FLOAT16
    assert types["decimate.weight"] == TensorProto.FLOAT  # 12 x 81 taps are not worth the rounding
    kinds = {node.op_type for node in graph.node}
    assert "Cast" in kinds
    assert "BatchNormalization" not in kinds


def test_is_an_encoder_with_settings(windows: np.ndarray, tmp_path: Path) -> None:
    with opened(encoder_graph(model_of("decimated")), tmp_path) as encoder:
        assert isinstance(encoder, Encoder)
        assert (encoder.dim, encoder.backend) == (256, "onnxruntime")
        options = encoder._plain.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert encoder.encode(windows[:0]).shape == (0, 256)
        alone, together = encoder.encode(windows[:1]), encoder.encode(windows)
        np.testing.assert_allclose(alone[0], together[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5000), (1, 12, 4999), (1, 11, 5000), (1, 5000, 12)])
def test_wrong_shapes_are_refused_by_both(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = EcgEncoder(EncoderConfig(dim=8))
    with opened(encoder_graph(model), tmp_path) as encoder:
        for one in (encoder, TorchEncoder(model)):
            with pytest.raises(SignalError) as caught:
                one.encode(np.zeros(shape, dtype=np.float32))
            assert caught.value.code == "shape"
            with pytest.raises(SignalError):
                one.encode(np.zeros((1, 12, 5000)))  # type: ignore[arg-type]


def test_closed_encoders_say_so(windows: np.ndarray, tmp_path: Path) -> None:
    model = EcgEncoder(EncoderConfig(dim=8))
    for encoder in (opened(encoder_graph(model), tmp_path), TorchEncoder(model)):
        encoder.close()
        with pytest.raises(RuntimeError, match="closed"):
            encoder.encode(windows)


def test_another_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=f"{'0' * 64} expected.*{hashlib.sha256(b'not a graph').hexdigest()}"):
        OnnxEncoder(path, "0" * 64)


def test_a_graph_of_another_shape_is_refused(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 5000])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 3, 5000])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    with pytest.raises(ValueError, match=r"\(B, 12, 5000\).*found"):
        opened(data, tmp_path)


def test_torch_from_safetensors(windows: np.ndarray, tmp_path: Path) -> None:
    model = model_of("decimated")
    path = tmp_path / "encoder.safetensors"
    save_file(model.state_dict(), path, metadata={"config": json.dumps(asdict(model.config))})
    with TorchEncoder.from_safetensors(path, "ab" * 32) as encoder:
        np.testing.assert_array_equal(encoder.encode(windows), TorchEncoder(model).encode(windows))
        assert (encoder.digest, encoder.dim, encoder.backend) == ("ab" * 32, 256, "torch")
    save_file(model.state_dict(), path)
    with pytest.raises(ValueError, match="metadata 'config' expected"):
        TorchEncoder.from_safetensors(path)
    save_file(model.state_dict(), path, metadata={"config": json.dumps({"dim": 64})})
    with pytest.raises(ValueError, match="size mismatch"):
        TorchEncoder.from_safetensors(path)
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"encoder\.safetensors"):
        TorchEncoder.from_safetensors(path)


def test_serving_modules_import_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys; import encoders.artifact, encoders.bank, encoders.base, encoders.onnx_backend; "
        "print([m for m in ('torch', 'onnxruntime', 'scipy', 'transformers', 'onnx', 'wfdb') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
