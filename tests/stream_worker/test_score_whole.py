"""Findings by one graph from the counts are those of the steps: every backend, precision, form, rate and lead set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.artifact import Artifact, Tolerances
from encoders.bank import LabelBank
from encoders.base import WholeEncoder
from encoders.cpu import CpuEncoder, Plan
from encoders.model import EcgEncoder, EncoderConfig
from encoders.onnx_backend import OnnxEncoder
from encoders.openvino_backend import OpenVinoEncoder
from encoders.preprocess import preprocess
from encoders.recordings import read_recording
from encoders.signal import ABSENT, LEADS, Layout
from stream_worker.records import Input, Window
from stream_worker.score import Options, Scorer, Whole
from stream_worker.settings import load_settings
from tests.support import bank as random_bank
from training.release.onnx_graph import encoder_graph
from training.release.quantize import U8S8, quantized

RATES = (100, 125, 128, 200, 240, 250, 257, 300, 360, 400, 500, 512, 1000, 2000)
SETS = ((LEADS, "mV"), (LEADS, "NU"), (LEADS[:6], "mV"), (("I", "II"), "mV"), (("I",), "NU"), (("I",), "mV"))
FEW = (100, 250, 257, 500, 1000)  # where a case takes seconds
LIBRARIES = {"onnxruntime": OnnxEncoder, "openvino": OpenVinoEncoder}
TOLERANCE = Tolerances(golden_cosine=0.999).fused_probability
INT8_TOLERANCE = 0.02  # one step of 8 bits here and there


@pytest.fixture(scope="module")
def beats(mitdb: Path) -> np.ndarray:
    """(12, 3600) mV at 360 Hz: twelve windows of people as the leads of one."""
    rows = []
    for name in ("100", "104", "108"):
        recording = read_recording(mitdb / name)
        mv = recording.samples[:, : 8 * 3600] / np.asarray(recording.layout.gain)[:, None]
        rows += [mv[c, at * 3600 : (at + 1) * 3600] for c in (0, 1) for at in (3, 6)]
    return np.stack(rows).astype(np.float64)


def window(beats: np.ndarray, layout: Layout, turn: int = 0) -> Window:
    """The beats in a layout's rate, leads and counts."""
    at = np.arange(layout.window) / layout.fs * 360
    mv = [np.interp(at, np.arange(3600), beats[(LEADS.index(lead) + turn) % 12]) for lead in layout.leads]
    counts = np.rint(np.stack(mv) * np.asarray(layout.gain)[:, None] + np.asarray(layout.baseline)[:, None])
    key = ("s", "1", 0, layout.digest)
    samples = np.clip(counts, -32000, 32000).astype(np.int16)
    return Window(key, layout, turn * layout.window, samples, (turn + 1) * layout.window, "", Input(0, 0, 0, 0))


def windows(beats: np.ndarray, fs: int) -> list[Window]:
    out = []
    for turn, (leads, unit) in enumerate(SETS):
        n = len(leads)
        layout = Layout(
            fs * 1000, leads, tuple(200.0 + 20 * c for c in range(n)), tuple(-900.0 + 150 * c for c in range(n)), unit
        )
        out.append(window(beats, layout, turn))
    return out


class Model:
    """An encoder as a file, a bank for it."""

    def __init__(self, folder: Path, form: str, precision: str, bank: LabelBank | None, graph: bytes) -> None:
        self.path, self.serves_for, self.bank = folder / f"{form}.{precision}.onnx", "", bank
        self.digest = hashlib.sha256(graph).hexdigest()
        self.path.write_bytes(graph)

    def open(self, backend: str) -> CpuEncoder:
        encoder = LIBRARIES[backend](self.path, self.digest, plan=Plan(2, 1, 4), serves_for=self.serves_for)
        assert isinstance(encoder, WholeEncoder)
        return encoder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, beats: np.ndarray) -> dict[tuple[str, str], Model]:
    """The shipped encoder, the paper-exact one with random weights, and both in 8 bits."""
    folder = tmp_path_factory.mktemp("models")
    shipped = Artifact.load(load_settings().artifact_dir())
    torch.manual_seed(0)
    plain = EcgEncoder(EncoderConfig(form="plain", dim=16))
    out = {
        ("decimated", "fp32"): Model(folder, "decimated", "fp32", shipped.bank(), shipped.read("encoder.onnx")),
        ("plain", "fp32"): Model(folder, "plain", "fp32", None, encoder_graph(plain)),
    }
    small = EcgEncoder(EncoderConfig(dim=16))
    seen = np.stack([preprocess(w.samples, w.layout).x for w in windows(beats, 500)])
    for form, model in (("plain", plain), ("decimated", small)):
        graph = quantized(encoder_graph(model, half=False), [seen], U8S8)
        out[form, "int8"] = Model(folder, form, "int8", None, graph)
        out[form, "int8"].serves_for = "ab" * 32
    return out


