"""The checker finds every kind of fault, each alone, and finds nothing where there is none."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stream_worker.audit.judge import PartitionAudit
from stream_worker.audit.report import KINDS, Report
from stream_worker.audit.source import MemorySource
from stream_worker.audit.time_range import Span, examine, moment
from stream_worker.devices.simulator import fleet
from stream_worker.errors import ConfigError
from stream_worker.labels import FixedBank
from stream_worker.memory_broker import MemoryBroker, MemoryLog
from stream_worker.pipeline import Pipeline
from stream_worker.run import Rules
from stream_worker.score import Scorer
from stream_worker.seam import Position, Record
from stream_worker.settings import Settings
from stream_worker.telemetry import Metrics
from tests.processes import World
from tests.support import ProjectionEncoder, bank, layout, message, signal

TOPICS = {"ecg.chunks": 2, "ecg.findings": 2, "ecg.dead-letters": 2}
L = layout()
X = signal(L, 60_000)


def settings(**changes: Any) -> Settings:
    fields: dict[str, Any] = {"start": "earliest", "commit_interval_ms": 50, "batch_deadline_ms": 5, "_env_file": None}
    return Settings(**(fields | changes))


async def work(log: MemoryLog, seed: int = 1, ends: bool = True, **changes: Any) -> None:
    """One worker over the log, until it has read everything (or, without `ends`, is stopped somewhere)."""
    encoder = ProjectionEncoder()
    labels = FixedBank(bank(encoder, seed=seed))
    p = Pipeline(MemoryBroker(log), lambda: Scorer(encoder, labels.bank), settings(**changes), Metrics(), labels)
    task = asyncio.create_task(p.run())
    while ends and not all(f'"P":{log.bounds("ecg.chunks", n)[1]},' in _committed(log, n).metadata for n in range(2)):
        await asyncio.sleep(0.02)
    await asyncio.sleep(0 if ends else 0.1)
    p.stop()
    await task


def _committed(log: MemoryLog, partition: int) -> Position:
    return log.commits.get(("ecg-worker", "ecg.chunks", partition), Position(0))


def messages() -> Iterator[tuple[bytes, bytes, float]]:
    """Six streams with losses, repeats and overtaking; one falls silent and comes back; refusals of every sort."""
    yield b"bad", b"noise", 0.5
    for key, value, second in fleet(6, 63, chunk_ms=500, drop=0.03, duplicate=0.05, reorder=0.05, seed=3):
        yield key, value, second
        if key == b"sim-00001" and 20 <= second < 20.5:
            yield *message(L, 0, X[:, :7500], "silent"), second
            yield *message(L, 0, X[:, :500], "silent"), second  # late
            yield *message(L, 6000, X[:, 5000:5500], "silent"), second  # conflict
            yield *message(L, 60_000, X[:, :500], "silent"), second  # index_jump
            yield b"silent", b"", second
    yield *message(L, 30_000, X[:, 30_000:36_000], "silent"), 64.0
    yield *message(L, 36_000, X[:, 36_000:37_000], "silent"), 65.0


def filled(partitions: int = 2) -> MemoryLog:
    log = MemoryLog(dict.fromkeys(TOPICS, partitions))
    for key, value, second in messages():
        log.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
    return log


@dataclass(frozen=True)
class Logs:
    """What one partition holds. Taking a record out leaves the offsets of the others as they are."""

    number: int
    chunks: list[Record]
    findings: list[Record]
    letters: list[Record]
    commit: Position

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.findings]

    def altered(self, at: int, change: Callable[[dict[str, Any]], Any]) -> Logs:
        """One finding says something else."""
        body = self.bodies()[at]
        change(body)
        findings = list(self.findings)
        findings[at] = findings[at]._replace(value=json.dumps(body).encode())
        return replace(self, findings=findings)


def held(log: MemoryLog, partition: int) -> Logs:
    records = [[record for record, _ in log.read(topic, partition, 0)] for topic in TOPICS]
    return Logs(partition, *records, _committed(log, partition))


@pytest.fixture(scope="module")
def worked() -> MemoryLog:
    log = filled()
    asyncio.run(work(log))
    return log


@pytest.fixture
def logs(worked: MemoryLog) -> Logs:
    """The partition of the stream that falls silent."""
    return next(one for one in (held(worked, 0), held(worked, 1)) if any(record.key == b"silent" for record in one.chunks))


def audited(logs: Logs, begin: int = 0, delivery: str = "exactly_once", rules: Rules = Rules(), **options: Any) -> Report:  # noqa: B008
    options = {"start": begin, "whole": begin == 0} | options
    audit = PartitionAudit(logs.number, rules, logs.commit, **options)
    for record in logs.findings:
        audit.finding(record)
    for record in logs.letters:
        audit.letter(record)
    chunks = [record for record in logs.chunks if record.offset >= begin]
    ended = all([audit.chunk(record) for record in chunks])
    report = Report(delivery)
    ends = [records[-1].offset + 1 if records else 0 for records in (logs.findings, logs.chunks)]
    report.add(audit.finish(ends[0], ends[1], ended))
    return report


def found(report: Report) -> dict[str, int]:
    return {kind: count for kind, count in report.counts.items() if count}


# ---- nothing is found where there is nothing


def test_an_undisturbed_log_is_consistent_and_everything_is_judged(worked: MemoryLog) -> None:
    report = asyncio.run(examine(MemorySource(worked), settings()))
    assert (found(report), report.consistent) == ({}, True)
    windows = sum(len(worked.read("ecg.findings", n, 0)) for n in range(2))
    letters = sum(len(worked.read("ecg.dead-letters", n, 0)) for n in range(2))
    assert (windows > 40, letters >= 5) == (True, True)
    assert report.judged == windows + letters
    kinds = {json.loads(r.value or b"")["kind"] for n in range(2) for r, _ in worked.read("ecg.findings", n, 0)}
    assert kinds == {"scored", "unscorable", "closed"}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("hop_ms", [10_000, 5000])
async def test_workers_that_stop_anywhere_and_swap_labels_leave_it_consistent(delivery: str, hop_ms: int) -> None:
    whole, log = list(messages()), MemoryLog(TOPICS)
    for part in range(8):
        for key, value, second in whole[len(whole) * part // 8 : len(whole) * (part + 1) // 8]:
            log.append("ecg.chunks", key, value, timestamp_ms=int(second * 1000))
        await work(log, seed=part, ends=part == 7, delivery=delivery, hop_ms=hop_ms)
    report = await examine(MemorySource(log), settings(hop_ms=hop_ms))
    assert list(report.items()) == []
    assert report.judged > 40


async def test_what_the_group_has_not_read_yet_is_pending() -> None:
    log = filled()
    for partition in range(2):
        log.commits["ecg-worker", "ecg.chunks", partition] = Position(0, '{"v":1,"P":0,"F":0}')
    report = await examine(MemorySource(log), settings())
    assert (found(report), report.judged) == ({}, 0)
    assert report.body()["pending"] > 40


def test_any_range_of_a_consistent_log_is_consistent(logs: Logs) -> None:
    """Also where it begins in the middle of runs, and ends where windows are about to close."""
    judged = []
    for begin in range(0, len(logs.chunks), 23):
        for end in (*range(begin + 1, len(logs.chunks), 61), None):
            report = audited(logs, begin, end=end)
            assert list(report.items()) == [], (begin, end)
            judged.append(report.judged)
    assert max(judged) > 20


def test_ranges_that_follow_each_other_judge_each_window_once(logs: Logs) -> None:
    edges = [0, 17, 171, 172, 300, 410, len(logs.chunks)]
    parts = [audited(logs, 0, start=a, end=b) for a, b in itertools.pairwise(edges)]
    at_end = len(logs.findings) + len(logs.letters) - sum(part.judged for part in parts)
    assert [found(part) for part in parts] == [{}] * 6
    assert at_end == 0


# ---- each fault, alone


def test_each_missing_finding_is_found(logs: Logs) -> None:
    for gone in logs.findings:
        body = json.loads(gone.value or b"")
        report = audited(replace(logs, findings=[r for r in logs.findings if r is not gone]))
        (missing,) = [item for item in report.items() if item["kind"] == "missing"]
        assert (missing["stream"], missing["first_sample"]) == (body["stream"], body["first_sample"])
        assert missing["what"] == ("closed" if body["kind"] == "closed" else "window")
        # where it was the run's last, nothing says that its samples are published: W is beyond them too
        assert set(found(report)) <= {"missing", "early_committed"}
        assert not report.consistent


def test_each_second_finding_is_found_whatever_its_labels(logs: Logs) -> None:
    end = logs.findings[-1].offset + 1
    for record in logs.findings:
        again = replace(logs, findings=[*logs.findings, record._replace(offset=end)])
        report = audited(again)
        assert found(report) == {"doubled": 1}
        (item,) = report.items()
        assert (item["position"], item["again"], item["same_id"]) == (record.offset, end, True)
        assert not report.consistent
        assert audited(again, delivery="at_least_once").consistent  # a reader tells it by its id
        swapped = again.altered(-1, lambda body: body.update(id="0" * 32, bank="2" * 64))
        report = audited(swapped, delivery="at_least_once")
        assert (found(report), report.consistent) == ({"doubled": 1}, False)


FIELDS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("window_digest", lambda b: b.update(window_digest="0" * 64)),
    ("samples", lambda b: b.update(samples=b["samples"] - 1)),
    ("next", lambda b: b.update(next=b["next"] + 1)),
    ("closed", lambda b: b.update(closed="evicted")),
    ("reason", lambda b: b.update(kind="unscorable", reason="gap")),
    ("input.partition", lambda b: b["input"].update(partition=7)),
    ("input.first", lambda b: b["input"].update(first=b["input"]["first"] + 1)),
    ("input.first", lambda b: b["input"].update(first=b["input"]["first"] - 30)),
    ("input.last", lambda b: b["input"].update(last=b["input"]["last"] + 1)),
    ("input.last_timestamp", lambda b: b["input"].update(last_timestamp=b["input"]["last_timestamp"] + 1)),
]


@pytest.mark.parametrize(("field", "change"), FIELDS)
def test_a_finding_that_says_something_else_is_found(logs: Logs, field: str, change: Callable[[dict[str, Any]], Any]) -> None:
    at = next(i for i, b in enumerate(logs.bodies()) if b["kind"] == "scored" and b["first_sample"] >= 10_000)
    report = audited(logs.altered(at, change))
    assert found(report) == {"differing": 1}
    (item,) = report.items()
    assert (item["fields"], item["position"]) == ([field], logs.findings[at].offset)


def test_a_scored_window_that_should_not_have_been_is_found(logs: Logs) -> None:
    at = next(i for i, b in enumerate(logs.bodies()) if b["kind"] == "unscorable")
    report = audited(logs.altered(at, lambda body: body.update(kind="scored")))
    assert [item["fields"] for item in report.items()] == [["reason"]]
    engine = next(i for i, b in enumerate(logs.bodies()) if b["kind"] == "scored")
    assert found(audited(logs.altered(engine, lambda body: body.update(kind="unscorable", reason="engine")))) == {}


def test_the_second_of_two_findings_is_compared_too(logs: Logs) -> None:
    end = logs.findings[-1].offset + 1
    again = replace(logs, findings=[*logs.findings, logs.findings[2]._replace(offset=end)])
    report = audited(again.altered(-1, lambda body: body.update(window_digest="0" * 64)))
    assert found(report) == {"doubled": 1, "differing": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(stream="nobody"),
        lambda body: body.update(first_sample=body["first_sample"] + 1),
        lambda body: body.update(session="another"),
    ],
)
def test_a_finding_that_no_chunk_explains_is_found(logs: Logs, change: Callable[[dict[str, Any]], Any]) -> None:
    end = logs.findings[-1].offset + 1
    made_up = replace(logs, findings=[*logs.findings, logs.findings[3]._replace(offset=end)]).altered(-1, change)
    report = audited(made_up)
    assert found(report) == {"unexpected": 1}
    assert next(report.items())["position"] == end


def test_what_is_no_finding_at_all_is_found(logs: Logs) -> None:
    end = logs.findings[-1].offset + 1
    junk = [Record(logs.number, end + i, 0, b"s", value) for i, value in enumerate((b"noise", b"{}"))]
    assert found(audited(replace(logs, findings=[*logs.findings, *junk]))) == {"unexpected": 2}


def test_a_commit_beyond_unpublished_samples_is_found() -> None:
    """7 s were read, nothing is published: W must stay at 0."""
    chunks = [Record(0, i, i * 1000, *message(L, i * 500, X[:, i * 500 : i * 500 + 500])) for i in range(7)]
    good = Logs(0, chunks, [], [], Position(0, '{"v":1,"P":7,"F":0}'))
    assert found(audited(good)) == {}
    report = audited(replace(good, commit=Position(1, '{"v":1,"P":7,"F":0}')))
    assert found(report) == {"early_committed": 1}
    (item,) = report.items()
    assert (item["what"], item["committed"], item["allowed"]) == ("W", 1, 0)


def test_a_commit_beyond_the_logs_is_found(logs: Logs) -> None:
    end, position = logs.chunks[-1].offset + 1, json.loads(logs.commit.metadata)
    beyond = logs.commit._replace(metadata=json.dumps(position | {"P": end + 1}))
    assert found(audited(replace(logs, commit=beyond))) == {"early_committed": 1}
    last = logs.findings[-1].offset
    beyond = logs.commit._replace(metadata=json.dumps(position | {"F": last + 2}))
    items = list(audited(replace(logs, commit=beyond)).items())
    assert [(item["kind"], item["what"]) for item in items] == [("early_committed", "F")] * 2


def test_a_findings_offset_beyond_a_remembered_run_is_found(logs: Logs) -> None:
    """A restart would not read the last finding of the first stream, and cut its windows again."""
    position = json.loads(logs.commit.metadata)
    assert audited(logs).consistent
    beyond = logs.commit._replace(metadata=json.dumps(position | {"F": position["F"] + 1}))
    (item,) = audited(replace(logs, commit=beyond)).items()
    assert (item["what"], item["allowed"]) == ("F", position["F"])


def test_dead_letters_missing_doubled_and_made_up_are_found(logs: Logs) -> None:
    reasons = {json.loads(record.value or b"")["reason"] for record in logs.letters}
    assert {"late", "conflict", "index_jump", "empty"} <= reasons
    for letter in logs.letters:
        body = json.loads(letter.value or b"")
        rest = [record for record in logs.letters if record is not letter]
        (item,) = audited(replace(logs, letters=rest)).items()
        assert (item["kind"], item["offset"], item["reason"]) == ("missing_letters", body["offset"], body["reason"])
        twice = replace(logs, letters=[*logs.letters, letter])
        assert found(audited(twice)) == {"doubled_letters": 1}
        assert audited(twice, delivery="at_least_once").consistent
        other = letter._replace(
            value=json.dumps(body | {"reason": "index_jump" if body["reason"] != "index_jump" else "late"}).encode()
        )
        assert found(audited(replace(logs, letters=[*rest, other]))) == {"missing_letters": 1, "unexpected_letters": 1}


async def test_a_run_in_two_partitions_is_told_as_split_and_nothing_else() -> None:
    """The partition count grew: the stream's chunks go to another partition from one chunk to the next."""
    log = MemoryLog(TOPICS)
    for i in range(0, 40_000, 500):
        log.append_to("ecg.chunks", int(i >= 17_000), b"s", message(L, i, X[:, i : i + 500])[1], timestamp_ms=i * 2)
    log.append_to("ecg.chunks", 0, *message(L, 0, X[:, :500], "other", last=True), timestamp_ms=90_000)
    await work(log)
    report = await examine(MemorySource(log), settings())
    assert (found(report), report.consistent) == ({"split": 1}, True)
    (item,) = report.items()
    assert item["sides"] == [
        {"partition": 0, "from_sample": 0, "to_sample": 17_000},
        {"partition": 1, "from_sample": 17_000, "to_sample": 40_000},
    ]


