"""What is fuzzed: one function of bytes for each thing that reads bytes it did not write.

A target returns for what it accepts and for what it refuses with its reader's own error. Anything else is a defect: another
exception, a numpy warning, more than `SECONDS` or more than `MEGABYTES` for one small input.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from unittest.mock import patch

import numpy as np

from encoders.artifact import Artifact, ArtifactError, read_golden
from encoders.bank import BankError, LabelBank
from encoders.csv_table import looks_like_leads
from encoders.recordings import RecordingError, find_recordings, read_recording
from stream_worker.errors import BadInput, ConfigError
from stream_worker.ledger import decode_metadata, encode_metadata
from stream_worker.proto import ecg_chunk_pb2
from stream_worker.records import identity
from stream_worker.recovery import recover
from stream_worker.run import Rules
from stream_worker.seam import Headers, Position, Record
from stream_worker.settings import Settings, load_settings
from stream_worker.window import Windower
from stream_worker.wire import Decoder, parse_finding

__all__ = ["MEGABYTES", "SECONDS", "SEPARATOR", "TARGETS", "Target"]

Target = Callable[[bytes], None]
SECONDS = 20.0  # of this process's own time, for one input
MEGABYTES = 512  # more than before, for one input of a few kB
SEPARATOR = b"\n%%\n"  # between the files of one input

TARGETS: dict[str, Target] = {}


def target(*allowed: type[Exception]) -> Callable[[Target], Target]:
    """Registers a function under its name; `allowed`: the errors by which its reader refuses."""

    def register(read: Target) -> Target:
        warm = False  # the first input pays for what is imported on first use

        @wraps(read)
        def checked(data: bytes) -> None:
            nonlocal warm
            began, before = time.process_time(), _peak_mb()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", RuntimeWarning)  # numpy's way to say that a number came out wrong
                try:
                    read(data)
                except allowed as error:
                    assert str(error), "an error that says nothing"
            assert not warm or time.process_time() - began < SECONDS, "it took too long"
            assert not warm or _peak_mb() - before < MEGABYTES, "it took too much memory"
            warm = True

        TARGETS[read.__name__] = checked
        return checked

    return register


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@cache
def folder() -> Path:
    """An empty folder of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of a fresh name is made in it
    made = Path(tempfile.mkdtemp(prefix="ecg-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# ---- the wire


@cache
def _decoder() -> Decoder:
    return Decoder(max_layouts=64)


@target(BadInput)
def chunk(data: bytes) -> None:
    """A Kafka value. Its key is the stream id it names, so that what follows the key check is reached."""
    try:
        key = ecg_chunk_pb2.ChunkRecord.FromString(data).stream_id.encode()
    except Exception:  # the decoder itself has to say so
        key = b"s"
    found = _decoder()(key, data)
    again = Decoder()(key, data)  # has learnt nothing from earlier inputs
    assert found[:3] == again[:3]
    assert found.last == again.last
    assert np.array_equal(found.samples, again.samples)
    assert found.samples.dtype == np.int16
    assert found.samples.shape[0] == len(found.layout.leads)
    assert 0 <= found.first < found.first + found.samples.shape[1] <= 1 << 53
    windower = Windower(0, Rules())
    for event in [*windower.push(found, 0, 0), *windower.conclude_idle()]:
        assert identity(found.key, "closed", getattr(event, "first", 0))


@target(BadInput)
def finding(data: bytes) -> None:
    """A value of the findings topic, as whoever follows it reads it."""
    body = parse_finding(data)
    assert all(isinstance(body[name], str) for name in ("id", "stream", "session", "time"))


class _Past:
    """As much of a broker as recovery asks: one commit, and the findings given."""

    def __init__(self, findings: list[bytes]) -> None:
        self.findings = findings

    async def fence(self, partition: int) -> None:
        """Nobody else writes here."""

    def partitions(self, topic: str) -> int:
        return 1

    async def committed(self, partition: int) -> Position:
        return Position(3, encode_metadata(5, 0))

    async def beginning_offset(self, partition: int) -> int:
        return 0

    async def end_offset(self, partition: int) -> int:
        return 9

    async def read_back(self, topic: str, partition: int, start: int) -> AsyncIterator[tuple[Record, Headers]]:
        for offset, value in enumerate(self.findings):
            yield Record(partition, offset, 0, b"s", value), ()


@cache
def _settings() -> Settings:
    return load_settings()


@target()
def recovery(data: bytes) -> None:
    """Lines of the findings topic that a worker recovers from: it has to go on whatever they hold."""
    waiting = recover(_Past(data.split(b"\n")), 0, _settings(), Rules())  # type: ignore[arg-type]
    with patch("stream_worker.recovery.STALE_S", -1.0):  # an old commit is not asked for again
        try:
            waiting.send(None)  # so nothing in it ever waits
        except StopIteration as done:
            windower = done.value.windower
    for event in windower.conclude_idle():
        assert identity(event.key, "closed", event.next if hasattr(event, "next") else event.first)


@target(ConfigError)
def metadata(data: bytes) -> None:
    """The text of a commit."""
    processed, findings, partitions = decode_metadata(data.decode("utf-8", "replace"), 7)
    assert processed >= 7
    assert min(findings, partitions) >= 0


# ---- configuration


@target(ConfigError)
def environment(data: bytes) -> None:
    """Lines NAME=value, as the process finds them."""
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").replace("\0", "").splitlines())
    given = {f"ECG_{name}": value for name, _, value in pairs}
    with patch.dict(os.environ, given, clear=True):
        settings = load_settings()
    assert settings.start_ms is None or isinstance(settings.start_ms, int)


@target(ConfigError)
def dotenv(data: bytes) -> None:
    """A .env file."""
    with patch.dict(os.environ, {}, clear=True):
        load_settings(_env_file=_written("dotenv", data))


@target()
def toml(data: bytes) -> None:
    """A training configuration; the first line is an override as `--set` has it."""
    from training.config import ConfigError, read_config  # seconds of torch: for this target only

    override, _, text = data.partition(b"\n")
    try:
        read_config(_written("train.toml", text), [override.decode("utf-8", "replace")] if override else [])
    except ConfigError as error:
        assert str(error)


# ---- bank and artifact


@target(BankError)
def bank(data: bytes) -> None:
    """The bytes under ecg:bank:<digest>."""
    found = LabelBank.from_bytes(data)
    assert found.to_bytes() == data
    e = np.full((1, found.dim), found.dim**-0.5, dtype=np.float32)
    p = found.probabilities(e)
    served = np.array([label.calibration is not None for label in found.labels])
    assert ((p[0, served] >= 0) & (p[0, served] <= 1)).all()


@target(ArtifactError)
def manifest(data: bytes) -> None:
    """manifest.json in front of files that are not its own."""
    _load_artifact({"manifest.json": data})


@target(ArtifactError)
def thresholds(data: bytes) -> None:
    """thresholds.json, listed in the manifest with its own digest."""
    from tests.fuzz.seeds import artifact_files

    listed = json.loads(artifact_files()["manifest.json"])
    listed["files"]["thresholds.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _load_artifact({"manifest.json": json.dumps(listed).encode(), "thresholds.json": data})


def _load_artifact(changed: Mapping[str, bytes]) -> None:
    from tests.fuzz.seeds import artifact_files

    where = folder() / "-".join(["artifact", *changed])
    if not where.exists():
        where.mkdir()
        for name, content in artifact_files().items():
            (where / name).write_bytes(content)
    for name, content in changed.items():  # always the same ones here: the others stay as they are
        (where / name).write_bytes(content)
    Artifact.load(where)


@target(ArtifactError)
def golden(data: bytes) -> None:
    """golden.npz."""
    window, _ = read_golden(data)
    assert window.shape == (12, 5000)


# ---- recordings


def _read(path: Path) -> None:
    recording = read_recording(path)
    assert recording.samples.dtype == np.int16
    assert recording.samples.shape[0] == len(recording.layout.leads)
    assert recording.samples.shape[1] > 0


@target(RecordingError)
def wfdb(data: bytes) -> None:
    """r.hea, r.dat, and the header of a segment s.hea."""
    header, signals, segment, *_ = [*data.split(SEPARATOR), b"", b""]
    _written("wfdb/r.dat", signals)
    _written("wfdb/s.hea", segment)
    path = _written("wfdb/r.hea", header)
    assert find_recordings(path.parent)
    _read(path)


@target(RecordingError)
def edf(data: bytes) -> None:
    """An EDF or EDF+ file."""
    _read(_written("r.edf", data))


@target(RecordingError)
def bdf(data: bytes) -> None:
    """A BDF file: 24 bits."""
    _read(_written("r.bdf", data))


@target(RecordingError)
def csv(data: bytes) -> None:
    """A table of samples."""
    path = _written("r.csv", data)
    looks_like_leads(path)
    _read(path)


@target(RecordingError)
def dicom(data: bytes) -> None:
    """A DICOM object."""
    _read(_written("r.dcm", data))
