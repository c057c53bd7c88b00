"""Findings say what was seen, with what, and what could not be assessed; they satisfy their published schema."""

from __future__ import annotations

import hashlib

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.bank import BankError
from encoders.signal import ABSENT, LEADS, Layout
from stream_worker.devices.simulator import Device, synthesize
from stream_worker.records import Closed, Input, Window, identity
from stream_worker.score import Options, Scorer, rfc3339, window_digest
from stream_worker.wire import schema
from tests.support import ProjectionEncoder, bank, label, run_key

SOURCE = Input(2, 10, 19, 1_700_000_000_000)


def window(of: Layout, samples: NDArray[np.int16], first: int = 0, closed: str = "") -> Window:
    return Window(run_key(of), of, first, samples, first + of.window, closed, SOURCE)


def device(leads: tuple[str, ...] = LEADS, unit: str = "mV") -> tuple[Layout, NDArray[np.int16]]:
    d = Device("s", "sinus", leads, 500_000, 1000.0, 70, 0.01, None, 7)
    base = d.layout
    return Layout(base.fs_mhz, base.leads, base.gain, base.baseline, unit), synthesize(d, 5000)


@pytest.fixture
def scorer() -> Scorer:
    encoder = ProjectionEncoder()
    return Scorer(encoder, bank(encoder), Options(top=3, all_scores=True))


def test_every_kind_of_finding_satisfies_the_schema(scorer: Scorer) -> None:
    of, x = device()
    gap = x.copy()
    gap[:, 1000:2000] = ABSENT
    events = [
        window(of, x),
        window(of, gap, 5000),
        window(of, x[:, :3000], 10_000, "last"),
        Closed(run_key(of), of, 15_000, "idle", SOURCE),
    ]
    findings = scorer(events)
    for finding in findings:
        jsonschema.validate(finding.body, schema("finding"))
    assert [f.body["kind"] for f in findings] == ["scored", "unscorable", "scored", "closed"]
    assert findings[1].body["reason"] == "gap"
    assert (findings[2].body["tail"], findings[2].body["closed"]) == (True, "last")
    assert len({f.id for f in findings}) == 4


def test_what_no_heart_can_be_in_mv_is_not_scored(scorer: Scorer) -> None:
    """Numbers in uV sent with the gain of mV: `ecg-train prepare` leaves them out by the same rule."""
    of, x = device()
    micro = Layout(of.fs_mhz, of.leads, (1.0,) * 12, of.baseline)
    body = scorer([window(micro, x)])[0].body
    jsonschema.validate(body, schema("finding"))
    assert (body["kind"], body["reason"], body["lead_mask"], body["quality"]["good"]) == ("unscorable", "amplitude", 0, [])
    lost = Layout(of.fs_mhz, of.leads, (1.0,) * 12, of.baseline, "NU")
    assert scorer([window(lost, x)])[0].body["kind"] == "scored"


def test_normal_is_never_said_from_fewer_than_12_leads(scorer: Scorer) -> None:
    of, x = device(("I", "II"))
    body = scorer([window(of, x)])[0].body
    assert body["derived"] == ["III", "aVR", "aVL", "aVF"]
    assert "NORM" in body["not_assessable"]["leads"]
    assert body["scores"]["NORM"] is None
    assert "NORM" not in [x["id"] for x in body["labels"]]
    of, x = device()
    assert scorer([window(of, x)])[0].body["scores"]["NORM"] is not None


def test_lost_amplitude_is_scored_without_voltage_criteria_and_nothing_is_derived(scorer: Scorer) -> None:
    of, x = device(("I", "II"), unit="NU")
    body = scorer([window(of, x)])[0].body
    assert (body["kind"], body["amplitude"], body["derived"]) == ("scored", "lost", [])
    assert body["not_assessable"]["amplitude"] == ["LVOLT"]


def test_without_evidence_a_label_has_no_probability(scorer: Scorer) -> None:
    of, x = device()
    body = scorer([window(of, x)])[0].body
    assert body["not_assessable"]["evidence"] == ["RARE"]
    assert body["scores"]["RARE"] is None


