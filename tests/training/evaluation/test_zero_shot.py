"""Supersets: what is true, what is absent, and what is unknown of a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.dataset import DataSet
from training.evaluation.zero_shot import never_trained, read_supersets, superset_targets
from training.vocabulary import Statement, select


def test_supersets_cover_every_label_of_the_vocabulary(vocabulary: tuple[Statement, ...]) -> None:
    member, sets = read_supersets()
    assert set(member) == {s.id for s in vocabulary}
    assert {name for name, _, _ in sets} == set(member.values())
    assert len(sets) == len({en for _, en, _ in sets}) == len({ja for _, _, ja in sets})


def test_a_superset_is_true_absent_or_unknown(prepared: Path, vocabulary: tuple[Statement, ...]) -> None:
    data = DataSet(prepared, select(vocabulary, "core98"), (1, 2, 3))
    member, sets = read_supersets()
    k = [name for name, _, _ in sets].index("IVC")
    inside = {s.id for s in data.labels if member[s.id] == "IVC"}
    source = data.index[0]["source"]
    declared = sorted(inside & set(data.manifest["declared"][source]))
    assert len(declared) > 2
    full = {"source": source, "mask": 4095}
    data.manifest["declared"]["narrow"] = declared[1:2]
    data.manifest["positives"] = dict.fromkeys(inside, 0) | dict.fromkeys(declared, 10)
    data.index[:5] = [
        data.index[0] | full | {"positive": [declared[0]], "unknown": [declared[1]]},
        data.index[0] | full | {"positive": ["SR"], "unknown": []},
        data.index[0] | full | {"positive": ["SR"], "unknown": [declared[1]]},
        data.index[0] | full | {"positive": [], "unknown": [], "source": "nobody"},
        data.index[0] | full | {"positive": ["SR"], "unknown": [], "source": "narrow"},  # asked for one of several
    ]
    data.mask[:5] = 4095
    y, known = superset_targets(data, member, sets)
    np.testing.assert_array_equal(y[:5, k], [True, False, False, False, False])
    np.testing.assert_array_equal(known[:5, k], [True, True, False, False, False])


def test_a_superset_whose_sentence_was_trained_is_left_out(vocabulary: tuple[Statement, ...]) -> None:
    _, sets = read_supersets()
    core = select(vocabulary, "core98")
    trained = {
        language: {name for name, _, _ in sets} - {name for name, _, _ in never_trained(sets, core, language)}
        for language in ("en", "ja")
    }
    assert trained == {"en": {"NORMAL"}, "ja": {"NORMAL", "IVC"}}
    assert never_trained(sets, select(vocabulary, "SR,AFIB"), "en") == sets
