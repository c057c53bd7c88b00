"""Scores by lead set: who counts, and that what is lost is measured on the same records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import LEAD_SET_BITS, DataSet
from training.evaluation.evaluate import Evidence, evaluate, predict
from training.vocabulary import Statement, select


def test_a_record_without_the_leads_does_not_count_and_the_loss_is_of_the_same_records(
    prepared: Path, vocabulary: tuple[Statement, ...]
) -> None:
    labels = select(vocabulary, "SR,AFIB,CLBBB")
    data = DataSet(prepared, labels, range(1, 10))
    data.mask[::2] = LEAD_SET_BITS["II+V1"]  # as from a long recording: no lead I
    y, known = data.targets
    done = [0]

    def score(x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Wrong about all records without lead I; right about the others, also from lead I alone."""
        rows = np.arange(done[0], done[0] + len(x)) % len(data)
        done[0] += len(x)
        return np.where(y[rows] ^ (rows % 2 == 0)[:, None], 1, -1).astype(np.float32)

    found = predict(score, data, "I")
    assert not found.known[::2].any()
    np.testing.assert_array_equal(found.known[1::2, 0], known[1::2, 0])
    assert not found.known[:, 2].any()  # bundle branch block needs V1
    evidence = Evidence.uncalibrated(np.ones(3, dtype=bool), np.full(3, np.nan))
    told = evaluate(score, data, evidence, ("12", "I"))["lead_sets"]
    assert 0 < told["12"]["per_label"]["SR"]["auroc"] < 1
    assert told["I"]["per_label"]["SR"]["auroc"] == 1
    assert told["I"]["same_labels_12"] == {"labels": told["I"]["labels"], "macro_auroc": 1.0}
    assert told["I"]["loss"] == {"labels": told["I"]["labels"], "value": 0.0, "interval": [0.0, 0.0]}
