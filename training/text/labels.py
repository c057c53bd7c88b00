"""labels.csv -> one text embedding a label by a frozen language model: the sentence "This ECG shows {label}.".

DIR/text.safetensors  "labels": float32 (L, E) unit rows; "captions": (K, E) where a data set was given
DIR/text.json         model, pooling, language, prompt, ids in order, captions in order, digests
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from encoders.bank import TextModel
from training.data.prepare import INDEX, file_digest
from training.learning.checkpoint import write_whole, writing
from training.vocabulary import LABELS_CSV, PROMPT, Statement

__all__ = [
    "Embedder",
    "LabelError",
    "TextBank",
    "build",
    "captions_of",
    "check_distinct",
    "sentence",
]

TOO_CLOSE = 0.995  # cosine before centring; above it a tokenizer does not tell the two names apart
LIST = "; "


class LabelError(ValueError):
    """Text embeddings that cannot serve; the text names the labels and the remedy."""


class Embedder(Protocol):
    """What `encoders.text.TextTower` offers; a test may give its own."""

    def embed(
        self, sentences: Sequence[str], batch: int = ..., advance: Callable[[int], None] = ...
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class TextBank:
    """Embeddings as stored. ids: L labels. rows: (L, E). captions: (K, E) by label-id tuple. text: how they were made.

    digest: hex sha256 of text.json, which holds the digest of the tensors.
    """

    ids: tuple[str, ...]
    rows: NDArray[np.float32]
    captions: dict[tuple[str, ...], NDArray[np.float32]]
    text: TextModel
    digest: str
    command: str = ""

    @classmethod
    def load(cls, directory: Path) -> TextBank:
        """Read `build`'s output. Raises LabelError."""
        path = directory / "text.json"
        if not path.is_file():
            raise LabelError(f"{path}: no such file; make it with `ecg-train labels --out {directory}`")
        remedy = f"copy it again, or make both files again with `ecg-train labels --out {directory}`"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            wanted, ids, sets, command = info["sha256"], tuple(info["ids"]), info["captions"], info["command"]
            text = TextModel(**info["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabelError(f"{path}: no description of text embeddings ({error!r}); {remedy}") from None
        beside = directory / "text.safetensors"
        digest = file_digest(beside) if beside.is_file() else "no such file"
        if digest != wanted:
            raise LabelError(f"{beside}: sha256 {wanted} expected, found {digest}; {remedy}")
        tensors = load_file(beside)
        captions = {tuple(one): tensors["captions"][k] for k, one in enumerate(sets)}
        return cls(ids, tensors["labels"], captions, text, file_digest(path), command)

    def rows_of(self, statements: Sequence[Statement]) -> NDArray[np.float32]:
        """(L, E) for these statements. Raises LabelError naming those without a row."""
        place = {label: i for i, label in enumerate(self.ids)}
        missing = [s.id for s in statements if s.id not in place]
        if missing:
            raise LabelError(f"no text embedding for {', '.join(missing)}; run `ecg-train labels --labels all`")
        return self.rows[[place[s.id] for s in statements]]


def sentence(statements: Sequence[Statement], language: str) -> str:
    """The prompt filled in; several labels stand in labels.csv order."""
    names = [s.name_ja if language == "ja" else s.name_en for s in sorted(statements, key=lambda s: s.order)]
    return PROMPT.format(label=("、" if language == "ja" else ", ").join(names))


def check_distinct(ids: Sequence[str], rows: NDArray[np.float32]) -> None:
    """rows: (L, E) unit. Raises LabelError naming every pair above cosine 0.995: nothing learns them apart."""
    cosine = rows @ rows.T
    pairs = [(ids[i], ids[j], float(cosine[i, j])) for i in range(len(ids)) for j in range(i) if cosine[i, j] > TOO_CLOSE]
    if pairs:
        shown = LIST.join(f"{a} and {b} ({c:.4f})" for a, b, c in pairs[:60])
        raise LabelError(
            f"{len(pairs)} pairs of labels have nearly the same text embedding, cosine above {TOO_CLOSE}: {shown}. "
            "The model does not know this language or these words; use another --model, --language or --pooling"
        )


def captions_of(data: Path, statements: Sequence[Statement]) -> list[tuple[str, ...]]:
    """Every distinct set of stated labels in a prepared data set, as id tuples in labels.csv order.

    Where the amplitude is lost, without the statements that rest on it.
    """
    order = [s.id for s in statements]
    lost = {s.id for s in statements if s.rests_on_amplitude}
    table = pq.read_table(data / INDEX, columns=["positive", "unit"]).to_pylist()
    sets = {(frozenset(row["positive"]) & set(order)) - (lost if row["unit"] == "NU" else set()) for row in table}
    return sorted(tuple(i for i in order if i in found) for found in sets if found)


def build(
    tower: Embedder,
    text: TextModel,
    statements: Sequence[Statement],
    out: Path,
    data: Path | None = None,
    command: str = "",
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Embed the statements, and the captions of a prepared data set, into `out` -> text.json.

    Raises LabelError, and CheckpointError where `out` cannot be written.
    """
    rows = tower.embed([sentence([s], text.language) for s in statements], advance=advance)
    check_distinct([s.id for s in statements], rows)
    named = {s.id: s for s in statements}
    captions = captions_of(data, statements) if data else []
    tensors = {"labels": rows}
    if captions:
        tensors["captions"] = tower.embed(
            [sentence([named[i] for i in ids], text.language) for ids in captions], advance=advance
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "text.safetensors", lambda part: save_file(tensors, part))
    info = {
        "command": command,
        "text": text.model_dump(),
        "ids": [s.id for s in statements],
        "captions": [list(ids) for ids in captions],
        "labels_csv": file_digest(LABELS_CSV),
        "sha256": file_digest(out / "text.safetensors"),
    }
    body = json.dumps(info, ensure_ascii=False, indent=1) + "\n"
    write_whole(out / "text.json", lambda part: part.write_text(body, encoding="utf-8"))
    return info
