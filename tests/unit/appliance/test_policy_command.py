"""`exeat policy`: what it prints and its exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from exeat.appliance.cli import main

GOOD = "egress: v1\nproject: p\nallow: [{id: one, to: a.org}]\nask: [{id: two, to: b.org}]\n"


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text("egress: v1\nproject: p\nalow: []\n")
    return str(path)


def test_check(good: str, bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", good]) == 0
    assert f"{good}: ok, project p, posture allowlist, 2 rules" in capsys.readouterr().out
    assert main(["policy", "check", good, bad]) == 1
    assert capsys.readouterr().err.startswith(f"{bad}:3:1: unknown key `alow`")
    assert main(["policy", "check", "--json", bad]) == 1
    assert json.loads(capsys.readouterr().out)[0]["code"] == "doc.unknown_key"
    assert main(["policy", "check", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "latin.yaml").write_bytes(b"egress: \xe9")
    assert main(["policy", "check", str(tmp_path / "latin.yaml")]) == 2


def test_show(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", "--json", good]) == 0
    assert json.loads(capsys.readouterr().out)["allow"][0]["ports"] == ["443"]
    assert main(["policy", "show", good]) == 0
    assert main(["policy", "show", bad]) == 2


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        ({"host": "a.org"}, 0, "rule.allow"),
        ({"host": "A.ORG.", "resolved": ["8.8.8.8"]}, 0, "rule.allow"),
        ({"host": "a.org", "resolved": ["10.0.0.1"]}, 1, "address.not_public"),
        ({"host": "b.org"}, 1, "rule.ask"),
        ({"host": "a.org", "port": 0}, 1, "malformed.port"),
        ({"host": "a.org", "sni": "b.org"}, 1, "sni.mismatch"),
        ({"host": "a.org", "project": "q"}, 1, "meta.project"),
        ({"host": "a.org", "resolved": ["nonsense"]}, 1, "malformed.ip"),
        ({"host": "a\0.org"}, 1, "malformed.host"),
    ],
)
def test_decide(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request_: object, code: int, reason: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(request_))
    args = ["policy", "decide", "--policy", good, "--request", str(path), "--now", "2026-01-05T12:00:00Z"]
    assert main([*args, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["reason"] == reason
    assert main(args) == code
    assert f"[{reason}]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"host": 5}', '{"host": "a.org", "prot": "tcp"}', '{"host": "a.org", "port": true}'],
)
def test_decide_refuses_what_is_not_a_request(
    good: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["policy", "decide", "--policy", good, "--request", "-"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = str(Path(__file__).parents[2] / "vectors" / "policy-cases.yaml")
    assert main(["policy", "test", cases]) == 0
    out = capsys.readouterr().out
    assert "widens" in out
    assert main(["policy", "test", cases, "--kinds", "unit,load", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"unit", "load"}
    assert main(["policy", "test", cases, "--kinds", "nothing"]) == 2
    broken = tmp_path / "cases.yaml"
    broken.write_text("cases: [{id: X-1, kind: unit, fn: size, in: 1MB, expect: {value: 5}}]")
    assert main(["policy", "test", str(broken)]) == 1
    assert "X-1: expected {'value': 5}, got {'value': 1000000}" in capsys.readouterr().out
    broken.write_text("[")
    assert main(["policy", "test", str(broken)]) == 2
