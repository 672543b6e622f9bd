"""Which question gets which kind of answer, before anything is looked up."""

from __future__ import annotations

import pytest

from exeat.dns.resolver import Finding, join
from exeat.dns.ruling import rule
from exeat.dns.vet import Status
from exeat.dns.wire import Ede, Query, Rcode, wire_name
from exeat.policy.model import Address, Decision, Verdict

ALLOW = Decision(Verdict.ALLOW, "rule.allow", "r")
DENY = Decision(Verdict.DENY, "rule.deny", "d")
ASK = Decision(Verdict.ASK, "rule.ask", "a")


def query(host: str, qtype: int = 1, qclass: int = 1) -> Query:
    return Query(1, 0x0100, wire_name(host), qtype, qclass, b"", None)


@pytest.mark.parametrize(
    ("decision", "qtype", "qclass", "rcode", "code"),
    [
        (ALLOW, 1, 1, None, None),
        (ALLOW, 28, 1, None, None),
        (ALLOW, 65, 1, Rcode.NOERROR, None),
        (ALLOW, 64, 1, Rcode.NOERROR, None),
        (ALLOW, 16, 1, Rcode.NOERROR, None),
        (ALLOW, 12, 1, Rcode.NXDOMAIN, Ede.BLOCKED),
        (ALLOW, 255, 1, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (ALLOW, 252, 1, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (ALLOW, 10, 1, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (ALLOW, 65399, 1, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (ALLOW, 1, 3, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (ALLOW, 1, 255, Rcode.NOTIMP, Ede.NOT_SUPPORTED),
        (DENY, 1, 1, Rcode.NXDOMAIN, Ede.BLOCKED),
        (DENY, 255, 1, Rcode.NXDOMAIN, Ede.BLOCKED),
        (DENY, 1, 3, Rcode.NXDOMAIN, Ede.BLOCKED),
        (ASK, 1, 1, Rcode.NXDOMAIN, Ede.BLOCKED),
        (ASK, 65, 1, Rcode.NXDOMAIN, Ede.BLOCKED),
    ],
)
def test_the_table(
    decision: Decision, qtype: int, qclass: int, rcode: Rcode | None, code: Ede | None
) -> None:
    ruling = rule(query("www.test", qtype, qclass), lambda _: decision)
    assert ruling.rcode == rcode
    assert (ruling.ede[0] if ruling.ede else None) == code
    assert ruling.decision.verdict is (
        Verdict.DENY if rcode in (3, 4) and decision is ALLOW else decision.verdict
    )


@pytest.mark.parametrize(
    "host",
    [
        "use-application-dns.net",
        "mask.icloud.com",
        "mask-h2.icloud.com",
        "resolver.arpa",
        "_dns.resolver.arpa",
    ],
)
def test_canaries_are_denied_whatever_policy_says(host: str) -> None:
    assert rule(query(host), lambda _: ALLOW).rcode == Rcode.NXDOMAIN
    assert rule(query("x" + host.removeprefix("_dns.")), lambda _: ALLOW).rcode is None


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "1.2.3.4", "2130706433", "0177.0.0.1", "-a.test"])
def test_names_that_could_be_read_as_something_else_never_reach_policy(host: str) -> None:
    asked: list[str] = []
    ruling = rule(query(host), lambda name: asked.append(name) or ALLOW)
    assert ruling.rcode == Rcode.NXDOMAIN
    assert ruling.decision.reason.startswith("malformed.")
    assert asked == []


def finding(status: Status, *values: int, refused: str = "") -> Finding:
    decision = Decision(Verdict.DENY, refused) if refused else ALLOW
    addresses = tuple((Address(4, value), 9) for value in values)
    return Finding(status, decision, refused or status.value, addresses, 9)


def test_two_families_make_one_finding() -> None:
    found, none = finding(Status.FOUND, 1, 2), finding(Status.NODATA)
    gone, silent = finding(Status.NXDOMAIN), finding(Status.UNAVAILABLE)
    bad = finding(Status.FOUND, refused="address.not_public")
    assert join([found, none]).addresses == join([none, found]).addresses == found.addresses
    assert join([found, silent]).status is Status.FOUND
    assert join([found, bad]) is bad
    assert join([silent, bad]) is bad
    assert join([none, silent]) is silent
    assert join([gone, none]) is gone
    assert join([none, none]).status is Status.NODATA
    assert join([found]).addresses == found.addresses
