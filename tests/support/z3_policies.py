"""Policies as Z3 formulas, at the level of `allow`: a second opinion that shares nothing with `widens`.

A host is a vector of label numbers from the top down with its length, or an IPv4 bit vector; the port
is an integer. Only what rules say about target and port is encoded: allow, ask, deny and ceiling,
with except, over tcp and one nameless subject, for posture allowlist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import z3

from exeat.policy.rules import Kind
from exeat.policy.scopes import ANY_PORT, Reach

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.rules import Rule
    from exeat.policy.scopes import Ports, Scope

DEPTH = 6
DNS = (53, 784, 853, 8853)


class World:
    """The unknown flow, and the numbers of the labels."""

    def __init__(self) -> None:
        self.literal = z3.Bool("literal")
        self.labels = [z3.Int(f"label{n}") for n in range(DEPTH)]
        self.length = z3.Int("length")
        self.address = z3.BitVec("address", 32)
        self.port = z3.Int("port")
        self._numbers: dict[str, int] = {}

    def number(self, label: str) -> int:
        return self._numbers.setdefault(label, len(self._numbers) + 1)

    def scope(self, scope: Scope) -> Any:
        if scope.net is not None:
            if scope.net.family == 6:
                return z3.BoolVal(False)
            shift = 32 - scope.net.length
            same = z3.LShR(self.address, shift) == z3.BitVecVal(scope.net.value >> shift, 32)
            return z3.And(self.literal, same if scope.net.length else z3.BoolVal(True))
        if scope.reach is Reach.ANY:
            return z3.Not(self.literal)
        parts = scope.name.split(".")[::-1]
        begins = [self.labels[n] == self.number(part) for n, part in enumerate(parts)]
        length = {
            Reach.HOST: self.length == len(parts),
            Reach.TREE: self.length >= len(parts),
            Reach.BELOW: self.length > len(parts),
        }[scope.reach]
        return z3.And(z3.Not(self.literal), length, *begins)

    def ports(self, ports: Ports) -> Any:
        return z3.Or(*(z3.And(self.port >= low, self.port <= high) for low, high in ports))

    def rule(self, rule: Rule) -> Any:
        if "tcp" not in rule.protocols:
            return z3.BoolVal(False)
        to = z3.Or(*(z3.And(self.scope(s), self.ports(s.ports or rule.ports)) for s in rule.to))
        out = (z3.And(self.scope(s), self.ports(s.ports or ANY_PORT)) for s in rule.except_)
        return z3.And(to, z3.Not(z3.Or(*out)))

    def allows(self, document: Document) -> Any:
        def any_of(kind: Kind) -> Any:
            return z3.Or(*(self.rule(rule) for rule in document.of_kind(kind)))

        roof = z3.BoolVal(True)
        if document.ceiling is not None:
            roof = z3.Or(*(self.rule(rule) for rule in document.ceiling))
        return z3.And(any_of(Kind.ALLOW), z3.Not(any_of(Kind.ASK)), z3.Not(any_of(Kind.DENY)), roof)

    def possible(self) -> Any:
        """What no policy can change: a name has labels, DNS ports are closed, loopback and the like too."""
        octet = z3.LShR(self.address, 24)
        special = [octet == z3.BitVecVal(first, 32) for first in (0, 127)]
        special += [
            z3.LShR(self.address, 16) == z3.BitVecVal(169 << 8 | 254, 32),
            z3.UGE(self.address, z3.BitVecVal(224 << 24, 32)),
        ]
        return z3.And(
            self.port >= 1,
            self.port <= 65535,
            *(self.port != port for port in DNS),
            self.length >= 1,
            self.length <= DEPTH,
            *(label >= 0 for label in self.labels),
            z3.Implies(self.literal, z3.Not(z3.Or(*special))),
        )


def more_allowed(a: Document, b: Document) -> bool:
    """Whether Z3 finds a flow that `b` allows and `a` does not."""
    world, solver = World(), z3.Solver()
    solver.add(world.allows(b), z3.Not(world.allows(a)), world.possible())
    answer = solver.check()
    if answer == z3.unknown:
        raise AssertionError(f"Z3 does not know: {solver.reason_unknown()}")
    return bool(answer == z3.sat)
