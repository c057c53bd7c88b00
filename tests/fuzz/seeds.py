"""Well-formed inputs of every target, made here: what is mutated. Small, so that a mutation meets what matters."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from encoders import preprocess as chain
from encoders.artifact import write_golden
from encoders.signal import LEADS, Layout
from stream_worker.ledger import encode_metadata
from stream_worker.proto import ecg_chunk_pb2
from tests.fuzz.targets import SEPARATOR, folder
from tests.support import ProjectionEncoder, bank, layout, message, signal

__all__ = ["SEEDS", "artifact_files", "corpus"]

KEPT = Path(__file__).with_name("corpus")


def corpus(name: str) -> list[bytes]:
    """The inputs kept of earlier findings, which every run repeats; one file each, `corpus/<target>/<what it was>`."""
    return [path.read_bytes() for path in sorted((KEPT / name).glob("*"))]


def _chunks() -> list[bytes]:
    two, twelve = layout(), layout(leads=LEADS, fs_mhz=50_000)
    interleaved = ecg_chunk_pb2.Chunk.FromString(message(two, 0, signal(two, 4))[1])
    interleaved.order = ecg_chunk_pb2.INTERLEAVED
    return [
        message(two, 0, signal(two, 20))[1],
        message(twelve, 500, signal(twelve, 30), session="", last=True)[1],
        interleaved.SerializeToString(),
    ]


def _findings() -> list[bytes]:
    def one(first: int, closed: str | None = None, **changes: Any) -> bytes:
        body: dict[str, Any] = {
            "v": 1, "id": "0" * 32, "kind": "closed" if closed else "scored", "time": "2024-05-01T00:00:00Z",
            "stream": "s", "session": "1", "session_start_ns": 17, "first_sample": first,
            "layout": {"fs_mhz": 500_000, "leads": ["I", "II"], "gain": [200.0, 200.0], "baseline": [0.0, 0.0], "unit": "mV"},
            "next": first + 5000, "closed": closed,
            "input": {"partition": 0, "first": 3, "last": 4, "last_timestamp": 12},
        }  # fmt: skip
        return json.dumps(body | changes).encode()

    return [one(0), one(5000, "idle"), one(5000, stream="t")]


def _banks() -> list[bytes]:
    return [bank(ProjectionEncoder(dim=4)).to_bytes()]


@cache
def artifact_files() -> dict[str, bytes]:
    """An artifact whose encoder nobody opens; everything else in it agrees."""
    onnx = b"not opened"
    rows = bank(ProjectionEncoder(dim=4))
    rows = type(rows)(rows.labels, rows.matrix, rows.scale, hashlib.sha256(onnx).hexdigest(), rows.text)
    files = {
        "encoder.onnx": onnx,
        "labels.bank": rows.to_bytes(),
        "thresholds.json": json.dumps({"thresholds": {label.id: label.threshold for label in rows.labels}}).encode(),
        "golden.npz": b"not opened",
    }
    made = {
        "format": 1,
        "created": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "files": {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()},
        "model": {
            "architecture": "ResNet1d-18", "form": "decimated", "dim": 4, "input_shape": [12, 5000],
            "lead_order": list(LEADS), "fs": 500, "parameters": 1, "multiply_adds": 1, "receptive_field_s": 4.35,
        },
        "preprocess": chain.VERSION,
        "text": rows.text.model_dump(),
        "training": {"command": "none", "objective": "none", "data": {}},
        "tolerances": {"golden_cosine": 0.999},
    }  # fmt: skip
    return files | {"manifest.json": json.dumps(made).encode()}


def _goldens() -> list[bytes]:
    of = Layout.of(100_000, ("I", "II"), [1000.0])
    compressed = write_golden(signal(of, 1000) // 100, of, np.full(4, 0.5, dtype=np.float32))
    plain = io.BytesIO()
    with np.load(io.BytesIO(compressed)) as fields:
        np.savez(plain, **fields)
    return [compressed, plain.getvalue()]


def _wfdbs() -> list[bytes]:
    def joined(header: str, signals: bytes, segment: str = "") -> bytes:
        return SEPARATOR.join((header.encode(), signals, segment.encode()))

    counts = signal(layout(), 40).T.astype("<i2")  # (T, C)
    two = "r 2 360 40 12:30:00.5 01/02/1990\nr.dat 16 200(1024)/mV 11 1024 7 0 0 MLII\nr.dat 16 200/mV 11 0 0 0 0 V5\n# note\n"
    fast = "r 2 100 10\nr.dat 16x3 1000/uV 16 0 0 0 0 I\nr.dat 16 0 16 0 0 0 0 II\n"
    return [
        joined(two, counts.tobytes()),
        joined("r 1 250 20\nr.dat 212 200/mV 12 0 0 0 0 II\n", bytes(range(30))),
        joined("r 1 250 20\nr.dat 80 10/mV 8 0 0 0 0 V1\n", bytes(range(20))),
        joined("r 1 250 10\nr.dat 24 100/mV 24 0 0 0 0 V2\n", bytes(range(30))),
        joined("r 1 250 10\nr.dat 310 100/mV 10 0 0 0 0 V2\n", bytes(range(16))),
        joined(fast, counts[:20].tobytes()),
        joined("r/2 1 250 40\ns 20\ns 20\n", counts[:20].tobytes(), "s 1 250 20\nr.dat 16 200/mV 16 0 0 0 0 II\n"),
        *_flac(),
    ]


def _flac() -> list[bytes]:
    """One in format 516, which a library has to write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb calls what pandas deprecates
        import wfdb

        where = folder() / "flac"
        where.mkdir(exist_ok=True)
        counts = signal(layout(), 64).T
        fields: dict[str, Any] = {"fs": 250, "units": ["mV"] * 2, "sig_name": ["I", "II"], "fmt": ["516"] * 2}
        wfdb.wrsamp("r", **fields, d_signal=counts, adc_gain=[200.0] * 2, baseline=[0] * 2, write_dir=str(where))
    return [SEPARATOR.join(((where / "r.hea").read_bytes(), (where / "r.dat").read_bytes(), b""))]


