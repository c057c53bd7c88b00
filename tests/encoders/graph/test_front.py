"""The matrices of the front and the graph of them give what the step-by-step path gives, for every usual rate and lead set."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from encoders.base import Floats
from encoders.filters import to_band
from encoders.graph.front import FrontError, front_of
from encoders.graph.fused import decimation, front_graph, fused_graph
from encoders.graph.local import LocalError, LocalOperator
from encoders.model import Decimate
from encoders.preprocess import FLOOR, calibrate, mixing, prepare
from encoders.signal import LEADS, Layout

RATES = (100, 125, 128, 200, 240, 250, 257, 300, 360, 400, 500, 512, 1000, 2000)
LEAD_SETS = (LEADS, LEADS[:6], ("I", "II"), ("I",), ("V1", "III", "II"))
TAPS = Decimate().taps[0].numpy().ravel()


def counts(layout: Layout, batch: int, seed: int = 0) -> np.ndarray:
    """(B, C, T) int16: noise of all frequencies, drift, an offset, and a tall narrow wave at the very end."""
    rng = np.random.default_rng(seed)
    shape = (batch, len(layout.leads), layout.window)
    x = (
        rng.normal(0, 60, shape)
        + 2 * np.cumsum(rng.normal(0, 1, shape), axis=2)
        + rng.integers(-9000, 9000, shape[:2])[..., None]
    )
    t = np.arange(layout.window) / layout.fs
    return np.asarray(x + 900 * np.exp(-(((t - t[-1]) / 0.02) ** 2)), dtype=np.int16)


def decimated(x: Floats) -> Floats:
    import torch

    return np.asarray(Decimate()(torch.from_numpy(x)[:, :, None])[:, :, 0].numpy(), dtype=np.float32)


@pytest.mark.parametrize("form", ["decimated", "plain"])
@pytest.mark.parametrize("fs", RATES)
def test_the_graph_is_the_preprocessing(fs: int, form: str) -> None:
    proto = front_graph(fs * 1000, TAPS if form == "decimated" else None)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for leads in LEAD_SETS:
        for unit in ("mV", "NU"):
            layout = Layout(fs * 1000, leads, tuple(200.0 + 10 * c for c in range(len(leads))), (40.0,) * len(leads), unit)
            x = counts(layout, 2, seed=fs)
            reference = np.stack([prepare(calibrate(window, layout), layout).x for window in x])
            mix = mixing(layout, (True,) * len(leads))[0]
            feeds = {"counts": x, "mix": np.stack([mix] * 2), "least": np.full((2, 1, 1), FLOOR[unit], np.float32)}
            signal, band = session.run(None, feeds)
            wanted = decimated(reference) if form == "decimated" else reference
            assert (
                np.abs(signal - wanted).max() < (2e-3 if form == "decimated" else 2e-5) * np.abs(wanted).max()
            )  # much is noise
            assert band.shape == (2, len(leads), 1000)
            rows = [LEADS.index(lead) for lead in leads]
            slow = reference[:, rows, ::5]
            assert np.abs(band / band.std(axis=2, keepdims=True) - slow / slow.std(axis=2, keepdims=True)).max() < 2e-4


@pytest.mark.parametrize("fs_mhz", [501_500, 50_050])
def test_a_rate_that_is_too_odd_says_so(fs_mhz: int) -> None:
    with pytest.raises(FrontError, match="Hz"):
        front_of(fs_mhz, None)


def test_an_offset_of_100_mv_is_no_error() -> None:
    layout = Layout(500_000, ("I",), (300.0,), (0.0,))
    x = np.asarray(np.clip(counts(layout, 1).astype(int) % 200 + 30_000, None, 32_767), dtype=np.int16)
    front = front_of(500_000, None)
    centred = x[0].astype(np.float32) - x[0].astype(np.float32).mean()
    drift = np.concatenate([front.slow(centred), centred[:, -len(front.right) :] @ front.right], axis=1) @ front.drift
    y = front.low(centred) - front.back(drift)
    wanted = to_band((x[0] - x[0].mean()).astype(np.float32), 500_000)
    assert np.abs(y - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_bytes_serve_engines_without_int16() -> None:
    layout = Layout(360_000, ("I", "V2"), (200.0, 100.0), (0.0, 0.0))
    x = counts(layout, 3)
    x[0, 0, :4] = -32768, 32767, -1, 0
    feeds = {"mix": np.stack([mixing(layout, (True, True))[0]] * 3), "least": np.full((3, 1, 1), 5e-4, np.float32)}
    out = []
    for planes, given in ((False, x), (True, x.view(np.uint8).reshape(3, 2, -1, 2))):
        proto = front_graph(360_000, TAPS, planes)
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        out.append(session.run(None, {"counts": given, **feeds}))
    np.testing.assert_array_equal(out[0][0], out[1][0])


def test_a_function_with_a_long_memory_is_no_local_operator() -> None:
    with pytest.raises(LocalError):
        LocalOperator.of(lambda x: np.cumsum(x, axis=1), 1000, 1, 1)


def test_a_local_operator_is_its_function_at_the_ends_too() -> None:
    def function(x: Floats) -> Floats:
        y = x[:, ::2] + 3 * np.roll(x, 1, axis=1)[:, ::2]
        y[:, 0] = 7 * x[:, 0]
        y[:, -1] = x[:, -2] - x[:, -3]
        return y

    operator = LocalOperator.of(function, 400, 2, 1)
    x = np.random.default_rng(1).standard_normal((3, 400)).astype(np.float32)
    np.testing.assert_allclose(operator(x), function(x), atol=1e-5)


def test_the_decimation_is_found_in_the_encoder() -> None:
    from encoders.model import EcgEncoder, EncoderConfig
    from training.release.onnx_graph import encoder_graph

    graph = encoder_graph(EcgEncoder(EncoderConfig(form="decimated")))
    taps = decimation(onnx.load_from_string(graph))
    assert taps is not None
    np.testing.assert_array_equal(taps, TAPS)
    assert not any(node.name == "decimate" for node in fused_graph(graph, 500_000).graph.node)
    assert decimation(onnx.load_from_string(encoder_graph(EcgEncoder(EncoderConfig(form="plain"))))) is None