# ---- while the worker goes on


async def test_findings_that_come_while_the_audit_reads_are_not_missing(worked: MemoryLog) -> None:
    class Slow(MemorySource):
        """Its findings topic lags behind the commit at the first look, as markers of a transaction do."""

        looks = 0

        async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
            first, end = await super().bounds(topic, partition)
            if topic == "ecg.findings" and partition == 1:
                self.looks += 1
                return first, end - 3 * (self.looks <= 2)
            return first, end

    report = await examine(Slow(worked), settings())
    assert list(report.items()) == []
    assert report.judged == (await examine(MemorySource(worked), settings())).judged


# ---- ranges, and the long warm-up


@pytest.fixture(scope="module")
def long() -> MemoryLog:
    """20 minutes of two streams, 2 s a chunk, in one partition; retention has taken the first minute."""
    log = MemoryLog(dict.fromkeys(TOPICS, 2))
    for i in range(600):
        for stream in ("a", "b"):
            x = X[:, (i % 60) * 1000 : (i % 60) * 1000 + 1000]
            log.append_to("ecg.chunks", 0, *message(L, i * 1000, x, stream), timestamp_ms=i * 2000)
        log.append_to("ecg.chunks", 1, *message(L, i * 1000, X[:, :1000], "c"), timestamp_ms=i * 2000)
    asyncio.run(work(log))
    log.trim("ecg.chunks", 0, 60)
    return log


