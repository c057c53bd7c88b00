"""`replay` of a 30-minute two-lead recording against the bare session on the same arrays, both encoder forms."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from encoders.artifact import Artifact
from encoders.bank import LabelBank
from encoders.base import Encoder, WholeEncoder
from encoders.engine.plans import EngineOptions
from encoders.preprocess import FLOOR, mixing, preprocess, stack
from encoders.recordings import read_recording
from stream_worker.records import Window
from stream_worker.replay import findings, windows
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.settings import load_settings
from tests.benchmarks.timing import Ratios, ratios

SHARED = Path(os.environ.get("ECG_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def measure() -> dict[str, float]:
    """Windows/s, and windows in a second of CPU time, of replay over the bare session's and over the fused graph's, default and
    paper-exact encoder. Empty without recordings."""
    record = SHARED / "ecg" / "long" / "mitdb" / "100"
    if not record.with_suffix(".hea").exists():
        return {}
    recording = read_recording(record)
    model = Artifact.load(load_settings().artifact_dir())
    out: dict[str, float] = {}
    with model.open(engine=EngineOptions(calibrate=True)) as encoder:
        out |= against_bare(recording, encoder, model.bank()).rates("replay_default_encoder")
        out |= against_fused(recording, encoder, model.bank()).rates("replay_vs_fused")
    with paper_encoder() as encoder:
        bank = model.bank()
        theirs = LabelBank(bank.labels, bank.matrix, bank.scale, encoder.digest, bank.text)
        out |= against_bare(recording, encoder, theirs).rates("replay_paper_encoder")
    return out


def against_bare(recording: object, encoder: Encoder, bank: LabelBank) -> Ratios:
    scorer = Scorer(encoder, bank)
    events = list(windows(recording, "100", "1", Rules()))  # type: ignore[arg-type]
    arrays = stack([preprocess(e.samples, e.layout) for e in events if isinstance(e, Window)])

    def replayed() -> None:
        assert len(list(findings(windows(recording, "100", "1", Rules()), scorer, 32))) == 181  # type: ignore[arg-type]

    def bare() -> None:
        for at in range(0, len(arrays), 32):
            encoder.encode(arrays[at : at + 32])

    return ratios(replayed, bare)


def against_fused(recording: object, encoder: Encoder, bank: LabelBank) -> Ratios:
    """Over the graph alone, on counts that lie ready."""
    assert isinstance(encoder, WholeEncoder)
    scorer = Scorer(encoder, bank)
    events = [e for e in windows(recording, "100", "1", Rules()) if isinstance(e, Window)]  # type: ignore[arg-type]
    layout = events[0].layout
    assert encoder.serves(layout.fs_mhz)
    counts = np.stack([e.samples for e in events if e.samples.shape[1] == layout.window])
    n = len(counts)
    mix, least = np.stack([mixing(layout, (True,) * 2)[0]] * n), np.full((n, 1, 1), FLOOR[layout.unit], dtype=np.float32)

    def replayed() -> None:
        assert len(list(findings(windows(recording, "100", "1", Rules()), scorer, 32))) == 181  # type: ignore[arg-type]

    def fused() -> None:
        for at in range(0, n, 32):
            part = slice(at, at + 32)
            encoder.score(layout.fs_mhz, counts[part], mix[part], least[part], *bank.weights)

    return ratios(replayed, fused)


def paper_encoder() -> Encoder:
    """The paper-exact form with random weights (speed does not depend on them), exported as the artifact's encoder is."""
    import hashlib
    import tempfile

    from encoders.model import EcgEncoder, EncoderConfig
    from encoders.onnx_backend import OnnxEncoder
    from training.release.onnx_graph import encoder_graph

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        path.write_bytes(encoder_graph(EcgEncoder(EncoderConfig(form="plain"))))
        return OnnxEncoder(path, hashlib.sha256(path.read_bytes()).hexdigest())
