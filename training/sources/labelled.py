"""Bring your own: a folder of WFDB, EDF, DICOM or CSV recordings and a table of labels, one row a recording.

    record,labels,patient,fold,sex,age,unknown
    ward3/0001,AFIB;CLBBB,p17,,F,71,
    0002.edf,snomed_ct:426783006;scp:LVH,,9,M,64,STD

record: path inside the folder, with or without suffix. labels, unknown: ids of labels.csv or scheme:code, separated by ';'; an
empty cell of labels means "none of them". Only `record` and `labels` must be there. The labels that any row states are taken as
annotated in every row, unless `declares` says which are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from encoders.recordings import RecordingError, find_recordings
from training.sources.annotated import FOLDS, Annotated, Source, SourceError, age_of, fold_of, inside, sex_of
from training.sources.collected import collected_rows
from training.sources.relations import ENTAILS, LEAVES_OPEN, complete
from training.vocabulary import SCP, SNOMED, Statement, by_code

__all__ = ["TABLE", "read_labelled"]

TABLE = "labels.csv"
SHOWN = 5  # of many faults
NEAR_CODE = 0.7  # likeness of two codes; of four letters one may differ
LISTED = "`ecg-train labels --list` has all"
FOLD = re.compile(r"[0-9]{1,2}(\.0)?")  # a table with gaps is often saved with 3.0 for 3


@dataclass(frozen=True)
class _Entry:
    """One row of the table. line: for messages."""

    line: int
    record: str
    stated: tuple[str, ...]
    unknown: tuple[str, ...]
    fold: int | None
    cells: Mapping[str, str]


def read_labelled(folder: Path, table: Path, vocabulary: Iterable[Statement], declares: str = "") -> Source:
    """The recordings of `folder` that have a row in `table`; those that have none are listed as skipped, and so are rows
    without a recording. declares: ids or scheme:code separated by commas, or a file of them. Raises SourceError.
    """
    names = _Names(vocabulary)
    entries = _entries(table, names)
    declared = names.declared(declares) if declares else {label for e in entries for label in e.stated if ":" not in label}
    _check_classes(table, entries, declared, declares)
    found = _Found(folder)
    records, skipped = [], []
    for entry in entries:
        base, problem = found.take(entry.record)
        if base is None:
            skipped.append((f"{folder.name}/{entry.record}", f"row {entry.line} of {table.name}: {problem}"))
        else:
            records.append(_annotate(entry, base, folder.name))
    if len(records) < len(skipped):
        raise SourceError(
            f"{table}: {len(skipped)} of {len(entries)} rows name no recording in {folder.name}; the first: {skipped[0][1]}; "
            f"the folder has, for example, {found.example()!r}: write the records like that"
        )
    records.sort(key=found.order)  # as they lie on disk, not as the table has them
    skipped += [(f"{folder.name}/{name}", f"no row in {table.name}") for name in found.left()]
    return Source(folder.name, "labelled", tuple(records), {folder.name: tuple(sorted(declared))}, tuple(skipped))


def _annotate(entry: _Entry, base: Annotated, source: str) -> Annotated:
    positive, unknown = complete(entry.stated, entry.unknown, rhythm_asked=True)
    patient = entry.cells.get("patient", "").strip() or base.patient
    return replace(
        base,
        patient=f"{source}:{patient}",
        fold=entry.fold or fold_of(patient),
        positive=tuple(sorted(positive)),
        unknown=tuple(sorted(unknown)),
        sex=sex_of(entry.cells.get("sex")),
        age=age_of(entry.cells.get("age")),
    )


def _check_classes(table: Path, entries: list[_Entry], declared: set[str], declares: str) -> None:
    stated = {label for entry in entries for label in entry.stated}
    if not stated:
        raise SourceError(f"{table}: no row states a label; put ids of labels.csv, separated by ';', into the column labels")
    reached = complete(stated, rhythm_asked=True)[0]
    if empty := sorted(declared - reached):
        raise SourceError(
            f"{table}: {', '.join(empty)} declared by --declares {declares}, but stated by no row; without a case nothing can "
            "be learned: correct the table, or leave it out of --declares"
        )


class _Names:
    """What may stand in a cell of labels: ids of the vocabulary, and codes as scheme:code."""

    def __init__(self, vocabulary: Iterable[Statement]) -> None:
        statements = tuple(vocabulary)
        self.ids = {s.id for s in statements}
        self.codes = by_code(statements)
        self.known_as = {name.lower(): s.id for s in statements for name in (s.name_en, s.name_ja, s.id)}
        self.called = {s.id: f"{s.id} ({s.name_ja}, {s.name_en})" for s in statements}

    def read(self, cell: str) -> tuple[tuple[str, ...], list[str]]:
        """ "AFIB;scp:IMI" -> (ids and codes that relations know, faults)."""
        out, faults = [], []
        for name in (part.strip() for part in cell.split(";")):
            scheme, colon, code = name.partition(":")
            label = self.codes.get((scheme, code.strip())) if colon else name if name in self.ids else None
            if colon and label is None and (name in ENTAILS or name in LEAVES_OPEN):
                label = name  # has no label of its own, but says something of others
            if label is not None:
                out.append(label)
            elif name:
                faults.append(f"{name!r} is {self._hint(name, scheme if colon else '')}")
        return tuple(dict.fromkeys(out)), faults

    def _hint(self, name: str, scheme: str) -> str:
        if scheme in (SCP, SNOMED):
            code = name.partition(":")[2].strip()
            near = get_close_matches(code, [other for known, other in self.codes if known == scheme], 3, NEAR_CODE)
            told = "; ".join(f"{scheme}:{other} is {self.called[self.codes[scheme, other]]}" for other in near)
            what = f"nearest: {told}" if near else "leave it out, or write the id of the label that it means"
            return f"a code that no label has; {what}; {LISTED}"
        if scheme:
            return f"of no known scheme; known are {SCP}:CODE and {SNOMED}:CODE"
        for known in (SCP, SNOMED):
            if label := self.codes.get((known, name)):
                return f"not in the vocabulary; as a code write {known}:{name}, which is {self.called[label]}"
        near = [self.known_as[match] for match in get_close_matches(name.lower(), list(self.known_as), 6, 0.5)]
        ids = ", ".join(self.called[label] for label in list(dict.fromkeys(near))[:3])
        return f"not in the vocabulary; {f'nearest ids: {ids}; ' if ids else ''}{LISTED}"

    def declared(self, given: str) -> set[str]:
        """Ids or codes separated by commas, or a file with one on each line. Raises SourceError."""
        text = Path(given).read_text(encoding="utf-8") if _is_file(given) else given
        labels, faults = self.read(re.sub(r"[,\s]+", ";", text))
        if faults:
            raise SourceError(f"--declares {given}: {_several(faults)}")
        return {label for label in labels if ":" not in label}


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a list of labels may be too long for a file's name
        return False


def _several(faults: list[str]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _entries(table: Path, names: _Names) -> list[_Entry]:
    if not table.is_file():
        raise SourceError(f"{table}: no such file; it needs a row a recording with the columns record and labels")
    entries: dict[str, _Entry] = {}
    faults: list[str] = []
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("record", "labels") if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceError(
                f"{table}: no column {', '.join(missing)}; the first line must be record,labels (and, where known, patient,"
                f"fold,sex,age,unknown), found {','.join(reader.fieldnames or ())[:80]!r}"
            )
        for row in reader:
            cells = {key: value or "" for key, value in row.items() if isinstance(key, str) and not isinstance(value, list)}
            entry, wrong = _entry(reader.line_num, cells, names)
            if None in row:
                wrong.append(f"row {reader.line_num} has more cells than the first line; labels are separated by ';', not ','")
            if entry.record in entries:
                wrong.append(f"row {entry.line} repeats {entry.record} of row {entries[entry.record].line}")
            entries[entry.record] = entry
            faults += wrong
    if faults:
        raise SourceError(f"{table}: {_several(faults)}")
    if not entries:
        raise SourceError(f"{table}: it holds no row below its first line; write one a recording")
    return list(entries.values())


def _entry(line: int, cells: Mapping[str, str], names: _Names) -> tuple[_Entry, list[str]]:
    stated, faults = names.read(cells["labels"])
    unknown, more = names.read(cells.get("unknown", ""))
    faults = [f"row {line}: {fault}" for fault in (*faults, *more)]
    record = cells["record"].strip().replace("\\", "/").removeprefix("./")
    if not record:
        faults.append(f"row {line} names no record")
    if both := sorted(set(stated) & set(unknown)):
        faults.append(f"row {line} calls {', '.join(both)} both stated and unknown")
    text = cells.get("fold", "").strip()
    fold = int(text.removesuffix(".0")) if FOLD.fullmatch(text) else None
    if text and (fold is None or not 1 <= fold <= FOLDS):
        faults.append(
            f"row {line}: fold {text!r} is not 1 to {FOLDS} (1 to 7 train, 8 calibrates, 9 reports, 10 is left alone)"
        )
    return _Entry(line, record, stated, unknown, fold, cells), faults


class _Found:
    """The recordings of a folder by every name that a table may call them; each can be taken once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, Annotated] = {}
        try:
            paths = find_recordings(folder)
        except RecordingError:
            paths = []  # recordings of other names (DICOM), or collected ones only
        for path in paths:
            name = path.relative_to(folder).as_posix()
            self.records[name] = _bare(path, folder.name, name)
        self.records |= collected_rows(folder)
        self.names: dict[str, set[str]] = {}
        for name in self.records:
            for known_as in (name, str(Path(name).with_suffix("")), Path(name).name, Path(name).stem):
                self.names.setdefault(known_as, set()).add(name)
        self.taken: set[str] = set()
        self._order = {record.record: i for i, record in enumerate(self.records.values())}

    def order(self, record: Annotated) -> int:
        """Where it came in the folder."""
        return self._order.get(record.record, len(self._order))

    def take(self, record: str) -> tuple[Annotated | None, str]:
        """(the recording, "") or (None, why not)."""
        plain = str(Path(record).with_suffix("")) if Path(record).suffix in (".hea", ".dat", ".mat") else record
        matches = {plain} if plain in self.records else self.names.get(plain, set())
        if not matches:
            try:
                path = inside(self.folder, plain)
            except SourceError as error:
                return None, str(error)
            if path.is_file():
                return _bare(path, self.folder.name, plain), ""  # whether it can be read shows when it is
        if not matches:
            return None, f"no recording {record!r}"
        if len(matches) > 1:
            return None, f"{record!r} may be {' or '.join(sorted(matches)[:3])}; write the path"
        (name,) = matches
        if name in self.taken:
            return None, f"{name} has a row already"
        self.taken.add(name)
        return self.records[name], ""

    def left(self) -> list[str]:
        return [name for name in self.records if name not in self.taken]

    def example(self) -> str:
        return next(iter(self.records), "nothing that can be read")


def _bare(path: Path, source: str, name: str) -> Annotated:
    """A recording before its row is known; its patient is itself."""
    return Annotated(path, f"{source}/{name}", name, 1, (), (), source)
