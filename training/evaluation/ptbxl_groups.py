"""PTB-XL's groups of statements (Strodthoff et al., arXiv 2004.13701): all, diag, sub, super, form, rhythm.

Approximated: ours are labels, not codes. A label belongs to each group of any of its SCP codes, several codes may share a label
(NDT, NT_ and TAB_ are one), and codes without a label are missing; `missing` names them. A subclass or superclass is as
likely as its most likely label; it is true when a label of it is, known to be absent when all of them are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import interval, macro
from training.evaluation.metrics import aurocs, enough
from training.vocabulary import Statement

__all__ = ["SUPERCLASS", "group_metrics", "missing"]

# diagnostic codes by superclass and subclass, scp_statements.csv of PTB-XL 1.0.3
DIAGNOSTIC: dict[str, dict[str, str]] = {
    "NORM": {"NORM": "NORM"},
    "MI": {"IMI": "IMI ILMI IPLMI IPMI INJIN INJIL", "AMI": "AMI ASMI ALMI INJAS INJAL INJLA", "LMI": "LMI", "PMI": "PMI"},
    "STTC": {
        "STTC": "NDT DIG LNGQT ANEUR EL",
        "NST_": "NST_",
        "ISC_": "ISC_",
        "ISCA": "ISCAL ISCAS ISCLA ISCAN",
        "ISCI": "ISCIN ISCIL",
    },
    "CD": {
        "LAFB/LPFB": "LAFB LPFB",
        "IRBBB": "IRBBB",
        "ILBBB": "ILBBB",
        "CLBBB": "CLBBB",
        "CRBBB": "CRBBB",
        "_AVB": "1AVB 2AVB 3AVB",
        "IVCD": "IVCD",
        "WPW": "WPW",
    },
    "HYP": {"LVH": "LVH", "LAO/LAE": "LAO/LAE", "RVH": "RVH", "RAO/RAE": "RAO/RAE", "SEHYP": "SEHYP"},
}
SUPERCLASS = {code: top for top, subs in DIAGNOSTIC.items() for codes in subs.values() for code in codes.split()}
SUBCLASS = {code: sub for subs in DIAGNOSTIC.values() for sub, codes in subs.items() for code in codes.split()}
FORM = frozenset(
    (
        *("NDT", "NST_", "DIG", "LNGQT", "ABQRS", "PVC", "STD_", "VCLVH", "QWAVE", "LOWT", "NT_", "PAC", "LPR"),
        *("INVT", "LVOLT", "HVOLT", "TAB_", "STE_", "PRC(S)"),
    )
)
RHYTHM = frozenset(("SR", "AFIB", "STACH", "SARRH", "SBRAD", "PACE", "SVARR", "BIGU", "AFLT", "SVTAC", "PSVT", "TRIGU"))
CODES = FORM | RHYTHM | set(SUPERCLASS)  # 71

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float64]


def missing(labels: Sequence[Statement]) -> list[str]:
    """PTB-XL's codes that none of these labels stands for."""
    return sorted(CODES - {code for s in labels for code in s.scp})


def group_metrics(
    log_odds: Floats,
    y: Bools,
    known: Bools,
    labels: Sequence[Statement],
    candidates: Bools,
    weights: Weights,
    cases: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """By group: how many of its labels (sub, super: classes) have enough cases, their macro AUROC and interval.

    log_odds, y, known: (N, L), comparable across labels; candidates: bool (L,), labels with evidence, the only ones that count.
    cases: (N,) as `enough` counts them.
    """
    sets: dict[str, Mapping[str, Any] | frozenset[str]] = {
        "all": frozenset(CODES),
        "diag": SUPERCLASS,
        "sub": SUBCLASS,
        "super": SUPERCLASS,
        "form": FORM,
        "rhythm": RHYTHM,
    }
    out: dict[str, Any] = {}
    for name, group in sets.items():
        columns = [j for j, s in enumerate(labels) if candidates[j] and set(s.scp) & set(group)]
        data = log_odds[:, columns], y[:, columns], known[:, columns]
        if name in ("sub", "super"):
            assert isinstance(group, Mapping)
            data = _classes(*data, [{group[c] for c in labels[j].scp if c in group} for j in columns])
        use = enough(data[1], data[2], cases)
        values = macro(aurocs(data[0][:, use], data[1][:, use], data[2][:, use], weights))
        some = bool(use.any())
        out[name] = {"labels": int(use.sum()), "macro_auroc": float(values[0]) if some else None}
        out[name]["macro_auroc_interval"] = interval(values) if some else None
    return out


def _classes(log_odds: Floats, y: Bools, known: Bools, member: Sequence[set[str]]) -> tuple[Floats, Bools, Bools]:
    """(N, labels) and the classes of each label -> (N, classes)."""
    names = sorted(set().union(*member))
    odds, truth, sure = [np.zeros((len(y), 0))], [np.zeros((len(y), 0), dtype=bool)], [np.zeros((len(y), 0), dtype=bool)]
    for name in names:
        columns = [k for k, classes in enumerate(member) if name in classes]
        stated = np.asarray((y & known)[:, columns].any(axis=1))
        odds.append(log_odds[:, columns].max(axis=1, keepdims=True))
        truth.append(stated[:, None])
        sure.append(np.asarray(stated | known[:, columns].all(axis=1))[:, None])
    return np.concatenate(odds, axis=1), np.concatenate(truth, axis=1), np.concatenate(sure, axis=1)
