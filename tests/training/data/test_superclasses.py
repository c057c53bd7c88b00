"""The superclass columns by cases worked out by hand, and in the batches of real records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.signal import LEADS, lead_bits
from training.config import TrainConfig
from training.data.dataset import DataSet, batches
from training.data.superclasses import NAMES, Superclasses, mean_of_members
from training.vocabulary import Statement, select

FULL, LEAD_I = lead_bits(LEADS), lead_bits(("I",))
CD = ("AVB1", "AVB2", "AVB3", "WPW", "CRBBB", "IRBBB", "CLBBB", "ILBBB", "LAFB", "LPFB", "IVCD")
MI = ("MI_ANT", "MI_AS", "MI_AL", "MI_INF", "MI_IL", "MI_IP", "MI_LAT", "MI_POST", "INJ")  # MI_ANY has no SCP code
HYP = ("LVH", "RVH", "SEHYP", "LAE", "RAE")
DECLARED = {"all": [*CD, *MI, *HYP, "NORM"], "few": ["CRBBB", "AVB1", "IVCD"], "nothing": []}


def record(source: str, positive: tuple[str, ...] = (), unknown: tuple[str, ...] = (), unit: str = "mV") -> dict[str, Any]:
    return {"source": source, "positive": positive, "unknown": unknown, "unit": unit}


def found(row: dict[str, Any], name: str, mask: int = FULL) -> bool | None:
    y, known = Superclasses.of([row], DECLARED).targets(np.array([0]), np.array([mask]))
    k = NAMES.index(name)
    return bool(y[0, k]) if known[0, k] else None


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (record("all", ("AVB1",)), "CD", True),
        (record("all", ("INJ",)), "MI", True),  # a member outside the core labels
        (record("all"), "CD", False),
        (record("all"), "MI", False),  # nine of ten members are annotated
        (record("all", unknown=("IVCD",)), "CD", None),
        (record("all", ("AVB1",), ("IVCD",)), "CD", True),
        (record("few"), "CD", None),  # three of eleven cannot deny it
        (record("few", ("CRBBB",)), "CD", True),
        (record("nothing"), "CD", None),
        (record("another"), "CD", None),
        (record("all"), "STTC", None),  # no member annotated
        (record("all", ("NORM",)), "NORM", True),
        (record("all"), "NORM", False),
        (record("all", ("LVH",)), "HYP", True),
        (record("all", ("LVH",), unit="NU"), "HYP", None),  # voltage says nothing without an amplitude
    ],
)
def test_by_hand(row: dict[str, Any], name: str, expected: bool | None) -> None:
    assert found(row, name) is expected


def test_what_the_leads_do_not_allow_is_neither() -> None:
    assert found(record("all", ("AVB1",)), "CD", LEAD_I) is True  # any lead shows it
    assert found(record("all", ("LAFB",)), "CD", LEAD_I) is None  # needs two limb leads
    assert found(record("all"), "CD", LEAD_I) is None
    assert found(record("all", ("NORM",)), "NORM", LEAD_I) is None


def test_mean_of_members(vocabulary: tuple[Statement, ...]) -> None:
    some = select(vocabulary, "NORM,SR,MI_ANT,MI_INF,LVH")
    weight = mean_of_members(some)
    ids = [s.id for s in some]
    assert weight.sum(axis=1).tolist() == [1, 1, 0, 0, 1]  # no member of STTC and CD
    assert weight[NAMES.index("MI"), [ids.index("MI_ANT"), ids.index("MI_INF")]].tolist() == [0.5, 0.5]


def test_columns_stand_after_the_labels_and_only_where_asked_for(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    core = select(vocabulary, "core98")
    data = DataSet(prepared, core, (1, 2, 3, 4, 5, 6, 7))
    off, on = (next(iter(batches(data, TrainConfig(batch=64, superclass_weight=w), 0))) for w in (0.0, 0.5))
    assert (off.y.shape, on.y.shape, on.known.shape) == ((64, 98), (64, 103), (64, 103))
    np.testing.assert_array_equal(on.x, off.x)
    np.testing.assert_array_equal(on.y[:, :98], off.y)
    np.testing.assert_array_equal(on.known[:, :98], off.known)
    norm = [s.id for s in core].index("NORM")
    np.testing.assert_array_equal((on.y & on.known)[:, 98], (off.y & off.known)[:, norm])
    assert (on.y & on.known)[:, 98:].any(axis=0).all()
    assert not (on.y[:, 98:] & ~on.known[:, 98:]).any()
