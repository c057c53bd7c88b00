"""Long recordings with PhysioBank annotations (WFDB, `.atr`: MIT-BIH, CPSC 2021) -> windows of 10 s with labels.

One recording is one patient, or one of several of a patient; the split is by patient. Where no beat of a folder is typed as
ventricular, its annotators marked rhythms only. Labels follow from training/sources/beats.py.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from encoders.recordings import Recording, read_recording
from encoders.signal import WINDOW_MS
from training.sources.annotated import Annotated, Source, SourceError, age_of, fold_of, sex_of
from training.sources.beats import TYPED, Annotations, Span, says

__all__ = ["read_long"]

SAME_PATIENT = {"202": "201"}  # MIT-BIH
CPSC2021 = re.compile(r"data_(\d+)_\d+")  # data_PATIENT_SEGMENT
PERSON = re.compile(r"(-?\d+) ([MF])\b")  # MIT-BIH's first comment: "69 M 1085 1629 x1"
WHOLE = {"persistent atrial fibrillation": "(AFIB", "paroxysmal atrial fibrillation": "(N", "non atrial fibrillation": "(N"}
HELD = 2  # recordings in memory


@dataclass(frozen=True)
class _Long:
    """One recording. length: samples."""

    path: Path
    patient: str
    annotations: Annotations
    length: int
    sex: str | None
    age: float | None


def read_long(folder: Path, step_s: float = WINDOW_MS / 1000) -> Source:
    """Windows of all annotated recordings in and below `folder`, one every `step_s` seconds (10 or more: none overlap).

    A subfolder is a source of its own. Records without annotations, or that cannot be read, are listed as skipped.
    """
    if step_s < WINDOW_MS / 1000:
        raise SourceError(f"windows every {step_s:g} s would overlap; give {WINDOW_MS // 1000} s or more")
    held = _Held()
    records: list[Annotated] = []
    declared: dict[str, tuple[str, ...]] = {}
    skipped: list[tuple[str, str]] = []
    for parent in sorted({header.parent for header in folder.rglob("*.hea")}):
        source = (Path(folder.name) / parent.relative_to(folder)).as_posix()
        found = []
        for header in sorted(parent.glob("*.hea")):
            try:
                found.append(_read(header.with_suffix("")))
            except Exception as error:  # the parser raises whatever a broken file leads it into
                kind = "" if isinstance(error, SourceError) else f"{type(error).__name__}: "
                skipped.append((f"{source}/{header.stem}", f"{kind}{error}".replace(f"{parent}/", "")))
        typed = any("V" in one.annotations.symbols for one in found)
        found = [replace(one, annotations=replace(one.annotations, typed=typed)) for one in found]
        named = frozenset[str]().union(*(one.annotations.rhythms for one in found)) - {"SR", "SBRAD"}
        declared[source] = tuple(sorted(TYPED if typed else named))
        records += [window for one in found for window in _windows(one, source, step_s, held)]
    if not records:
        first = ": ".join(skipped[0]) if skipped else "no header"
        raise SourceError(f"{folder}: no annotated recording of 10 s or more could be read: {first}")
    return Source(folder.name, "long", tuple(records), declared, tuple(skipped))


def _windows(one: _Long, source: str, step_s: float, held: _Held) -> list[Annotated]:
    fs, out = one.annotations.fs, []
    n = int(WINDOW_MS * fs / 1000)
    for k in range(int(one.length / (step_s * fs)) + 1):
        first = int(k * step_s * fs)
        if first + n > one.length:
            break
        positive, unknown = says(one.annotations, first, n)
        out.append(
            Annotated(
                one.path,
                f"{source}/{one.path.name}@{first}",
                f"{source}:{one.patient}",
                fold_of(one.patient),
                tuple(sorted(positive)),
                tuple(sorted(unknown)),
                source,
                window=first,
                sex=one.sex,
                age=one.age,
                read=partial(held.window, one.path, first, n),
            )
        )
    return out


def _read(path: Path) -> _Long:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb calls what pandas deprecates
        import wfdb

        header = wfdb.rdheader(str(path))
        marks = wfdb.rdann(str(path), "atr")
    if not len(marks.sample):
        raise SourceError("its annotation file holds no mark")
    comments = [comment.strip() for comment in header.comments]
    person = PERSON.match(comments[0]) if comments else None
    part = CPSC2021.fullmatch(path.name)
    patient = part[1] if part else SAME_PATIENT.get(path.name, path.name)
    spans = _spans(marks, int(header.sig_len), float(header.fs), comments)
    annotations = Annotations(np.asarray(marks.sample, dtype=np.int64), list(marks.symbol), spans, float(header.fs))
    sex, age = (sex_of(person[2]), age_of(person[1])) if person else (None, None)
    return _Long(path, patient, annotations, int(header.sig_len), sex, age)


def _spans(marks: Any, length: int, fs: float, comments: list[str]) -> tuple[Span, ...]:
    """From note to note; before the first, what a comment says of the whole recording, or a note of its first second."""
    changes = [
        (int(at), note.rstrip("\x00").strip())
        for at, note, symbol in zip(marks.sample, marks.aux_note, marks.symbol, strict=True)
        if symbol == "+"
    ]
    whole = next((WHOLE[c] for c in comments if c in WHOLE), "")
    if whole or not changes or changes[0][0] > fs:
        changes.insert(0, (0, whole))
    else:
        changes[0] = (0, changes[0][1])
    ends = [at for at, _ in changes[1:]] + [length]
    return tuple(Span(at, end, note) for (at, note), end in zip(changes, ends, strict=True) if end > at)


class _Held:
    """The few recordings read last: windows are asked for in order, by more than one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recordings: OrderedDict[Path, Recording] = OrderedDict()

    def window(self, path: Path, first: int, n: int) -> Recording:
        """Raises RecordingError."""
        with self._lock:
            if path not in self._recordings:
                self._recordings[path] = read_recording(path)
                if len(self._recordings) > HELD:
                    self._recordings.popitem(last=False)
            whole = self._recordings[path]
        return replace(whole, samples=np.ascontiguousarray(whole.samples[:, first : first + n]))
