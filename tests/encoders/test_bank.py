"""The label bank: bytes and back, numbers by hand, and a refusal for everything that is not a bank."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.bank import BankError, Label, LabelBank, OwnPrevalence, RowsMade, Share, TextModel, assessable, tier_of
from encoders.signal import LEADS, lead_bits

ENCODER = "ab" * 32
TEXT = TextModel(model="tiny", pooling="last", prompt="This ECG shows {label}.", language="ja")


def label(name: str = "AFIB", **changes: Any) -> Label:
    values: dict[str, Any] = {
        "id": name,
        "name_en": "Atrial fibrillation",
        "name_ja": "心房細動",
        "codes": {"snomed_ct": ("164889003",), "scp": ("AFIB",)},
        "urgency": "urgent",
        "leads_needed": "any",
        "tier": "trained",
        "positives": 20,
        "bias": -1.0,
        "calibration": (2.0, 0.5),
        "threshold": 0.4,
    }
    return Label(**(values | changes))


def bank() -> LabelBank:
    rare = label("VF", tier="unsupported", positives=2, calibration=None, threshold=None, bias=0.0)
    matrix = np.array([[1, 0, 0], [0, 0.6, 0.8]], dtype=np.float32)
    return LabelBank((label(), rare), matrix, 30.0, ENCODER, TEXT)


def with_header(change: dict[str, Any]) -> bytes:
    """The bank's bytes with header fields replaced."""
    data = bank().to_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    header = json.loads(data[12 : 12 + length]) | change
    text = json.dumps(header).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :]


def with_matrix(rows: list[list[float]]) -> bytes:
    data = bank().to_bytes()
    return data[:-24] + np.array(rows, dtype="<f4").tobytes()


def test_bytes_and_back() -> None:
    ours = bank()
    data = ours.to_bytes()
    theirs = LabelBank.from_bytes(data, expect_digest=ours.digest)
    assert theirs.to_bytes() == data
    assert theirs.labels == ours.labels
    assert (theirs.scale, theirs.encoder, theirs.text) == (30.0, ENCODER, TEXT)
    np.testing.assert_array_equal(theirs.matrix, ours.matrix)
    assert ours.digest == hashlib.sha256(data).hexdigest()


def test_layout_of_the_bytes() -> None:
    data = bank().to_bytes()
    assert data[:8] == b"ECGBANK1"
    (length,) = struct.unpack("<I", data[8:12])
    assert len(data) == 12 + length + 2 * 3 * 4
    assert json.loads(data[12 : 12 + length])["labels"][0]["name_ja"] == "心房細動"
    np.testing.assert_array_equal(np.frombuffer(data[12 + length :], "<f4"), [1, 0, 0, 0, np.float32(0.6), np.float32(0.8)])


def test_probabilities_by_hand() -> None:
    e = np.array([[0.1, 0.0, np.sqrt(0.99)]], dtype=np.float32)
    np.testing.assert_allclose(bank().logits(e), [[30 * 0.1 - 1.0, 30 * 0.8 * np.sqrt(0.99)]], rtol=1e-6)
    p = bank().probabilities(e)
    assert p.dtype == np.float32
    assert p[0, 0] == pytest.approx(1 / (1 + math.exp(-(2.0 * 2.0 + 0.5))), rel=1e-6)
    assert np.isnan(p[0, 1])  # unsupported: no evidence, no probability


