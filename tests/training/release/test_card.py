"""The card says of the data what the metrics say of them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from training.config import TrainConfig
from training.data.dataset import DataSet
from training.evaluation.evaluate import Evidence, Predictions
from training.evaluation.held_out import HeldOut
from training.release import card
from training.release.card import _origin
from training.release.export import _false_positives
from training.vocabulary import Statement, select


def test_where_the_data_come_from_is_counted() -> None:
    assert _origin({"ward": 30_000, "ptbxl": 10_000}) == "40,000 records, 75 % of them from the folder ward"


def test_false_positives_of_long_recordings_stand_in_the_card(vocabulary: tuple[Statement, ...]) -> None:
    """720 windows of 10 s in two patients: 2 h, of which AFIB is said wrongly three times; beside them one short record."""
    labels = select(vocabulary, "AFIB,PVC")
    index = [{"patient": i % 2, "window": i, "n_valid": 5000} for i in range(720)] + [{"patient": 9, "n_valid": 5000}]
    logits = np.full((721, 2), -9.0, dtype=np.float32)
    logits[[0, 2, 4, 720], 0] = 9.0
    nothing = np.zeros((721, 2), dtype=bool)
    evidence = Evidence(np.ones(2, dtype=bool), np.full(2, 0.1), np.array([[1.0, 0.0]] * 2), np.array([0.5, np.nan]))

    def told(rows: slice) -> dict[str, Any]:
        p = Predictions(logits[rows], nothing[rows], ~nothing[rows], index[rows], labels)
        return _false_positives(HeldOut(p, cast(DataSet, None), (7,)), evidence)

    found = told(slice(None))
    report = {"lead_sets": {"12": {}}}
    text = card._false_positives({"out_of_fold": found, "report": report})
    assert "(out of fold, 2.0 h of 2 patients)" in text
    assert "| AFIB | 1.5 [0.0, 3.0] | 2.0 | 2 |" in text
    assert "PVC" not in text  # it has no threshold
    assert "(reported fold, " in card._false_positives({"report": {"lead_sets": {"12": found}}})
    assert told(slice(720, None)) == {}
    assert card._false_positives({"report": report}) == ""


def test_a_recipe_with_captions_says_what_the_paper_leaves_open() -> None:
    assert "one caption names all labels" in card._recipe("ecg-train", TrainConfig(objective="infonce"))
    assert "caption" not in card._recipe("ecg-train", TrainConfig())
