"""`exeat ledger review`: the figures of one day, and the page people look at."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import flow_id

from exeat.appliance.cli import main
from exeat.ledger import retention
from exeat.ledger import review as reviewing
from exeat.ledger.reader import dropped_before, find_segments
from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path

DAY = "2026-09-21"
START = 1_789_948_800_000_000_000  # of that day
HOUR = 3_600_000_000_000
HOSTILE = "<script>alert(1)</script>\"&'.example.org"


def of(kind: Kind, flow: int | None, at: int, **fields: Any) -> bytes:
    return encode(Record(kind, at, 10**10, b"" if flow is None else flow_id(flow), **fields))


def flow(number: int, at: int, host: str, out: int = 10, into: int = 100, **more: Any) -> list[bytes]:
    who = {"project": "p1", "job": "j1", "decision": "allow", "dest": Dest(host, 443, "tcp"), **more}
    opened = {
        key: value for key, value in who.items() if key not in ("cost_nano_usd", "tariff", "kernel_out")
    }
    kernel = {"kernel_out": out, "kernel_in": into, "segs_out": 5, "segs_in": 5}
    return [
        of(Kind.OPEN, number, at, reserved=out + into, **opened),
        of(Kind.CLOSE, number, at + 1, **{**kernel, **who, "bytes_out": out, "bytes_in": into}),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", START - 40 * 24 * HOUR, segment_bytes=4096)

    def put(*records: bytes, at: int = START) -> None:
        made.append(list(records), at)

    put(*flow(1, START - 31 * 24 * HOUR, "long-ago.example.org"), at=START - 31 * 24 * HOUR)
    put(*flow(2, START - 24 * HOUR, "old.example.org"), at=START - 24 * HOUR)
    late = of(Kind.OPEN, 3, START - HOUR, reserved=9, project="p1", dest=Dest("late.example.org", 80))
    put(late, at=START - HOUR)
    put(*flow(4, START + HOUR, "old.example.org", 1000, 5000, cost_nano_usd=1_500_000_001, tariff="t"))
    put(*flow(5, START + 2 * HOUR, "new.example.org", 7, 8))
    put(*flow(6, START + 2 * HOUR, "long-ago.example.org"))
    put(*flow(7, START + 3 * HOUR, HOSTILE, project="p2", kernel_out=9))
    put(of(Kind.ORPHAN, 3, START + 4 * HOUR, bytes_out=4, reserved=9))
    refused = {"project": "p2", "decision": "deny", "reason_code": "rule.deny", "rule_id": "=bad"}
    put(of(Kind.DENY, None, START + 5 * HOUR, dest=Dest("bad.example.org", 22), **refused))
    put(of(Kind.DNS, None, START + 5 * HOUR, dest=Dest("bad.example.org"), count=6, **refused))
    lease = {"project": "p1", "lease_id": "l-1", "agent": "a", "decision": "active", "actor": "uid 0 (root)"}
    put(of(Kind.LEASE, None, START + 6 * HOUR, detail="<b>approved</b>", **lease))
    put(of(Kind.ANOMALY, None, START + 7 * HOUR, decision="repaired", detail="the table was changed"))
    put(of(Kind.OPEN, 8, START + 23 * HOUR, reserved=9, project="p1", dest=Dest("open.example.org", 80)))
    put(*flow(9, START + 24 * HOUR, "tomorrow.example.org"), at=START + 24 * HOUR)
    put(of(Kind.CLOSE, 8, START + 25 * HOUR, project="p1"), at=START + 25 * HOUR)
    return made


def run(store: Store, *argv: str) -> int:
    state = store.directory.parent.parent
    return main(["--state-dir", str(state), "ledger", "review", "--day", DAY, *argv])


def test_the_figures_of_the_day(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["day"], found["flows"], found["refused"], found["orphaned"]) == (DAY, 5, 7, 1)
    assert (found["bytes_out"], found["bytes_in"]) == (1000 + 7 + 10 + 10 + 4, 5000 + 8 + 100 + 100)
    assert found["cost_nano_usd"] == 1_500_000_001
    assert found["open"] == 1  # closed on the next day, and counted there
    passed = {row["host"]: row for row in found["rows"] if row["verdict"] == "allow"}
    assert set(passed) == {
        "old.example.org",
        "new.example.org",
        "long-ago.example.org",
        HOSTILE,
        "late.example.org",
    }
    new = {host for host, row in passed.items() if row["new"]}
    assert new == {"new.example.org", "long-ago.example.org", HOSTILE, "late.example.org"}
    refused = [(row["host"], row["port"], row["times"]) for row in found["rows"] if row["verdict"] == "deny"]
    assert refused == [("bad.example.org", 0, 6), ("bad.example.org", 22, 1)]
    assert found["hours"][2] == {"bytes_out": 17, "bytes_in": 108, "refused": 0}
    assert found["hours"][5]["refused"] == 7
    assert [entry["actor"] for entry in found["leases"]] == ["uid 0 (root)"]
    assert [entry["decision"] for entry in found["events"]] == ["repaired"]
    assert [entry["dest"]["host"] for entry in found["drifts"]] == [HOSTILE]


def test_what_is_new_depends_on_how_far_one_looks_back(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store, "--json", "--known", "60") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["host"] for row in rows if row["new"]} == {"new.example.org", HOSTILE, "late.example.org"}
    assert run(store, "--json", "--known", "0") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert "old.example.org" in {row["host"] for row in rows if row["new"]}


def test_the_text_names_projects_refusals_and_costs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store) == 0
    text = capsys.readouterr().out
    assert "5 flows" in text
    assert re.search(r"old\.example\.org:443 +about 1\.500000001 USD", text)
    assert re.search(r"new\.example\.org:443  NEW", text)
    assert "refused      6 x  bad.example.org  rule.deny by =bad" in text
    assert "l-1" in text


class Page(HTMLParser):
    """Tags with their attributes, and the text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.text += data


