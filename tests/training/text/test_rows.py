"""Whitening by properties that define it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from training.text.rows import BankRows, RowsError, centring, whiten, whitening


@pytest.fixture
def raw() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = 5 + rng.standard_normal((12, 40)) * np.geomspace(3, 0.1, 40)  # a shared direction and uneven spread
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_fully_whitened_rows_are_equally_far_apart(raw: np.ndarray) -> None:
    rows = whiten(raw, 64, 0.0)
    cosine = rows @ rows.T
    np.testing.assert_allclose(cosine, np.eye(12) * (1 + 1 / 11) - 1 / 11, atol=1e-4)  # -1 / (L - 1) off the diagonal


def test_full_shrinkage_only_centres(raw: np.ndarray) -> None:
    rows = whiten(raw, 64, 1.0)
    centred = raw - raw.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(rows @ rows.T, centred @ centred.T, atol=1e-4)


def test_between_the_two_neighbours_stay_nearer_than_strangers(raw: np.ndarray) -> None:
    raw = raw.copy()
    raw[1] = raw[0] + 0.02 * raw[1]
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    cosine = whiten(raw, 64, 0.3) @ whiten(raw, 64, 0.3).T
    assert cosine[0, 1] == cosine[0, 1:].max() > 0.2
    assert raw[0] @ raw[2] > 0.9 > cosine[0, 2]


def test_padded_or_cut_to_d_and_unit(raw: np.ndarray) -> None:
    for dim in (8, 11, 256):
        rows = whiten(raw, dim, 0.3)
        assert rows.shape == (12, dim)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert not whiten(raw, 256, 0.3)[:, 11:].any()  # rank L - 1


def test_projection_starts_at_the_identity_and_may_stay_fixed(raw: np.ndarray) -> None:
    rows = whiten(raw, 16, 0.3)
    fixed = BankRows(rows, 16, learned=False, start="identity")
    np.testing.assert_allclose(fixed().detach().numpy(), rows, atol=1e-6)
    assert not any(p.requires_grad for p in fixed.parameters())
    learned = BankRows(raw, 16, learned=True, start="random")
    assert learned().shape == (12, 16)
    assert learned(torch.ones(3, 40)).shape == (3, 16)
    torch.testing.assert_close(learned().norm(dim=1), torch.ones(12))


def test_whitening_takes_the_labels_to_their_rows_and_loses_what_is_beside_them(raw: np.ndarray) -> None:
    for dim in (8, 64):
        np.testing.assert_allclose(whitening(raw, dim, 0.3)(raw), whiten(raw, dim, 0.3), atol=1e-5)
    beside = np.linalg.svd(raw - raw.mean(axis=0), full_matrices=True)[2][-1]  # orthogonal to every label less the mean
    moved = (raw[:1] + 3 * beside).astype(np.float32)
    np.testing.assert_allclose(whitening(raw, 64, 0.3)(moved), whiten(raw, 64, 0.3)[:1], atol=1e-4)
    assert (centring(raw)(moved) @ centring(raw)(raw[:1]).T).item() < 0.5


def test_centring_by_hand() -> None:
    raw = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    half = 2**-0.5
    np.testing.assert_allclose(centring(raw)(raw), [[half, -half], [-half, half]], atol=1e-6)
    np.testing.assert_allclose(centring(raw)(np.array([[0.5, 2.5]], dtype=np.float32)), [[0, 1]], atol=1e-6)


def test_sentences_pass_the_map_of_the_rows(raw: np.ndarray) -> None:
    centred = centring(raw)
    rows = BankRows(centred(raw), 16, learned=True, start="random", of_sentence=centred)
    torch.testing.assert_close(rows.sentences(raw), rows())
    plain = BankRows(raw, 16, learned=True, start="random")
    torch.testing.assert_close(plain.sentences(raw), plain())


def test_each_step_from_sentence_to_row_has_a_digest_or_was_not_done(raw: np.ndarray) -> None:
    ids = [f"L{i}" for i in range(12)]
    text, mean = (
        hashlib.sha256(raw.tobytes()).hexdigest(),
        hashlib.sha256(raw.mean(axis=0, dtype=np.float64).tobytes()).hexdigest(),
    )
    white = BankRows(whiten(raw, 16, 0.3), 16, True, "identity", whitening(raw, 16, 0.3))
    told = white.made(raw, ids)
    assert (told.sentences, told.mean, told.projection) == (text, mean, None)
    assert told.whitening is not None
    white.project.weight.data[0, 1] = 0.5  # as training moves it
    moved = white.made(raw, ids)
    assert moved.projection == hashlib.sha256(white.project.weight.detach().numpy().tobytes()).hexdigest()
    assert moved.whitening == told.whitening
    assert (
        BankRows(whiten(raw, 16, 0.4), 16, True, "identity", whitening(raw, 16, 0.4)).made(raw, ids).whitening != told.whitening
    )
    centred = BankRows(centring(raw)(raw), 16, True, "random", centring(raw)).made(raw, ids)
    assert (centred.mean, centred.whitening) == (mean, None)
    plain = BankRows(raw, 16, True, "random").made(raw, ids)
    assert (plain.mean, plain.whitening) == (None, None)
    assert plain.projection is not None


def test_rows_of_other_sentences_are_refused_by_name(raw: np.ndarray) -> None:
    ids = [f"L{i}" for i in range(12)]
    rows = BankRows(whiten(raw, 16, 0.3), 16, True, "identity", whitening(raw, 16, 0.3))
    other = raw.copy()
    other[[3, 4]] = raw[[4, 3]]
    with pytest.raises(RowsError, match=r"^L[34]: cosine -?0\.\d+ between its row and what its sentence gives, 0\.9999 "):
        rows.made(other, ids)
    flipped = whitening(raw, 16, 0.3)
    flipped.basis[:, 0] *= -1  # as another library may choose the sign of a direction
    with pytest.raises(RowsError):
        BankRows(whiten(raw, 16, 0.3), 16, True, "identity", flipped).made(raw, ids)
