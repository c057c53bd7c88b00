"""Counts to embeddings by one graph against the encoder alone on prepared windows, by backend and form; 8 bits against 32."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from encoders.cpu import CpuEncoder, calibrated, cores_of
from encoders.model import EcgEncoder, EncoderConfig
from encoders.onnx_backend import OnnxEncoder
from encoders.openvino_backend import OpenVinoEncoder
from encoders.preprocess import FLOOR, mixing, preprocess, stack
from encoders.signal import FS, LEADS, Layout
from tests.benchmarks.timing import ratios
from training.release.onnx_graph import encoder_graph
from training.release.quantize import U8S8, quantized

WINDOWS = {"decimated": 64, "plain": 16}
LIBRARIES = (("onnxruntime", OnnxEncoder), ("openvino", OpenVinoEncoder))
LAYOUT = Layout(FS * 1000, LEADS, (200.0,) * 12, (0.0,) * 12)  # what costs the preprocessing most


def measure() -> dict[str, float]:
    """Rates over rates, by wall and CPU time; weights random: speed does not depend on them."""
    rng = np.random.default_rng(0)
    every = (rng.normal(0, 40, (max(WINDOWS.values()), 12, LAYOUT.window)) + 500).astype(np.int16)
    prepared = stack([preprocess(x, LAYOUT) for x in every])
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for form, n in WINDOWS.items():
            counts, windows = every[:n], prepared[:n]
            model = EcgEncoder(EncoderConfig(form=form))  # type: ignore[arg-type]
            exact = encoder_graph(model)
            rough = quantized(encoder_graph(model, half=False), [windows[:16]], U8S8)
            for name, library in LIBRARIES:
                with opened(library, exact, Path(folder)) as encoder, opened(library, rough, Path(folder)) as eight:
                    whole, whole_in_8 = scoring(encoder, counts), scoring(eight, counts)
                    out |= ratios(whole, encoding(encoder, windows)).rates(f"fused_{name}_{form}")
                    out |= ratios(whole_in_8, whole).rates(f"int8_{name}_{form}")
    return out


def opened(library: type[CpuEncoder], graph: bytes, folder: Path) -> CpuEncoder:
    """With threads and batches by trial."""
    path, digest = folder / "encoder.onnx", hashlib.sha256(graph).hexdigest()
    path.write_bytes(graph)
    return calibrated(lambda plan: library(path, digest, plan=plan), cores_of(None))  # type: ignore[call-arg, arg-type]


def encoding(encoder: CpuEncoder, windows: np.ndarray) -> Callable[[], object]:
    """One call for all prepared windows."""
    return lambda: encoder.encode(windows)


def scoring(encoder: CpuEncoder, counts: np.ndarray) -> Callable[[], object]:
    """One call for all windows."""
    assert encoder.serves(LAYOUT.fs_mhz), encoder.refused
    mix = np.stack([mixing(LAYOUT, (True,) * 12)[0]] * len(counts))
    least = np.full((len(counts), 1, 1), FLOOR["mV"], dtype=np.float32)
    labels, bias = np.ones((98, encoder.dim), dtype=np.float32), np.zeros(98, dtype=np.float32)
    return lambda: encoder.score(LAYOUT.fs_mhz, counts, mix, least, labels, bias)


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name} {value:.3f}")