def test_extreme_logits_do_not_overflow() -> None:
    far = LabelBank((label(bias=-1e4), label("B", bias=1e4)), np.eye(2, dtype=np.float32), 30.0, ENCODER, TEXT)
    np.testing.assert_allclose(far.probabilities(np.array([[1, 0]], dtype=np.float32)), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tier": "trained", "calibration": None}, "does not go with calibration"),
        ({"tier": "unsupported"}, "does not go with calibration"),
        ({"positives": 9}, "does not go with 9 positives"),
        ({"tier": "evaluated", "positives": 30}, "does not go with 30 training and None held-out positives"),
        ({"tier": "evaluated", "positives": 30, "held_out": 9}, "does not go with 30 training and 9 held-out positives"),
        ({"tier": "evaluated", "positives": 29, "held_out": 10}, "does not go with 29 training and 10 held-out positives"),
        ({"calibration": (-1.0, 0.0)}, "slope above 0"),
        ({"bias": 1e39}, "less than or equal to 10000"),
    ],
)
def test_no_probability_without_evidence(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(**changes)


@pytest.mark.parametrize(
    ("positives", "held_out", "tier"),
    [
        (9, 99, "unsupported"),
        (10, None, "trained"),
        (29, 99, "trained"),
        (30, 9, "trained"),
        (30, None, "trained"),
        (30, 10, "evaluated"),
    ],
)
def test_the_tier_follows_from_the_counts(positives: int, held_out: int | None, tier: str) -> None:
    assert tier_of(positives, held_out) == tier


def test_an_evaluated_label_has_a_probability_and_keeps_its_counts() -> None:
    known = label("A", tier="evaluated", positives=30, held_out=10)
    ours = LabelBank((known, label("B")), np.eye(2, dtype=np.float32), 30.0, ENCODER, TEXT)
    theirs = LabelBank.from_bytes(ours.to_bytes())
    assert theirs.labels[0].held_out == 10
    assert theirs.labels[1].held_out is None
    assert ours.to_bytes().count(b"held_out") == 1  # a bank without counts keeps the bytes and digest it had
    assert np.isfinite(theirs.probabilities(np.array([[1, 0]], dtype=np.float32))).all()


def test_where_the_rows_come_from_and_own_prevalence_travel_with_the_bank() -> None:
    made = RowsMade(sentences="1" * 64, mean="2" * 64, whitening=None, projection="3" * 64)
    own = OwnPrevalence(labels={"AFIB": Share(training=0.1, own=0.01)})
    ours = replace(bank(), made=made, prevalence=own)
    header = json.loads(ours.to_bytes()[12:-24])
    assert header["rows"] == {"sentences": "1" * 64, "mean": "2" * 64, "whitening": None, "projection": "3" * 64}
    assert header["prevalence"] == {"kind": "own", "labels": {"AFIB": {"training": 0.1, "own": 0.01}}}
    theirs = LabelBank.from_bytes(ours.to_bytes(), expect_digest=ours.digest)
    assert (theirs.made, theirs.prevalence) == (made, own)
    assert ours.digest != bank().digest
    before = json.loads(bank().to_bytes()[12:-24])
    assert not {"rows", "prevalence"} & set(before)  # a bank without them keeps the bytes and digest it had


def test_another_spelling_of_the_same_bank_is_refused() -> None:
    data = LabelBank((label("A"),), np.eye(1, dtype=np.float32), 30.0, ENCODER, TEXT).to_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    header = json.dumps(json.loads(data[12 : 12 + length]), sort_keys=False, indent=1).encode()
    other = data[:8] + struct.pack("<I", len(header)) + header + data[12 + length :]
    with pytest.raises(BankError, match="another spelling"):
        LabelBank.from_bytes(other)


def test_matrix_is_read_only_and_not_shared() -> None:
    rows = np.eye(2, dtype=np.float32)
    ours = LabelBank((label("A"), label("B")), rows, 30.0, ENCODER, TEXT)
    rows[0, 0] = 5
    assert ours.matrix[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        ours.matrix[0, 0] = 2


def test_check_gives_both_values() -> None:
    bank().check(ENCODER, 3)
    with pytest.raises(BankError, match=f"{ENCODER}.*{'cd' * 32}"):
        bank().check("cd" * 32, 3)
    with pytest.raises(BankError, match=r"D = 3.*D = 256"):
        bank().check(ENCODER, 256)
    with pytest.raises(BankError, match=r"\(B, 3\).*\(1, 4\)"):
        bank().logits(np.zeros((1, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic"),
        (b"ECGBANK2" + bank().to_bytes()[8:], "ECGBANK1.*ECGBANK2"),
        (b"ECGBANK1\x00", "at least 12 bytes expected, got 9"),
        (b"ECGBANK1" + struct.pack("<I", 2**32 - 1) + b"{}", "4294967295 bytes announced, 2 bytes"),
        (bank().to_bytes()[:-1], "24 bytes, found 23"),
        (bank().to_bytes() + b"\x00", "24 bytes, found 25"),
        (with_header({"dim": 4}), "2 x 4 float32 are 32 bytes, found 24"),
        (with_header({"dim": 0}), "dim"),
        (with_header({"scale": -1}), "scale"),
        (with_header({"scale": float("nan")}), "scale"),
        (with_header({"encoder": "short"}), "encoder"),
        (with_header({"format": 2}), "format"),
        (with_header({"labels": []}), "labels"),
        (with_header({"surprise": 1}), "surprise"),
        (with_header({"rows": {"sentences": "short", "mean": None, "whitening": None, "projection": None}}), "rows.sentences"),
        (with_header({"rows": None}), "another spelling"),
        (with_header({"prevalence": {"kind": "own", "labels": {}}}), "prevalence.labels"),
        (with_header({"prevalence": {"kind": "training", "labels": {"AFIB": {"training": 0.1, "own": 0.2}}}}), "kind"),
        (with_header({"prevalence": {"kind": "own", "labels": {"AFIB": {"training": 0.1, "own": 1.0}}}}), "AFIB.own"),
        (
            with_header({"prevalence": {"kind": "own", "labels": {"VF": {"training": 0.1, "own": 0.2}}}}),
            "own prevalence of VF, which has no probability in it",
        ),
        (b"ECGBANK1" + struct.pack("<I", 3) + b"\xff\xfe\xfd", "JSON header"),
        (b"ECGBANK1" + struct.pack("<I", 40000) + b"[" * 40000, "JSON header"),
        (with_matrix([[1, 0, 0], [0, np.nan, 1]]), "0 non-finite values expected, found 1"),
        (with_matrix([[1, 0, 0], [0, np.inf, 1]]), "0 non-finite values expected, found 1"),
        (with_matrix([[1, 0, 0], [0, 2, 0]]), "'VF' must have norm 1, has 2"),
        (with_matrix([[0, 0, 0], [0, 1, 0]]), "'AFIB' must have norm 1, has 0"),
    ],
)
def test_malformed_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BankError, match=message):
        LabelBank.from_bytes(data)


def test_wrong_digest_gives_both() -> None:
    data = bank().to_bytes()
    with pytest.raises(BankError, match=f"{'00' * 32} expected.*{hashlib.sha256(data).hexdigest()}"):
        LabelBank.from_bytes(data, expect_digest="00" * 32)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_a_bank_or_a_bank_error(data: st.DataObject) -> None:
    """Cut, flip or insert anywhere: nothing but BankError comes out, and what loads is written back unchanged."""
    raw = bytearray(bank().to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut" and len(raw) > 1:
            del raw[at:]
            raw = raw or bytearray(b"\x00")
        else:
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        loaded = LabelBank.from_bytes(bytes(raw))
    except BankError:
        return
    assert LabelBank.from_bytes(loaded.to_bytes()).labels == loaded.labels


def test_doubled_ids_and_missing_rows_are_refused() -> None:
    with pytest.raises(BankError, match="2 labels but only 1 distinct"):
        LabelBank((label("A"), label("A")), np.eye(2, dtype=np.float32), 30.0, ENCODER, TEXT)
    with pytest.raises(BankError, match=r"1 labels but a matrix of shape \(2, 2\)"):
        LabelBank((label("A"),), np.eye(2, dtype=np.float32), 30.0, ENCODER, TEXT)


@pytest.mark.parametrize(
    ("needed", "leads", "enough"),
    [
        ("any", ("V3",), True),
        ("any", (), False),
        ("limb", ("I", "II"), True),
        ("limb", ("II", "III", "V1"), True),
        ("limb", ("II", "V1"), False),
        ("V1|V2", ("II", "V2"), True),
        ("V1|V2", ("II", "V5"), False),
        ("12", LEADS, True),
        ("12", LEADS[:11], False),
    ],
)
def test_which_leads_suffice(needed: str, leads: tuple[str, ...], enough: bool) -> None:
    mask = lead_bits(leads)
    assert assessable(needed, mask) is enough
    assert label(leads_needed=needed).assessable(mask) is enough
