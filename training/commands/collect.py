"""`ecg-train collect`: the command line of training/collect/windows.py. Heavy imports happen inside."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands.terminal import plain_errors, progress

__all__ = ["collect"]


def collect(
    out: Annotated[Path, typer.Option(help="New directory for the windows and collect.json.")],
    kafka: Annotated[str, typer.Option(help="Bootstrap servers.", envvar="ECG_KAFKA")] = "localhost:9092",
    positive: Annotated[list[str] | None, typer.Option(help="A label above its threshold; may be repeated.")] = None,
    near: Annotated[list[str] | None, typer.Option(help="A label near its threshold; may be repeated.")] = None,
    margin: Annotated[float, typer.Option(help="How near: difference of probability.")] = 0.1,
    share: Annotated[float, typer.Option(help="Also this share of all scored windows, chosen by their id.")] = 0.0,
    limit: Annotated[int, typer.Option(help="At most as many windows, fairly chosen among those that match.", min=1)] = 1000,
    findings: Annotated[str, typer.Option(help="Topic of findings.", envvar="ECG_FINDINGS_TOPIC")] = "ecg.findings",
    chunks: Annotated[str, typer.Option(help="Topic of chunks.", envvar="ECG_CHUNKS_TOPIC")] = "ecg.chunks",
    protocol: Annotated[
        str, typer.Option(help="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.", envvar="ECG_KAFKA_SECURITY")
    ] = "PLAINTEXT",
    mechanism: Annotated[str, typer.Option(help="With SASL.", envvar="ECG_KAFKA_SASL_MECHANISM")] = "SCRAM-SHA-512",
    username: Annotated[str | None, typer.Option(help="With SASL.", envvar="ECG_KAFKA_USERNAME")] = None,
    password: Annotated[str | None, typer.Option(envvar="ECG_KAFKA_PASSWORD", hidden=True)] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="CA certificates; default: the system's.", envvar="ECG_KAFKA_CA_FILE")
    ] = None,
) -> None:
    """Gather windows of the running system for review and retraining: the ECG itself leaves Kafka, so mind who may hold it.

    Each window is cut from the chunks that its finding names and compared with the digest in it. Review them, write a table of
    labels by finding id (columns record and labels), and give both to `prepare`.
    """
    with plain_errors():
        from training.collect.choose import Rule
        from training.collect.windows import collect as work

        rule = Rule(frozenset(positive or ()), frozenset(near or ()), margin, share)
        security = _security(protocol, mechanism, username, password, ca_file)
        with progress("cutting", limit) as advance:
            made = asyncio.run(work(kafka, findings, chunks, out, rule, limit, security, advance))
        typer.echo(
            f"{out}: {made.written} windows of {made.matched} chosen among {made.findings} findings, "
            f"{len(made.missing)} could not be cut, see collect.json"
        )


def _security(
    protocol: str, mechanism: str, username: str | None, password: str | None, ca_file: Path | None
) -> dict[str, Any]:
    """What aiokafka needs to connect."""
    import ssl

    from training.collect.windows import CollectError

    given: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        given["ssl_context"] = ssl.create_default_context(cafile=ca_file)
    if protocol.startswith("SASL"):
        if not username or not password:
            raise CollectError(f"{protocol} needs a user name and a password (ECG_KAFKA_USERNAME, ECG_KAFKA_PASSWORD)")
        given |= {"sasl_mechanism": mechanism, "sasl_plain_username": username, "sasl_plain_password": password}
    return given
