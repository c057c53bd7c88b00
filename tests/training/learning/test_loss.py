"""Each loss by a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.learning.loss import (
    bank_sigmoid,
    bank_softmax,
    distilled,
    infonce,
    jaccard,
    jaccard_sigmoid,
    log_prior,
    same_set,
    unicl,
)

E1 = math.exp(-1)


def test_infonce_by_hand() -> None:
    """Two records, unit vectors at 60 degrees: logits are [[2, 1], [1, 2]] at tau 0.5, so each term is log(1 + e^-1)."""
    ecg = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    text = ecg.clone()
    assert float(infonce(ecg, text, 0.5)) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_infonce_is_the_mean_of_both_directions() -> None:
    """ecg rows (1,0), (1,0); text rows (1,0), (0,1); tau 1: logits [[1, 0], [1, 0]]."""
    ecg = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2  # record 0 right, record 1 wrong by 1
    columns = math.log(2)  # each text sees two equal records
    assert float(infonce(ecg, text, 1.0)) == pytest.approx((rows + columns) / 2, rel=1e-6)
    assert float(infonce(text, ecg, 1.0)) == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_infonce_of_equal_captions_cannot_fall_below_log_of_their_number() -> None:
    """Why a small batch of the same captions is hard on it: the right answer is not told from the others."""
    same = torch.ones(4, 1)
    assert float(infonce(same, same, 0.07)) == pytest.approx(math.log(4), rel=1e-5)


def test_bank_sigmoid_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 5.0], [-1.0, 3.0, 5.0]])
    y = torch.tensor([[True, False, True], [False, True, False]])
    known = torch.tensor([[True, True, False], [True, False, False]])
    expected = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 3
    assert float(bank_sigmoid(logits, y, known)) == pytest.approx(expected, rel=1e-6)


def test_unknown_entries_have_no_gradient_and_nothing_known_is_no_loss() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    known = torch.tensor([[True, False], [True, False]])
    bank_sigmoid(logits, torch.ones(2, 2, dtype=torch.bool), known).backward()
    assert logits.grad is not None
    assert logits.grad[:, 0].tolist() == [-0.25, -0.25]
    assert logits.grad[:, 1].tolist() == [0, 0]
    assert bank_sigmoid(logits, known, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_log_prior_by_hand() -> None:
    y = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 1]], dtype=torch.bool)
    known = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    expected = [math.log(2.5 / 2.5), math.log(1.5 / 0.5)]
    assert log_prior(y, known).tolist() == pytest.approx(expected)


def test_unicl_by_hand() -> None:
    """Records 0 and 1 state the same; logits [[1, 1, 0], [1, 1, 0], [0, 0, 1]] at tau 1 are symmetric."""
    ecg = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    same = same_set(torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool))
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    expected = (2 * math.log(2 + E1) + math.log(1 + 2 * E1)) / 3
    assert float(unicl(ecg, ecg, same, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_unicl_is_the_mean_of_both_directions_and_infonce_where_all_sets_differ() -> None:
    """Logits [[1, 0], [1, 0]], all positives: each row log(1 + e) - 1/2, each column log 2."""
    ecg = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    every = torch.ones(2, 2, dtype=torch.bool)
    expected = (math.log(1 + math.e) - 0.5 + math.log(2)) / 2
    assert float(unicl(ecg, text, every, 1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(unicl(ecg, text, torch.eye(2, dtype=torch.bool), 0.3)) == pytest.approx(float(infonce(ecg, text, 0.3)))


def test_unicl_of_equal_captions_can_be_no_lower_than_their_entropy() -> None:
    """As InfoNCE's log of their number, but now it is the target's own and its gradient is 0."""
    same = torch.ones(4, 1, requires_grad=True)
    unicl(same, torch.ones(4, 1), torch.ones(4, 4, dtype=torch.bool), 0.07).backward()
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-5


def test_jaccard_by_hand() -> None:
    sets = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[1, 1 / 3, 1, 0], [1 / 3, 1, 1 / 3, 0], [1, 1 / 3, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(jaccard(sets), expected)


def test_jaccard_sigmoid_by_hand() -> None:
    """Logits [[1, -1], [-1, 1]], targets [[1, 1/3], [1/3, 1]]; log(1 + e^l) - t l: log(1 + 1/e), off the diagonal 1/3 more."""
    e = torch.eye(2)
    similarity = jaccard(torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool))
    loss = jaccard_sigmoid(e, e, similarity, torch.tensor(2.0), torch.tensor(-1.0))
    assert float(loss) == pytest.approx(math.log(1 + E1) + 1 / 6, rel=1e-6)


def test_bank_softmax_by_hand() -> None:
    """Record 0: probabilities 1/3 and 2/3 among the known, half the target each. Record 1's truth is unknown, 2 has none."""
    logits = torch.tensor([[0.0, math.log(2), 9.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    y = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    known = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    loss = bank_softmax(logits, y, known)
    assert loss.item() == pytest.approx(0.5 * math.log(4.5), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], torch.tensor([1 / 3 - 1 / 2, 2 / 3 - 1 / 2, 0.0]))
    assert not logits.grad[1:].any()
    nothing = bank_softmax(logits, y, torch.zeros_like(known))
    assert nothing.item() == 0
    nothing.backward()  # and has a gradient, of 0


def test_distilled_targets_by_hand() -> None:
    y = torch.tensor([[True, False, True]])
    teacher = torch.tensor([[0.0, math.log(3), math.nan]])
    torch.testing.assert_close(distilled(y, teacher, 0.4), torch.tensor([[0.6 + 0.4 * 0.5, 0.4 * 0.75, 1.0]]))
    soft = distilled(y, teacher, 1.0)
    expected = (math.log(2) + math.log(2) - 0.75 * 0 + math.log(2)) / 3
    known = torch.ones(1, 3, dtype=torch.bool)
    assert float(bank_sigmoid(torch.zeros(1, 3), soft, known)) == pytest.approx(expected, rel=1e-6)
    assert float(bank_sigmoid(torch.full((1, 3), 2.0), soft, known)) == pytest.approx(
        math.log(1 + math.exp(2)) - 2 * (0.5 + 0.75 + 1) / 3, rel=1e-6
    )


def test_losses_are_float32_whatever_comes_in() -> None:
    e, low = torch.eye(2), torch.eye(2).bfloat16()
    one, known = torch.tensor(1.0), torch.ones(2, 2, dtype=torch.bool)
    same = torch.eye(2, dtype=torch.bool)
    pairs = [
        (infonce(low, low, 0.07), infonce(e, e, 0.07)),
        (unicl(low, low, same, 0.07), unicl(e, e, same, 0.07)),
        (jaccard_sigmoid(low, low, e, one, one), jaccard_sigmoid(e, e, e, one, one)),
        (bank_sigmoid(low, same, known), bank_sigmoid(e, same, known)),
        (bank_softmax(low, same, known), bank_softmax(e, same, known)),
    ]
    for rough, exact in pairs:
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, rtol=0, atol=0)
