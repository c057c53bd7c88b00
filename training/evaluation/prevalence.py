"""A deployment's own prevalence: probabilities where a finding is rarer, or more frequent, than in the training data.

What an ECG shows of a finding stays the same, how often the finding is there does not. By Bayes the odds change by the ratio of
the prior odds (Saerens, Latinne, Decaestecker 2002, eq. 4, with known priors), so calibrated log odds move by
logit(own) - logit(training): 0.5 where a tenth had it becomes 1/12 where a hundredth has it.

A threshold moves with them. It stands for a sensitivity and a specificity, which were chosen and tested on records and do not
depend on prevalence; held fast, it would silence alerts wherever a finding is rarer, unseen. So the same windows are positive
as before, but for rounding, and what was found out about false alarms still holds a window.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from encoders.artifact import Artifact
from encoders.bank import Label, LabelBank, OwnPrevalence, Share

__all__ = ["PrevalenceError", "own_bank", "own_of", "read_prevalence"]

COLUMNS = ("label", "prevalence")


class PrevalenceError(ValueError):
    """A table or a label that gives no prior; the text names the row or the label and the remedy."""


def read_prevalence(path: Path) -> dict[str, float]:
    """A CSV with the columns label and prevalence -> share by label id. Raises PrevalenceError naming the row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise PrevalenceError(f"{path}: no column {', '.join(missing)}; the first line must be {','.join(COLUMNS)}")
            rows = [(reader.line_num, (row["label"] or "").strip(), (row["prevalence"] or "").strip()) for row in reader]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PrevalenceError(f"{path}: {error}; a CSV in UTF-8 with the columns {', '.join(COLUMNS)} is needed") from None
    out: dict[str, float] = {}
    for line, label, cell in rows:
        if label in out:
            raise PrevalenceError(f"{path}: row {line} repeats {label}; one row a label")
        try:
            out[label] = float(cell)
        except ValueError:
            raise PrevalenceError(f"{path}: row {line}, {label}: {cell!r} is no number; write 0.02 for 2 %") from None
        if not 0 < out[label] < 1:
            raise PrevalenceError(f"{path}: row {line}, {label}: {cell} is not between 0 and 1; write 0.02 for 2 %")
    if not out:
        raise PrevalenceError(f"{path}: no row; without any the artifact's bank is published as it is, without this table")
    return out


def own_of(bank: LabelBank | None) -> dict[str, float]:
    """The own prevalence that a bank holds, by label; empty where it holds for that of training."""
    return {id: share.own for id, share in bank.prevalence.labels.items()} if bank and bank.prevalence else {}


def own_bank(artifact: Artifact, own: Mapping[str, float]) -> LabelBank:
    """The artifact's bank with the probabilities and thresholds of these labels moved to `own`; as it is without any.

    Raises PrevalenceError for a label that the bank lacks, that has no probability, or whose training prevalence the manifest
    does not tell.
    """
    bank = artifact.bank()
    if not own:
        return bank
    told = artifact.manifest.training.data.get("prevalence", {})
    labels = {label.id: label for label in bank.labels}
    shares = {id: _share(artifact, labels.get(id), id, told.get(id), value) for id, value in own.items()}
    moved = tuple(_moved(label, shares[label.id]) if label.id in shares else label for label in bank.labels)
    return replace(bank, labels=moved, prevalence=OwnPrevalence(labels=shares))


def _share(artifact: Artifact, label: Label | None, id: str, training: float | None, own: float) -> Share:
    if label is None:
        raise PrevalenceError(f"{id}: no label of {artifact.directory}; training/labels.csv has the ids")
    if label.calibration is None:
        raise PrevalenceError(
            f"{id}: {artifact.directory} gives it no probability for want of evidence ({label.positives} training positives), "
            "so that there is nothing to move; take it out of the table"
        )
    if training is None:
        raise PrevalenceError(f"{id}: the manifest of {artifact.directory} does not tell its training prevalence; export again")
    if not 0 < training < 1:
        raise PrevalenceError(f"{id}: {training:g} of the training records have it: from that no other prior can be reached")
    return Share(training=training, own=own)


def _moved(label: Label, share: Share) -> Label:
    assert label.calibration is not None
    a, b = label.calibration
    shift = float(logit(share.own) - logit(share.training))
    with np.errstate(divide="ignore"):  # a threshold of 0 or 1 stays
        threshold = None if label.threshold is None else float(expit(logit(label.threshold) + shift))
    return label.model_copy(update={"calibration": (a, b + shift), "threshold": threshold})