async def test_a_range_by_time_reads_what_it_needs_before(long: MemoryLog) -> None:
    read: list[int] = []

    class Watched(MemorySource):
        async def read(self, topic: str, partition: int, start: int, end: int) -> Any:
            async for record in super().read(topic, partition, start, end):
                if topic == "ecg.chunks":
                    read.append(record.offset)
                yield record

    report = await examine(Watched(long), settings(), Span(since=900_000, until=1_000_000, partitions=[0]))
    assert found(report) == {}
    assert report.judged == 20  # 100 s of two streams
    assert (min(read), max(read)) == (270, 1030)  # from 630 s before until 30 s after
    (part,) = report.body()["partitions"]
    assert (part["from"], part["to"]) == (900, 1000)


async def test_offsets_of_one_partition(long: MemoryLog) -> None:
    report = await examine(MemorySource(long), settings(), Span(offsets=(900, 1000), partitions=[0]))
    assert (found(report), report.judged) == ({}, 20)


async def test_a_log_that_retention_has_cut_is_judged_from_12_s_after_its_first_chunks(long: MemoryLog) -> None:
    report = await examine(MemorySource(long), settings(), Span(partitions=[0]))
    assert found(report) == {}
    # 60 s are gone, the first 14 s held are not judged: windows from 80 s on, up to 1200 s, of two streams
    assert report.judged == 2 * 112


