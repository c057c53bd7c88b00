"""TensorRT-RTX parses and builds without a GPU: strong typing, the precision of each layer, profiles, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from encoders.base import BackendUnavailable
from encoders.engine import build as engine_build
from encoders.engine.build import load_library
from encoders.model import EcgEncoder, EncoderConfig
from encoders.torch_backend import HalfEncoder, TorchEncoder, from_onnx
from training.release.onnx_graph import encoder_graph

ROOT = Path(__file__).resolve().parents[3]
rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install tensorrt-rtx")


def in_a_process(graph: Path, precision: str = "fp16", sm: str = "8.9") -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.encoders.rtx_build", str(graph), precision, sm]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    path.write_bytes(encoder_graph(EcgEncoder(EncoderConfig(dim=16)).eval()))
    return path


@rtx
@pytest.mark.parametrize(("precision", "body", "built"), [("fp16", "HALF", "Half"), ("bf16", "BF16", "BFloat16")])
def test_the_body_computes_low_and_the_head_in_float32(graph: Path, precision: str, body: str, built: str) -> None:
    told = in_a_process(graph, precision)
    network = {name: (kind, ins, outs) for name, kind, ins, outs in told["network"]}
    convolutions = {n: x for n, x in network.items() if x[0] == "CONVOLUTION"}
    assert len(convolutions) == 21
    for name, (_, ins, outs) in convolutions.items():
        assert {*ins, *outs} == {"FLOAT" if name == "decimate" else body}, name
    for name in ("stem", "pool", "layers.0.add", "layers.7"):
        assert network[name][1][0] == network[name][2][0] == body
    for name in ("mean", "projection", "norm", "norm_1", "norm_2", "floor", "embedding"):
        assert {*network[name][1], *network[name][2]} == {"FLOAT"}, name
    assert told["held"] > 20  # biases in low precision, referred to until the build
    # The built engine: four profiles, and in each every convolution of the body in low precision, the head in float32.
    assert (told["library"].split()[0], told["timings"]) == ("tensorrt_rtx", 0)
    assert told["plan"] > 6_000_000
    engine = told["engine"]
    for profile in range(4):
        of_it = [x for x in engine if f"_myl{profile}_" in x[0]]
        body_layers = [x for x in of_it if x[1] == "correlation"]
        assert len(body_layers) >= 19  # the first may become one kernel with the filter before it
        assert all(set(ins) | set(outs) == {built} for _, _, ins, outs in body_layers)
        (projection,) = [x for x in of_it if x[0].startswith("projection")]
        assert set(projection[2]) | set(projection[3]) == {"Float"}
        assert of_it[-1][3] == ["Float"]
    assert not [x for x in engine if "_myl4_" in x[0]]
    assert told["inputs"] == {"x": ["FLOAT", -1, 12, 5000]}
    assert "Building engine" in told["phases"]
    assert told["tf32"] is False


@rtx
def test_fp32_stays_as_the_file_says(graph: Path) -> None:
    told = in_a_process(graph, "fp32")
    types = {t for _, kind, ins, outs in told["network"] if kind == "CONVOLUTION" for t in (*ins, *outs)}
    assert types == {"FLOAT"}
    assert {t for _, kind, ins, _ in told["engine"] if kind == "correlation" for t in ins} == {"Float"}


@rtx
@pytest.mark.parametrize("fs_mhz", [360_000, 500_000])
def test_the_graph_from_counts_builds_with_byte_planes(graph: Path, fs_mhz: int, tmp_path: Path) -> None:
    from encoders.graph.fused import fused_graph

    path = tmp_path / "fused.onnx"
    path.write_bytes(fused_graph(graph.read_bytes(), fs_mhz, planes=True).SerializeToString())
    told = in_a_process(path)
    assert "error" not in told, told
    assert told["inputs"] == {
        "counts": ["UINT8", -1, -1, fs_mhz // 100, 2], "mix": ["FLOAT", -1, 12, -1], "least": ["FLOAT", -1, 1, 1],
        "labels": ["FLOAT", -1, 16], "bias": ["FLOAT", -1],
    }  # fmt: skip
    body = [types for _, kind, *types in told["network"] if kind == "CONVOLUTION"]
    assert len(body) == 20
    assert {t for ins, outs in body for t in (*ins, *outs)} == {"HALF"}
    products = [(name, ins) for name, kind, ins, _ in told["network"] if kind == "MATRIX_MULTIPLY"]
    assert len(products) > 10
    assert {t for _, ins in products for t in ins} == {"FLOAT"}  # the filters are as exact as the step-by-step path
    for profile in range(4):
        of_it = [x for x in told["engine"] if f"_myl{profile}_" in x[0]]
        assert {t for _, kind, ins, _ in of_it if kind == "correlation" for t in ins} == {"Half"}
        assert {t for _, kind, ins, _ in of_it if kind == "gemm" for t in ins} == {"Float"}


@rtx
def test_what_cannot_be_built_says_why(graph: Path, tmp_path: Path) -> None:
    assert "knows no compute capability 9.0; it knows 7.5, 8.0, 8.6, 8.9" in in_a_process(graph, sm="9.0")["error"]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    assert "Failed to parse the ONNX model" in in_a_process(broken)["error"]
    broken.write_bytes(encoder_graph(EcgEncoder(EncoderConfig(dim=16)).eval(), half=False))
    assert "no convolution has weights stored as float16" in in_a_process(broken)["error"]


def test_without_any_library_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name == "tensorrt":
            raise RuntimeError("libnvinfer.so.11: cannot open shared object file")
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(engine_build.importlib, "import_module", missing)
    with pytest.raises(
        BackendUnavailable, match=r"tensorrt does not load \(libnvinfer.*\), tensorrt_rtx is not installed; pip"
    ):
        load_library()


@pytest.mark.parametrize(
    ("architecture", "form"), [("resnet1d18", "decimated"), ("resnet1d18", "plain"), ("xresnet1d18", "decimated")]
)
def test_the_same_cut_in_torch_gives_the_same_embeddings(architecture: str, form: str) -> None:
    """What float16 in the body costs, computed by torch on a CPU with the cut that the plan and the torch GPU path have."""
    torch.manual_seed(1)
    config = EncoderConfig(dim=16, architecture=architecture, form=form)  # type: ignore[arg-type]
    model = EcgEncoder(config).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 12, 1250))
    x = np.random.default_rng(0).standard_normal((2, 12, 5000)).astype(np.float32)
    data = encoder_graph(model.eval())
    exact = TorchEncoder(model).encode(x)
    np.testing.assert_allclose(TorchEncoder(from_onnx(data, config)).encode(x), exact, atol=2e-3)
    for dtype, least in ((torch.float16, 0.9999), (torch.bfloat16, 0.999)):
        with torch.inference_mode():
            e = HalfEncoder(from_onnx(data, config), dtype)(torch.from_numpy(x))
        assert e.dtype == torch.float32
        assert float((e.numpy() * exact).sum(axis=1).min()) > least
        np.testing.assert_allclose(np.linalg.norm(e.numpy(), axis=1), 1, atol=1e-5)


def test_bfloat16_is_rounded_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values[:4] = [1.00390625, 1.01171875, 0.0, -1.00390625]  # halves between two neighbours, to even
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(engine_build._rounded(values, half=False), expected)


def test_weights_of_another_network_are_refused(graph: Path) -> None:
    with pytest.raises(ValueError, match=r"weights conv2\.weight expected"):
        from_onnx(graph.read_bytes(), EncoderConfig(dim=16, architecture="xresnet1d18"))
    with pytest.raises(ValueError, match="size mismatch"):
        from_onnx(graph.read_bytes(), EncoderConfig(dim=32))
    assert onnx.load(graph).graph.input[0].name == "x"  # the name under which windows are handed to the torch lanes