def _edf(bits: int = 16, plus: bool = False) -> bytes:
    """Two signals of two records, each a second at 50 Hz."""

    def fields(*widths: tuple[int, str]) -> bytes:
        return b"".join(text.ljust(width)[:width].encode("ascii") for width, text in widths)

    n, low, high = 50, -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    names = ["ECG II", "V5", *(["EDF Annotations"] if plus else [])]
    signals = len(names)
    head = b"\xffBIOSEMI" if bits == 24 else b"0".ljust(8)
    head += fields((80, "X X X X"), (80, "Startdate X X X X"), (8, "01.02.90"), (8, "12.30.00"))
    kind = "24BIT" if bits == 24 else "EDF+C" if plus else ""
    head += fields((8, str(256 * (signals + 1))), (44, kind), (8, "2"), (8, "1"), (4, str(signals)))
    for width, texts in (
        (16, names), (80, [""] * signals), (8, ["uV", "mV", ""]), (8, ["-3276.8", "-5", "-1"]), (8, ["3276.7", "5", "1"]),
        (8, [str(low)] * 3), (8, [str(high)] * 3), (80, [""] * 3), (8, [str(n), str(n), "20"]), (32, [""] * 3),
    ):  # fmt: skip
        head += fields(*((width, text) for text in texts[:signals]))
    out = head
    for record in range(2):
        for c in range(2):
            values = (np.arange(n) * 37 * (c + 1) - 900).astype("<i4")
            out += values.astype("<i2").tobytes() if bits == 16 else values.view(np.uint8).reshape(n, 4)[:, :3].tobytes()
        if plus:
            out += f"+{record}\x14\x14".encode().ljust(40, b"\0")
    return out


def _csvs() -> list[bytes]:
    rows = "\n".join(f"{i / 250:.3f},{i * 7 % 50},{-i % 13}" for i in range(20))
    return [
        f"# fs=250\n# unit=uV\n# patient 7\ntime,I,V1\n{rows}\n".encode(),
        f"time_ms;II\n{chr(10).join(f'{4 * i};0.{i}' for i in range(20))}\n".encode(),
        "\ufeff# fs=250\r\nindex\tI\tII\r\n0\t1\tNaN\r\n1\t\t-3.5e-1\r\n".encode(),
        b'# fs: 500 Hz\n"I","aVF"\n1,2\n3,4\n',
    ]


def _dicoms() -> list[bytes]:
    """pydicom's own resting ECG: 60 samples of two leads left of each group, and no annotations, of which it has many."""
    import pydicom
    from pydicom.data import get_testdata_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(str(get_testdata_file("waveform_ecg.dcm", download=False)))
        del data.WaveformAnnotationSequence
        for group in data.WaveformSequence:
            group.ChannelDefinitionSequence = group.ChannelDefinitionSequence[:2]
            group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 2, 60
            group.WaveformData = group.WaveformData[:240]
        whole = io.BytesIO()
        data.save_as(whole)
        data.WaveformSequence = data.WaveformSequence[:1]
        group = data.WaveformSequence[0]
        group.ChannelDefinitionSequence = group.ChannelDefinitionSequence[:1]
        group.NumberOfWaveformChannels, group.WaveformData = 1, group.WaveformData[:120]
        group.add_new("WaveformPaddingValue", "OW", struct.pack("<h", -32000))
        one = io.BytesIO()
        data.save_as(one)
    return [one.getvalue(), whole.getvalue()]


ENVIRONMENT = """KAFKA=a:1,b:2
KAFKA_SECURITY=SASL_SSL
KAFKA_PASSWORD=secret
START=2024-05-01T10:00:00+09:00
REDIS=redis://h:6379/0
HOP_MS=5000
BATCH_SIZE=32
THREADS=2
DEAD_LETTER_PAYLOAD=true
BANK_POLL_S=1.5
HTTP_PORT=0
LOG_LEVEL=debug
ARTIFACT=/nowhere
"""

SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "chunk": _chunks,
    "finding": _findings,
    "recovery": lambda: [b"\n".join(_findings())],
    "metadata": lambda: [encode_metadata(10, 3).encode(), b""],
    "environment": lambda: [ENVIRONMENT.encode(), b"START=latest\n", b"START=2024-W01\nREDIS=unix:///s"],
    "dotenv": lambda: ["".join(f"ECG_{line}\n" for line in ENVIRONMENT.split()).encode(), b"export ECG_GROUP='a b' # c\n"],
    "toml": lambda: [
        b'lr=1e-3\nobjective = "bank_sigmoid"\nlr = 0.01\ntrain_folds = [1, 2]\nwhiten = false\n',
        b'train_folds=1,2\nlead_sets = ["12", "II"]\nepochs = 2\nfinish_epochs = 1\nlr = 1\n',
    ],
    "bank": _banks,
    "manifest": lambda: [artifact_files()["manifest.json"]],
    "thresholds": lambda: [artifact_files()["thresholds.json"]],
    "golden": _goldens,
    "wfdb": _wfdbs,
    "edf": lambda: [_edf(), _edf(plus=True)],
    "bdf": lambda: [_edf(bits=24)],
    "csv": _csvs,
    "dicom": _dicoms,
}
