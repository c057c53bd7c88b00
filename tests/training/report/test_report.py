"""The page holds every label and fetches nothing; the errors it draws are the worst by construction; bad input is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from encoders.artifact import Artifact
from encoders.bank import TextModel
from encoders.signal import LEADS
from training.__main__ import app
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.prepare import prepare
from training.evaluation.evaluate import Evidence
from training.evaluation.worst import worst_mistakes
from training.learning.checkpoint import save_checkpoint
from training.report.figures import Curve, reliability_bins, roc_figure, span
from training.report.one_file import render
from training.report.report import Report, Subject, measure, told, unassessable
from training.sources.annotated import Annotated, Source
from training.text.labels import build
from training.vocabulary import Statement, select

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "model"
N = 24
TEXT = TextModel(model="some/model", pooling="mean", prompt="This ECG shows {label}.", language="en")
VOID = {"meta", "br", "circle", "path", "rect", "polyline", "polygon"}


def annotated(folder: Path, k: int) -> Annotated:
    """12 leads, the last of fold 9 lead I only. AFIB: the first half; CLBBB: every second; SR: who has no AFIB."""
    leads = LEADS if k != N - 1 else ("I",)
    counts = np.random.default_rng(k).normal(0, 300, (5000, len(leads)))
    (folder / f"r{k}.dat").write_bytes(counts.astype("<i2").tobytes())
    lines = [f"r{k} {len(leads)} 500 5000", *(f"r{k}.dat 16 1000(0)/mV 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / f"r{k}.hea").write_text("\n".join(lines) + "\n")
    positive = ("AFIB",) if k < 12 else ("SR",)
    unknown = ("PVC",) if k == 20 else ()
    return Annotated(
        folder / f"r{k}",
        f"s/r{k}<i>",
        f"p{k}",
        9 if k < N else 1,
        positive + ("CLBBB",) * (k % 2 == 0),
        unknown,
        "s",
        sex="FM"[k % 2],
        age=30.0 + 2 * k,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    declared = {"s": ("AFIB", "CLBBB", "PVC", "SR")}
    prepare([Source("s", "x", tuple(annotated(folder, k) for k in range(N + 2)), declared, ())], folder / "out", "cmd <x>")
    return folder / "out"


class Planted:
    """Logits (N, L) by construction, again for each pass over the records."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.at = logits, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = self.logits[self.at : self.at + len(x)]
        self.at = (self.at + len(x)) % N
        return out


def subject(records: DataSet, **more: object) -> Subject:
    n = len(records.labels)
    base = Subject("artifact", "abc", "d" * 64, TEXT, {"lr": 0.1}, (1, 2), (3,), ("unsupported",) * n, (0,) * n)
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(data: Path, vocabulary: tuple[Statement, ...]) -> Report:
    """AFIB, CLBBB, SR and PVC have evidence; only PVC has too few cases. Planted: r5 and r9 lack AFIB, r20 lacks CLBBB,
    r14 is said to have AFIB, r10 SR."""
    records = DataSet(data, select(vocabulary, "core98"), (9,))
    ids = [s.id for s in records.labels]
    y, _ = records.targets
    logits = np.where(y, 3, -3).astype(np.float32)
    for record, label, value in ((5, "AFIB", -6), (9, "AFIB", -5), (20, "CLBBB", -4), (14, "AFIB", 5), (10, "SR", 3.5)):
        logits[record, ids.index(label)] = value
    logits[23, ids.index("CLBBB")] = 9  # not assessable from lead I: no error
    logits[20, ids.index("PVC")] = 9  # undecided: no error
    logits[3, ids.index("SARRH")] = 9  # no evidence: no error
    candidates = np.isin(ids, ("AFIB", "CLBBB", "SR", "PVC"))
    platt = np.where(candidates[:, None], (1.0, 0.0), np.nan)
    evidence = Evidence(candidates, np.full(len(ids), 0.25), platt, np.where(candidates, 0.5, np.nan))
    tiers = tuple("trained" if c else "unsupported" for c in candidates)
    who = subject(records, tiers=tiers, positives=tuple(12 if c else 0 for c in candidates))
    return measure(who, Planted(logits), records, evidence, "cmd <y>")


