"""The partition of a key, against the client everybody else uses, and the ways of connecting."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from stream_worker.errors import ConfigError
from stream_worker.kafka.security import security
from stream_worker.seam import partition_for


@given(st.binary(min_size=0, max_size=70), st.integers(1, 257))
def test_partition_is_that_of_the_default_partitioner(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


def test_partition_of_known_keys() -> None:
    """Values of Kafka's own UtilsTest for murmur2: "21" -> -973932308, "foobar" -> -790332482."""
    assert partition_for(b"21", 1 << 31) == -973932308 & 0x7FFFFFFF
    assert partition_for(b"foobar", 1 << 31) == -790332482 & 0x7FFFFFFF


def test_security_names_what_is_missing(tmp_path: Path) -> None:
    assert security() == {"security_protocol": "PLAINTEXT"}
    with pytest.raises(ConfigError, match="ECG_KAFKA_PASSWORD"):
        security("SASL_SSL", username="me")
    with pytest.raises(ConfigError, match="ECG_KAFKA_CA_FILE"):
        security("SSL", ca_file=tmp_path / "none.pem")
    plain = security("SASL_PLAINTEXT", "PLAIN", "me", "secret")
    assert plain["sasl_plain_username"] == "me"
    assert "ssl_context" not in plain
    assert "ssl_context" in security("SASL_SSL", "PLAIN", "me", "secret")
