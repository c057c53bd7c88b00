"""Settings: environment variables ECG_*, or a .env file. Passwords are SecretStr and never printed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream_worker.errors import ConfigError

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """Everything the worker can be told. Each field is ECG_ and its name in capitals, e.g. ECG_KAFKA=host:9092."""

    model_config = SettingsConfigDict(env_prefix="ECG_", env_file=".env", extra="ignore", frozen=True)

    kafka: str = Field("127.0.0.1:9092", description="bootstrap servers, host:port, comma separated")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_ca_file: Path | None = Field(None, description="CA certificates (PEM) of the brokers")
    client: Literal["aiokafka", "confluent"] = Field("aiokafka", description="confluent (librdkafka): the extra `fast`")
    group: str = Field("ecg-worker", description="consumer group")
    chunks_topic: str = "ecg.chunks"
    findings_topic: str = "ecg.findings"
    dead_letters_topic: str = "ecg.dead-letters"
    alerts_topic: str = "ecg.alerts"
    start: str = Field("latest", description="where to begin without a committed offset: latest, earliest or an ISO time")

    redis: SecretStr | None = Field(None, description="redis://host:port/db of the label bank; unset: the artifact's own bank")
    bank_poll_s: float = Field(1.0, gt=0, description="how often the active bank's name is read")

    artifact: Path | None = Field(None, description="model directory; unset: deploy/model of the checkout")
    backend: Literal["auto", "tensorrt", "torch", "onnxruntime", "openvino"] = Field(
        "auto", description="auto: the first of the next three that this machine can run, torch on a GPU only; a name: that one"
    )
    engine_cache: Path | None = Field(None, description="directory of engine plans; unset: the user's cache directory")
    engine_precision: Literal["fp16", "bf16", "int8", "fp32"] = Field("fp16", description="of TensorRT's engines")
    cpu_precision: Literal["fp32", "int8"] = Field(
        "fp32", description="of onnxruntime and openvino; int8 if the artifact has it"
    )
    threads: int | None = Field(None, ge=1, description="cores for the encoder on a CPU; unset: all")
    calibrate: bool = Field(True, description="find out at start how a CPU's cores are best used: up to a second")

    hop_ms: int = Field(10_000, ge=1_000, le=10_000, description="distance between window starts")
    batch_size: int = Field(32, ge=1, le=2048, description="windows a batch")
    batch_deadline_ms: int = Field(100, ge=1, le=10_000, description="the longest a window waits for its batch")
    queue_windows: int = Field(512, ge=1, description="closed windows that may wait before reading pauses")
    shed_after_s: float = Field(
        10.0,
        gt=0,
        description="in a partition that is behind for longer, windows beyond a stream's share are not scored (shed)",
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once", description="exactly_once: findings and commit in one transaction, seen at the next commit"
    )
    commit_interval_ms: int = Field(500, ge=50, le=60_000)
    top: int = Field(5, ge=1, description="labels a finding lists besides those above threshold")
    max_chunk_bytes: int = Field(1 << 20, ge=1024)
    dead_letter_payload: bool = Field(False, description="put the refused bytes into dead letters: they hold patient signal")

    http_host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from outside the pod
    http_port: int = Field(8080, ge=0, le=65535, description="/livez, /readyz and /metrics; 0 picks a free port")
    outage_limit_s: float = Field(60.0, gt=0, description="without a broker for longer than this the process exits with code 4")
    drain_s: float = Field(20.0, gt=0, description="the time that shutdown may take; a revoked partition 5 s at most")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("start")
    @classmethod
    def _start(cls, value: str) -> str:
        if value not in ("latest", "earliest"):
            datetime.fromisoformat(value)
        return value

    @field_validator("redis")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("a URL that begins with redis://, rediss:// or unix:// expected")
        return value

    @property
    def start_ms(self) -> int | None:
        """Unix ms of an ISO `start`; a time without zone is UTC."""
        if self.start in ("latest", "earliest"):
            return None
        moment = datetime.fromisoformat(self.start)
        if moment.tzinfo is None:
            moment = datetime.fromisoformat(self.start + "+00:00")
        return int(moment.timestamp() * 1000)

    def artifact_dir(self) -> Path:
        """The model directory. Raises ConfigError when none is set and this is no checkout."""
        if self.artifact is not None:
            return self.artifact
        shipped = Path(__file__).resolve().parents[1] / "deploy" / "model"
        if not shipped.is_dir():
            raise ConfigError("no model: set ECG_ARTIFACT (or --artifact) to a directory that `ecg-train export` wrote")
        return shipped


def load_settings(**overrides: Any) -> Settings:
    """Settings from environment and options (None means "not given"). Raises ConfigError naming the variable."""
    given = {k: v for k, v in overrides.items() if v is not None}
    try:
        return Settings(**given)
    except UnicodeDecodeError as error:
        raise ConfigError(f".env is no UTF-8 text: {error}") from None
    except ValidationError as error:
        lines = [f"ECG_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise ConfigError("; ".join(lines)) from None