def test_the_worst_errors_are_the_planted_ones(made: Report) -> None:
    ids = made.predictions.ids
    found = [(made.records.index[m.row]["record"], ids[m.label], m.stated) for m in made.worst]
    # r9 and r14 are less wrong, of a label that has its place already
    assert found == [("s/r5<i>", "AFIB", True), ("s/r20<i>", "CLBBB", True), ("s/r10<i>", "SR", False)]
    assert made.worst[0].probability == pytest.approx(1 / (1 + np.exp(6)))
    page = render(made)
    errors = page[page.index("<h2 id=errors>") :]
    assert errors.count("class='ecg'") == 3
    assert re.findall(r"s/r\d+&lt;i&gt;, source s", errors) == [f"s/r{k}&lt;i&gt;, source s" for k in (5, 20, 10)]
    assert "Probability <b>0.002</b>, threshold 0.500. Stated: AFIB." in errors
    assert "undecided: PVC" in errors  # of r20
    points = re.search(r"<polyline points='([^']*)'", errors)
    assert points is not None
    x = made.records.windows(np.array([5]))[0, 0]
    zero = (8 + 25 * 0.55) * 4  # mm of the first row's middle, 4 units each
    seen = [zero - float(p.split(",")[1]) for p in points[1].split()]
    np.testing.assert_allclose(np.array(seen) / 12, x[:1250:2], atol=0.006)  # 3 mm an SD, one decimal


def test_worst_first_one_a_label_and_both_kinds() -> None:
    p = np.array([[0.9, 0.2, 0.6], [0.1, 0.8, 0.4], [0.7, 0.1, 0.45], [0.05, 0.3, 0.95]])
    y = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)
    known = np.ones_like(y)
    cut = np.array([0.5, 0.25, np.nan])

    def found(labels: list[int], most: int = 12) -> list[tuple[int, int, bool]]:
        return [(m.row, m.label, m.stated) for m in worst_mistakes(p, y, known, cut, labels, most)]

    # by hand: label 0 errs by .95 (row 3), .9, .9, .7; label 1 by .9 (row 2), .8, .8, .3; label 2 (cut at 0.5) by .6 and .55
    assert found([0, 1, 2]) == [(3, 0, True), (2, 1, True), (0, 2, False)]
    assert found([0, 1, 2], 2) == [(3, 0, True), (1, 1, False)]  # one of each kind, where both have one
    assert found([2], 2) == [(0, 2, False)]
    assert found([]) == []
    known[3, 0] = False
    assert found([0]) == [(0, 0, False)]  # .9 as well as row 1: the earlier record
    assert worst_mistakes(p, y, known, cut, [0])[0].threshold == 0.5
    assert worst_mistakes(p, y, known, cut, [2])[0].threshold is None


