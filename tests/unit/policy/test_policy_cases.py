"""The normative cases, and neighbours of them that the file leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.cases import CasesError, run_cases

CASES = (Path(__file__).parents[2] / "vectors" / "policy-cases.yaml").read_text(encoding="utf-8")
BUILT = ("decide", "load", "unit", "flow", "admin")
DATA: dict[str, Any] = yaml.safe_load(CASES)


@pytest.mark.parametrize("result", run_cases(CASES, bundled_suffixes(), BUILT), ids=lambda result: result.id)
def test_normative_case(result: Any) -> None:
    assert result.status == "passed", result


def test_the_other_kinds_are_reported_as_not_built() -> None:
    results = run_cases(CASES, bundled_suffixes())
    others = [result for result in results if result.kind not in BUILT]
    assert others
    assert {result.status for result in others} == {"not built"}


# policy, request (and what else the case sets), decision, reason, rule
NEIGHBOURS: list[tuple[str, dict[str, Any], str, str, str | None]] = [
    ("base", {"host": "api.github.com", "port": 22}, "ask", "rule.ask", "gh"),
    ("base", {"host": "api.github.com", "port": 80}, "deny", "posture.default_deny", ""),
    ("base", {"host": "api.github.com", "resolved": ["10.0.0.1"]}, "deny", "address.not_public", "gh"),
    ("base", {"host": "GIST.github.com."}, "deny", "posture.default_deny", ""),
    ("base", {"host": "evilwikipedia.org"}, "deny", "posture.default_deny", ""),
    ("base", {"host": "wikipedia.org.evil.net"}, "deny", "posture.default_deny", ""),
    ("base", {"host": "10.20.0.255", "port": 5432}, "allow", "rule.allow", "db"),
    ("base", {"host": "10.20.1.0", "port": 5432}, "deny", "ip_literal.denied", ""),
    ("base", {"host": "10.20.0.9", "port": 5432, "resolved": ["10.20.0.9"]}, "allow", "rule.allow", "db"),
    ("base", {"host": "10.20.0.9", "port": 5432, "resolved": ["10.20.0.8"]}, "deny", "address.not_public", "db"),
    ("base", {"host": "198.41.0.4"}, "deny", "rule.deny", "badnet"),
    ("base", {"host": "[64:ff9b::198.41.0.4]"}, "deny", "rule.deny", "badnet"),
    ("base", {"host": "git.corp.example.org", "port": 22, "resolved": ["169.254.169.254"]}, "deny", "meta.metadata", ""),
    ("base", {"host": "git.corp.example.org", "port": 22, "resolved": ["100.64.1.1"]}, "allow", "rule.allow", "git-ssh"),
    ("base", {"host": "git.corp.example.org", "port": 22, "resolved": ["fe80::1"]}, "deny", "meta.special_address", ""),
    ("base", {"host": "ftp.example.org", "port": 29999}, "deny", "posture.default_deny", ""),
    ("base", {"host": "ftp.example.org", "port": 30010}, "deny", "posture.default_deny", ""),
    ("base", {"host": "packages.example.com", "proto": "udp"}, "deny", "posture.default_deny", ""),
    ("base", {"host": "packages.example.com", "proto": "TCP"}, "deny", "meta.proto", ""),
    ("base", {"host": "packages.example.com", "port": -1}, "deny", "malformed.port", ""),
    ("base", {"host": "packages.example.com", "port": "443"}, "deny", "malformed.port", ""),
    ("base", {"host": "packages.example.com", "port": True}, "deny", "malformed.port", ""),
    ("base", {"host": "packages.example.com", "project": ""}, "deny", "meta.attribution", ""),
    ("base", {"host": "packages.example.com", "sni": None}, "allow", "rule.allow", "pypi"),
    ("base", {"host": "packages.example.com", "sni": "packages.example.com."}, "allow", "rule.allow", "pypi"),
    ("base", {"host": "packages.example.com", "sni": "files.example.com"}, "deny", "sni.mismatch", ""),
    ("base", {"host": "packages.example.com", "sni": "x\0y"}, "deny", "sni.mismatch", ""),
    ("base", {"host": "packages.example.com", "sni": ""}, "deny", "sni.mismatch", ""),
    ("base", {"host": "10.20.0.9", "port": 5432, "sni": "10.20.0.9"}, "deny", "sni.mismatch", ""),
    ("base", {"host": "1" * 64 + ".com"}, "deny", "malformed.host", ""),
    ("base", {"host": ".".join(["a" * 63] * 4)}, "deny", "malformed.host_length", ""),
    ("base", {"host": "bücher.de"}, "deny", "malformed.non_ascii_host", ""),
    ("base", {"host": "[fe80::1%eth0]"}, "deny", "malformed.ip_zone", ""),
    ("base", {"host": "[::1"}, "deny", "malformed.ip", ""),
    ("idn", {"host": "xn--bcher-kva.example.org"}, "allow", "rule.allow", "buch"),
    ("idn", {"host": "bucher.example.org"}, "deny", "posture.default_deny", ""),
    ("conflict", {"host": "api.example.com"}, "allow", "rule.allow", "a-exact"),
    ("conflict", {"host": "api.example.com", "port": 8443}, "allow", "rule.allow", "a-all"),
    ("conflict", {"host": "upload.example.com"}, "ask", "rule.ask", "k-upload"),
    ("conflict", {"host": "x.upload.example.com"}, "ask", "rule.ask", "k-upload2"),
    ("conflict", {"host": "upload.example.com", "port": 80}, "allow", "rule.allow", "a-all"),
    ("deny_except", {"host": "docs.evil.io", "port": 80}, "deny", "rule.deny", "d-evil"),
    ("deny_except", {"host": "x.status.evil.io"}, "deny", "rule.deny", "d-evil"),
    ("public", {"host": "a.example.com", "port": 80}, "allow", "posture.public", ""),
    ("public", {"host": "a.example.com", "resolved": ["8.8.8.8", "2001:4860::8"]}, "allow", "posture.public", ""),
    ("public", {"host": "a.example.com", "resolved": ["8.8.8.8", "172.16.0.1"]}, "deny", "address.not_public", ""),
    ("public", {"host": "a.example.com", "resolved": ["64:ff9b:1::8.8.8.8"]}, "deny", "address.not_public", ""),
    ("public", {"host": "a.example.com", "resolved": ["2001:0:808:808::1"]}, "deny", "address.not_public", ""),
    ("public", {"host": "a.example.com", "resolved": ["198.18.0.1"]}, "deny", "address.not_public", ""),
    ("public", {"host": "a.example.com", "resolved": ["0.0.0.0"]}, "deny", "meta.loopback", ""),
    ("public", {"host": "a.example.com", "resolved": ["::1"]}, "deny", "meta.loopback", ""),
    ("public", {"host": "a.example.com", "resolved": ["::ffff:127.0.0.1"]}, "deny", "meta.loopback", ""),
    ("public", {"host": "a.example.com", "resolved": ["64:ff9b::127.0.0.1"]}, "deny", "meta.loopback", ""),
    ("public", {"host": "a.example.com", "resolved": ["240.0.0.1"]}, "deny", "meta.special_address", ""),
    ("public", {"host": "a.example.com", "port": 53}, "deny", "meta.dns_bypass", ""),
    ("public", {"host": "a.example.com", "port": 853}, "deny", "meta.dns_bypass", ""),
    ("public", {"host": "a.corp.example.org", "resolved": ["10.0.0.1"]}, "allow", "rule.allow", "corp"),
    ("public", {"host": "nas.home"}, "deny", "posture.not_public_name", ""),
    ("public", {"host": "localhost"}, "deny", "meta.loopback", ""),
    ("public", {"host": "metadata.goog"}, "deny", "meta.metadata", ""),
    ("public", {"host": "metadata.google.internal."}, "deny", "meta.metadata", ""),
    ("public", {"host": "93.184.216.34.", "port": 443}, "deny", "ip_literal.denied", ""),
    ("public", {"host": "[2606:4700::1111]"}, "deny", "ip_literal.denied", ""),
    ("public_strict", {"host": "a.example.com", "port": 80}, "deny", "posture.port", ""),
    ("public_strict", {"host": "a.example.com"}, "allow", "posture.public", ""),
    ("custom", {"host": "x.example.com", "resolved": ["10.0.0.1"]}, "deny", "address.not_public", ""),
    ("custom", {"host": "10.0.0.1"}, "ask", "posture.ask_ip", ""),
    ("custom", {"host": "packages.example.com"}, "allow", "rule.allow", "pypi"),
    ("custom_public", {"host": "93.184.216.34"}, "deny", "ip_literal.denied", ""),
    ("posture_off", {"host": "10.0.0.1", "port": 22}, "allow", "posture.off", ""),
    ("posture_off", {"host": "x.example.com", "proto": "udp"}, "allow", "posture.off", ""),
    ("posture_off", {"host": "0.0.0.0", "port": 80}, "deny", "meta.loopback", ""),
    ("posture_off", {"host": "[::]", "port": 80}, "deny", "meta.loopback", ""),
    ("posture_off", {"host": "8.8.8.8", "port": 853}, "deny", "meta.dns_bypass", ""),
    ("posture_off", {"host": "[fd00:ec2::254]", "port": 80}, "deny", "meta.metadata", ""),
    ("posture_off", {"host": "[2001:0:a9fe:a9fe::1]", "port": 80}, "deny", "meta.metadata", ""),
    ("posture_off", {"host": "168.63.129.16", "port": 80}, "deny", "meta.metadata", ""),
    ("posture_off", {"host": "255.255.255.255", "port": 80}, "deny", "meta.special_address", ""),
    ("posture_off", {"host": "x.example.com", "now": "2026-01-06T00:00:00Z"}, "deny", "policy.expired", ""),
    ("posture_off", {"host": "x.example.com", "now": "2026-01-05T23:59:59Z"}, "allow", "posture.off", ""),
    ("ceiling", {"host": "packages.example.com"}, "allow", "rule.allow", "pypi"),
    ("ceiling", {"host": "packages.example.com", "port": 80}, "deny", "ceiling.exceeded", ""),
    ("ceiling", {"host": "93.184.216.34"}, "deny", "ceiling.exceeded", ""),
    ("control", {"host": "203.0.114.7", "port": 6379}, "deny", "meta.control_plane", ""),
    ("control", {"host": "[64:ff9b::10.0.0.2]", "port": 8443}, "deny", "meta.control_plane", ""),
    ("control", {"host": "home.fleet.example.org", "port": 443}, "allow", "rule.allow", "all"),
    ("control", {"host": "HOME.fleet.example.org.", "port": 8443}, "deny", "meta.control_plane", ""),
    ("who", {"host": "one.example.org", "agent": "a1"}, "allow", "rule.allow", "a1-only"),
    ("who", {"host": "two.example.org", "node": "n2"}, "allow", "rule.allow", "n1-only"),
    ("timed", {"host": "erp.example.org", "now": "2026-01-05T08:59:59Z"}, "deny", "posture.default_deny", ""),
    ("timed", {"host": "erp.example.org", "now": "2026-01-05T16:59:59Z"}, "allow", "rule.allow", "office"),
    ("timed", {"host": "backup.example.org", "now": "2026-01-05T21:59:59Z"}, "deny", "posture.default_deny", ""),
    ("timed", {"host": "backup.example.org", "now": "2026-01-05T22:00:00Z"}, "allow", "rule.allow", "night"),
    ("timed", {"host": "backup.example.org", "now": "2026-01-06T06:00:00Z"}, "deny", "posture.default_deny", ""),
    ("timed", {"host": "temp.example.org", "now": "2026-01-05T11:59:59Z"}, "deny", "posture.default_deny", ""),
    ("timed", {"host": "temp.example.org", "now": "2026-01-05T12:00:00Z"}, "allow", "rule.allow", "campaign"),
    ("budget", {"host": "unknown.org", "state": {"budgets": {"default": {"connections": 600}}}}, "deny", "budget.exceeded", "default"),
    ("budget", {"host": "api.openai.com", "state": {"budgets": {"llm": {"usd": "5"}}}}, "deny", "budget.state", "llm"),
    ("budget", {"host": "soft.example.org", "state": {"budgets": {"soft": {"bytes_up": 9_999_999}}}}, "allow", "rule.allow", "soft"),
    ("budget", {"host": "pastebin.com", "state": {"budgets": {"default": {"bytes_up": -1}}}}, "deny", "rule.deny", "paste"),
    ("base", {"host": "new.example.org", "leases": ["uses"], "state": {"min_epoch": 1}}, "deny", "posture.default_deny", ""),
    ("base", {"host": "new.example.org", "leases": ["old"], "state": {"min_epoch": 4}}, "deny", "posture.default_deny", ""),
    ("base", {"host": "new.example.org", "leases": ["uses"], "state": {"revoked": ["L-uses"]}}, "deny", "posture.default_deny", ""),
    ("base", {"host": "packages.example.com", "leases": ["bytes"], "state": {"lease_bytes": {"L-bytes": 999}}}, "allow", "lease.active", "L-bytes"),
    ("base", {"host": "packages.example.com", "leases": ["bytes"], "resolved": ["10.0.0.1"]}, "deny", "address.not_public", None),
    ("base", {"host": "printer.corp.example.org", "port": 631, "leases": ["lan-nop"], "resolved": ["192.168.1.5"]}, "deny", "address.not_public", "L-lan2"),
    ("base", {"host": "printer.corp.example.org", "port": 631, "leases": ["lan-nop", "lan"], "resolved": ["192.168.1.5"]}, "allow", "lease.active", "L-lan"),
    ("base", {"host": "printer.corp.example.org", "port": 631, "leases": ["lan"], "resolved": ["127.0.0.1"]}, "deny", "meta.loopback", ""),
    ("budget", {"host": "github.com", "leases": ["gh"]}, "allow", "lease.active", "L-gh"),
    ("control", {"host": "10.0.0.2", "port": 8443, "leases": [{"id": "L", "to": "10.0.0.2", "ports": "any"}]}, "deny", "meta.control_plane", ""),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NEIGHBOURS)))
def test_neighbour(number: int) -> None:
    policy, fields, decision, reason, rule = NEIGHBOURS[number]
    request = {key: value for key, value in fields.items() if key not in ("leases", "state", "now")}
    outer = {key: fields[key] for key in ("leases", "state", "now") if key in fields}
    expect = {"decision": decision, "reason": reason} | ({} if rule is None else {"rule": rule})
    case = {"id": f"N-{number}", "policy": policy, "request": request, "expect": expect, **outer}
    file = {"policies": DATA["policies"], "leases": DATA["leases"], "cases": [case]}
    [result] = run_cases(yaml.safe_dump(file), bundled_suffixes())
    assert result.status == "passed", result


@pytest.mark.parametrize("text", ["", "[]", "cases: 3", "cases: [1]", "a: &x\nb: *y", "cases: [{id: a}]"])
def test_an_unusable_file_is_one_error(text: str) -> None:
    with pytest.raises(CasesError):
        run_cases(text, bundled_suffixes())


def test_a_broken_case_fails_alone() -> None:
    text = """
cases:
- {id: A, kind: unit, fn: nothing, in: "1", expect: {value: 1}}
- {id: B, kind: unit, fn: size, in: "1", expect: {value: 1}}
- {id: C, kind: unit, fn: size, in: "1", expect: {value: 2}}
"""
    assert [result.status for result in run_cases(text, bundled_suffixes())] == ["failed", "passed", "failed"]