def test_each_label_says_how_far_its_evidence_goes() -> None:
    encoder = ProjectionEncoder()
    labels = [label("KNOWN", tier="evaluated", held_out=12, threshold=0.0), label("LESS", threshold=0.0)]
    of, x = device()
    finding = Scorer(encoder, bank(encoder, labels))([window(of, x)])[0]
    assert {entry["id"]: entry["tier"] for entry in finding.body["labels"]} == {"KNOWN": "evaluated", "LESS": "trained"}
    jsonschema.validate(finding.body, schema("finding"))


def test_probabilities_are_the_banks_and_sorted(scorer: Scorer) -> None:
    of, x = device()
    body = scorer([window(of, x)])[0].body
    e = scorer.encoder.encode(scorer.prepare(window(of, x))[0].x[None])
    expected = scorer.bank.probabilities(e)[0]
    assert [x["probability"] for x in body["labels"]] == sorted((x["probability"] for x in body["labels"]), reverse=True)
    for i, entry in enumerate(scorer.bank.labels):
        if entry.tier != "unsupported":
            assert body["scores"][entry.id] == pytest.approx(float(expected[i]), abs=1e-6)


def test_all_labels_above_threshold_are_listed_beyond_top() -> None:
    encoder = ProjectionEncoder()
    labels = [label(f"L{i}", threshold=0.0) for i in range(9)]
    of, x = device()
    body = Scorer(encoder, bank(encoder, labels), Options(top=2))([window(of, x)])[0].body
    assert len(body["labels"]) == 9
    assert all(x["positive"] for x in body["labels"])


def test_the_id_is_the_documented_hash() -> None:
    of, _ = device()
    parts = [
        b"v1",
        b"s",
        b"1",
        (0).to_bytes(8, "little"),
        of.digest,
        b"scored",
        (5000).to_bytes(8, "little"),
        b"model",
        b"bank",
    ]
    expected = hashlib.sha256(b"".join(len(p).to_bytes(4, "little") + p for p in parts)).hexdigest()[:32]
    assert identity(run_key(of), "scored", 5000, "model", "bank") == expected
    assert identity(run_key(of), "scored", 5000) != expected


def test_the_window_digest_covers_samples_and_mask() -> None:
    _, x = device()
    assert window_digest(x, 4095) == hashlib.sha256(x.astype("<i2").tobytes() + b"\xff\x0f").hexdigest()
    y = x.copy()
    y[3, 77] ^= 1
    assert len({window_digest(x, 4095), window_digest(y, 4095), window_digest(x, 4094)}) == 3


def test_a_nan_from_the_engine_is_a_finding_of_its_own() -> None:
    class Broken(ProjectionEncoder):
        def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            out = super().encode(x)
            out[0] = np.nan
            return out

    of, x = device()
    encoder = Broken()
    first, second = Scorer(encoder, bank(encoder))([window(of, x), window(of, x, 5000)])
    assert (first.body["kind"], first.body["reason"]) == ("unscorable", "engine")
    assert second.body["kind"] == "scored"
    jsonschema.validate(first.body, schema("finding"))


def test_a_bank_for_another_encoder_is_refused_with_both_digests() -> None:
    one, other = ProjectionEncoder(0), ProjectionEncoder(1)
    with pytest.raises(BankError, match=one.digest) as caught:
        Scorer(other, bank(one))
    assert other.digest in str(caught.value)


def test_batch_order_and_size_change_no_window_and_no_id(scorer: Scorer) -> None:
    of, x = device()
    events = [window(of, np.roll(x, 100 * i, axis=1), 5000 * i) for i in range(5)]
    together = scorer(events)
    alone = [scorer([e])[0] for e in events]
    assert [f.id for f in together] == [f.id for f in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.body["window_digest"] == b.body["window_digest"]
        for id, p in a.body["scores"].items():
            assert (p is None) == (b.body["scores"][id] is None)
            assert p is None or p == pytest.approx(b.body["scores"][id], abs=1e-4)


def test_device_time() -> None:
    assert rfc3339(0, 5000, 500_000) == "1970-01-01T00:00:10.000000Z"
    assert rfc3339(1_700_000_000_000_000_000, 1, 360_000) == "2023-11-14T22:13:20.002777Z"
    assert rfc3339(2**62, 0, 500_000).startswith("2116-")
    assert rfc3339(2**63 - 1, 2**53, 50_000) == "9999-12-31T23:59:59.999999Z"
