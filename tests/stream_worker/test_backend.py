"""The backend in use, and why no better one, can be read from log, metrics and finding; a lost GPU ends with its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from encoders.artifact import ArtifactError
from encoders.base import BackendUnavailable, DeviceLost
from encoders.choose import Choice
from encoders.engine.plans import EngineOptions
from stream_worker import backend
from stream_worker.backend import opened
from stream_worker.errors import AcceleratorLost, ArtifactRefused, ConfigError
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.settings import Settings, load_settings
from stream_worker.telemetry import Metrics
from stream_worker.window import Windower
from tests.support import ProjectionEncoder, bank, layout, push, signal, windows_of

SETTINGS = Settings(engine_cache=Path("plans"), engine_precision="bf16", threads=1)


def chosen(monkeypatch: pytest.MonkeyPatch, result: Choice | Exception) -> list[Any]:
    asked: list[Any] = []

    def choose(*arguments: Any) -> Choice:
        asked.append(arguments[1:])
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(backend, "choose", choose)
    return asked


def test_the_choice_is_seen_in_log_metrics_and_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, metrics = ProjectionEncoder(), Metrics()
    refused = (("tensorrt", "no NVIDIA driver"), ("torch", 'no "CUDA"\nat all'))
    asked = chosen(monkeypatch, Choice(encoder, refused))
    model: Any = object()
    with capture_logs() as lines, opened(model, SETTINGS, metrics) as taken:
        assert taken is encoder
        of = layout()
        windower = Windower(0, Rules(hop_ms=10_000))
        events = windows_of(push(windower, of, signal(of, 6000), 0, 6000, 0))
        (finding,) = Scorer(taken, bank(encoder))(events)
    assert finding.body["backend"] == "projection"
    assert asked == [("auto", 1, EngineOptions(Path("plans"), "bf16", calibrate=True))]
    assert [(x["backend"], x["asked"], x["refused"]) for x in lines if x["event"] == "encoder"] == [
        ("projection", "auto", dict(refused))
    ]
    text = metrics.text().decode()
    assert f'ecg_encoder_info{{backend="projection",digest="{encoder.digest[:16]}"}} 1.0' in text
    assert 'ecg_backend_refused_info{backend="tensorrt",reason="no NVIDIA driver"} 1.0' in text
    assert r'reason="no \"CUDA\"\nat all"' in text


@pytest.mark.parametrize(
    ("failure", "error", "code"),
    [
        (BackendUnavailable("no NVIDIA driver"), ConfigError, 2),
        (ArtifactError("golden.npz: cosine"), ArtifactRefused, 3),
        (DeviceLost("cudaMalloc: 700"), AcceleratorLost, 6),
    ],
)
def test_what_does_not_open_has_its_exit_code(
    failure: Exception, error: type[Exception], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(monkeypatch, failure)
    model: Any = object()
    with pytest.raises(error, match=str(failure)) as caught, opened(model, SETTINGS):
        pass
    assert caught.value.exit_code == code  # type: ignore[attr-defined]


def test_a_gpu_lost_at_work_ends_the_process_with_6(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ProjectionEncoder()
    closed: list[bool] = []
    monkeypatch.setattr(encoder, "close", lambda: closed.append(True))
    chosen(monkeypatch, Choice(encoder))
    model: Any = object()
    with pytest.raises(AcceleratorLost, match=r"cudaStreamSynchronize.*nothing is lost") as caught, opened(model, SETTINGS):
        raise DeviceLost("cudaStreamSynchronize: cudaErrorIllegalAddress (700)")
    assert caught.value.exit_code == 6
    assert closed == [True]


def test_settings_name_the_backends() -> None:
    assert load_settings().backend == "auto"
    with pytest.raises(ConfigError, match="ECG_BACKEND: Input should be 'auto', 'tensorrt', 'torch'"):
        load_settings(backend="abacus")
