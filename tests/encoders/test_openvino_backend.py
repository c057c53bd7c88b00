"""OpenVINO gives the default backend's embeddings; what it cannot load, or that it is missing, is said."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders import openvino_backend
from encoders.base import BackendUnavailable, Encoder
from encoders.model import EcgEncoder, EncoderConfig
from encoders.onnx_backend import OnnxEncoder
from encoders.openvino_backend import OpenVinoEncoder
from training.release.onnx_graph import encoder_graph

installed = pytest.mark.skipif(
    find_spec("openvino") is None, reason='needs OpenVINO: pip install "ecg-stream-worker[openvino]"'
)


@installed
@pytest.mark.parametrize("form", ["decimated", "plain"])
def test_the_same_embeddings(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = encoder_graph(EcgEncoder(EncoderConfig(dim=16, form=form)).eval())  # type: ignore[arg-type]
    path = tmp_path / "encoder.onnx"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    x = np.random.default_rng(0).standard_normal((3, 12, 5000)).astype(np.float32)
    with OnnxEncoder(path, digest, 1) as reference, OpenVinoEncoder(path, digest, 1) as encoder:
        assert isinstance(encoder, Encoder)
        assert (encoder.dim, encoder.digest, encoder.backend) == (16, digest, "openvino")
        first = encoder.encode(x)
        np.testing.assert_allclose(first, reference.encode(x), atol=2e-6)
        encoder.encode(-x)
        np.testing.assert_array_equal(first, encoder.encode(x))  # a result is the caller's own
        assert encoder.encode(x[:0]).shape == (0, 16)
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(x)


_ENDED_ELSEWHERE = """
import faulthandler, gc, hashlib, os, pathlib, signal, sys, threading
from encoders.openvino_backend import OpenVinoEncoder

faulthandler.enable()  # gives the main thread an alternate signal stack, as the plugin does
path = pathlib.Path(sys.argv[1])
held = [OpenVinoEncoder(path, hashlib.sha256(path.read_bytes()).hexdigest(), 1)]
other = threading.Thread(target=lambda: (held.pop().close(), gc.collect()))
other.start()
other.join()
signal.signal(signal.SIGTERM, lambda *_: print("drained"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@installed
def test_a_signal_is_survived_when_an_encoder_has_ended_in_another_thread(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder_graph(EcgEncoder(EncoderConfig(dim=16)).eval()))
    done = subprocess.run(
        [sys.executable, "-c", _ENDED_ELSEWHERE, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr[-2000:]


@installed
def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"encoder\.onnx: no ONNX graph that OpenVINO loads"):
        OpenVinoEncoder(path, hashlib.sha256(b"no graph").hexdigest())
    with pytest.raises(ValueError, match=r"encoder\.onnx: sha256"):
        OpenVinoEncoder(path, "ab" * 32)


def test_where_it_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"openvino is not installed: .*ecg-stream-worker\[openvino\]"):
        OpenVinoEncoder(Path("encoder.onnx"), "ab" * 32)
