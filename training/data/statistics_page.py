"""statistics.html beside a data set's manifest: what is in it, for people. One small file, no script, nothing fetched.

Tiers are what the development folds (1 to 8) allow at best; cross-validation decides.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from training.data.contents import AGE_BANDS, SEXES, Counts, count
from training.data.prepare import MANIFEST
from training.data.unused import CHANNEL, FLAT, GAPS
from training.report.page import document, number, table
from training.sources.annotated import CALIBRATION_FOLD, VALIDATION_FOLD
from training.vocabulary import Statement

__all__ = ["PAGE", "left_out", "write_page"]

PAGE = "statistics.html"
COLOURS = {
    "train": "#2f6f9f",
    "calibration": "#e0a030",
    "val": "#8a5fa8",
    "test": "#999999",
    "F": "#b5557a",
    "M": "#4a7fb0",
    "": "#b8c2cc",
}
SHOWN = 12  # of many names
UNUSED = {
    CHANNEL: "Channels not used, since they are no known lead, name one a second time or run at another rate: {}. Where one is "
    "a lead, correct its name in the header, or in the first line of a CSV: I, II, III, aVR, aVL, aVF, V1 to V6.",
    GAPS: "Leads not used, since more than 200 ms in a row or 5 % of their samples are missing: {}. They count as not "
    "recorded; where the device has them whole, export them again.",
    FLAT: "Leads not used, since they do not move: {}. They count as not recorded; see whether they were exported at all.",
}


def write_page(directory: Path, vocabulary: Sequence[Statement]) -> Path:
    """Write DIR/statistics.html from manifest and index -> its path."""
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    counts = count(directory, manifest, vocabulary)
    parts = (
        f"<h1>{escape(directory.resolve().name)}</h1><p class=muted><code>{escape(manifest['command'])}</code></p>",
        _tiles(manifest, counts),
        _look(manifest, counts, vocabulary),
        _sources(counts),
        _labels(counts, vocabulary),
        _signals(counts),
        _ages(counts),
        _skipped(manifest["skipped"]),
    )
    path = directory / PAGE
    path.write_text(document(f"Data set {directory.resolve().name}", parts), encoding="utf-8")
    return path


def _tiles(manifest: Mapping[str, Any], counts: Counts) -> str:
    tiers = Counter(counts.tier(label) for label, c in counts.labels.items() if c.true or c.false)
    patients = sum(len(ids) for ids in counts.patients.values())
    shown = [(manifest["records"], "records"), (patients, "patients"), (len(manifest["skipped"]), "left out")]
    shown += [(tiers[tier], f"labels {tier} at best") for tier in ("evaluated", "trained")]
    shown.append((tiers["unsupported"], "labels unsupported"))
    return "<div class=tiles>" + "".join(f"<div class=tile><b>{number(n)}</b>{what}</div>" for n, what in shown) + "</div>"


def _look(manifest: Mapping[str, Any], counts: Counts, vocabulary: Sequence[Statement]) -> str:
    """What a person should look at before training."""
    known = {s.id for s in vocabulary}
    found = []
    without = [x for x, c in counts.labels.items() if x in known and c.true.total() and not c.false.total()]
    if without:
        found.append(f"Stated, but denied of no record, so that nothing can be learned: {escape(', '.join(sorted(without)))}.")
    for fold, use in ((CALIBRATION_FOLD, "calibration"), (VALIDATION_FOLD, "the report")):
        if not counts.folds[fold]:
            found.append(f"No record in fold {fold}, which is for {use}.")
    if manifest["duplicates"]:
        found.append(
            f"{len(manifest['duplicates'])} records share their signal with another of the same fold; the manifest names them."
        )
    if skipped := manifest["skipped"]:
        most = left_out(skipped)[0]
        found.append(
            f"{len(skipped)} of {len(skipped) + manifest['records']} records are left out, {len(most)} of them: "
            f"{escape(most[0]['reason'])} (all reasons at the end)."
        )
    amplitude = [entry for entry in manifest["skipped"] if entry["reason"].startswith("suspicious amplitude")]
    if amplitude:
        found.append(f"Too large to be in mV, {escape(amplitude[0]['record'])} first of {len(amplitude)}: is it in uV?")
    found += _unused(manifest["incomplete"], counts)
    found += _unmapped(manifest["unmapped"])
    undeclared = [source for source, labels in manifest["declared"].items() if not labels]
    if undeclared:
        found.append(f"Sources without any label, which neither train nor count: {escape(', '.join(undeclared))}.")
    items = "".join(f"<li>{text}</li>" for text in found)
    return f"<h2>To look at</h2><ul class=look>{items}</ul>" if items else ""


def _unused(entries: Sequence[Mapping[str, Any]], counts: Counts) -> list[str]:
    """A sentence a kind of what is not used of records that are kept, as HTML."""
    each: dict[str, list[str]] = {kind: [] for kind in UNUSED}
    for entry in entries:
        n, total = entry["records"], sum(counts.records[entry["source"], split] for split in counts.splits)
        of = "all records" if n == total else f"{number(n)} of {number(total)} records, {escape(entry['first'][0])} first"
        each[entry["kind"]].append(f"{escape(entry['source'])}: <b>{escape(entry['name'] or 'no name')}</b> ({of})")
    return [text.format(_several(each[kind])) for kind, text in UNUSED.items() if each[kind]]


def _unmapped(by_source: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence, as HTML, where records state codes that no label has."""
    total = sum((Counter(codes) for codes in by_source.values()), Counter[str]())
    listed = [f"<b>{escape(code)}</b> ({number(n)})" for code, n in total.most_common()]
    text = "Codes that no label has, and the records that state them: {}. Add them to training/labels.csv if they matter."
    return [text.format(_several(listed))] if listed else []