def test_the_page_is_closed_to_everything(store: Store, tmp_path: Path) -> None:
    assert run(store, "--html", str(tmp_path / "day.html")) == 0
    page = Page((tmp_path / "day.html").read_text())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "form", "a", "b>approved", "object"}
    assert all(
        name in ("class", "style") or not name.startswith("on") for _, attrs in page.tags for name in attrs
    )
    assert not any("style" in attrs for _, attrs in page.tags)  # the policy would block it
    policies = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    assert "prefers-color-scheme:dark" in page.style
    assert f"{HOSTILE}:443" in page.text
    assert "<b>approved</b>" in page.text
    assert "url(" not in page.style


def test_a_timer_names_the_files_by_the_day(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(store, "--dir", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"exeat-{DAY}.csv", f"exeat-{DAY}.html"]


def test_the_csv_has_every_row_and_no_formula(store: Store, tmp_path: Path) -> None:
    assert run(store, "--csv", str(tmp_path / "day.csv")) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "day.csv").read_text())))
    assert len(rows) == 7
    assert {row["rule"] for row in rows} == {"", "'=bad"}
    assert {row["day"] for row in rows} == {DAY}


def test_a_day_without_anything_is_a_page_too(store: Store, tmp_path: Path) -> None:
    state = store.directory.parent.parent
    argv = ["--state-dir", str(state), "ledger", "review", "--day", "2026-09-25"]
    assert main([*argv, "--html", str(tmp_path / "day.html")]) == 0
    assert "0" in Page((tmp_path / "day.html").read_text()).text


@pytest.mark.parametrize("argv", [["--day", "soon"], ["--known", "-1"], ["--known", "1000"]])
def test_unusable_words_are_refused(store: Store, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(store, *argv)
    assert stop.value.code == 2


def test_a_page_that_cannot_be_written_is_said(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store, "--html", str(tmp_path / "none" / "day.html")) == 3
    assert "No such file" in capsys.readouterr().err


def test_a_job_that_scans_takes_no_endless_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviewing, "_MAX_PLACES", 2)
    monkeypatch.setattr(reviewing, "_MAX_EVENTS", 0)
    found = reviewing.review(store.directory, DAY, START, [])
    assert len(found.places) == 2
    assert found.total.flows == 5
    assert found.more == 3 + 1 + 1 + 1  # places, the lease, the anomaly, the drift


def test_refusals_that_were_summed_count_each(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"project": "p2", "decision": "deny", "reason_code": "rule.deny", "rule_id": "=bad"}
    summed = of(Kind.DENY, None, START + 5 * HOUR, dest=Dest("bad.example.org", 22), count=500, **refused)
    store.append([summed], START)
    assert run(store, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["refused"], found["hours"][5]["refused"]) == (507, 507)
    assert [row["times"] for row in found["rows"] if row["port"] == 22] == [501]


def test_a_day_whose_records_were_dropped_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", START - HOUR, segment_bytes=4096)
    for hour in range(48):
        store.append(flow(hour + 1, START + hour * HOUR, "a.example.org"), START + hour * HOUR)
    assert run(store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 0
    for path in find_segments(store.directory)[:1]:
        path.write_bytes(retention.stub(path))
    lost = dropped_before(store.directory)
    assert lost > 2
    page = tmp_path / "day.html"
    assert run(store, "--html", str(page)) == 0
    assert f"{lost} records were dropped by age or size: THIS DAY" in capsys.readouterr().out
    assert "this day is not complete" in page.read_text()
    assert main(["--state-dir", str(tmp_path), "ledger", "review", "--day", "2026-09-22", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 0  # nothing of that one is gone
    store.close()
