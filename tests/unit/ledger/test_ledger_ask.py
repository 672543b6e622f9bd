"""`exeat ledger query|reconcile`, on ledgers made by the real store."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ledgers import flow_id

from exeat.appliance.cli import main
from exeat.ledger import index, questions
from exeat.ledger.reconcile import reconcile
from exeat.ledger.records import Dest, Kind, Record, decode, encode
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path

NOON = 1_790_000_000_000_000_000
HOUR = 3_600_000_000_000


def of(kind: Kind, flow: int | None, at: int = NOON, **fields: Any) -> bytes:
    return encode(Record(kind, at, 10**10, b"" if flow is None else flow_id(flow), **fields))


def flow(number: int, host: str, out: int, into: int, at: int = NOON, **who: Any) -> list[bytes]:
    common = {
        "project": "p1",
        "job": "j1",
        "decision": "allow",
        "dest": Dest(host, 443, "tcp", b"1234", host),
        **who,
    }
    kernel = {"kernel_out": out, "kernel_in": into, "segs_out": 5, "segs_in": 5}
    return [
        of(Kind.OPEN, number, at, **common),
        of(Kind.RESERVE, number, at, reserved=out + into),
        of(Kind.CLOSE, number, at, **{**kernel, **common, "bytes_out": out, "bytes_in": into}),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1, segment_bytes=4096)
    made.append(flow(1, "a.example.org", 10, 100, src="jail:j1"), 1)
    second = {"job": "j2", "agent": "x", "src": "jail:j2 to 192.0.2.1:443", "lease_id": "p1/x/1"}
    made.append(flow(2, "a.example.org", 20, 200, NOON + HOUR, **second), 1)
    made.append(flow(3, "b.example.net", 1, 2, NOON + 2 * HOUR, project="p2", job="j3"), 1)
    refused = {"project": "p1", "job": "j1", "decision": "deny", "reason_code": "rule.deny"}
    made.append([of(Kind.DENY, None, NOON + 1, dest=Dest("bad.example.org", 443), **refused)], 1)
    made.append([of(Kind.DNS, None, NOON + 2, count=7, dest=Dest("c.example.org"), **refused)], 1)
    return made


def ask(store: Store, capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["--state-dir", str(store.directory.parent.parent), "ledger", "query", *argv, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("argv", "seqs"),
    [
        ([], [2, 5, 8, 9, 10]),
        (["--job", "j1"], [2, 9, 10]),
        (["--project", "p2"], [8]),
        (["--agent", "x"], [5]),
        (["--host", "a.example.org"], [2, 5]),
        (["--host", "*.example.org"], [2, 5, 9, 10]),
        (["--verdict", "deny"], [9, 10]),
        (["--verdict", "allow", "--host", "b.example.net"], [8]),
        (["--reason", "rule.deny", "--limit", "1"], [10]),
        (["--since", "2026-09-21T14:43:20Z", "--until", "2026-09-21T15:43:20Z"], [5]),
        (["--job", "' or 1 --"], []),
    ],
)
def test_filters(store: Store, capsys: pytest.CaptureFixture[str], argv: list[str], seqs: list[int]) -> None:
    assert [row["seq"] for row in ask(store, capsys, *argv)] == seqs


def test_times(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    times = {row["seq"]: row["time"] for row in ask(store, capsys)}
    assert times[2] == "2026-09-21T14:13:20.000Z"
    since = ask(store, capsys, "--since", times[5])
    assert [row["seq"] for row in since] == [5, 8]
    assert [row["seq"] for row in ask(store, capsys, "--until", times[5])] == [2, 9, 10]


def test_sums(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    by_host = {row["host"]: row for row in ask(store, capsys, "--sum", "project,host")}
    assert by_host["a.example.org"] == {
        "project": "p1",
        "host": "a.example.org",
        "bytes_out": 30,
        "bytes_in": 300,
        "flows": 2,
        "other": 0,
        "cost_nano_usd": 0,
    }
    assert (by_host["c.example.org"]["flows"], by_host["c.example.org"]["other"]) == (0, 7)
    by_hour = ask(store, capsys, "--sum", "hour", "--verdict", "allow")
    assert {row["hour"]: row["bytes_in"] for row in by_hour} == {
        "2026-09-21T14:00Z": 100,
        "2026-09-21T15:00Z": 200,
        "2026-09-21T16:00Z": 2,
    }
    kinds = {row["kind"]: row["flows"] for row in ask(store, capsys, "--sum", "kind")}
    assert kinds == {"close": 3, "deny": 0, "dns": 0}


def test_sums_of_what_flows_cost(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for number, cost in ((11, 5), (12, 70)):
        opened, reserved, closed = flow(number, "cloud.example.org", 1, 1)
        priced = replace(decode(closed), cost_nano_usd=cost, tariff="t", detail="unacked 1")
        store.append([opened, reserved, encode(priced)], 1)
    by_host = {row["host"]: row["cost_nano_usd"] for row in ask(store, capsys, "--sum", "host")}
    assert by_host["cloud.example.org"] == 75
    assert sum(by_host.values()) == 75
    assert [row["cost_nano_usd"] for row in ask(store, capsys, "--host", "cloud.example.org")] == [5, 70]
    assert ask(store, capsys, "--sum", "job", "--host", "cloud.example.org")[0]["cost_nano_usd"] == 75
    assert main(["--state-dir", str(store.directory.parent.parent), "ledger", "query", "--sum", "day"]) == 0
    assert capsys.readouterr().out.split()[-1] == "75"


def test_the_index_catches_up_and_is_made_anew(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(ask(store, capsys)) == 5
    store.append(flow(4, "d.example.org", 5, 6), 1)
    whole = ask(store, capsys)
    assert len(whole) == 6
    path = store.directory / "derived" / "index.sqlite"
    path.write_bytes(b"not a database at all" * 300)
    assert ask(store, capsys) == whole
    path.unlink()
    assert ask(store, capsys) == whole


def test_formats(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(store.directory.parent.parent)
    assert main(["--state-dir", state, "ledger", "query", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["seq"] for row in rows] == ["2", "5", "8", "9", "10"]
    assert main(["--state-dir", state, "ledger", "query", "--sum", "host"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["host", "bytes_out", "bytes_in", "flows", "other"]
    assert first.split() == ["a.example.org", "30", "300", "2", "0"]


def test_a_formula_stays_a_text_in_csv(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.append([of(Kind.DENY, None, dest=Dest("=cmd()", 1), decision="deny")], 1)
    main(["--state-dir", str(store.directory.parent.parent), "ledger", "query", "--format", "csv"])
    assert ",'=cmd()," in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["--sum", "weather"], ["--since", "lately"], ["--port", "x"], ["--limit", "-1"]]
)
def test_unusable_questions(store: Store, argv: list[str]) -> None:
    try:
        code = main(["--state-dir", str(store.directory.parent.parent), "ledger", "query", *argv])
    except SystemExit as stop:
        code = stop.code
    assert code == 2


def test_an_open_flow_shows_until_it_is_settled(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "exeat/n1", 1)
    parts = flow(1, "a.example.org", 10, 100)
    seen = []
    store.append(parts[:1], 1)
    for more in (parts[1:2], [of(Kind.ORPHAN, 1, bytes_out=4)], parts[2:]):
        found = index.open_index(store.directory)
        seen.append([(row[2], row[7], row[-4]) for row in questions.entries(found, questions.Question(), 10)])
        found.close()
        store.append(more, 1)
    found = index.open_index(store.directory)
    seen.append([(row[2], row[7], row[-4]) for row in questions.entries(found, questions.Question(), 10)])
    found.close()
    assert [[kind for kind, *_ in rows] for rows in seen] == [["open"], ["open"], ["orphan"], ["close"]]
    assert seen[2] == [("orphan", "", 4)]


NUMBERS = st.integers(0, 2**40)
FLOWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["j1", "j2"]), NUMBERS, NUMBERS, st.booleans()),
    max_size=30,
)


@given(FLOWS)
@settings(max_examples=25)
def test_sums_are_those_of_the_records(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    store = Store.create(tmp_path_factory.mktemp("l") / "l", "exeat/n1", 1)
    expected: dict[tuple[str, str], list[int]] = {}
    for number, (host, job, out, into, slow) in enumerate(made):
        store.append(flow(number, host, out, into, 1 if slow else NOON, job=job), 1)
        sums = expected.setdefault((host, job), [0, 0, 0])
        for at, more in enumerate((out, into, 1)):
            sums[at] += more
    found = index.open_index(store.directory)
    rows = questions.sums(found, questions.Question(), ["host", "job"])
    found.close()
    store.close()
    assert {row[:2]: list(row[2:5]) for row in rows} == expected


MS = 1_000_000
MOMENTS = st.integers(NOON // MS - 2, NOON // MS + 4 * HOUR // MS + 2) | st.sampled_from(
    [hour * HOUR // MS for hour in range(NOON // HOUR, NOON // HOUR + 5)]
)
# What happens to a flow, and in which of three visits of the index.
LIVES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["j1", "j2"]),
        st.lists(st.tuples(st.integers(0, 2), MOMENTS), min_size=3, max_size=3),
        st.sampled_from(["open", "close", "orphan", "late", "deny", "dns"]),
        st.integers(1, 10**6),
    ),
    max_size=25,
)


@given(LIVES, st.none() | MOMENTS, st.none() | MOMENTS, st.booleans())
@settings(max_examples=60)
def test_sums_per_hour_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory,
    lives: list[Any],
    since: int | None,
    until: int | None,
    cut: bool,
) -> None:
    """However flows end, in one visit of the index or in several, and wherever the span is cut."""
    visits: list[list[bytes]] = [[], [], []]
    for number, (host, job, steps, end, count) in enumerate(lives):
        who = {"project": job, "job": job, "dest": Dest(host, 1), "decision": "allow"}
        kinds = {
            "open": [Kind.OPEN],
            "close": [Kind.OPEN, Kind.CLOSE],
            "orphan": [Kind.OPEN, Kind.ORPHAN],
            "late": [Kind.OPEN, Kind.ORPHAN, Kind.CLOSE],
            "deny": [Kind.DENY],
            "dns": [Kind.DNS],
        }[end]
        visit = 0
        for kind, (later, t) in zip(kinds, steps, strict=False):
            visit = max(visit, later)
            counts = {"bytes_out": count, "bytes_in": 2 * count} if kind in index.SETTLED else {}
            fields = {**who, **counts, "count": count if kind is Kind.DNS else 0}
            visits[visit].append(of(kind, number if kind in index.OF_FLOWS else None, t * MS, **fields))
    store = Store.create(tmp_path_factory.mktemp("l") / "l", "exeat/n1", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_BATCH", 5)
        patch.setattr(index, "_AT_ONCE", 2)
        patch.setattr(index, "_REMEMBERED", 1)
        for visit in visits:
            store.append(visit, 1) if visit else None
            found = index.open_index(store.directory)
            for keys in (["project", "host"], ["kind", "verdict"], ["hour", "host"], ["day"]):
                question = questions.Question({"host": "a"} if cut else {}, since, until)
                assert not questions.why_by_rows(question, keys)
                quick, slow = (questions.sums(found, question, keys, by_rows=how) for how in (False, True))
                assert sorted(quick) == sorted(slow)
            (lost,) = found.db.execute("select count(*) from hour where entries < 1").fetchone()
            assert lost == 0
            found.close()
    store.close()


def test_two_at_once_take_each_record_in_once(store: Store, tmp_path: Path) -> None:
    store.append([part for number in range(10, 3000) for part in flow(number, "e.example.org", 1, 1)], 1)
    code = "import sys, pathlib; from exeat.ledger import index; index.open_index(pathlib.Path(sys.argv[1]))"
    others = [subprocess.Popen([sys.executable, "-c", code, store.directory]) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    found = index.open_index(store.directory)
    assert found.db.execute("select count(*) from entry").fetchone() == (5 + 2990,)
    assert found.fresh().records == store.size
    found.close()


def test_a_question_says_what_it_is_answered_from(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state-dir", str(store.directory.parent.parent), "ledger"]
    fresh = "11 records, the last of 2026-09-21T14:13:20.000Z"
    for argv, said in (
        (["--sum", "host"], [f"as of {fresh}"]),
        (
            ["--sum", "host", "--job", "j1"],
            [f"as of {fresh}", "row by row: the sums per hour do not tell job"],
        ),
    ):
        assert main([*state, "query", *argv]) == 0
        assert capsys.readouterr().err.splitlines() == said
    assert main([*state, "index"]) == 0
    assert capsys.readouterr().out == f"{store.directory}: {fresh}\n"


def test_an_index_is_made_anew_when_asked(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    ask(store, capsys)
    path = store.directory / "derived" / "index.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("update hour set bytes_in = 1")
    db.close()
    assert ask(store, capsys, "--sum", "verdict", "--verdict", "allow")[0]["bytes_in"] == 3
    assert (
        main(["--state-dir", str(store.directory.parent.parent), "ledger", "index", "--anew", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["records"] == 11
    assert ask(store, capsys, "--sum", "verdict", "--verdict", "allow")[0]["bytes_in"] == 302


# --- reconcile


def books(store: Store, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["--state-dir", str(store.directory.parent.parent), "ledger", "reconcile", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_books_that_agree(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = books(store, capsys)
    assert code == 0
    assert (found["total"]["flows"], found["total"]["bytes_in"], found["total"]["kernel_in"]) == (3, 302, 302)
    assert found["total"]["headers"] == 3 * 10 * 52
    assert {name: group["bytes_out"] for name, group in found["jails"].items()} == {"": 1, "j1": 10, "j2": 20}
    assert {name: group["flows"] for name, group in found["leases"].items()} == {"": 2, "p1/x/1": 1}
    assert "jobs" not in found
    assert books(store, capsys, "--by", "job,host")[1]["jobs"]["j2"]["bytes_out"] == 20
    flows = books(store, capsys, "--flows")[1]["flows"]
    assert [(flow["seq"], flow["jail"], flow["lease"], flow["differ"]) for flow in flows] == [
        (2, "j1", "", ""),
        (5, "j2", "p1/x/1", ""),
        (8, "", "", ""),
    ]
    assert books(store, capsys, "--job", "j3")[1]["total"]["flows"] == 1


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"kernel_out": 9}, {"upstream out": 1}),
        ({"kernel_in": 101}, {"upstream in": -1}),
        ({"client_kernel_out": 10, "client_kernel_in": 99}, {"client in": 1}),
        ({"client_kernel_out": 11, "client_kernel_in": 100}, {"client out": -1}),
        ({"client_kernel_out": 500, "client_kernel_in": 100, "name_source": "http"}, {}),
        ({"client_kernel_out": 10, "client_kernel_in": 100}, {}),
    ],
)
def test_a_byte_of_drift_is_named(
    store: Store, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], difference: dict[str, int]
) -> None:
    first, seq = flow(9, "d.example.org", 10, 100, **changed), store.size
    store.append(first[:2], 1)
    kernel = {"kernel_out": 10, "kernel_in": 100, "segs_out": 1, "segs_in": 1, **changed}
    store.append([of(Kind.CLOSE, 9, bytes_out=10, bytes_in=100, job="j1", **kernel)], 1)
    code, found = books(store, capsys)
    assert code == bool(difference)
    assert [(drift["seq"], drift["differences"]) for drift in found["drifts"]] == (
        [(seq + 2, difference)] if difference else []
    )


def test_what_cannot_be_compared_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.append([of(Kind.OPEN, 20, job="j1"), of(Kind.CLOSE, 20, job="j1", bytes_out=5)], 1)
    store.append([of(Kind.OPEN, 21, job="j1"), of(Kind.ORPHAN, 21, job="j1", bytes_out=5)], 1)
    store.append([of(Kind.OPEN, 22, job="j1"), of(Kind.OPEN, 23), of(Kind.CLOSE, 23)], 1)
    code, found = books(store, capsys)
    total = found["total"]
    assert code == 0
    assert (total["uncounted"], total["orphaned"], total["open"]) == (1, 1, 1)
    assert main(["--state-dir", str(store.directory.parent.parent), "ledger", "reconcile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["jail", "flows", "bytes_out"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["-", "3", "6"],
        ["j1", "1", "10"],
        ["j2", "1", "20"],
    ]
    assert lines[-1] == "the books agree"


def test_reconcile_is_the_same_for_a_part(store: Store) -> None:
    from exeat.ledger.reader import read

    whole = reconcile(read(store.directory))
    parts = [reconcile(read(store.directory), job) for job in ("j1", "j2", "j3")]
    assert sum(part.total.flows for part in parts) == whole.total.flows


@pytest.mark.parametrize("argv", [[], ["--sum", "project,host,port"], ["--project", "nobody"]])
def test_parquet_holds_the_same_rows_as_json(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    from pyarrow import parquet

    wanted = ask(store, capsys, *argv)
    out = tmp_path / "rows.parquet"
    state = str(store.directory.parent.parent)
    query = ["--state-dir", state, "ledger", "query", *argv, "--format", "parquet"]
    assert main(query) == 2  # not to a terminal
    assert main([*query, "--out", str(out)]) == 0
    assert parquet.read_table(out).to_pylist() == wanted
    assert main([*query, "--out", str(tmp_path / "none" / "x")]) == 3


def test_any_format_goes_to_a_file(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ask(store, capsys)
    out = tmp_path / "rows.json"
    state = str(store.directory.parent.parent)
    assert main(["--state-dir", state, "ledger", "query", "--format", "json", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == wanted
    assert capsys.readouterr().out == ""


def test_counts_that_nobody_measured_do_not_end_all_questions(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that was taken over may write any number of 64 bits."""
    most = 2**64 - 1
    state = str(store.directory.parent.parent)

    def exeat(*argv: str) -> int:
        return main(["--state-dir", state, "ledger", *argv])

    lies = {"project": "p9", "dest": Dest("a.example.org", 443), "decision": "deny"}
    for number in range(50, 53):
        store.append([of(Kind.DENY, None, most, count=most, **lies)] * 2, 1)
        store.append([of(Kind.OPEN, number, reserved=most, project="p9")], 1)
        store.append([of(Kind.CLOSE, number, bytes_out=most, bytes_in=most, project="p9")], 1)
    for argv in (["--sum", "project"], ["--sum", "job"], ["--sum", "hour"], ["--format", "csv"]):
        assert exeat("query", *argv) == 0
        assert "Error" not in capsys.readouterr().err
    assert exeat("query", "--sum", "project", "--json") == 0
    rows = {row["project"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["p1"]["bytes_out"], rows["p1"]["bytes_in"]) == (30, 300)
    assert rows["p9"]["flows"] == 3
    assert rows["p9"]["bytes_out"] > 10**14
    assert exeat("review", "--day", "2026-09-21", "--json") == 0
    assert exeat("tail") == 0