def _several(names: Sequence[str]) -> str:
    more = f"; {number(len(names) - SHOWN)} more in the manifest" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def _sources(counts: Counts) -> str:
    splits = counts.splits
    rows = []
    for source in sorted({s for s, _ in counts.records}):
        each = [counts.records[source, split] for split in splits]
        rows.append([escape(source), *map(number, (sum(each), len(counts.patients[source]), *each))])
    total = [sum(counts.records[s, split] for s in counts.patients) for split in splits]
    patients = sum(len(ids) for ids in counts.patients.values())
    rows.append(["<b>all</b>", *(f"<b>{number(n)}</b>" for n in (sum(total), patients, *total))])
    return "<h2>Sources</h2>" + table(["source", "records", "patients", *splits], rows)


def _labels(counts: Counts, vocabulary: Sequence[Statement]) -> str:
    names = {s.id: s for s in vocabulary}
    splits = counts.splits
    most = max((c.true.total() for c in counts.labels.values()), default=1) or 1
    rows, never = [], []
    for label, c in sorted(counts.labels.items(), key=lambda item: (-item[1].true.total(), item[0])):
        if not c.true.total():
            never += [label] if c.false.total() else []
            continue
        s = names.get(label)
        english, japanese = (escape(s.name_en), escape(s.name_ja)) if s else ("", "")
        name = f"<b>{escape(label)}</b> {english} <span class=muted lang=ja>{japanese}</span>"
        tier = counts.tier(label)
        bar = "".join(f"<i style='width:{120 * c.true[x] / most:.1f}px;background:{COLOURS[x]}'></i>" for x in splits)
        cells = [name, f"<span class='tier {tier}'>{tier}</span>", f"<div class=bar>{bar}</div>"]
        rows.append([*cells, *(number(c.true[x]) for x in splits), number(c.false.total()), number(c.unknown.total())])
    key = "".join(f"<i style='background:{COLOURS[x]}'></i>{x}" for x in splits)
    text = (
        "<p>Records that state each label. Not annotated is not negative: a record denies a label only where its source "
        "declares it; the rest is unknown and neither trains nor counts. Tiers are the best that folds 1 to 8 allow: 30 "
        "positives for <i>evaluated</i>, 10 for <i>trained</i>; windows of one patient's long recordings count once. "
        "<code>export</code> decides: what it holds out must have 10 of them, and an AUROC beyond chance.</p>"
    )
    end = f"<p class=muted>Declared, but stated of no record: {escape(', '.join(sorted(never)))}.</p>" if never else ""
    head = ["label", "tier", "", *splits, "denied", "unknown"]
    return f"<h2>Labels</h2>{text}<p class='key muted'>{key}</p>{table(head, rows, 3)}{end}"