async def test_what_cannot_be_checked_is_said() -> None:
    with pytest.raises(ConfigError, match="group ecg-worker has committed nothing"):
        await examine(MemorySource(MemoryLog(TOPICS)), settings())
    with pytest.raises(ConfigError, match=r"topic ecg\.chunks does not exist"):
        await examine(MemorySource(MemoryLog({})), settings())
    with pytest.raises(ConfigError, match=r"ecg\.dead-letters has 1 partitions and ecg\.chunks has 2"):
        await examine(MemorySource(MemoryLog(TOPICS | {"ecg.dead-letters": 1})), settings())


def test_times() -> None:
    assert moment("90s", 100_000) == 10_000
    assert moment("2h", 7_200_001) == 1
    assert moment("1970-01-01T00:01:00", 0) == moment("1970-01-01T01:01:00+01:00", 0) == 60_000
    with pytest.raises(ConfigError, match="is no time"):
        moment("yesterday", 0)


def test_json_names_everything_and_people_see_a_table(logs: Logs) -> None:
    report = audited(replace(logs, findings=logs.findings[:-1]))
    body = report.body()
    assert json.loads(json.dumps(body)) == body
    assert body["consistent"] is False
    assert set(body["counts"]) == set(KINDS)
    assert {"missing", "early committed"} <= {str(column.header) for column in report.table().columns}


