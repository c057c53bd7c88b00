"""What a report tells: who was evaluated on what, the metrics, the worst errors. training/report/one_file.py draws it.

subject_of -> who      measure -> Report      metrics.json and the page are two views of it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from encoders.artifact import Artifact
from encoders.bank import TextModel, Tier, tier_of
from encoders.signal import LEADS, lead_bits
from training.config import TrainConfig
from training.data.dataset import LEAD_SET_BITS, DataSet, effective_mask
from training.data.prepare import MANIFEST
from training.evaluation.evaluate import LEAD_SETS, Evidence, Predictions, Scorer, evaluate, predict
from training.evaluation.scorers import trained_on
from training.evaluation.worst import Mistake, worst_mistakes
from training.learning.checkpoint import load_checkpoint
from training.text.labels import TextBank

__all__ = ["METRICS", "Report", "ReportError", "Subject", "check_place", "measure", "subject_of", "told", "unassessable"]

METRICS = "metrics.json"
FULL = lead_bits(LEADS)

Floats = NDArray[np.floating]


class ReportError(ValueError):
    """A report that cannot be written; the text names the place and the remedy."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated. digest: of an artifact's manifest, or of a run's weights. tiers, positives: by label, L of them.

    fitted: folds on which weights were fitted; chosen: folds that calibrated it and gave thresholds, none yet of a run.
    """

    kind: str
    name: str
    digest: str
    text: TextModel
    config: Mapping[str, Any]
    fitted: tuple[int, ...]
    chosen: tuple[int, ...]
    tiers: tuple[Tier, ...]
    positives: tuple[int, ...]

    def seen(self, folds: Iterable[int]) -> list[int]:
        """Those among `folds` that fitted or calibrated it."""
        return sorted({*folds} & {*self.fitted, *self.chosen})

    @property
    def calibrated(self) -> bool:
        """A run has neither calibration nor thresholds before export."""
        return self.kind == "artifact"


def subject_of(target: Path, data: Path, text: Path | None) -> Subject:
    """target: what `open_scorer` opened. Raises ArtifactError, CheckpointError, DataError."""
    if text is not None and (target / "checkpoint.json").is_file():
        _, state = load_checkpoint(target)
        config = TrainConfig.of(state["config"])
        positives = tuple(map(int, trained_on(config, data).positives()))
        return Subject(
            "run",
            target.resolve().name,
            str(state["sha256"]),
            TextBank.load(text).text,
            config.as_dict(),
            config.train_folds,
            (),
            tuple(tier_of(n, None) for n in positives),
            positives,
        )
    artifact = Artifact.load(target)
    trained, labels = artifact.manifest.training.data, artifact.bank().labels
    return Subject(
        "artifact",
        artifact.directory.resolve().name,
        artifact.digest,
        artifact.manifest.text,
        trained.get("config", {}),
        tuple(trained.get("folds", {}).get("train", ())),
        tuple(trained.get("folds", {}).get("calibration", ())),
        tuple(label.tier for label in labels),
        tuple(label.positives for label in labels),
    )


@dataclass(frozen=True)
class Report:
    """metrics: of `evaluate`. predictions: from 12 leads. p: (N, L); of a run, which is not calibrated, by its logits."""

    subject: Subject
    records: DataSet
    evidence: Evidence
    metrics: Mapping[str, Any]
    predictions: Predictions
    p: Floats
    worst: Sequence[Mistake]
    command: str

    @property
    def folds(self) -> list[int]:
        """Whose records were scored."""
        return sorted({row["fold"] for row in self.records.index})

    @property
    def seen(self) -> list[int]:
        """Folds among them that fitted or calibrated it."""
        return self.subject.seen(self.folds)

    @property
    def full(self) -> Mapping[str, Any]:
        """The metrics from 12 leads."""
        found: Mapping[str, Any] = self.metrics["lead_sets"]["12"]
        return found

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(N, L): entries that count."""
        return np.asarray(self.predictions.known & self.evidence.candidates)


def measure(
    subject: Subject,
    score: Scorer,
    records: DataSet,
    evidence: Evidence,
    command: str = "",
    advance: Callable[[int], None] = lambda n: None,
) -> Report:
    """Score the records once a lead set; those from 12 leads give curves and errors too."""
    predictions = predict(score, records, advance=advance)
    metrics = evaluate(score, records, evidence, advance=advance, full=predictions)
    p = np.asarray(expit(evidence.log_odds(predictions.logits)))
    measured = [j for j, s in enumerate(records.labels) if s.id in metrics["lead_sets"]["12"]["per_label"]]
    worst = worst_mistakes(p, predictions.y, predictions.known, evidence.thresholds, measured)
    return Report(subject, records, evidence, metrics, predictions, p, worst, command)


def unassessable(records: DataSet) -> dict[str, list[int]]:
    """By lead set: positions of the labels that these leads of a 12-lead record do not show."""
    out: dict[str, list[int]] = {}
    for name in LEAD_SETS:
        mask = np.array([effective_mask(FULL, LEAD_SET_BITS[name], "mV")], dtype=np.int64)
        out[name] = np.flatnonzero(~records.assessable(mask)[0]).tolist()
    return out


def told(report: Report) -> str:
    """metrics.json: everything that the page shows in numbers, and `evaluate`'s metrics whole."""
    ids, index = report.predictions.ids, report.records.index
    body = {
        "format": 1,
        "command": report.command,
        "subject": {**asdict(report.subject), "text": report.subject.text.model_dump()},
        "data": {"name": report.records.directory.resolve().name, "digest": report.records.digest, "folds": report.folds},
        "tiers": dict(zip(ids, report.subject.tiers, strict=True)),
        "unassessable": {name: [ids[j] for j in labels] for name, labels in unassessable(report.records).items()},
        "worst": [{**asdict(m), "row": index[m.row]["record"], "label": ids[m.label], "error": m.error} for m in report.worst],
        **report.metrics,
    }
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_place(out: Path) -> Path:
    """Where the page may be written -> metrics.json beside it. Raises ReportError."""
    if out.suffix not in (".html", ".htm"):
        raise ReportError(f"--out {out}: a file name that ends in .html expected")
    if out.is_dir():
        raise ReportError(f"--out {out} is a directory; name the page in it, such as {out / 'report.html'}")
    if (out.parent / MANIFEST).exists():
        raise ReportError(
            f"{out.parent / MANIFEST} is there: {METRICS} beside the page would change an artifact or a data set; "
            "choose another folder"
        )
    return out.with_name(METRICS)
