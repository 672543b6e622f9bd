"""A refusal as the client reads it."""

from __future__ import annotations

import json

import pytest

from exeat.policy.model import Decision, Verdict
from exeat.policy.reasons import TEXTS
from exeat.proxy import refusal, socks5

DENIED = Decision(Verdict.DENY, "posture.default_deny")


def parts(answer: bytes) -> tuple[str, dict[str, str], dict[str, object]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode("ascii").split("\r\n")
    named = dict(field.split(": ", 1) for field in fields)
    assert int(named["Content-Length"]) == len(body)
    return line, named, json.loads(body)


def test_the_status_line_says_why_and_what_next() -> None:
    why = refusal.from_decision(DENIED, "pypi.example.org", 443, "crawler")
    line, fields, problem = parts(refusal.http_answer(why))
    assert line == (
        "HTTP/1.1 403 no rule allows this host; run: exeat lease request --project crawler "
        "pypi.example.org:443 [posture.default_deny]"
    )
    assert fields["Proxy-Status"] == 'exeat; error=http_request_denied; details="posture.default_deny"'
    assert fields["Content-Type"] == "application/problem+json"
    assert fields["Connection"] == "close"
    assert problem == {
        "type": "urn:exeat:reason:posture.default_deny",
        "title": "no rule allows this host",
        "status": 403,
        "reason_code": "posture.default_deny",
        "host": "pypi.example.org",
        "port": 443,
        "next": "run: exeat lease request --project crawler pypi.example.org:443",
    }


def test_an_ask_names_its_request() -> None:
    why = refusal.from_decision(Decision(Verdict.ASK, "rule.ask"), "a.example", 443, "p", "p/a/1")
    line, fields, problem = parts(refusal.http_answer(why))
    assert "run: exeat lease approve p/a/1" in line
    assert fields["Retry-After"] == "5"
    assert problem["request"] == "p/a/1"


@pytest.mark.parametrize("code", [*TEXTS, "no.such_code", "http.framing", "tls.ech", "limit.asks"])
def test_every_code_gives_a_legal_answer(code: str) -> None:
    verdict = Verdict.DENY
    for why in (
        refusal.from_code(code, "a" * 250, 65535),
        refusal.from_decision(Decision(verdict, code, "rule-" + "x" * 100), "a" * 250, 1, "p" * 63),
    ):
        line, _, problem = parts(refusal.http_answer(why))
        assert line.startswith(f"HTTP/1.1 {why.status} ")
        assert len(line) <= len("HTTP/1.1 403 ") + refusal.MAX_PHRASE
        assert line.isascii()
        assert line.isprintable()
        assert line.endswith(f"[{code}]")
        assert problem["status"] == why.status
        assert 400 <= why.status < 600
        assert len(refusal.socks_answer(why)) == 10


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("malformed.host", 400),
        ("http.head_too_large", 431),
        ("rule.deny", 403),
        ("ledger.unavailable", 503),
        ("policy.expired", 503),
        ("dns.unavailable", 503),
        ("dial.timeout", 504),
        ("dial.refused", 502),
    ],
)
def test_status(code: str, status: int) -> None:
    assert refusal.from_decision(Decision(Verdict.DENY, code), "a.example", 1, "p").status == status


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("rule.deny", socks5.NOT_ALLOWED),
        ("malformed.host", socks5.NOT_ALLOWED),
        ("rule.ask", socks5.NOT_ALLOWED),
        ("dial.refused", socks5.CONNECTION_REFUSED),
        ("dial.timeout", socks5.HOST_UNREACHABLE),
        ("dns.nxdomain", socks5.HOST_UNREACHABLE),
        ("ledger.unavailable", socks5.GENERAL_FAILURE),
        ("limit.connections", socks5.GENERAL_FAILURE),
    ],
)
def test_socks_codes(code: str, answer: int) -> None:
    assert refusal.socks_answer(refusal.from_code(code))[1] == answer


def test_alerts() -> None:
    assert refusal.tls_alert("sni.mismatch") == b"\x15\x03\x03\x00\x02\x02\x70"
    assert refusal.tls_alert("tls.ech") == b"\x15\x03\x03\x00\x02\x02\x31"