def test_all_is_counted_where_not_all_is_kept(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_worker.audit.report.KEPT", 3)
    body = audited(replace(logs, findings=[*logs.findings, *logs.findings])).body()
    assert (body["counts"]["doubled"], len(body["items"])) == (len(logs.findings), 3)
    assert body["items_left_off"] == len(logs.findings) - 3


# ---- the command


def test_the_command_explains_itself_and_says_what_is_wrong_with_its_options() -> None:
    world = World("127.0.0.1:1")
    text = world.command("audit", "--help").stdout
    for word in ("--since", "--until", "--offsets", "--delivery", "pending", "2 could not be checked"):
        assert word in text
    for options in (["--offsets", "1:2"], ["--since", "soon"], ["--delivery", "never"], ["--partition", "0", "--offsets", "x"]):
        done = world.command("audit", *options, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_worker_on_a_real_cluster_is_consistent_until_a_finding_is_published_twice(kafka: str, delivery: str) -> None:
    from stream_worker.kafka.clients import DeviceProducer

    world = World(kafka, ECG_DELIVERY=delivery)
    world.command("topics", "--apply", "--partitions", "2")
    chunks = [(key, value) for key, value, _ in fleet(4, 30, drop=0.02, duplicate=0.05, reorder=0.05, seed=8)]

    async def send(topic: str, messages: list[tuple[bytes, bytes]]) -> None:
        async with DeviceProducer(kafka, {}) as producer:
            await producer.send(world.env[topic], messages)

    asyncio.run(send("ECG_CHUNKS_TOPIC", [*chunks, (b"bad", b"noise")]))
    with world.worker() as worker:
        worker.wait_ready()
        worker.until(lambda: len(world.findings(quiet_s=2)) == 16)  # three windows and a closing each
        assert worker.stop() == 0
    clean = world.command("audit", "--json", check=False)
    body = json.loads(clean.stdout)
    assert (clean.returncode, body["items"]) == (0, [])
    letters = world.findings(topic=world.env["ECG_DEAD_LETTERS_TOPIC"])
    assert body["judged"] == 16 + len(letters) > 16
    again = world.findings()[0]
    asyncio.run(send("ECG_FINDINGS_TOPIC", [(again["stream"].encode(), json.dumps(again).encode())]))
    doubled = world.command("audit", "--delivery", "exactly_once", check=False)
    assert (doubled.returncode, "doubled: 1" in doubled.stdout) == (1, True)
    assert world.command("audit", "--delivery", "at_least_once", check=False).returncode == 0
    assert world.command("audit", "--until", "1d", check=False).returncode == 2  # nothing of it was there a day ago
