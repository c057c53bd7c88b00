"""The commands of who tries, publishes or reads: demo, replay, publish, tail."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from encoders.artifact import Artifact
from encoders.bank import tiers_said
from encoders.recordings import Recording, RecordingError, find_recordings, read_recording
from stream_worker.backend import opened
from stream_worker.errors import BadInput, ConfigError
from stream_worker.kafka.security import security_of
from stream_worker.operate import kafka_broker, load_model, print_json
from stream_worker.records import Finding
from stream_worker.settings import Settings, load_settings
from stream_worker.table import FindingsTable, alert_line, line
from stream_worker.telemetry import Metrics

__all__ = ["demo", "publish", "replay", "tail"]

err = Console(stderr=True)
DEMO_TOPICS = {
    "chunks_topic": "chunks",
    "findings_topic": "findings",
    "dead_letters_topic": "dead-letters",
    "alerts_topic": "alerts",
}


def _lead_map(pairs: Sequence[str]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        name, _, lead = pair.rpartition("=")
        if not name:
            raise ConfigError(f"--lead {pair!r}: NAME=LEAD expected, for instance ECG=I")
        out[name] = lead
    return out


def _read(path: Path, leads: dict[str, str]) -> Recording:
    try:
        recording = read_recording(path, leads)
    except (RecordingError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if recording.skipped:
        err.print(f"[dim]{recording.name}: not used: {', '.join(recording.skipped)}[/dim]")
    return recording


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


# ---- replay


def replay(
    records: Sequence[Path],
    json: bool,
    scores: str,
    alerts: bool,
    artifact: Path | None,
    hop_ms: int | None,
    lead: Sequence[str],
) -> None:
    """See `ecg-worker replay --help`."""
    from stream_worker.alerting.episodes import Policy, StreamState, step
    from stream_worker.replay import findings, windows
    from stream_worker.run import Rules
    from stream_worker.score import Options, Scorer

    if scores not in ("top", "all"):
        raise ConfigError(f"--scores {scores!r}: top or all expected")
    settings = load_settings(artifact=artifact, hop_ms=hop_ms)
    leads = _lead_map(lead)
    try:
        paths = [path for given in records for path in find_recordings(given)]
    except (RecordingError, ValueError) as error:
        raise ConfigError(str(error)) from None
    model = load_model(settings)
    failed = 0
    with opened(model, settings) as encoder, _progress() as progress:
        scorer = Scorer(encoder, model.bank(), Options(top=settings.top, all_scores=scores == "all"))
        task = progress.add_task("recordings", total=len(paths))
        policy, show = Policy(), alert_line if alerts else line
        for done, path in enumerate(paths, 1):
            try:
                recording = _read(path, leads)
            except ConfigError as error:
                err.print(f"{error}", style="red", markup=False)
                failed += 1
                progress.update(task, completed=done)
                continue
            part = min(1.0, recording.layout.samples(settings.hop_ms) / recording.samples.shape[1])  # that a window adds
            progress.update(task, description=recording.name)
            events = windows(recording, recording.name, "1", Rules(hop_ms=settings.hop_ms))

            def further(n: int, part: float = part) -> None:
                progress.advance(task, n * part)

            state: StreamState | None = None
            for finding in findings(events, scorer, settings.batch_size, further):
                said = [finding.body]
                if alerts:
                    state, said = step(state, finding.body, policy)
                for body in said:
                    print_json(body) if json else Console().print(show(body), soft_wrap=True)
            progress.update(task, completed=done)
    if failed:
        raise ConfigError(f"{failed} of {len(paths)} recordings could not be read")


# ---- demo


def demo(
    record: Sequence[Path],
    seconds: int,
    speed: float,
    seed: int,
    json: bool,
    kafka: str | None,
    redis: str | None,
    artifact: Path | None,
    lead: Sequence[str],
) -> None:
    """See `ecg-worker demo --help`."""
    from stream_worker.demo import recorded, simulated
    from stream_worker.replay import session_start_ns

    settings = load_settings(artifact=artifact, kafka=kafka, start="latest", group=f"ecg-demo-{uuid.uuid4().hex[:8]}")
    if kafka is not None:  # simulated patients have no place among real ones
        names = {field: f"ecg.demo.{name}" for field, name in DEMO_TOPICS.items() if field not in settings.model_fields_set}
        settings = settings.model_copy(update=names)
    recordings = [_read(path, _lead_map(lead)) for given in record for path in find_recordings(given)]
    sources = [recorded(r, r.name, "1", session_start_ns(r), seconds) for r in recordings] or simulated(seconds, seed)
    model = load_model(settings)
    err.print(
        f"serving {model.directory}, digest {model.digest}, labels: {tiers_said(model.bank().labels)}",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = FindingsTable("ecg-worker demo")
    out = Console()
    with _watching(table, json, out) as (on_finding, tick):
        asyncio.run(_demo(sources, model, settings, speed, kafka, redis, on_finding, tick))
    if not json and not out.is_terminal:
        out.print(table)
    given = f" --artifact {artifact}" if artifact else ""
    if kafka is not None:
        where = f"on Kafka, in {settings.chunks_topic} and {settings.findings_topic}"
        err.print(where, style="dim", markup=False, highlight=False)
    err.print(
        f"next: recordings of your own, `ecg-worker replay RECORDING{given}`; your cluster, `ecg-worker check`; then "
        f"`{f'ECG_ARTIFACT={artifact} ' if artifact else ''}ecg-worker run`",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def _watching(
    table: FindingsTable, json: bool, out: Console
) -> Iterator[tuple[Callable[[Finding], None], Callable[[int], None]]]:
    """Where findings go: JSON lines, a live table, or plain lines where nobody watches."""
    if json:
        yield lambda finding: print_json(finding.body), lambda second: None
        return
    if not out.is_terminal:

        def show(finding: Finding) -> None:
            table.add(finding.body)
            out.print(line(finding.body), soft_wrap=True)

        yield show, lambda second: None
        return
    with Live(table, console=out, refresh_per_second=8) as live:

        def tick(second: int) -> None:
            table.title = f"ecg-worker demo: {second} s of signal sent"
            live.refresh()

        yield lambda finding: table.add(finding.body), tick


async def _demo(
    sources: Sequence[Any],
    model: Artifact,
    settings: Settings,
    speed: float,
    kafka: str | None,
    redis: str | None,
    on_finding: Callable[[Finding], None],
    tick: Callable[[int], None],
) -> None:
    from stream_worker.demo import run_demo
    from stream_worker.labels import BankWatcher, publish_bank

    labels = None
    metrics = Metrics()
    if redis:
        await publish_bank(redis, model.bank(), in_place_of_another=False)
        labels = BankWatcher(redis, model.encoder_digest, model.manifest.model.dim, metrics)
    if kafka is None:
        from stream_worker.memory_broker import MemoryBroker, MemoryLog

        memory = MemoryLog(dict.fromkeys((settings.chunks_topic, settings.findings_topic, settings.dead_letters_topic), 3))

        async def send(messages: Sequence[tuple[bytes, bytes]]) -> None:
            for key, value in messages:
                memory.append(settings.chunks_topic, key, value)

        embedded = MemoryBroker(memory, group=settings.group, chunks=settings.chunks_topic)
        await run_demo(embedded, send, sources, model, settings, speed, on_finding, tick, labels, metrics)
        return
    from stream_worker.kafka import topics as topic_plan
    from stream_worker.kafka.clients import DeviceProducer

    await topic_plan.apply(settings, security_of(settings), partitions=3, replication=1)
    async with DeviceProducer(kafka, security_of(settings)) as producer:

        async def send(messages: Sequence[tuple[bytes, bytes]]) -> None:
            await producer.send(settings.chunks_topic, messages)

        await run_demo(kafka_broker(settings), send, sources, model, settings, speed, on_finding, tick, labels, metrics)


# ---- publish, tail


def publish(
    record: Path, stream_id: str, session_id: str | None, speed: float, chunk_ms: int, kafka: str | None, lead: Sequence[str]
) -> None:
    """See `ecg-worker publish --help`."""
    from stream_worker.demo import play, recorded
    from stream_worker.replay import session_start_ns

    settings = load_settings(kafka=kafka)
    recording = _read(record, _lead_map(lead))
    start = time.time_ns() if session_id is None else session_start_ns(recording)
    session = session_id or uuid.uuid4().hex[:12]
    source = recorded(recording, stream_id, session, start, chunk_ms=chunk_ms)

    async def send_all(tick: Callable[[int], None]) -> None:
        from stream_worker.kafka.clients import DeviceProducer

        async with DeviceProducer(settings.kafka, security_of(settings)) as producer:

            async def send(messages: Sequence[tuple[bytes, bytes]]) -> None:
                await producer.send(settings.chunks_topic, messages)

            await play([source], send, speed, tick, chunk_ms)

    with _progress() as progress:
        task = progress.add_task(f"{recording.name} -> {settings.chunks_topic}", total=source.rounds)
        asyncio.run(send_all(lambda done: progress.update(task, completed=done)))
    err.print(f"published {source.rounds} chunks of {recording.name} as stream {stream_id}, session {session}", markup=False)


def tail(
    kafka: str | None, stream: str | None, from_beginning: bool, count: int | None, timeout: float | None, json: bool
) -> None:
    """See `ecg-worker tail --help`."""
    from stream_worker.wire import parse_finding

    settings = load_settings(kafka=kafka)

    async def follow() -> None:
        from stream_worker.kafka.clients import follow as follow_topic

        shown, told = dict[str, None](), 0
        stops = follow_topic(settings.kafka, settings.findings_topic, security_of(settings), from_beginning, timeout)
        async for record in stops:
            try:
                body = parse_finding(record.value or b"")
            except BadInput as error:
                err.print(f"[dim]offset {record.offset}: {error}[/dim]")
                continue
            if (stream is not None and body["stream"] != stream) or body["id"] in shown:
                continue
            shown[body["id"]] = None
            if len(shown) > 100_000:
                shown.pop(next(iter(shown)))
            print_json(body) if json else Console().print(line(body), soft_wrap=True)
            told += 1
            if told == count:
                return

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow())