def _signals(counts: Counts) -> str:
    splits, out = counts.splits, []
    for name, counted in counts.tables.items():
        values = sorted({value for value, _ in counted}, key=lambda v: -sum(counted[v, s] for s in splits))
        if values == [""]:
            continue
        for i, value in enumerate(values):
            each = [counted[value, split] for split in splits]
            cells = [escape(name) if i == 0 else "", escape(value) or "not given"]
            out.append([*cells, *map(number, (sum(each), *each))])
    return "<h2>Signals and people</h2>" + table(["", "", "records", *splits], out, 2)


def _ages(counts: Counts) -> str:
    """Records by age in decades, stacked by sex."""
    if not counts.ages:
        return ""
    sexes = [s for s in ("F", "M", "") if any(x == s for _, x in counts.ages)]
    most = max(sum(counts.ages[band, s] for s in sexes) for band in AGE_BANDS)
    width, height, drawn = 54, 130, []
    for i, band in enumerate(AGE_BANDS):
        y = float(height)
        for s in sexes:
            h = counts.ages[band, s] / most * (height - 18)
            y -= h
            drawn.append(f"<rect x={i * width + 6} y={y:.1f} width={width - 12} height={h:.1f} fill='{COLOURS[s]}'/>")
        total, middle = sum(counts.ages[band, s] for s in sexes), i * width + width // 2
        drawn.append(f"<text x={middle} y={y - 4:.1f} text-anchor=middle font-size=11 fill='#51606e'>{total or ''}</text>")
        last = "90+" if band == AGE_BANDS[-1] else f"{band}-{band + 9}"
        drawn.append(f"<text x={middle} y={height + 14} text-anchor=middle font-size=11 fill='#51606e'>{last}</text>")
    key = "".join(f"<i style='background:{COLOURS[s]}'></i>{SEXES[s]}" for s in sexes)
    size = f"width={len(AGE_BANDS) * width} height={height + 20}"
    return f"<h2>Age</h2><p class='key muted'>Records by age in years:{key}</p><svg {size} role=img>{''.join(drawn)}</svg>"


def left_out(skipped: Sequence[Mapping[str, str]]) -> list[list[Mapping[str, str]]]:
    """Records left out, by kind of reason, the most frequent first: what differs from record to record (numbers, its own name)
    is left out of the kind.
    """
    kinds: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for entry in skipped:
        plain = entry["reason"].replace(entry["record"], "")
        kinds[re.sub(r"'[^']*'|\d+(\.\d+)?", "#", re.sub(r"same signal as \S+", "same signal", plain))[:90]].append(entry)
    return sorted(kinds.values(), key=lambda entries: -len(entries))


def _skipped(skipped: Sequence[Mapping[str, str]]) -> str:
    if not skipped:
        return "<h2>Left out</h2><p>Nothing.</p>"
    rows = []
    for entries in left_out(skipped):
        names = ", ".join(escape(e["record"]) for e in entries[:3]) + (", ..." if len(entries) > 3 else "")
        rows.append([escape(entries[0]["reason"]), f"<span class=muted>{names}</span>", number(len(entries))])
    text = "<p>One line a kind of reason, in the words of its first record; <code>manifest.json</code> has every record.</p>"
    return "<h2>Left out</h2>" + text + table(["reason", "records", ""], rows, 2)
