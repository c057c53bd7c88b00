"""The card says of the data what the metrics say of them."""

from __future__ import annotations

from training.release.card import _origin


def test_where_the_data_come_from_is_counted() -> None:
    assert _origin({"ward": 30_000, "ptbxl": 10_000}) == "40,000 records, 75 % of them from the folder ward"
