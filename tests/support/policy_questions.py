"""Random policies with everything around them, and many questions for each: what the compiled core and
the reference are asked side by side. A seed gives the same ones on every machine.

The weights are set so that every stage of the decision is reached often: most requests are none that
a meta rule refuses, and most leases are alive.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.policy_strategies import (
    ADDRESSES,
    HOSTS,
    NAMES,
    NOW_MS,
    PORT_NUMBERS,
    SCOPES,
    document_of,
)
from tests.support.reference_policy import Answer, Surroundings, reference

from exeat.policy.addresses import parse_address, parse_cidr
from exeat.policy.leases import Lease, State
from exeat.policy.model import Address, Request, Sni, Subject
from exeat.policy.scopes import parse_ports, parse_scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exeat.policy.document import Document

T = TypeVar("T")
HOUR_MS = 3_600_000
_PUBLIC_TEXTS = ["93.184.216.34", "93.185.0.1", "2606:4700::1", "2606:4700::2", "1.0.0.1"]
_PUBLIC = [parse_address(text) for text in (*_PUBLIC_TEXTS, "64:ff9b::5db8:d822", "192.0.0.9")]
_PLACES = [
    parse_address(text) for text in (*ADDRESSES, "8.8.8.8", "2606:4700::5efe:7f00:1", "::808:808", "fc00::1")
]
_SCOPES = [*SCOPES, "93.0.0.0/8", "93.184.216.34", ".org", "org", "10.1.2.3:22", "2606:4700::/64", "*:80"]
_TIGHT = [".org", "*", "0.0.0.0/0", "2606:4700::/32", ".a.org", ".x.org"]
_NAMES = [*NAMES[:5], "d.c.b.a.org", "b.a.org.x.org", "ba.org"]
_ODD_HOSTS = [*HOSTS, "x.metadata.goog", "instance-data", "a.localhost", *_PLACES]
_PORT_TEXTS = ["443", "443", "22", "80", "any", "440-450", "53", "1-442", "444-65535"]
_PORTS = [443, 443, 443, 22, 80, 445, 440, 450]
_ODD_PORTS = [*PORT_NUMBERS, 1, 784, 853, 8853, 439, 442, 444, 451, 8443]
# Where anything in these policies begins or ends, and the neighbours of that.
_EDGES = sorted(
    {1, 2, 52, 53, 54, 785, 854, 8854, 65534, 65535}
    | {edge + by for edge in (22, 80, 440, 443, 444, 450, 8080, 8443) for by in (-1, 0, 1)}
)
_OPENNESS = {"deny": 0, "ask": 1, "allow": 2}
_SUBJECTS = [
    Subject("p", agent, job=job, node=node)
    for agent in ("a1", "a1", "a2")
    for job in ("", "j1")
    for node in ("n1", "n2")
]
_ODD_SUBJECTS = [Subject("p", ""), Subject("", "a1"), Subject("q", "a1", job="j1")]
_TIMES = [NOW_MS] * 6 + [NOW_MS + hours * HOUR_MS for hours in (5, 11, 24)] + [NOW_MS - 1, NOW_MS + 1]
_WHEN = [
    {"daily": "09:00-17:00", "days": "mon"},
    {"daily": "22:00-06:00", "days": "sun"},
    {"daily": "17:00-12:01"},
    {"until": "2026-01-05T12:00:00Z"},
    {"from": "2026-01-05T12:00:00Z"},
]


@dataclass(frozen=True)
class Counted:
    """Counters that say what they are told to, corrupt state included."""

    around: Surroundings

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> object:
        return self.around.used.get((budget, counter), 0)

    def lease_uses(self, lease_id: str) -> int:
        return self.around.lease_uses.get(lease_id, 0)

    def lease_bytes(self, lease_id: str) -> int:
        return self.around.lease_bytes.get(lease_id, 0)


@dataclass(frozen=True)
class Setting:
    """A policy and what is around it. `honest`: real counters hold what was used, charged at NOW_MS."""

    document: Document
    around: Surroundings
    honest: bool
    seed: int

    def questions(self, count: int) -> Iterator[tuple[Request, int, Answer]]:
        """Requests, when they come, and what is right."""
        chance = random.Random(self.seed)
        for _ in range(count):
            request, now_ms = _request(chance), chance.choice(_TIMES)
            yield _as_on_the_wire(request, chance), now_ms, self._right(request, now_ms)

    def _right(self, request: Request, now_ms: int) -> Answer:
        around = self.around
        if self.honest and now_ms - now_ms % HOUR_MS > NOW_MS:
            around = replace(around, used={})  # every budget of these policies counts by the hour
        return reference(self.document, request, now_ms, around)

    def lookups(self, count: int) -> Iterator[tuple[Request, int, set[Answer]]]:
        """Requests whose port does not count, when they come, and the answers of which one is right:
        that of 443/tcp if it allows, or nothing is better than its refusal; else one of the best over
        every port at which something in here changes."""
        chance = random.Random(self.seed)
        for _ in range(count):
            host, now_ms = _pick(chance, _NAMES, NAMES, 8), chance.choice(_TIMES)
            resolved = [_pick(chance, _PUBLIC, _PLACES, 6) for _ in range(chance.choice((0, 1, 1, 2)))]
            first = Request(_pick(chance, _SUBJECTS, _ODD_SUBJECTS, 40), host, 443, "tcp", tuple(resolved))
            best = self._right(first, now_ms)
            found = {best}
            ports = () if best.verdict == "allow" else _EDGES
            for port, proto in product(ports, ("tcp", "udp")):
                answer = self._right(replace(first, port=port, proto=proto), now_ms)
                if _OPENNESS[answer.verdict] > _OPENNESS[best.verdict]:
                    best, found = answer, {answer}
                elif answer.verdict == best.verdict != "deny":
                    found.add(answer)
            yield _as_on_the_wire(first, chance), now_ms, found


def _pick(chance: random.Random, usual: Sequence[T], odd: Sequence[T], one_in: int) -> T:
    return chance.choice(odd if chance.randrange(one_in) == 0 else usual)


def _request(chance: random.Random) -> Request:
    hosts: list[str | Address] = [*_NAMES, *_NAMES, *_PUBLIC]
    host = _pick(chance, hosts, _ODD_HOSTS, 8)
    places = _PUBLIC if isinstance(host, str) else [*_PUBLIC, host, host]
    resolved = [_pick(chance, places, _PLACES, 6) for _ in range(chance.choice((0, 0, 1, 1, 2, 3)))]
    names: list[str | Sni] = [Sni.ABSENT, "a.org", "x.org", host if isinstance(host, str) else "a.org"]
    return Request(
        _pick(chance, _SUBJECTS, _ODD_SUBJECTS, 40),
        host,
        _pick(chance, _PORTS, _ODD_PORTS, 8),
        _pick(chance, ["tcp", "tcp", "udp"], ["sctp", ""], 40),
        tuple(resolved),
        _pick(chance, [Sni.UNSEEN], names, 8),
    )


def _as_on_the_wire(request: Request, chance: random.Random) -> Request:
    """The same request, now and then in a form that has to be made canonical first."""
    if chance.random() < 0.8:
        return request
    resolved = tuple(chance.choice((_mapped(address), address)) for address in request.resolved)
    if isinstance(request.host, Address):
        return replace(request, host=_mapped(request.host), resolved=resolved)
    host = chance.choice([request.host.upper(), request.host + ".", request.host])
    return replace(request, host=host, resolved=resolved)


def _mapped(address: Address) -> Address:
    """RFC 4291 2.5.5.2."""
    return Address(6, 0xFFFF << 32 | address.value) if address.family == 4 else address


def setting_of(seed: int) -> Setting:
    """The policy of this seed, and what is around it."""
    chance = random.Random(seed)
    document = document_of(_tree(chance))
    leases = [_lease(chance, f"L{number}") for number in range(chance.randrange(4))]
    honest = chance.random() < 0.7
    lab = chance.random() < 0.3
    around = Surroundings(
        leases=leases,
        used=_used(chance, honest),
        lease_uses={lease.id: chance.choice((0, 1, 1, 2, 3)) for lease in leases},
        lease_bytes={lease.id: chance.choice((0, 9, 9, 10, 11)) for lease in leases},
        revoked=frozenset(lease.id for lease in leases if chance.random() < 0.1),
        min_epoch=chance.choice((0, 0, 3)),
        treat_as_public=tuple(filter(None, map(parse_cidr, ("203.0.113.0/24", "fd00::/16")))) if lab else (),
        control=frozenset({("c.b.a.org", 22), (parse_address("10.1.2.3"), 443)}) if lab else frozenset(),
        host_local=frozenset({parse_address("8.8.8.8")}) if lab else frozenset(),
        baseline=document_of(_tree(chance)) if chance.random() < 0.2 else None,
    )
    return Setting(document, around, honest, chance.randrange(2**32))


def _used(chance: random.Random, honest: bool) -> dict[tuple[str, str], Any]:
    """Spent so far. Honest counters count the same bytes in `hard` and in the defaults."""
    sent: list[Any] = [0, 0, 98, 99, 99, 100, 101]
    opened: list[Any] = [0, 0, 3, 4, 4, 5, 6]
    corrupt: list[Any] = [] if honest else [-1, None, True, "5", 5.0]
    used = {
        ("hard", "bytes_up"): chance.choice([*sent, *sent, *corrupt]),
        ("soft", "connections"): chance.choice([*opened, *opened, *corrupt]),
    }
    for name in ("default", "baseline/default"):
        more = used["hard", "bytes_up"] if honest else chance.choice((0, 0, 999, 999, 1000, 1001, -1))
        used[name, "bytes"] = more
    return used


def _tree(chance: random.Random) -> dict[str, Any]:
    tree: dict[str, Any] = {"egress": "v1", "project": "p"}
    tree["posture"] = chance.choice(["allowlist", "allowlist", "public", "custom", "custom", "off"])
    tree["preset"] = chance.choice(["relaxed", "standard", "strict"])
    if tree["posture"] == "off":
        tree |= {"acknowledge": "unenforced", "expires": "2030-01-01T00:00:00Z"}
    if tree["posture"] == "custom":
        tree["default"] = chance.choice(["ask", "deny", "public"])
    if chance.randrange(20) == 0:
        tree["expires"] = "2026-01-05T12:00:00Z"
    for kind, most in (("allow", 6), ("ask", 4), ("deny", 3)):
        bodies = [_rule(chance, kind) for _ in range(chance.randrange(most + 1))]
        chance.shuffle(bodies)
        # Ids that do not sort as the document does, so that the order of either shows.
        tree[kind] = [{"id": f"{kind}-{-n % 7}", **body} for n, body in enumerate(bodies)]
    if chance.randrange(5) == 0:
        tree["ceiling"] = [_rule(chance, "ceiling") for _ in range(chance.choice((0, 1, 2, 3, 4)))]
    if chance.randrange(3) == 0:
        tree["control"] = ["b.a.org:443", "93.184.216.34:8080", "93.184.216.34:80"]
    tree["budgets"] = {
        "hard": {"bytes_up": "100/1h"},
        "soft": {"connections": "5/1h", "on_exceed": "ask"},
    }
    if chance.randrange(2):
        limit = chance.choice(("99/1h", "100/1h", "1000/1h"))
        tree["budgets"]["default"] = {"bytes": limit, "on_exceed": chance.choice(("deny", "ask"))}
    return tree


def _rule(chance: random.Random, kind: str) -> dict[str, Any]:
    scopes = [*_TIGHT, *_TIGHT, *_SCOPES] if kind == "ceiling" else _SCOPES
    rule: dict[str, Any] = {"to": chance.sample(scopes, chance.choice((1, 1, 2, 3))), "broad": "true"}
    rule["to"] = list(dict.fromkeys(rule["to"]))
    if chance.randrange(2):
        rule["ports"] = list(dict.fromkeys(chance.choices(_PORT_TEXTS, k=2)))
    if chance.randrange(4) == 0:
        rule["except"] = chance.sample(_SCOPES, chance.choice((1, 2)))
    if chance.randrange(3) == 0:
        rule["proto"] = chance.choice(["tcp", "udp", "any"])
    if kind != "ceiling":
        if chance.randrange(5) == 0:
            rule["agent"] = chance.choice(["a1", "a2"])
        if chance.randrange(5) == 0:
            rule["node"] = ["n1"]
        if chance.randrange(5) == 0:
            rule["when"] = dict(chance.choice(_WHEN))
    if kind in ("allow", "ask"):
        if chance.randrange(3) == 0:
            rule["private"] = "true"
        if chance.randrange(5) == 0:
            rule[chance.choice(["raw", "ech", "records"])] = "true"
        if kind == "ask" and chance.randrange(5) == 0:
            rule["via"] = "direct"
        if chance.randrange(3) == 0:
            rule["budget"] = chance.choice(["hard", "soft"])
    return rule


def _lease(chance: random.Random, name: str) -> Lease:
    return Lease(
        id=name,
        project=_pick(chance, ["p"], ["q"], 10),
        to=tuple(map(parse_scope, chance.sample(_SCOPES, chance.choice((1, 2, 3))))),
        ports=parse_ports(chance.choices(_PORT_TEXTS, k=2)),
        protocols=_pick(chance, [("tcp",)], [("tcp", "udp"), ("udp",)], 4),
        except_=tuple(map(parse_scope, chance.sample(_SCOPES, chance.choice((0, 0, 0, 1))))),
        private=chance.random() < 0.4,
        raw=chance.random() < 0.2,
        ech=chance.random() < 0.2,
        direct=chance.random() < 0.2,
        records=chance.random() < 0.2,
        agents=_pick(chance, [frozenset()], [frozenset({"a1"}), frozenset({"a1", "a2"})], 3),
        nodes=_pick(chance, [frozenset()], [frozenset({"n1"})], 5),
        job=_pick(chance, [""], ["j1"], 4),
        state=_pick(chance, [State.ACTIVE], [State.REQUESTED, State.REVOKED], 20),
        issuer=_pick(chance, ["home"], ["w1"], 20),
        nbf_ms=_pick(chance, [0], [NOW_MS, NOW_MS + 1], 5),
        exp_ms=_pick(chance, [NOW_MS + 30 * HOUR_MS], [NOW_MS, NOW_MS + 1], 5),
        epoch=chance.choice((0, 3, 4)),
        max_uses=_pick(chance, [None], [2], 4),
        max_bytes=_pick(chance, [None], [10], 4),
        budget=_pick(chance, [""], ["hard", "soft", "gone"], 4),
    )
