"""One model beside another: the same records, the labels that both know, their difference in pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.dataset import DataSet
from training.evaluation.against import against
from training.evaluation.evaluate import Evidence, Scorer
from training.evaluation.metrics import enough
from training.evaluation.scorers import Opened, ScorerError
from training.vocabulary import Statement, select

FOLDS = range(1, 10)


def right_about(data: DataSet, share: float) -> Scorer:
    """Knows the truth of the first `share` of the records, and says the contrary of the others."""
    y, _ = data.targets
    done = [0]

    def score(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        rows = np.arange(done[0], done[0] + len(x))
        done[0] += len(x)
        return np.where(y[rows] ^ (rows >= share * len(data))[:, None], 1, -1).astype(np.float32)

    return score


def opened(directory: Path, vocabulary: tuple[Statement, ...], labels: str, share: float) -> Opened:
    data = DataSet(directory, select(vocabulary, labels), FOLDS)
    n = len(data.labels)
    return right_about(data, share), data, Evidence.uncalibrated(np.ones(n, dtype=bool), np.full(n, np.nan))


def test_what_one_has_more_over_the_labels_that_both_know(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    told = against(opened(prepared, vocabulary, "SR,AFIB,NORM", 1.0), opened(prepared, vocabulary, "AFIB,SR", 0.0))
    assert set(told["labels"]) <= {"SR", "AFIB"}
    assert "SR" in told["labels"]
    assert told["macro_auroc"] == [1.0, 0.0]
    assert (told["difference"], told["difference_interval"]) == (1.0, [1.0, 1.0])
    same = against(opened(prepared, vocabulary, "SR,AFIB", 0.5), opened(prepared, vocabulary, "SR,AFIB", 0.5))
    assert 0 < same["macro_auroc"][0] < 1
    assert (same["difference"], same["difference_interval"]) == (0.0, [0.0, 0.0])


def test_what_one_has_not_learnt_does_not_count(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    score, data, evidence = opened(prepared, vocabulary, "SR,AFIB", 1.0)
    y, known = data.shown
    assert enough(y, known)[0]
    nothing = replace(evidence, candidates=np.zeros(2, dtype=bool))
    with pytest.raises(ScorerError, match="share no label with enough cases"):
        against((score, data, evidence), (right_about(data, 1.0), data, nothing))
