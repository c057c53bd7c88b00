"""Each loss by a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.loss import bank_sigmoid, infonce, log_prior


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
