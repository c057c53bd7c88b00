"""Findings known by their sentence alone: the vocabulary's supersets ("Sinus rhythm and sinus node"), which are never trained.

A superset is true of a record that states a label of it. It is absent where every label of it that the source declares is known
to be absent, and these make up nearly all statements of it in the data set: who was asked for atrial fibrillation alone cannot
deny other arrhythmias. Elsewhere it is unknown. A superset whose sentence is that of a label is trained, and left out.
N record, S superset.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import DataSet
from training.data.targets import cases_of, declares
from training.evaluation.bootstrap import interval, macro, resamples
from training.evaluation.metrics import aurocs, enough
from training.learning.trainee import Trainee, zero_shot_rows
from training.text.labels import Embedder, TextBank
from training.vocabulary import LABELS_CSV, PROMPT, Statement

__all__ = ["Superset", "never_trained", "read_supersets", "superset_targets", "zero_shot"]

LEAST_SHARE = 0.9  # of a superset's statements in the data set, in labels that a source declares, for it to deny the superset
Superset = tuple[str, str, str]  # id, English, Japanese


def read_supersets() -> tuple[dict[str, str], list[Superset]]:
    """-> superset id by label id, and the supersets in the order of labels.csv."""
    with LABELS_CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = {row["superset"]: (row["superset"], row["superset_en"], row["superset_ja"]) for row in rows}
    return {row["id"]: row["superset"] for row in rows}, list(sets.values())


def never_trained(sets: Sequence[Superset], labels: Sequence[Statement], language: str) -> list[Superset]:
    """Without those whose sentence is a label's in that language: "Normal" is both."""
    sentences = {s.name_ja if language == "ja" else s.name_en for s in labels}
    return [one for one in sets if one[2 if language == "ja" else 1] not in sentences]


def superset_targets(
    data: DataSet, member: dict[str, str], sets: Sequence[Superset]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """y, known: bool (N, S), see above; what all 12 leads of each record allow."""
    y, known = data.shown
    count = np.array([data.manifest["positives"].get(s.id, 0) for s in data.labels])
    declared = declares(data.index, data.manifest["declared"], data.labels)
    truth = np.zeros((len(data), len(sets)), dtype=bool)
    sure = np.zeros_like(truth)
    for k, (name, _, _) in enumerate(sets):
        columns = np.array([member[s.id] == name for s in data.labels])
        here, said = known[:, columns], declared[:, columns]
        truth[:, k] = (y[:, columns] & here).any(axis=1)
        asked = said.any(axis=1) & (said @ count[columns] >= LEAST_SHARE * count[columns].sum())
        sure[:, k] = truth[:, k] | (asked & (here | ~said).all(axis=1))
    return truth, sure


def zero_shot(
    model: Trainee, text: TextBank, data: DataSet, tower: Embedder, advance: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """AUROC of each superset with enough cases, and their mean, by cosine with its embedded sentence, with intervals.

    whitened: the run's bank is whitened, through which a new sentence comes out distorted: not to be called zero-shot.
    """
    member, sets = read_supersets()
    sets = never_trained(sets, data.labels, text.text.language)
    names = [ja if text.text.language == "ja" else en for _, en, ja in sets]
    rows = zero_shot_rows(model, tower.embed([PROMPT.format(label=name) for name in names]))
    y, known = superset_targets(data, member, sets)
    cosine = []
    with torch.inference_mode():
        for batch in data.plain():
            cosine.append((model.encoder(torch.from_numpy(batch.x)) @ rows.T).numpy())
            advance(len(batch.x))
    use = enough(y, known, cases_of(data.index))
    weights = resamples([row["patient"] for row in data.index])
    values = aurocs(np.concatenate(cosine)[:, use], y[:, use], known[:, use], weights)
    each = {
        sets[j][0]: {
            "sentence": PROMPT.format(label=names[j]),
            "positives": int((y & known)[:, j].sum()),
            "negatives": int((~y & known)[:, j].sum()),
            "auroc": float(values[0, k]),
            "auroc_interval": interval(values[:, k]),
        }
        for k, j in enumerate(np.flatnonzero(use).tolist())
    }
    return {
        "records": len(data),
        "whitened": model.config.objective.startswith("bank_") and model.config.whiten,
        "supersets": len(each),
        "macro_auroc": float(macro(values)[0]) if each else None,
        "macro_auroc_interval": interval(macro(values)) if each else None,
        "per_superset": each,
    }
