"""The gate on what 8 bits may cost; the graph itself is tested where an artifact is made."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluate import Predictions
from training.metrics import MetricError
from training.quantize import QuantizeError, check_auroc
from training.vocabulary import Statement

LABELS = tuple(Statement(n, n, n, (), (), "routine", "any", True, i) for i, n in enumerate(("A", "B", "RARE")))


def predictions() -> Predictions:
    y = np.zeros((110, 3), dtype=bool)
    y[:10, :2] = y[0, 2] = True
    logits = np.where(y, 1.0, -1.0).astype(np.float32)
    return Predictions(logits, y, np.ones_like(y), [{}] * 110, LABELS)


def test_what_may_be_lost_by_hand() -> None:
    exact = predictions()
    rough = exact.logits.copy()
    rough[50:53, 0] = 2  # 3 of 100 negatives above each positive: 0.03 of A, 0.015 of the mean of A and B
    both = np.array([True, True, True])
    with pytest.raises(
        QuantizeError, match=r"at most 0\.003 of macro AUROC .* lost 0\.0150 \(1\.0000 .* 0\.9850 in 8 bits, 2 la"
    ):
        check_auroc(exact, rough, both)
    only_b = np.array([False, True, True])
    assert check_auroc(exact, rough, only_b) == {"labels": 1, "macro_auroc": 1.0, "int8_macro_auroc": 1.0, "loss": 0.0}
    rough = exact.logits.copy()
    rough[50, 0] = 0.5  # still below every positive
    rough[0, 0], rough[51, 0] = 0.2, 0.3  # one pair of 1,000 in A: 0.0005 of the mean
    rough[52, 0] = 0.1
    assert check_auroc(exact, rough, both)["loss"] == pytest.approx(0.001)  # 0.2 lies below 0.5 and 0.3: two pairs


def test_where_nothing_can_be_measured_nothing_is_written() -> None:
    exact = predictions()
    with pytest.raises(QuantizeError, match="what it costs cannot be measured; use more data or --crossval"):
        check_auroc(exact, exact.logits, np.array([False, False, True]))
    broken = np.full_like(exact.logits, np.nan)
    with pytest.raises(MetricError, match="110 of 110 scores of a label are not finite"):
        check_auroc(exact, broken, np.array([True, True, True]))
