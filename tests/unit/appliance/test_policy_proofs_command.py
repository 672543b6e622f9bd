"""`exeat policy diff|reach|trial`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.ledgers import record

from exeat.appliance.cli import main
from exeat.ledger.records import Dest, Kind
from exeat.ledger.store import Store

NOW = ["--now", "2026-01-05T12:00:00Z"]
A = "egress: v1\nproject: p\nallow: [{id: one, to: a.org}]\nask: [{id: two, to: b.org}]\n"
B = "egress: v1\nproject: p\nallow: [{id: wide, to: [a.org, b.org]}]\ndeny: [{id: net, to: .c.org}]\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, text in (("a", A), ("b", B)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")


def test_diff(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = files
    assert main(["policy", "diff", a, b, *NOW]) == 1
    assert "allow: b.org:443/tcp" in capsys.readouterr().out
    assert main(["policy", "diff", a, b, "--json", *NOW]) == 1
    witness, *others = json.loads(capsys.readouterr().out)["witnesses"]
    assert others == []
    assert (witness["host"], witness["level"], witness["before"], witness["after"]) == (
        "b.org",
        "allow",
        "two",
        "wide",
    )
    assert main(["policy", "diff", a, a]) == 0
    assert "nothing" in capsys.readouterr().out
    assert main(["policy", "diff", a, a, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"widens": False, "witnesses": [], "files": ""}
    assert main(["policy", "diff", a, "none.yaml"]) == 2
    assert main(["policy", "diff", a, b, "--now", "tomorrow"]) == 2


def test_diff_names_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text("egress: v1\nproject: p\n")
    after.write_text("egress: v1\nproject: p\nfiles: {allow: ['project:///srv/a']}\n")
    said = "project:///srv/a:ro, which was not allowed"
    assert main(["policy", "diff", str(before), str(after), *NOW]) == 1
    assert said in capsys.readouterr().out
    assert main(["policy", "diff", str(before), str(after), "--json", *NOW]) == 1
    assert json.loads(capsys.readouterr().out) == {"widens": True, "witnesses": [], "files": said}
    assert main(["policy", "diff", str(after), str(before), *NOW]) == 0


def test_diff_shows_one_flow_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text(
        "egress: v1\nproject: p\npreset: strict\nallow: [{id: one, to: a.org, budget: b}]\n"
        "ask: [{id: two, to: b.org, approvals: 2}, {id: three, to: c.org}]\ndeny: [{id: four, to: d.org}]\n"
        "budgets: {b: {connections: 1/1h}}\n"
    )
    after.write_text(
        "egress: v1\nproject: p\nallow: [{id: one, to: [a.org, c.org, e.org], raw: true}]\n"
        "ask: [{id: two, to: b.org, approvals: 1}]\n"
    )
    assert main(["policy", "diff", str(before), str(after), "--json", *NOW]) == 1
    found = json.loads(capsys.readouterr().out)["witnesses"]
    kinds = {(each["level"], each["what"], each.get("speech", "")) for each in found}
    assert len(kinds) == len(found)
    assert {
        ("allow", "allow instead of ask", ""),
        ("allow", "allow instead of grantable", ""),
        ("allow", "allow instead of grantable", "raw"),
        ("allow", "no longer held by budget b", ""),
        ("allow", "a ClientHello without a server name passes", ""),
        ("ask", "1 instead of 2 approvals", ""),
        ("grantable", "grantable instead of none", ""),
    } <= kinds
    ranks = ["allow", "ask", "grantable"]
    assert [each["level"] for each in found] == sorted((each["level"] for each in found), key=ranks.index)
    assert main(["policy", "diff", str(before), str(after), *NOW]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].endswith(f"and {len(found) - 5} more kinds of flows (--json shows all)")


def test_under_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p, base, looser = (str(tmp_path / f"{name}.yaml") for name in ("p", "base", "looser"))
    Path(p).write_text(A)
    Path(base).write_text("egress: v1\nproject: baseline\ndeny: [{id: no, to: a.org}]\n")
    Path(looser).write_text("egress: v1\nproject: baseline\n")
    assert main(["policy", "diff", p, p, "--baseline", base, *NOW]) == 0
    assert main(["policy", "diff", p, p, "--baseline", base, "--new-baseline", looser, *NOW]) == 1
    assert "allow: a.org:443" in capsys.readouterr().out
    assert main(["policy", "reach", p, "a.org", "--baseline", base, *NOW]) == 1
    assert main(["policy", "reach", p, "a.org", *NOW]) == 0
    request = tmp_path / "r.json"
    request.write_text('{"host": "a.org"}')
    asked = ["policy", "decide", "--policy", p, "--request", str(request), *NOW]
    assert main(asked) == 0
    assert main([*asked, "--baseline", base]) == 1
    assert "baseline/no" in capsys.readouterr().out
    assert main(["policy", "show", p, "--baseline", base]) == 0
    assert "baseline/no" in capsys.readouterr().out
    assert main(["policy", "check", p, "--baseline", base]) == 0
    assert main(["policy", "check", p, "--baseline", str(tmp_path / "none")]) == 2


def test_reach(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, b = files
    answers = {"a.org": (0, "self-service"), "d.org": (0, "operator"), "x.c.org": (1, None)}
    for scope, (code, via) in answers.items():
        assert main(["policy", "reach", b, scope, "--json", *NOW]) == code
        assert json.loads(capsys.readouterr().out)["via"] == via
        assert main(["policy", "reach", b, scope, *NOW]) == code
        assert (via or "nobody") in capsys.readouterr().out
    assert main(["policy", "reach", b, "http://x"]) == 2


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """What a job did under policy A, beside traffic of another project and refusals by the far side."""

    def said(kind: Kind, number: int, host: str, verdict: str, reason: str, **more: object) -> bytes:
        protocol = "dns" if kind is Kind.DNS else "tcp"
        dest = Dest(host, 53 if kind is Kind.DNS else 443, protocol, b"\x08\x08\x08\x08", "")
        fields = {"project": "p", "agent": "x", "job": "j1", **more}
        flow = number if kind in (Kind.OPEN, Kind.CLOSE) else None
        return record(kind, flow, dest=dest, decision=verdict, reason_code=reason, **fields)

    store = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1)
    store.append(
        [
            said(Kind.OPEN, 1, "a.org", "allow", "rule.allow"),
            said(Kind.CLOSE, 1, "a.org", "allow", "rule.allow"),
            said(Kind.OPEN, 2, "d.org", "allow", "lease.active", lease_id="L1"),
            said(Kind.OPEN, 3, "x.c.org", "allow", "lease.active", lease_id="L1"),
            said(Kind.OPEN, 4, "x.c.org", "allow", "lease.active", lease_id="L1"),
            said(Kind.DENY, 5, "b.org", "ask", "rule.ask"),
            said(Kind.DENY, 6, "e.org", "deny", "posture.default_deny"),
            said(Kind.DENY, 7, "a.org", "deny", "dial.refused"),
            said(Kind.DENY, 8, "a.org", "deny", "meta.project", project="q"),
            said(Kind.DENY, 9, "[::1", "deny", "malformed.ip"),
            said(Kind.DENY, 11, "2001:db8::9", "deny", "posture.default_deny"),
            said(Kind.DNS, 10, "x.c.org", "allow", "lease.active", lease_id="L1", count=7),
        ],
        1,
    )
    store.close()
    return tmp_path / "ledger"


def test_trial_shows_only_what_changes(
    files: tuple[str, str], ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = files
    assert main(["policy", "trial", a, "--from", str(ledger), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["changes"], report["replayed"], report["skipped"]) == ([], 14, 2)
    for folder in (ledger, ledger / "abc"):
        assert main(["policy", "trial", b, "--from", str(folder), "--json"]) == 1
        changes = json.loads(capsys.readouterr().out)["changes"]
        shown = [(c["kind"], c["host"], c["was"], c["now"], c["breaking"], c["count"]) for c in changes]
        assert shown == [
            ("flow", "x.c.org", "allow", "deny", True, 2),
            ("lookup", "x.c.org", "allow", "deny", True, 7),
            ("flow", "b.org", "ask", "allow", False, 1),
        ]
    assert main(["policy", "trial", b, "--from", str(ledger)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("BREAKING allow -> deny: flow x.c.org:443 of x, 2 times since ")
    assert lines[0].endswith("a deny rule matches by net [rule.deny]")
    assert lines[-1].startswith("14 recorded decisions replayed, 3 kinds change, 2 break")


def test_trial_needs_a_ledger(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["policy", "trial", files[0], "--from", str(tmp_path / "empty")]) == 2
    assert main(["policy", "trial", files[0], "--from", str(tmp_path), "--treat-as-public", "x"]) == 2
