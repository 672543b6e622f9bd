"""`exeat ledger query|reconcile`, on ledgers made by the real store."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ledgers import flow_id

from exeat.appliance.cli import main
from exeat.ledger import index
from exeat.ledger.reconcile import reconcile
from exeat.ledger.records import Dest, Kind, Record, encode
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
    made.append(flow(1, "a.example.org", 10, 100), 1)
    made.append(flow(2, "a.example.org", 20, 200, NOON + HOUR, job="j2", agent="x"), 1)
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
        seen.append([(row[2], row[7], row[-3]) for row in index.entries(found, index.Question(), 10)])
        found.close()
        store.append(more, 1)
    found = index.open_index(store.directory)
    seen.append([(row[2], row[7], row[-3]) for row in index.entries(found, index.Question(), 10)])
    found.close()
    assert [[kind for kind, *_ in rows] for rows in seen] == [["open"], ["open"], ["orphan"], ["close"]]
    assert seen[2] == [("orphan", "", 4)]


NUMBERS = st.integers(0, 2**40)
FLOWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["j1", "j2"]), NUMBERS, NUMBERS, st.booleans()),
    max_size=30,
)


@given(FLOWS)
@settings(max_examples=25, deadline=None)
def test_sums_are_those_of_the_records(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    store = Store.create(tmp_path_factory.mktemp("l") / "l", "exeat/n1", 1)
    expected: dict[tuple[str, str], list[int]] = {}
    for number, (host, job, out, into, slow) in enumerate(made):
        store.append(flow(number, host, out, into, 1 if slow else NOON, job=job), 1)
        sums = expected.setdefault((host, job), [0, 0, 0])
        for at, more in enumerate((out, into, 1)):
            sums[at] += more
    found = index.open_index(store.directory)
    rows = index.sums(found, index.Question(), ["host", "job"])
    found.close()
    store.close()
    assert {row[:2]: list(row[2:5]) for row in rows} == expected


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
    assert found["jobs"]["j2"]["bytes_out"] == 20
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
    assert "the books agree" in capsys.readouterr().out


def test_reconcile_is_the_same_for_a_part(store: Store) -> None:
    from exeat.ledger.reader import read

    whole = reconcile(read(store.directory))
    parts = [reconcile(read(store.directory), job) for job in whole.jobs]
    assert sum(part.total.flows for part in parts) == whole.total.flows