CASES = [
    (form, precision, backend, fs)
    for form, precision in (("decimated", "fp32"), ("plain", "fp32"), ("decimated", "int8"), ("plain", "int8"))
    for backend in LIBRARIES
    for fs in (RATES if form == "decimated" or (precision, backend) == ("fp32", "onnxruntime") else FEW)
]


@pytest.mark.parametrize(("form", "precision", "backend", "fs"), CASES)
def test_findings_are_those_of_the_steps(
    form: str, precision: str, backend: str, fs: int, models: dict[tuple[str, str], Model], beats: np.ndarray
) -> None:
    model = models[form, precision]
    events = windows(beats, fs)
    with model.open(backend) as encoder:
        bank = model.bank or random_bank(encoder)  # type: ignore[arg-type]
        whole = Scorer(encoder, bank, Options(all_scores=True))
        assert all(isinstance(whole.prepare(event), Whole) for event in events), encoder.refused
        found = whole(events)
        wanted = Scorer(encoder, bank, Options(all_scores=True, stepwise=True))(events)
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.id == theirs.id
        scores = [(ours.body["scores"][k], v) for k, v in theirs.body["scores"].items()]
        assert all((a is None) == (b is None) for a, b in scores)
        worst = max([worst, *(abs(a - b) for a, b in scores if a is not None)])
        same = ("window_digest", "lead_mask", "derived", "quality", "not_assessable", "backend", "kind")
        assert {k: ours.body[k] for k in same} == {k: theirs.body[k] for k in same}
    assert worst <= (TOLERANCE if precision == "fp32" else INT8_TOLERANCE)
    assert found[0].body["backend"] == (backend if precision == "fp32" else f"{backend}-int8")


def test_what_the_graph_does_not_serve_goes_by_steps(models: dict[tuple[str, str], Model], beats: np.ndarray) -> None:
    layout = Layout(500_000, ("I", "II"), (200.0, 200.0), (0.0, 0.0))
    good = window(beats, layout)
    short = good._replace(samples=good.samples[:, :3000])
    gap, dead = good.samples.copy(), good.samples.copy()
    gap[0, 100:120], dead[0, :] = ABSENT, ABSENT
    odd = window(beats, Layout(501_500, ("I",), (200.0,), (0.0,)))
    micro = Layout(500_000, ("I", "II"), (1.0, 1.0), (0.0, 0.0))
    huge = good._replace(layout=micro, key=("s", "1", 0, micro.digest))
    events = [good, short, good._replace(samples=gap), good._replace(samples=dead), odd, huge]
    model = models["decimated", "fp32"]
    assert model.bank is not None
    with model.open("onnxruntime") as encoder:
        scorer = Scorer(encoder, model.bank)
        ready = [scorer.prepare(event) for event in events]
        assert [isinstance(one, Whole) for one in ready] == [True, False, False, True, False, False]
        assert "501.5 Hz" in encoder.refused[501_500]
        found = scorer.finish(events, ready)
        wanted = Scorer(encoder, model.bank, Options(stepwise=True))(events)
    assert found[5].body["reason"] == wanted[5].body["reason"] == "amplitude"
    for ours, theirs in zip(found[:5], wanted[:5], strict=True):
        assert ours.id == theirs.id
        assert ours.body["lead_mask"] == theirs.body["lead_mask"]
        np.testing.assert_allclose(
            [x["probability"] for x in ours.body["labels"]], [x["probability"] for x in theirs.body["labels"]], atol=TOLERANCE
        )
    assert found[3].body["lead_mask"] == 2
