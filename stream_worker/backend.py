"""The encoder that the settings ask for, open: which one, and why no better one, is in the log and in the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import structlog

from encoders.artifact import Artifact, ArtifactError
from encoders.base import BackendUnavailable, DeviceLost, Encoder
from encoders.choose import choose
from encoders.cpu import CpuEncoder
from encoders.engine.plans import EngineOptions
from stream_worker.errors import AcceleratorLost, ArtifactRefused, ConfigError
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics

__all__ = ["opened"]

log = structlog.get_logger(__name__)


@contextmanager
def opened(model: Artifact, settings: Settings, metrics: Metrics | None = None) -> Iterator[Encoder]:
    """Opened, and closed at the end. Raises ConfigError, ArtifactRefused, and AcceleratorLost also for what happens inside."""
    try:
        engine = EngineOptions(settings.engine_cache, settings.engine_precision, settings.cpu_precision, settings.calibrate)
        choice = choose(model, settings.backend, settings.threads, engine)
    except BackendUnavailable as error:
        raise ConfigError(f"ECG_BACKEND={settings.backend}: {error}") from None
    except ArtifactError as error:
        raise ArtifactRefused(f"model refused: {error}") from None
    except DeviceLost as error:
        raise AcceleratorLost(str(error)) from None
    encoder = choice.encoder
    plan = {"plan": asdict(encoder.plan)} if isinstance(encoder, CpuEncoder) else {}
    log.info("encoder", backend=encoder.backend, asked=settings.backend, refused=dict(choice.refused), **plan)
    if metrics is not None:
        metrics.encoder.labels(encoder.digest[:16], encoder.backend).set(1)
        for name, why in choice.refused:
            metrics.refused.labels(name, why).set(1)
    try:
        with encoder:
            yield encoder
    except DeviceLost as error:
        raise AcceleratorLost(f"{error}; nothing is lost: start the worker again") from None
