"""The commands of who runs the worker: run, alerts, topics, check; and how settings become model and broker."""

from __future__ import annotations

import asyncio
import json as jsonlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from encoders.artifact import Artifact, ArtifactError
from stream_worker import telemetry
from stream_worker.errors import ArtifactRefused, ConfigError, WorkerError
from stream_worker.kafka.security import security_of
from stream_worker.seam import Broker
from stream_worker.settings import Settings, load_settings
from stream_worker.table import NOTICE
from stream_worker.telemetry import Metrics

__all__ = ["alerts", "check", "client_of", "kafka_broker", "load_model", "print_json", "run", "topics"]


def load_model(settings: Settings) -> Artifact:
    """The verified artifact. Raises ArtifactRefused."""
    try:
        return Artifact.load(settings.artifact_dir())
    except ArtifactError as error:
        raise ArtifactRefused(f"model refused: {error}") from None


def print_json(body: dict[str, Any]) -> None:
    """One object, one line, at once."""
    sys.stdout.write(jsonlib.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def kafka_broker(settings: Settings) -> Broker:
    """The seam over the cluster of the settings, by the client that they name. Raises ConfigError when it is not installed."""
    return client_of(settings.client)(
        bootstrap=settings.kafka,
        group=settings.group,
        chunks=settings.chunks_topic,
        findings=settings.findings_topic,
        dead_letters=settings.dead_letters_topic,
        security=security_of(settings),
        start_timeout_s=settings.outage_limit_s,
    )


def client_of(name: str) -> Callable[..., Broker]:
    """The broker class of a client's name. Raises ConfigError when the client is not installed."""
    if name == "aiokafka":
        from stream_worker.kafka.broker import KafkaBroker

        return KafkaBroker
    try:
        from stream_worker.kafka.confluent_broker import ConfluentBroker
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "confluent_kafka":
            raise
        raise ConfigError(
            'ECG_CLIENT=confluent needs the extra `fast`: pip install "ecg-stream-worker[fast]", or ECG_CLIENT=aiokafka'
        ) from None
    return ConfluentBroker


def run(**options: Any) -> None:
    """See `ecg-worker run --help`."""
    settings = load_settings(**options)
    telemetry.setup_logging(settings.log_level)
    model = load_model(settings)
    asyncio.run(_run(settings, model))


async def _run(settings: Settings, model: Artifact) -> None:
    import numpy as np
    import structlog

    from encoders.signal import LEADS, WINDOW
    from stream_worker.backend import opened
    from stream_worker.health import HealthServer
    from stream_worker.labels import BankSource, BankWatcher, FixedBank
    from stream_worker.pipeline import Pipeline
    from stream_worker.score import Options, Scorer

    log = structlog.get_logger("stream_worker")
    metrics = Metrics()
    with opened(model, settings, metrics) as encoder:
        # The runtime keeps what its largest batch took (55 MB for 32 windows): now, not at the first rush.
        encoder.encode(np.zeros((settings.batch_size, len(LEADS), WINDOW), dtype=np.float32))
        labels: BankSource = FixedBank(model.bank())
        if settings.redis is not None:
            labels = BankWatcher(settings.redis.get_secret_value(), encoder.digest, encoder.dim, metrics, settings.bank_poll_s)
        else:
            log.warning("ECG_REDIS is not set: the labels are the artifact's own and will not be swapped")

        def scorer() -> Scorer | None:
            return None if labels.bank is None else Scorer(encoder, labels.bank, Options(top=settings.top))

        pipeline = Pipeline(kafka_broker(settings), scorer, settings, metrics, labels)
        server = HealthServer(settings.http_host, settings.http_port, metrics, pipeline.live, pipeline.ready)
        try:
            await server.start()
        except OSError as error:
            raise ConfigError(f"ECG_HTTP_PORT: port {settings.http_port} cannot be used: {error.strerror}") from None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, pipeline.stop)
        log.info(
            "started", kafka=settings.kafka, model=model.digest[:16], backend=encoder.backend, port=server.port, notice=NOTICE
        )
        try:
            await pipeline.run()
        finally:
            await server.stop()


def alerts(kafka: str | None, web_port: int | None) -> None:
    """See `ecg-worker alerts --help`."""
    from stream_worker.alerting.alerts import run as run_alerts

    settings = load_settings(kafka=kafka)
    telemetry.setup_logging(settings.log_level)
    run_alerts(settings, web_port)


def topics(apply: bool, partitions: int, replication: int, grow: int | None, kafka: str | None) -> None:
    """See `ecg-worker topics --help`."""
    from stream_worker.kafka import topics as topic_plan

    settings = load_settings(kafka=kafka)
    for text in topic_plan.command(settings, security_of(settings), apply, partitions, replication, grow):
        print(text)


def check(kafka: str | None, redis: str | None, artifact: Path | None, json: bool) -> None:
    """See `ecg-worker check --help`."""
    from stream_worker.check import Item, problems

    settings = load_settings(kafka=kafka, redis=redis, artifact=artifact)
    found: list[Item] = []
    err = Console(stderr=True)
    if err.is_terminal:
        err.print(f"asking Kafka at {settings.kafka} and Redis; a silent one takes its time", style="dim", markup=False)

    async def show() -> None:
        async for item in problems(settings, security_of(settings)):
            found.append(item)
            if json:
                print_json({"what": item.what, "ok": item.error is None, "detail": item.detail, "error": str(item.error or "")})
                continue
            mark = "[green]ok[/green]     " if item.error is None else "[red]problem[/red]"
            Console().print(f"{mark} {item.what}: ", end="")
            Console().print(item.detail if item.error is None else str(item.error), markup=False, soft_wrap=True)

    asyncio.run(show())
    worst: WorkerError | None = next((item.error for item in found if item.error is not None), None)
    if worst is not None:
        raise SystemExit(worst.exit_code)
