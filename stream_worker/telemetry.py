"""Logs (structlog: lines for people, JSON for machines) and the Prometheus metrics of one worker. No waveform, no secret."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics", "setup_logging"]


def setup_logging(level: str = "info") -> None:
    """To stderr: coloured lines on a terminal, one JSON object a line elsewhere."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it repeats every failed attempt; we say once what it means
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


class Metrics:
    """One registry a worker, so that several live in one process (tests) without meeting."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.chunks = Counter("ecg_chunks", "Chunk records read", registry=r)
        self.windows = Counter("ecg_windows", "Findings published, by outcome", ["outcome"], registry=r)
        self.dead_letters = Counter("ecg_dead_letters", "Dead letters published, by reason", ["reason"], registry=r)
        self.shed = Counter("ecg_shed_windows", "Windows published unscored because their stream exceeds its share", registry=r)
        self.dropped_tails = Counter("ecg_dropped_tails", "Ends of runs shorter than 5 s, not scored", registry=r)
        self.lost_records = Counter("ecg_lost_records", "Records that retention removed before they were read", registry=r)
        self.lag = Gauge("ecg_lag_records", "Records behind the end of the partition", ["partition"], registry=r)
        self.oldest_unscored = Gauge(
            "ecg_oldest_unscored_seconds",
            "Age, by the log's time, of the oldest sample that no published finding covers",
            registry=r,
        )
        self.queue = Gauge("ecg_queue_depth", "What waits between two stages", ["stage"], registry=r)
        self.open_runs = Gauge("ecg_open_runs", "Runs with an open window", registry=r)
        self.paused = Gauge("ecg_reading_paused", "1 while reading waits for scoring", registry=r)
        self.broker_up = Gauge("ecg_broker_up", "1 while Kafka answers", registry=r)
        self.redis_up = Gauge("ecg_redis_up", "1 while Redis answers; 0 means frozen labels", registry=r)
        self.redis_up.set(1)
        self.bank_missing = Gauge("ecg_bank_missing", "1 while Redis answers but holds no active label bank", registry=r)
        self.bank_refused = Counter("ecg_bank_refused", "Label banks refused while running", registry=r)
        self.bank = Gauge("ecg_bank_info", "The label bank in use", ["digest"], registry=r)
        self.encoder = Gauge("ecg_encoder_info", "The encoder in use", ["digest", "backend"], registry=r)
        self.refused = Gauge(
            "ecg_backend_refused_info", "A backend better than the one in use, and why not", ["backend", "reason"], registry=r
        )
        self.batch = Histogram(
            "ecg_batch_windows", "Windows in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512), registry=r
        )
        self.score_seconds = Histogram(
            "ecg_score_seconds",
            "Preprocessing and scoring of a batch",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=r,
        )
        self.publish_seconds = Histogram(
            "ecg_publish_seconds",
            "Publishing a batch until acknowledged",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
            registry=r,
        )

    def use_bank(self, digest: str) -> None:
        """Show which bank is in use."""
        self.bank.clear()
        self.bank.labels(digest[:16]).set(1)

    def redis_is_up(self) -> bool:
        """As last seen."""
        return bool(self.redis_up._value.get())

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
