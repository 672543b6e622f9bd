"""Which question gets which kind of answer, before anything is looked up. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exeat.dns import wire
from exeat.dns.rdata import SERVED
from exeat.dns.wire import Ede, Qtype, Query, Rcode
from exeat.policy.model import Decision, Verdict
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    from collections.abc import Callable

# Names by which clients ask whether they may go around the local resolver.
CANARIES = frozenset({"use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"})
DISCOVERY = "resolver.arpa"  # DDR, RFC 9462
REFUSED_TYPES = frozenset({Qtype.ANY, Qtype.AXFR, Qtype.IXFR, Qtype.NULL, Qtype.KEY, Qtype.NAPTR})
PRIVATE_TYPES = 65280
LEASE_REQUIRED = "lease required"

Blocked = tuple[Ede, str]


class Ruling(NamedTuple):
    """What is to be done about a readable query. `rcode` None: look it up."""

    host: str
    decision: Decision
    rcode: Rcode | None
    ede: Blocked | None = None


def rule(
    query: Query,
    admit: Callable[[str], Decision],
    records: Callable[[str], Decision | None] = lambda _host: None,
) -> Ruling:
    """Decide one query; `admit` asks the policy core about a canonical host, and `records` whether more
    than its addresses may be looked up, and by whose permission.
    """
    text = wire.host_text(query.name)
    try:
        host = parse_host(text) if text is not None else None
    except MalformedError as error:
        return _blocked(wire.printable(query.name)[:255], error.code)
    if not isinstance(host, str):
        return _blocked(wire.printable(query.name)[:255], "malformed.host")
    if host in CANARIES or host == DISCOVERY or host.endswith("." + DISCOVERY):
        return _blocked(host, "dns.refused")
    decision = admit(host)
    if decision.verdict is Verdict.ASK:
        return Ruling(host, decision, Rcode.NXDOMAIN, (Ede.BLOCKED, LEASE_REQUIRED))
    if not decision.allowed:
        return Ruling(host, decision, Rcode.NXDOMAIN, (Ede.BLOCKED, decision.reason))
    return _rule_type(query, host, decision, records)


def _rule_type(
    query: Query, host: str, decision: Decision, records: Callable[[str], Decision | None]
) -> Ruling:
    """For an allowed name: which questions about it are answered."""
    qtype = query.qtype
    if query.qclass != wire.CLASS_IN or qtype in REFUSED_TYPES or qtype >= PRIVATE_TYPES:
        refused = Decision(Verdict.DENY, "dns.refused", decision.rule)
        return Ruling(host, refused, Rcode.NOTIMP, (Ede.NOT_SUPPORTED, "type or class not served"))
    if qtype in (Qtype.A, Qtype.AAAA):
        return Ruling(host, decision, None)
    granted = records(host) if qtype in SERVED else None
    if granted is not None:
        return Ruling(host, granted, None)
    if qtype == Qtype.PTR:
        return _blocked(host, "dns.refused")
    # HTTPS and SVCB would carry ECH keys, h3 and address hints past us; clients do well without.
    return Ruling(host, decision, Rcode.NOERROR)


def _blocked(host: str, reason: str) -> Ruling:
    return Ruling(host, Decision(Verdict.DENY, reason), Rcode.NXDOMAIN, (Ede.BLOCKED, reason))
