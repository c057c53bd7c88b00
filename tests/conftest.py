"""Fixtures that every room of the tests shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import LocalServices

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real recordings and the vocabulary; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("ECG_SHARED", ROOT.parent / "shared"))
    if not (path / "ecg").is_dir():
        pytest.skip(f"no recordings at {path} (set ECG_SHARED to the folder that holds ecg/ and labels.csv)")
    return path


@pytest.fixture(scope="session")
def mitdb(shared: Path) -> Path:
    """MIT-BIH recordings, 30 minutes, 2 leads, 360 Hz."""
    return shared / "ecg" / "long" / "mitdb"


@pytest.fixture(scope="session")
def services() -> Iterator[LocalServices]:
    """A real Kafka and a real Redis, started for the first test that asks; a test that breaks them mends them."""
    with LocalServices() as started:
        yield started


@pytest.fixture
def kafka(services: LocalServices) -> str:
    """Bootstrap address of a running broker."""
    return services.kafka


@pytest.fixture
def redis_url(services: LocalServices) -> str:
    """URL of a running Redis, database 0; what other tests left there may still be there."""
    return services.redis
