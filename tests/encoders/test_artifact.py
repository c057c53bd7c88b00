"""An artifact is loaded only if every file is the one its manifest lists, and refused with both values otherwise."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import preprocess as chain
from encoders.artifact import Artifact, ArtifactError, read_golden, write_golden
from encoders.bank import Label, LabelBank, TextModel
from encoders.model import EcgEncoder, EncoderConfig
from encoders.signal import LEADS
from encoders.torch_backend import TorchEncoder
from training.release.golden import golden_recording
from training.release.onnx_graph import encoder_graph

DIM = 8
TEXT = TextModel(model="tiny", pooling="last", prompt="This ECG shows {label}.", language="ja")


def bank_for(encoder: str, dim: int = DIM) -> LabelBank:
    label = Label(
        id="SR", name_en="Sinus rhythm", name_ja="洞調律", codes={}, urgency="normal", leads_needed="any", tier="trained",
        positives=50, bias=0.0, calibration=(1.0, 0.0), threshold=0.5,
    )  # fmt: skip
    return LabelBank((label,), np.eye(1, dim, dtype=np.float32), 30.0, encoder, TEXT)


def seal(directory: Path, **changes: Any) -> None:
    """Write a manifest that lists the files as they are now; changes: "model.fs" = 250 and so on."""
    manifest: dict[str, Any] = {
        "format": 1,
        "created": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "files": {
            p.name: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "bytes": p.stat().st_size}
            for p in directory.iterdir()
            if p.name != "manifest.json"
        },
        "model": {
            "architecture": "ResNet1d-18", "form": "decimated", "dim": DIM, "input_shape": [12, 5000],
            "lead_order": list(LEADS),
            "fs": 500, "parameters": 1, "multiply_adds": 1, "receptive_field_s": 4.35,
        },
        "preprocess": chain.VERSION,
        "text": TEXT.model_dump(),
        "training": {"command": "test", "objective": "none", "data": {}},
        "tolerances": {"golden_cosine": 0.999},
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split(".")
        place = manifest
        for name in path:
            place = place[name]
        place[last] = value
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifacts") / "artifact"
    directory.mkdir()
    torch.manual_seed(0)
    model = EcgEncoder(EncoderConfig(dim=DIM)).eval()
    onnx = encoder_graph(model)
    (directory / "encoder.onnx").write_bytes(onnx)
    (directory / "labels.bank").write_bytes(bank_for(hashlib.sha256(onnx).hexdigest()).to_bytes())
    bank = bank_for(hashlib.sha256(onnx).hexdigest())
    (directory / "thresholds.json").write_text(json.dumps({"thresholds": {x.id: x.threshold for x in bank.labels}}))
    samples, layout = golden_recording()
    e = TorchEncoder(model).encode(chain.preprocess(samples, layout).x[None])[0]
    (directory / "golden.npz").write_bytes(write_golden(samples, layout, e))
    seal(directory)
    return directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def test_loads_verifies_and_opens(directory: Path) -> None:
    artifact = Artifact.load(directory)
    raw = (directory / "manifest.json").read_bytes()
    assert artifact.digest == hashlib.sha256(raw).hexdigest()
    assert artifact.encoder_digest == hashlib.sha256((directory / "encoder.onnx").read_bytes()).hexdigest()
    assert artifact.bank().labels[0].id == "SR"
    with artifact.open(threads=1) as encoder:
        assert (encoder.dim, encoder.digest) == (DIM, artifact.encoder_digest)
        assert encoder.encode(np.ones((2, 12, 5000), dtype=np.float32)).shape == (2, DIM)


def test_a_directory_that_holds_one_artifact_stands_for_it(directory: Path) -> None:
    assert Artifact.load(directory.parent).directory == directory
    shutil.copytree(directory, directory.parent / "another")
    with pytest.raises(ArtifactError, match=r"exactly 1 subdirectory.*found 2"):
        Artifact.load(directory.parent)
    with pytest.raises(ArtifactError, match="does not exist"):
        Artifact.load(directory / "nowhere")


@pytest.mark.parametrize("name", ["encoder.onnx", "labels.bank", "thresholds.json", "golden.npz"])
def test_missing_and_altered_files_are_refused(directory: Path, name: str) -> None:
    path = directory / name
    good = path.read_bytes()
    at = len(good) // 2
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    expected, found = hashlib.sha256(good).hexdigest(), hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match=f"^{name}: sha256 {expected} expected, found {found}"):
        Artifact.load(directory)
    path.write_bytes(good[:-1])
    with pytest.raises(ArtifactError, match=f"^{name}: {len(good)} bytes expected, found {len(good) - 1}"):
        Artifact.load(directory)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"^{name}: {len(good)} bytes expected, but it cannot be read"):
        Artifact.load(directory)


def test_a_change_after_loading_is_noticed_on_open(directory: Path) -> None:
    artifact = Artifact.load(directory)
    (directory / "encoder.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"encoder\.onnx: .* bytes expected, found 5"):
        artifact.open()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 1 is.*says 2"),
        ("preprocess", "0", f"preprocess version '{chain.VERSION}' is.*says '0'"),
        ("model.fs", 250, "sampling rate 500 is.*says 250"),
        ("model.input_shape", [12, 2500], r"input shape \(12, 5000\) is.*says \(12, 2500\)"),
        ("model.lead_order", list(reversed(LEADS)), r"lead order \('I', .*says \('V6', "),
        ("model.dim", 9, "D = 8, this encoder gives D = 9"),
        ("model.form", "secret", "model.form"),
        ("surprise", 1, "surprise"),
        ("files", {}, r"encoder\.onnx must be listed, files are none"),
        ("files", {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}, "files"),
    ],
)
def test_a_manifest_for_other_software_is_refused(directory: Path, key: str, value: object, message: str) -> None:
    seal(directory, **{key: value})
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(directory)


def test_no_json_is_refused(directory: Path) -> None:
    (directory / "manifest.json").write_bytes(b"\x00\x01")
    with pytest.raises(ArtifactError, match=r"^manifest\.json"):
        Artifact.load(directory)


def test_a_bank_for_another_encoder_is_refused_with_both(directory: Path) -> None:
    right = Artifact.load(directory).encoder_digest
    (directory / "labels.bank").write_bytes(bank_for("cd" * 32).to_bytes())
    seal(directory)
    with pytest.raises(ArtifactError, match=f"labels.bank: label bank is for encoder {'cd' * 32}, this encoder is {right}"):
        Artifact.load(directory)


def test_a_bank_of_another_width_is_refused(directory: Path) -> None:
    (directory / "labels.bank").write_bytes(bank_for(Artifact.load(directory).encoder_digest, 5).to_bytes())
    seal(directory)
    with pytest.raises(ArtifactError, match="D = 5, this encoder gives D = 8"):
        Artifact.load(directory)


def spoil_embedding(directory: Path) -> None:
    samples, layout = golden_recording()
    (directory / "golden.npz").write_bytes(write_golden(samples, layout, np.eye(1, DIM, dtype=np.float32)[0]))


def spoil_width(directory: Path) -> None:
    samples, layout = golden_recording()
    (directory / "golden.npz").write_bytes(write_golden(samples, layout, np.ones(3, dtype=np.float32)))


def spoil_archive(directory: Path) -> None:
    (directory / "golden.npz").write_bytes(b"PK\x03\x04 nothing")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_embedding, "cosine of at least 0.999 expected, backend onnxruntime gives"),
        (spoil_width, r"embedding of \(8,\) expected, found \(3,\)"),
        (spoil_archive, "golden.npz: samples, layout and embedding expected"),
    ],
)
def test_a_backend_that_computes_something_else_is_refused(
    directory: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(directory)
    seal(directory)
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(directory).open(threads=1)


def test_a_file_that_is_no_graph_is_refused(directory: Path) -> None:
    (directory / "encoder.onnx").write_bytes(b"no graph at all")
    (directory / "labels.bank").write_bytes(bank_for(hashlib.sha256(b"no graph at all").hexdigest()).to_bytes())
    seal(directory)
    with pytest.raises(ArtifactError, match=r"encoder\.onnx: no ONNX graph"):
        Artifact.load(directory).open()


def test_unknown_backend_and_unlisted_file(directory: Path) -> None:
    artifact = Artifact.load(directory)
    with pytest.raises(ArtifactError, match=r"backend tensorrt, torch, onnxruntime, openvino expected, got 'abacus'"):
        artifact.open(backend="abacus")
    with pytest.raises(ArtifactError, match=r"encoder\.s8s8\.onnx: not listed"):
        artifact.read("encoder.s8s8.onnx")


def test_golden_recording_obeys_einthoven_and_travels_whole() -> None:
    samples, layout = golden_recording()
    assert samples.shape == (12, 5000)
    assert np.abs(samples[0] + samples[2].astype(int) - samples[1]).max() <= 1
    e = np.arange(4, dtype=np.float32)
    x, back = read_golden(write_golden(samples, layout, e))
    np.testing.assert_array_equal(back, e)
    np.testing.assert_array_equal(x, chain.preprocess(samples, layout).x)
    assert chain.preprocess(samples, layout).reason is None


def test_thresholds_that_differ_from_the_banks_are_refused(directory: Path) -> None:
    (directory / "thresholds.json").write_text('{"thresholds": {"SR": 0.123}}')
    seal(directory)
    with pytest.raises(ArtifactError, match=r"thresholds.json: SR 0.5 expected from labels.bank, found 0.123"):
        Artifact.load(directory)


def test_a_directory_that_claims_another_digest_is_refused(directory: Path) -> None:
    claimed = directory.rename(directory.with_name("0123456789abcdef"))
    with pytest.raises(ArtifactError, match="0123456789abcdef expected by the directory's name"):
        Artifact.load(claimed)


def test_a_file_is_measured_before_it_is_read(directory: Path) -> None:
    import os

    (directory / "golden.npz").unlink()
    os.mkfifo(directory / "golden.npz")
    with pytest.raises(ArtifactError, match="regular file"):
        Artifact.load(directory)
    with (directory / "manifest.json").open("r+b") as f:
        f.truncate(1 << 31)
    with pytest.raises(ArtifactError, match="1048576 bytes expected at most"):
        Artifact.load(directory)
