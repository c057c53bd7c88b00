"""ecg-worker: the command line. Imports nothing heavy until a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stream_worker.engine_options import engine
from stream_worker.errors import WorkerError
from stream_worker.options import ArtifactDir, Json

app = typer.Typer(
    name="ecg-worker",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
    help=(
        "Scores streams of multi-lead ECG from Kafka against Japanese and English diagnostic labels.\n\n"
        "Try it without any service: ecg-worker demo. Score a file: ecg-worker replay RECORD --json. "
        "In production: ecg-worker topics --apply, ecg-worker check, ecg-worker run; "
        "read along with ecg-worker tail.\n\n"
        "Settings come from ECG_* environment variables or a .env file (ECG_KAFKA, ECG_REDIS, ECG_ARTIFACT, ...); "
        "options override them.\n\n"
        "Exit codes: 0 done, 1 failed, 2 configuration, 3 model or labels refused, 4 no Kafka, 5 no Redis, 6 GPU lost.\n\n"
        "Decision support and research software. Not a medical device."
    ),
)

app.add_typer(engine, name="engine", short_help="Build, check and time what runs the encoder on a GPU.")


@app.callback()
def _before(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is not None and "--help" not in sys.argv:
        from stream_worker.telemetry import setup_logging

        setup_logging("warning")


Kafka = Annotated[str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Kafka bootstrap servers [env ECG_KAFKA].")]
Redis = Annotated[str | None, typer.Option("--redis", metavar="URL", help="Redis with the label bank [env ECG_REDIS].")]
Group = Annotated[str | None, typer.Option("--group", help="Consumer group [env ECG_GROUP].")]
Leads = Annotated[
    list[str] | None,
    typer.Option(
        "--lead", metavar="NAME=LEAD", help="Name a channel that the file does not name as a lead, e.g. ECG=I. Repeatable."
    ),
]
Hop = Annotated[
    int | None, typer.Option("--hop-ms", min=1000, max=10_000, help="Distance between window starts [env ECG_HOP_MS].")
]


@app.command(short_help="Watch findings of simulated devices; no service needed.")
def demo(
    record: Annotated[
        list[Path] | None,
        typer.Option("--record", help="Play this WFDB, EDF or CSV recording instead of simulated devices. Repeatable."),
    ] = None,
    seconds: Annotated[int, typer.Option(min=5, help="Seconds of signal that each device sends.")] = 60,
    speed: Annotated[float, typer.Option(min=0, help="Times real time; 0: as fast as it goes.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the simulated devices.")] = 0,
    json: Json = False,
    kafka: Annotated[str | None, typer.Option("--kafka", metavar="HOST:PORT", help="A real Kafka, topics ecg.demo.*.")] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="A real Redis; gets the artifact's bank, if it has no other.")
    ] = None,
    artifact: ArtifactDir = None,
    lead: Leads = None,
) -> None:
    """Watch findings come out of simulated devices, or of your recordings, with no service installed.

    The same stages as run, over a log in this process. The first findings come after 10 s of signal.
    """
    from stream_worker import commands

    commands.demo(record or [], seconds, speed, seed, json, kafka, redis, artifact, lead or [])


@app.command(short_help="Score recordings without a broker; one finding a line.")
def replay(
    records: Annotated[list[Path], typer.Argument(help="Recordings (WFDB, EDF, CSV) or folders of them.")],
    json: Json = False,
    scores: Annotated[
        str, typer.Option("--scores", help="top: the most probable labels; all: add every label's probability.")
    ] = "top",
    alerts: Annotated[
        bool, typer.Option("--alerts", help="Instead: the alerts that the alert stage would make of these findings.")
    ] = False,
    artifact: ArtifactDir = None,
    hop_ms: Hop = None,
    lead: Leads = None,
) -> None:
    """Score recordings as streams, without a broker, as fast as it goes: one finding a line.

    The stream id is the record's name, the session is "1": a second run prints the same finding ids. With --alerts the
    episodes that a person would be called to, had these recordings been live.
    """
    from stream_worker import commands

    commands.replay(records, json, scores, alerts, artifact, hop_ms, lead or [])


@app.command(short_help="Be a device: send a recording to Kafka in chunks.")
def publish(
    record: Annotated[Path, typer.Argument(help="One recording (WFDB, EDF, CSV).")],
    stream_id: Annotated[str, typer.Option("--stream-id", help="A pseudonym of the device or patient; the message key.")],
    session_id: Annotated[str | None, typer.Option("--session-id", help="Default: a new one, starting now.")] = None,
    speed: Annotated[float, typer.Option(min=0, help="Times real time; 0: as fast as it goes.")] = 1.0,
    chunk_ms: Annotated[int, typer.Option(min=20, max=10_000, help="Signal in one message.")] = 1000,
    kafka: Kafka = None,
    lead: Leads = None,
) -> None:
    """Be a device: send a recording to Kafka in chunks.

    With --session-id the session starts when the recording did (1970 where the file does not say), as in replay, so both
    give the same finding ids; without it a new session starts now.
    """
    from stream_worker import commands

    commands.publish(record, stream_id, session_id, speed, chunk_ms, kafka, lead or [])


@app.command(short_help="The worker: chunks -> findings, until SIGTERM.")
def run(
    kafka: Kafka = None,
    redis: Redis = None,
    artifact: ArtifactDir = None,
    group: Group = None,
    start: Annotated[
        str | None,
        typer.Option(help="Without a committed offset: latest, earliest or an ISO time [env ECG_START; default latest]."),
    ] = None,
    hop_ms: Hop = None,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="/livez, /readyz, /metrics [env ECG_HTTP_PORT].")
    ] = None,
) -> None:
    """The worker: chunks from Kafka -> findings to Kafka, until SIGTERM; then it drains and commits."""
    from stream_worker import operate

    operate.run(kafka=kafka, redis=redis, artifact=artifact, group=group, start=start, hop_ms=hop_ms, http_port=http_port)


@app.command(short_help="Read findings from Kafka, as an alerting service would.")
def tail(
    kafka: Kafka = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Only this stream id.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="All that the topic holds, not only what comes.")
    ] = False,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many findings.")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop after so many seconds without a finding.")] = None,
    json: Json = False,
) -> None:
    """Read findings as an alerting service would: read_committed, one a line, doubles (same id) shown once."""
    from stream_worker import commands

    commands.tail(kafka, stream, from_beginning, count, timeout, json)


@app.command(short_help="Print or create the topics as the worker needs them.")
def topics(
    apply: Annotated[bool, typer.Option("--apply", help="Create what is missing; otherwise only print.")] = False,
    partitions: Annotated[
        int, typer.Option(min=1, help="Of chunks and findings alike; the most workers that can share the load.")
    ] = 12,
    replication: Annotated[int, typer.Option(min=1, help="Copies of each partition; 3 in production.")] = 1,
    grow: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Give every topic N partitions, the chunks last; see reliability.")
    ] = None,
    kafka: Kafka = None,
) -> None:
    """Print or create the topics with the settings that the worker relies on, or give them more partitions."""
    from stream_worker import operate

    operate.topics(apply, partitions, replication, grow, kafka)


@app.command(short_help="Is everything in place? What is wrong, what to do.")
def check(kafka: Kafka = None, redis: Redis = None, artifact: ArtifactDir = None, json: Json = False) -> None:
    """Is everything in place? Configuration, model, labels, Kafka and its topics, Redis: what is wrong and what to do."""
    from stream_worker import operate

    operate.check(kafka, redis, artifact, json)


@app.command(short_help="Is every window published, once and as it was? Reads Kafka.")
def audit(
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Judge chunks from here on: 2h, 30m (ago) or an ISO time; default: all held."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Judge chunks before this; default: the end.")
    ] = None,
    partition: Annotated[list[int] | None, typer.Option("--partition", min=0, help="Only this one. Repeatable.")] = None,
    offsets: Annotated[
        str | None, typer.Option("--offsets", metavar="FIRST:END", help="Instead of times: chunk offsets of one --partition.")
    ] = None,
    delivery: Annotated[
        str | None,
        typer.Option(help="What was promised: exactly_once, or at_least_once, which forgives repeats [env ECG_DELIVERY]."),
    ] = None,
    hop_ms: Hop = None,
    kafka: Kafka = None,
    group: Group = None,
    json: Json = False,
) -> None:
    """Is every window published, once and as it was? Recomputes from the chunks which findings and dead letters must exist.

    Found are: missing, doubled, differing and unexpected findings, missing, doubled and unexpected dead letters, offsets
    committed too early, and runs split over two partitions. It reads committed records only, joins no group, writes nothing,
    and may run beside the worker: what the group has not processed yet is pending, not missing.

    --since reads 11 minutes more, to know which runs were open. Leave the worker's own first minute out where it began at
    latest, and audit a stretch with one --hop-ms. Every hour: ecg-worker audit --since 2h --until 1h --json

    Exit codes: 0 consistent, 1 inconsistent, 2 could not be checked (also: nothing in the range could be judged).
    """
    from stream_worker.audit import command as audit_command

    options = {"hop_ms": hop_ms, "kafka": kafka, "group": group, "delivery": delivery}
    raise typer.Exit(audit_command.audit(since, until, offsets, partition or [], json, **options))


@app.command(short_help="How many streams does this machine carry? Three minutes.")
def bench(
    kafka: Kafka = None,
    artifact: ArtifactDir = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it too (.png or .svg; extra `view`).")
    ] = None,
    json: Json = False,
) -> None:
    """How many streams does this machine carry in real time, by lead set and rate, and what is the limit?

    Measures each stage alone, then a worker process through Kafka: as fast as it goes, then at 25, 50, 75 and 90 % of that with
    the time from the last sample sent to the finding readable. Simulated devices send from this process, so sender and worker
    share the machine. Without a Kafka only the stages are measured.

    It makes topics and a group named ecg-bench-*, sends up to 1 GB, and deletes the topics: not for a busy cluster.
    """
    from stream_worker.bench import command

    command.bench(kafka, artifact, json, plot)


@app.command(short_help="The alert stage: findings -> few, stable episodes.")
def alerts(
    kafka: Kafka = None,
    web_port: Annotated[int | None, typer.Option("--web-port", help="Faust's web view of the episodes; default: none.")] = None,
) -> None:
    """The alert stage: findings -> few, stable episodes (onset, update, offset) on the topic ecg.alerts."""
    from stream_worker import operate

    operate.alerts(kafka, web_port)


def main() -> Any:
    """Entry point: a WorkerError is one line on stderr and its exit code, never a traceback."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # windows are small: two threads are slower; the encoder has its own
    try:
        return app()
    except WorkerError as error:
        print(f"ecg-worker: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