class Strict(HTMLParser):
    """Text of the page; fails where a tag is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    reader = Strict()
    reader.feed(page)
    assert reader.open == []
    return re.sub(r"\s+", " ", "".join(reader.text))


def test_the_page_fetches_nothing_and_names_every_label(made: Report) -> None:
    page = render(made)
    assert not re.search(
        r"<script|<link|<img|<iframe|<object|@import|https?:|\bsrc=|url\((?!#)|javascript", page, re.IGNORECASE
    )
    assert set(re.findall(r"href=['\"]?([^'\" >]+)", page)) <= {f"#{key}" for key in re.findall(r"id=(\w+)", page)}
    text = read(page)
    for s in made.records.labels:
        assert f"<b>{s.id}</b> " in page
        assert s.name_ja in text
    assert len(page) < 1_000_000
    assert "cmd <y>" in text  # escaped in the file
    assert "Research software, not a medical device." in text
    assert "holds waveforms and record names" in text
    assert "fold 9: 24 records of 24 patients. Weights were fitted on folds 1, 2, calibration and thresholds on fold 3." in text
    assert "Without evidence: 94 labels" in text
    assert "Critical labels with evidence: none of 9." in text
    assert "forbids medical use" not in text
    assert "took part in fitting" not in text


def test_labels_stand_by_urgency_then_support(made: Report) -> None:
    page = render(made)
    table = page[page.index("<h2 id=labels>") : page.index("<h2 id=silent>")]
    rows = re.findall(r"<tr><td[^>]*><b>(\w+)</b>", table)
    assert rows == ["AFIB", "CLBBB", "PVC", "SR"]  # urgent twice, routine, normal; equal support: the vocabulary's order
    more = replace(
        made.subject,
        positives=tuple(50 if s.id == "CLBBB" else n for s, n in zip(made.records.labels, made.subject.positives, strict=True)),
    )
    table = render(replace(made, subject=more)).split("<h2 id=labels>")[1].split("<h2 id=silent>")[0]
    assert re.findall(r"<tr><td[^>]*><b>(\w+)</b>", table) == ["CLBBB", "AFIB", "PVC", "SR"]
    pvc = table[table.index("<b>PVC</b>") :]
    assert pvc.index("too few cases here") < pvc.index("</tr>")


def test_what_leads_do_not_show_is_listed_by_name(made: Report) -> None:
    ids = made.predictions.ids
    hidden = {name: {ids[j] for j in places} for name, places in unassessable(made.records).items()}
    assert hidden["12"] == set()
    assert hidden["limb6"] == hidden["I+II"] < hidden["I"]
    assert "CLBBB" in hidden["I+II"]
    assert hidden["I"] - hidden["I+II"] >= {"LAD", "RAD"}
    page = render(made)
    part = page[page.index("<h2>Not assessable") : page.index("<h2 id=subgroups>")]
    for label in hidden["I"]:
        assert re.search(rf"\b{label}\b", part), label


def test_the_head_warns(made: Report) -> None:
    own = replace(made.subject, fitted=(8, 9), text=TEXT.model_copy(update={"model": "/models/medllama3-jp-v2"}))
    text = read(render(replace(made, subject=own)))
    assert (
        "Fold 9 took part in fitting or calibrating this artifact: if these are its own data, the figures are too good." in text
    )
    assert "The card of EQUES/MedLLama3-JP-v2 forbids medical use" in text


def test_a_label_no_better_than_chance_is_not_called_evaluated_without_remark(made: Report) -> None:
    twelve = made.full
    each = {**twelve["per_label"], "AFIB": {**twelve["per_label"]["AFIB"], "auroc": 0.56, "auroc_interval": [0.49, 0.62]}}
    sets = {**made.metrics["lead_sets"], "12": {**twelve, "per_label": each}}
    evaluated = tuple("evaluated" if tier == "trained" else tier for tier in made.subject.tiers)
    page = render(replace(made, metrics={**made.metrics, "lead_sets": sets}, subject=replace(made.subject, tiers=evaluated)))
    assert "No better than chance as far as these records tell (the interval does not lie above 0.5): AFIB." in page
    assert page.count("evaluated</span><br><span class=muted>here no better than chance</span>") == 1
    assert "better than chance" not in render(made)


def test_what_falls_behind_by_more_than_chance_is_named(made: Report) -> None:
    metrics = json.loads(json.dumps(made.metrics))
    metrics["lead_sets"]["I+II"]["loss"] = {"labels": 2, "value": 0.01, "interval": [-0.002, 0.02]}
    metrics["lead_sets"]["I"]["loss"] = {"labels": 2, "value": 0.03, "interval": [0.012, 0.05]}
    part = {"labels": 2, "macro_auroc": 0.7, "macro_auroc_interval": [0.6, 0.79], "same_labels_all_records": 0.8}
    metrics["lead_sets"]["12"]["subgroups"]["sex"]["F"] |= part
    metrics["lead_sets"]["12"]["subgroups"]["sex"]["M"] |= part | {"macro_auroc_interval": [0.6, 0.81]}
    metrics["lead_sets"]["12"]["calibration"] |= {"slope": 0.5, "slope_interval": [0.4, 0.7], "brier_skill_below_0": ["SR"]}
    metrics["lead_sets"]["12"]["per_label"]["AFIB"]["predictive"]["sensitivity"]["value"] = 0.4
    text = read(render(replace(made, metrics=metrics)))
    part_of = text[text.index("To look at") : text.index("By leads")]
    assert "0.030 of macro AUROC (0.012–0.050) is lost from 12 leads to lead I." in part_of
    assert "to leads I and II" not in part_of
    assert "Lower for sex F: 0.700 (0.600–0.790), all records 0.800, same 2 labels." in part_of
    assert "sex M" not in part_of
    assert "Probabilities are too extreme: calibration slope 0.50 (0.40–0.70), 1 is right." in part_of
    assert "Worse than always saying the prevalence: SR." in part_of
    assert "Found in fewer than half of their records at the threshold: AFIB 0.40." in part_of


def test_what_withholding_would_gain_is_shown(made: Report) -> None:
    # 4 labels of 24 records less 2 unknown; 36 findings, 3 missed; 2 said wrongly; the wrong ones are the surest of all
    text = read(render(made))
    part_of = text[text.index("Withholding") :]
    assert "94 decisions of labels with a threshold, 36 of findings that are present." in part_of
    assert re.search(r"100%0\.0532[\d.–]+?0\.9170\.0830\.0000\.057", part_of)
    assert f"80%{5 / (0.8 * 94):.4f}" in part_of
    assert "by grade" not in part_of
    metrics = json.loads(json.dumps(made.metrics))
    withheld = {"0.95": 0.13, "0.9": 0.21, "0.8": None}
    metrics["lead_sets"]["12"]["abstention"]["quality"] = {"noisy": {"records": 1, "decisions": 384, "withheld": withheld}}
    assert "withheld, by gradedecisions95%90%80%noisy3840.130.21-" in read(render(replace(made, metrics=metrics)))


def test_false_positives_of_long_recordings_are_shown_where_there_are_any(made: Report) -> None:
    assert "False positives" not in read(render(made))
    metrics = json.loads(json.dumps(made.metrics))
    each = {"PVC": {"per_hour": 15.1, "per_hour_interval": [4.0, 28.0], "hours": 14.9, "patients": 38}}
    each["AFIB"] = {"per_hour": 38.8, "per_hour_interval": None, "hours": 16.1, "patients": 1}
    metrics["lead_sets"]["12"]["false_positives"] = {"hours": 20.8, "patients": 43, "per_label": each}
    text = read(render(replace(made, metrics=metrics)))
    assert "20.8 h of 43 patients in all" in text
    assert "AFIB38.816.11PVC15.14.0–28.014.938" in text


def test_long_recordings_are_shown_one_by_one(made: Report) -> None:
    assert "By recording" not in read(render(made))
    metrics = json.loads(json.dumps(made.metrics))
    m = {"windows": 30, "without": 150, "recordings": 1, "patients": 1, "patients_without": 2, "sensitivity": 0.9}
    m |= {"few_patients_auroc": None, "few_patients_auroc_interval": None, "within_recordings": 1, "within_auroc_median": 0.875}
    m |= {"said_wrongly": 0.02, "per_recording": {"long/x<i>": {"windows": 30, "found": 27, "without": 90, "wrong": 3}}}
    m["per_recording"]["long/y"] = {"windows": 0, "found": 0, "without": 60, "wrong": 0}
    found = {"recordings": 2, "patients": 2, "windows": 180, "per_label": {"AFIB": m}}
    metrics["lead_sets"]["12"]["recordings"] = found | {"unsupported": {"JRHY": 7}, "not_shown": {}}
    page = render(replace(made, metrics=metrics))
    read(page)  # closes what it opens
    part_of = read(page[page.index("<h2 id=recordings>") : page.index("<h2 id=labels>")])
    assert "180 windows of 2 long recordings, 2 patients" in part_of
    assert "AFIB3011-0.87510.900.020" in part_of
    assert "AFIBlong/x<i>3027903" in part_of
    assert "long/y" not in part_of
    assert "Stated, but the model has no probability with a threshold, windows: JRHY 7." in part_of
    assert "do not show it, windows" not in part_of


def test_metrics_json_holds_what_the_page_shows(made: Report) -> None:
    body = json.loads(told(made))
    assert body["data"] == {"name": "out", "digest": made.records.digest, "folds": [9]}
    assert body["subject"]["text"]["model"] == "some/model"
    assert body["lead_sets"]["12"]["labels"] == 3
    assert body["tiers"]["PVC"] == "trained"
    assert [(e["row"], e["label"]) for e in body["worst"]] == [("s/r5<i>", "AFIB"), ("s/r20<i>", "CLBBB"), ("s/r10<i>", "SR")]
    assert "CLBBB" in body["unassessable"]["I+II"]


def test_a_set_with_too_few_cases_makes_a_page_too(data: Path, vocabulary: tuple[Statement, ...]) -> None:
    records = DataSet(data, select(vocabulary, "PVC,VT"), (9,))
    evidence = Evidence.uncalibrated(np.array([True, False]), np.array([0.1, np.nan]))
    found = measure(subject(records, kind="run"), Planted(np.zeros((N, 2), dtype=np.float32)), records, evidence)
    text = read(render(found))
    json.loads(told(found))
    assert "0 of 2labels measured here" in text
    assert "Not measured: a run is calibrated when it is exported." in text
    assert "Withholding" not in text
    assert "None among the labels measured here." in text


def test_bins_of_the_reliability_curve() -> None:
    p = np.repeat([0.1, 0.5, 0.9], 50)
    y = np.concatenate([np.arange(50) < 5, np.arange(50) < 50, np.arange(50) < 45])
    bins = reliability_bins(p, y)
    assert [b.count for b in bins] == [10] * 15
    assert [b.said for b in bins] == pytest.approx([0.1] * 5 + [0.5] * 5 + [0.9] * 5)
    assert [b.seen for b in bins] == [0.5, 0, 0, 0, 0] + [1] * 5 + [1, 1, 1, 1, 0.5]
    # of 10 fair coins 2 to 8 come up in 97.9 %, 10 never in 500 draws of 95 %
    assert all((b.low, b.high) == (0.2, 0.8) and b.seen > b.high for b in bins[5:10])


def test_figures_by_hand() -> None:
    assert "cx='85.0'" in span(0.75, None)  # the middle of 8 to 162
    assert "M8.0 7.0H162.0" in span(0.6, [0.3, 1.0])  # cut at 0.5
    # at 0.5 one of two positives and one of two negatives are said: the middle of 42 to 192 and 22 to 172
    curve = Curve("A", 0.75, np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False]), 0.5)
    assert "<circle cx='117.0' cy='97.0'" in roc_figure(curve)
    assert "<circle" not in roc_figure(replace(curve, threshold=None))


def run(*arguments: object, code: int = 0) -> Result:
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command_reports_the_shipped_artifact(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    said = run(SHIPPED, "--data", data, "--folds", 9, "--out", out).output
    assert "holds waveforms of out; metrics.json beside" in " ".join(said.split())
    page, metrics = out.read_text(encoding="utf-8"), json.loads((out.parent / "metrics.json").read_text())
    artifact = Artifact.load(SHIPPED)
    assert artifact.digest[:16] in read(page)
    for label in artifact.bank().labels:
        assert f"<b>{label.id}</b> " in page
    assert (metrics["subject"]["digest"], metrics["records"]) == (artifact.digest, N)
    assert sorted(path.name for path in out.parent.iterdir()) == ["metrics.json", "report.html"]


@pytest.fixture
def other_run(data: Path, tmp_path: Path, vocabulary: tuple[Statement, ...]) -> Iterator[tuple[Path, Path]]:
    """A checkpoint that names other data, and its text."""

    class Tower:
        def embed(self, sentences: list[str], batch: int = 1, advance: object = None) -> np.ndarray:
            rows = np.random.default_rng(0).normal(size=(len(sentences), 8)).astype(np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    build(Tower(), TEXT, select(vocabulary, "core98"), tmp_path / "text")  # type: ignore[arg-type]
    config = replace(TrainConfig(), train_folds=(1,), calibration_folds=())
    state = {"config": config.as_dict(), "step": 0, "data": "0" * 64, "labels": []}
    save_checkpoint(tmp_path / "run", {"a": torch.zeros(1)}, state)
    return tmp_path / "run", tmp_path / "text"


def test_bad_input_names_the_remedy(data: Path, tmp_path: Path, other_run: tuple[Path, Path]) -> None:
    out = ["--out", tmp_path / "page.html"]
    absent = run(tmp_path / "none", "--data", data, *out, code=2).stderr
    assert "does not exist" in re.sub(r"[\s│]+", " ", absent)
    assert "manifest.json" in run(tmp_path, "--data", data, *out, code=2).stderr  # neither a run nor an artifact
    made, text = other_run
    assert "give --text too" in run(made, "--data", data, *out, code=2).stderr
    assert "belongs to other data or text: " in run(made, "--data", data, "--text", text, *out, code=2).stderr
    assert "no record in folds 4" in run(SHIPPED, "--data", data, "--fold", 4, *out, code=2).stderr
    assert "ecg-train prepare" in run(SHIPPED, "--data", tmp_path, *out, code=2).stderr
    assert not (tmp_path / "page.html").exists()


def test_the_page_is_not_written_where_it_would_change_something(data: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    refused = run(SHIPPED, "--data", data, "--out", tmp_path / "report.html", code=2).stderr
    assert "choose another folder" in refused
    assert "ends in .html expected" in run(SHIPPED, "--data", data, "--out", tmp_path / "report", code=2).stderr
    (tmp_path / "d.html").mkdir()
    assert "is a directory" in run(SHIPPED, "--data", data, "--out", tmp_path / "d.html", code=2).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.html", "manifest.json"]


def test_a_place_that_cannot_be_is_refused_before_the_work(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("training.evaluation.scorers.open_scorer", lambda *_: pytest.fail("opened"))
    arguments = ["report", str(SHIPPED), "--data", str(data), "--out", str(tmp_path / "file" / "report.html")]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_help_says_that_the_page_holds_recordings() -> None:
    said = re.sub(r"[\s│]+", " ", run("--help").output)
    assert "recordings of the data set" in said
