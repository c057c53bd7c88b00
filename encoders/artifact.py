"""The artifact: a directory named by its digest that holds everything serving needs, checked before any of it is loaded.

    manifest.json   sizes, digests, shapes, versions              encoder.onnx      the encoder, float16 weights + Cast
    labels.bank     rows, names, calibration of the labels        thresholds.json   per label, on the probability
    golden.npz      a synthetic recording and its embedding       metrics.json, MODEL_CARD.md   how good it is

Nothing is loaded before its size and sha256 agree with the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoders import preprocess as chain
from encoders.bank import BankError, LabelBank, TextModel
from encoders.base import BackendUnavailable, Encoder, Floats
from encoders.engine.plans import EngineOptions
from encoders.graph.whole import FUSED_COSINE
from encoders.signal import FS, LEADS, WINDOW, Layout

__all__ = [
    "FORMAT",
    "REQUIRED",
    "Artifact",
    "ArtifactError",
    "FileEntry",
    "Manifest",
    "ModelInfo",
    "Tolerances",
    "TrainingInfo",
]

FORMAT = 1
MANIFEST = "manifest.json"
REQUIRED = ("encoder.onnx", "labels.bank", "thresholds.json", "golden.npz")
NAME_DIGITS = 16  # of the digest, in the directory's name
NAMED = re.compile(r"[0-9a-f]{16}")  # a directory whose name claims a digest
MAX_MANIFEST = 1 << 20

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ArtifactError(ValueError):
    """The directory is not the artifact its manifest describes; the text names the file and the two values that differ."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """sha256 and size of one file."""

    sha256: Hex
    bytes: int = Field(ge=0)


class ModelInfo(_Frozen):
    """The encoder. input_shape: (12, 5000) at fs Hz, leads in lead_order. receptive_field_s: seconds behind one feature."""

    architecture: str
    form: Literal["decimated", "plain"]
    dim: int = Field(ge=1)
    input_shape: tuple[int, int]
    lead_order: tuple[str, ...]
    fs: int
    parameters: int
    multiply_adds: int
    receptive_field_s: float


class TrainingInfo(_Frozen):
    """How it was made: the commands, the objective, the data by name with counts."""

    command: str
    objective: str
    data: dict[str, Any]


class Tolerances(_Frozen):
    """golden_cosine: the least cosine between the golden embedding and what a backend computes; golden_cosine_int8: in 8 bits.
    fused_cosine: between what a fused graph and the step-by-step path compute with the same encoder, of any window; below it
    a graph is not used. fused_probability: the most by which a probability differs then, in 32 bits, on recordings of people.
    """

    golden_cosine: float = Field(gt=0, le=1)
    golden_cosine_int8: float = Field(default=0.95, gt=0, le=1)
    fused_cosine: float = Field(default=FUSED_COSINE, gt=0, le=1)
    fused_probability: float = Field(default=0.001, gt=0, le=1)


class Manifest(_Frozen):
    """manifest.json."""

    format: int
    created: datetime
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")], FileEntry]
    model: ModelInfo
    preprocess: str
    text: TextModel
    training: TrainingInfo
    tolerances: Tolerances


@dataclass(frozen=True)
class Artifact:
    """A verified directory. digest: sha256 of manifest.json; its first 16 hex digits name the directory."""

    directory: Path
    manifest: Manifest
    digest: str

    @classmethod
    def load(cls, directory: Path) -> Artifact:
        """Read the manifest and verify. A directory that only holds one artifact directory stands for it."""
        directory = _find(Path(directory))
        raw = _read(directory / MANIFEST, MAX_MANIFEST)
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise ArtifactError(f"{MANIFEST}: {where}: {first['msg']}, found {str(first['input'])[:60]!r}") from None
        artifact = cls(directory, manifest, hashlib.sha256(raw).hexdigest())
        if NAMED.fullmatch(directory.name) and not artifact.digest.startswith(directory.name):
            raise ArtifactError(
                f"{MANIFEST}: digest {directory.name} expected by the directory's name, found {artifact.digest[:16]}"
            )
        artifact.verify()
        return artifact

    @property
    def encoder_digest(self) -> str:
        """Hex sha256 of encoder.onnx."""
        return self.manifest.files["encoder.onnx"].sha256

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, after size and sha256 agreed. Raises ArtifactError."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise ArtifactError(f"{name}: not listed in {MANIFEST}, which lists {', '.join(sorted(self.manifest.files))}")
        data = _read(self.directory / name, entry.bytes)
        if len(data) != entry.bytes:
            raise ArtifactError(f"{name}: {entry.bytes} bytes expected, found {len(data)}")
        if (found := hashlib.sha256(data).hexdigest()) != entry.sha256:
            raise ArtifactError(f"{name}: sha256 {entry.sha256} expected, found {found}")
        return data

    def verify(self) -> None:
        """Everything that can be checked without running the model. Raises ArtifactError with both values."""
        manifest = self.manifest
        expected: list[tuple[str, object, object]] = [
            ("format", FORMAT, manifest.format),
            ("preprocess version", chain.VERSION, manifest.preprocess),
            ("lead order", LEADS, manifest.model.lead_order),
            ("input shape", (len(LEADS), WINDOW), manifest.model.input_shape),
            ("sampling rate", FS, manifest.model.fs),
        ]
        for what, ours, theirs in expected:
            if ours != theirs:
                raise ArtifactError(f"{MANIFEST}: {what} {ours!r} is what this software serves, the artifact says {theirs!r}")
        for name in REQUIRED:
            if name not in manifest.files:
                raise ArtifactError(
                    f"{MANIFEST}: {name} must be listed, files are {', '.join(sorted(manifest.files)) or 'none'}"
                )
        for name in sorted(manifest.files):
            self.read(name)
        self._check_thresholds(self.bank())

    def _check_thresholds(self, bank: LabelBank) -> None:
        """thresholds.json is for readers; the bank's are used. They must not differ."""
        try:
            told = dict(json.loads(self.read("thresholds.json"))["thresholds"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"thresholds.json: an object of thresholds expected, found {type(error).__name__}") from None
        used = {label.id: label.threshold for label in bank.labels}
        for id in sorted(told.keys() | used.keys()):
            if told.get(id) != used.get(id):
                raise ArtifactError(f"thresholds.json: {id} {used.get(id)} expected from labels.bank, found {told.get(id)}")

    def bank(self) -> LabelBank:
        """The label bank, checked against encoder and D. Raises ArtifactError."""
        try:
            bank = LabelBank.from_bytes(self.read("labels.bank"))
            bank.check(self.encoder_digest, self.manifest.model.dim)
        except BankError as error:
            raise ArtifactError(f"labels.bank: {error}") from None
        return bank

    def open(self, backend: str = "onnxruntime", threads: int | None = None, engine: EngineOptions | None = None) -> Encoder:
        """Verify, load the encoder, run the golden recording through it. engine: of interest to TensorRT alone.

        Raises ArtifactError unless all agree, BackendUnavailable where this machine cannot run the backend.
        """
        from encoders.choose import open_backend

        self.verify()
        try:
            encoder = open_backend(backend, self, threads, engine or EngineOptions())
        except BackendUnavailable:
            raise
        except ValueError as error:
            raise ArtifactError(f"encoder: {error}") from None
        try:
            if encoder.dim != self.manifest.model.dim:
                raise ArtifactError(f"encoder.onnx: D = {self.manifest.model.dim} expected, it gives {encoder.dim}")
            self.check_golden(encoder)
        except BaseException:
            encoder.close()
            raise
        return encoder

    def check_golden(self, encoder: Encoder) -> None:
        """Raises ArtifactError where the golden recording's embedding comes out as another."""
        x, expected = read_golden(self.read("golden.npz"))
        if expected.shape != (encoder.dim,):
            raise ArtifactError(f"golden.npz: an embedding of ({encoder.dim},) expected, found {expected.shape}")
        cosine = float(encoder.encode(x[None])[0] @ expected)
        told = self.manifest.tolerances
        least = told.golden_cosine_int8 if encoder.backend.endswith("int8") else told.golden_cosine
        if not cosine >= least:
            raise ArtifactError(
                f"golden.npz: cosine of at least {least} expected, backend {encoder.backend} gives {cosine:.6f}"
            )


def write_golden(samples: np.ndarray[Any, np.dtype[np.int16]], layout: Layout, embedding: Floats) -> bytes:
    """samples: int16 (C, T) counts; embedding: (D,) that they must give."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        samples=samples,
        fs_mhz=np.int64(layout.fs_mhz),
        leads=np.array(layout.leads),
        gain=np.array(layout.gain, dtype=np.float64),
        baseline=np.array(layout.baseline, dtype=np.float64),
        unit=np.array(layout.unit),
        embedding=embedding.astype(np.float32),
    )
    return buffer.getvalue()


def read_golden(data: bytes) -> tuple[Floats, Floats]:
    """-> prepared window (12, 5000), expected embedding (D,). Raises ArtifactError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            gain, baseline = z["gain"].tolist(), z["baseline"].tolist()
            layout = Layout(int(z["fs_mhz"]), tuple(map(str, z["leads"])), tuple(gain), tuple(baseline), str(z["unit"]))
            return chain.preprocess(z["samples"], layout).x, np.asarray(z["embedding"], dtype=np.float32)
    except Exception as error:  # zipfile and numpy raise whatever a broken archive leads them into
        raise ArtifactError(f"golden.npz: samples, layout and embedding expected, found {error}") from None


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises ArtifactError before anything larger is read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path.name}: a regular file expected, found another kind")
        if status.st_size > limit:
            raise ArtifactError(f"{path.name}: {limit} bytes expected at most, found {status.st_size}")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path.name}: {limit} bytes expected, but it cannot be read ({error.strerror})") from None


def _find(directory: Path) -> Path:
    if (directory / MANIFEST).is_file():
        return directory
    if not directory.is_dir():
        raise ArtifactError(f"{MANIFEST}: a directory with it expected, {directory} does not exist")
    inside = [d for d in sorted(directory.iterdir()) if (d / MANIFEST).is_file()]
    if len(inside) != 1:
        names = ", ".join(d.name for d in inside) or "none"
        raise ArtifactError(
            f"{MANIFEST}: not in {directory}; exactly 1 subdirectory with it expected, found {len(inside)} ({names})"
        )
    return inside[0]
