"""How to connect to a cluster, as keyword arguments that every client here understands."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from stream_worker.errors import ConfigError
from stream_worker.settings import Settings

__all__ = ["security", "security_of"]


def security(
    protocol: str = "PLAINTEXT",
    mechanism: str = "SCRAM-SHA-512",
    username: str | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
) -> dict[str, Any]:
    """Keyword arguments for one way of connecting. Raises ConfigError naming what is missing.

    `protocol`: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; `mechanism` counts for the SASL ones. The dictionary holds the
    password in the clear: hand it to a client, never to a log.
    """
    given: dict[str, Any] = {"security_protocol": protocol}
    if protocol in ("SSL", "SASL_SSL"):
        try:
            given["ssl_context"] = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the CA file {ca_file} (ECG_KAFKA_CA_FILE) cannot be used: {error}") from error
    if protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        if not username or not password:
            raise ConfigError(f"{protocol} needs a user name and a password (ECG_KAFKA_USERNAME, ECG_KAFKA_PASSWORD)")
        given |= {"sasl_mechanism": mechanism, "sasl_plain_username": username, "sasl_plain_password": password}
    return given


def security_of(settings: Settings) -> dict[str, Any]:
    """The same, from settings."""
    password = settings.kafka_password.get_secret_value() if settings.kafka_password else None
    return security(
        settings.kafka_security, settings.kafka_sasl_mechanism, settings.kafka_username, password, settings.kafka_ca_file
    )
