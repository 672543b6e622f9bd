"""The normative decide cases through the real proxy and the real guard.

Every case is asked as a client would ask it: as bytes, from a jail whose subject is the case's,
with the case's policy and leases in the snapshot. Only the instant and the counters come by a seam
(`tests/support/door_cases.py`). What a door cannot be asked, and where it answers with a reason of
its own before policy is asked, is written down here case by case, so that neither can grow unseen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.rcode
import pytest
from tests.support.door_cases import DoorCase, load_cases
from tests.support.policy_guard import Answered, PolicyGuard, in_numbers, of_type, policy_guard
from tests.support.policy_world import (
    PolicyWorld,
    Seen,
    every_address_is_here,
    socks_address,
    socks_name,
)
from tests.support.proxy_world import in_namespace

from exeat.ledger.records import Kind
from exeat.policy.model import Address, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

CASES = {case.id: case for case in load_cases()}

# -- what cannot be asked, by door: reason -> cases

NOT_TCP = {"BS-09", "DB-05", "NS-19", "PO-05", "MP-11", "MP-12", "N-018", "N-019", "N-071"}
NO_TYPES = {"DB-17", "N-021"}  # host 42 and port "443": text on the wire is text
LITERAL_RESOLVED = {"N-010"}  # an address is dialled as it is, nobody resolves it to another one
NO_EMPTY_NAME = {"N-028"}  # a ClientHello with an empty name: RFC 6066 has none, nor has OpenSSL
SIXTEEN_BITS = {"DB-03", "N-020", "N-022"}  # ports that a SOCKS request has no room for
AT_PROXY = NOT_TCP | NO_TYPES | LITERAL_RESOLVED | NO_EMPTY_NAME
NOT_ASKED = {
    "connect": AT_PROXY,
    "socks-name": AT_PROXY | SIXTEEN_BITS,
    "socks-address": {i for i, case in CASES.items() if not isinstance(case.target, Address)}
    | AT_PROXY
    | SIXTEEN_BITS,
}
COUNTS = {"connect": 257, "socks-name": 254, "socks-address": 39}

# -- where the door answers before policy, or in another order: (reason, rule)

# A person is asked before the name is looked up, so the addresses of an ask are judged after.
ASKED_FIRST = {"N-003": ("rule.ask", "gh"), "N-066": ("posture.ask", ""), "N-116": ("rule.ask", "two")}
# The ClientHello parser is stricter than the core: no trailing dot, no NUL, no address (RFC 6066 3).
STRICT_HELLO = {"N-025": ("tls.malformed", "pypi"), "N-027": ("tls.malformed", "pypi")}
ADDRESS_AS_NAME = {"N-029": ("tls.sni_ip", "db")}
# Allowed, and then the one byte that the lease has left is less than a ClientHello.
ONE_BYTE_LEFT = {"N-104": ("lease.exhausted", "L-bytes")}
AT_BOTH = {**ASKED_FIRST, **STRICT_HELLO, **ADDRESS_AS_NAME, **ONE_BYTE_LEFT}
OTHERWISE = {
    "connect": {**AT_BOTH, "DB-07": ("http.line_ending", "")},
    "socks-name": AT_BOTH,
    "socks-address": ADDRESS_AS_NAME,
}
ASK_REASONS = ("rule.ask", "posture.ask", "posture.ask_ip", "budget.ask")

_ASKS: dict[str, Callable[[PolicyWorld, DoorCase], Seen]] = {
    "connect": PolicyWorld.connect_case,
    "socks-name": lambda world, case: world.socks_case(case, socks_name(case)),
    "socks-address": lambda world, case: world.socks_case(case, socks_address(case)),
}
PROXY_ASKED = [(door, i) for i in CASES for door in _ASKS if i not in NOT_ASKED[door]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Seen | Exception]:
    """All that the proxy answered, in one world."""
    out: dict[tuple[str, str], Seen | Exception] = {}
    ports = {case.port for case in CASES.values() if type(case.port) is int and 0 < case.port < 65536}

    def body() -> None:
        every_address_is_here()
        with PolicyWorld(tmp_path_factory.mktemp("doors"), ports) as world:
            for door, name in PROXY_ASKED:
                if world.shown != name:
                    world.show(CASES[name])
                try:
                    out[door, name] = _ASKS[door](world, CASES[name])
                except (AssertionError, OSError, ValueError) as error:
                    out[door, name] = error

    in_namespace(body)
    return out


@pytest.mark.parametrize(("door", "name"), PROXY_ASKED)
def test_the_proxy_answers_as_the_case_says(
    seen: dict[tuple[str, str], Seen | Exception], door: str, name: str
) -> None:
    got, case = seen[door, name], CASES[name]
    assert isinstance(got, Seen), got
    reason, rule = OTHERWISE[door].get(name, (case.expect["reason"], case.expect.get("rule")))
    record = got.record
    assert record.reason_code == reason
    assert rule is None or record.rule_id == rule
    if case.allowed and name not in OTHERWISE[door]:
        assert record.kind is Kind.OPEN
        assert record.decision == "allow"
        assert got.reached
        return
    assert record.kind is Kind.DENY
    assert record.decision == ("ask" if reason in ASK_REASONS else "deny")
    assert not got.reached, "bytes of a refused flow arrived somewhere"
    in_tunnel = reason.startswith(("sni.", "tls.", "lease."))
    assert got.told == ("" if in_tunnel else reason)
    assert got.status == _status(door, reason, in_tunnel=in_tunnel)


def _status(door: str, reason: str, *, in_tunnel: bool) -> int:
    """What a refusal looks like from outside."""
    ours = reason in ("policy.expired", "budget.state", "internal.error")
    if door != "connect":
        return 0 if in_tunnel else 1 if reason == "policy.expired" else 2
    if in_tunnel:
        return 200
    if reason.startswith(("malformed.", "http.")):
        return 400
    return 503 if ours else 403


def test_how_many_cases_each_proxy_door_takes() -> None:
    asked = {door: sum(d == door for d, _ in PROXY_ASKED) for door in _ASKS}
    assert asked == COUNTS


# -- the guard: by the proxy at guard.sock, and by programs in the jail

LITERALS = {i for i, case in CASES.items() if isinstance(case.target, Address)}  # need no lookup
BAD_FIELDS = {"DB-02", "DB-03", "DB-05", "DB-17", "N-019", "N-020", "N-021", "N-022"}  # no request at all
NOT_YET_SEEN = {"NS-34", "NS-35", "N-026", "N-027", "N-028"}  # names resolve before there is an SNI
MAPPED = {"N-052"}  # an AAAA record holding an IPv4 address: such an answer is refused whole
NO_DNS_FORM = {"DB-09", "N-030", "N-031"}  # labels over 63 and names over 255 octets
# A lookup is on the ledger before it is made: by what admitted it then, not by what the address allows.
ADMITTED_BY = {
    **dict.fromkeys(NOT_YET_SEEN, "rule.allow"),
    **dict.fromkeys(("NS-34", "NS-35"), "posture.public"),
    "N-118": "lease.active",
}
ADDRESS_QUERIES = ("A", "AAAA")
DNS_ASKED = [i for i in CASES if i not in NO_DNS_FORM | {"DB-17"}]


@dataclass
class GuardSeen:
    """Answers by (case, question), and what the ledger holds of them by (case, who asked)."""

    answers: dict[tuple[str, str], Answered] = field(default_factory=dict)
    core: dict[tuple[str, str], tuple[Verdict, str]] = field(default_factory=dict)
    records: dict[tuple[str, str], set[tuple[str, str]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> GuardSeen:
    """All that the guard answered."""
    out = GuardSeen()
    generations = {}
    with (
        pytest.MonkeyPatch.context() as patch,
        policy_guard(tmp_path_factory.mktemp("guard"), patch) as asked,
    ):
        for name, case in CASES.items():
            asked.show(case)
            generations[asked.generation] = name
            out.answers[name, "resolve"] = asked.resolve(case)
            if name in DNS_ASKED:
                _look_up(asked, case, out)
        for (generation, source), said in asked.recorded().items():
            out.records[generations[generation], source] = said
    return out


def _look_up(asked: PolicyGuard, case: DoorCase, out: GuardSeen) -> None:
    for kind in ADDRESS_QUERIES:
        out.answers[case.id, kind] = asked.look_up(case, kind)
        if isinstance(case.target, str):
            core = asked.core_says(case, of_type(case, kind)[1])
            out.core[case.id, kind] = core.verdict, core.reason


@pytest.mark.parametrize("name", CASES)
def test_the_guard_resolves_for_the_proxy_as_the_case_says(guard: GuardSeen, name: str) -> None:
    got, case = guard.answers[name, "resolve"], CASES[name]
    if name in LITERALS | BAD_FIELDS | MAPPED:
        assert got.reason == "dns.refused"
        assert got.upstream == (name in MAPPED)
        return
    allowed = case.allowed or name in NOT_YET_SEEN
    reason = ASKED_FIRST[name][0] if name in ASKED_FIRST else case.expect["reason"]
    assert got.reason == ("" if allowed else reason)
    assert got.addresses == (in_numbers(case) if allowed else frozenset())
    # A name is only asked of an upstream when policy has let it pass or has an address to judge.
    assert not got.upstream or allowed or "resolved" in case.request
    if isinstance(case.target, str):
        asks = reason in ASK_REASONS
        decision = "allow" if allowed else "ask" if asks else "deny"
        assert (decision, ADMITTED_BY.get(name, reason)) in guard.records[name, "proxy"]


@pytest.mark.parametrize("kind", ADDRESS_QUERIES)
@pytest.mark.parametrize("name", DNS_ASKED)
def test_the_guard_answers_a_jail_only_if_the_core_says_so(guard: GuardSeen, name: str, kind: str) -> None:
    got, case = guard.answers[name, kind], CASES[name]
    if not isinstance(case.target, str):
        assert got.rcode == dns.rcode.NXDOMAIN
        assert got.reason.startswith("malformed.")
        assert not got.upstream
        return
    verdict, reason = guard.core[name, kind]
    texts = of_type(case, kind)[0]
    if name in MAPPED and kind == "AAAA":
        verdict, reason = Verdict.DENY, "dns.refused"
    allowed = verdict is Verdict.ALLOW
    assert got.rcode == (dns.rcode.NOERROR if allowed else dns.rcode.NXDOMAIN)
    assert got.addresses == (texts if allowed else frozenset())
    assert got.reason == ("" if allowed else "lease required" if verdict is Verdict.ASK else reason)
    assert not got.upstream or allowed or "resolved" in case.request
    assert allowed or not case.allowed, "what a flow may reach, its job may look up"
    recorded = ADMITTED_BY.get(name, reason) if allowed else reason
    assert (str(verdict), recorded) in guard.records[name, "dns"]


def test_how_many_cases_the_guard_takes() -> None:
    by_policy = CASES.keys() - LITERALS - BAD_FIELDS - MAPPED
    assert (len(CASES), len(by_policy), len(DNS_ASKED)) == (270, 219, 266)
