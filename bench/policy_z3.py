"""The question of `widens` put to Z3, for the benchmark: allow and deny by host, network and port.

Hosts are vectors of label numbers, top-level domain first, with a length; addresses bit-vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import z3

from exeat.policy.rules import Kind
from exeat.policy.scopes import Reach

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.rules import Rule
    from exeat.policy.scopes import Scope

_DEPTH = 5
label_at = [z3.Int(f"label{n}") for n in range(_DEPTH)]
length, port, ip, named = z3.Int("length"), z3.Int("port"), z3.BitVec("ip", 32), z3.Bool("named")


def z3_widens(a: Document, b: Document) -> bool:
    """Whether `b` lets out what `a` does not."""
    numbers: dict[str, int] = {}
    solver = z3.Solver()
    solver.add(length >= 1, length <= _DEPTH, port >= 1, port <= 65535)
    # Built in, whatever the policy: DNS is the guard's, and these networks are never reachable.
    solver.add(*[port != number for number in (53, 784, 853, 8853)])
    for low, bits in ((0, 8), (127 << 24, 8), (169 << 24 | 254 << 16, 16), (192 << 24, 24), (224 << 24, 3)):
        solver.add(z3.Or(named, z3.LShR(ip, 32 - bits) != low >> (32 - bits)))
    solver.add(_open(b, numbers), z3.Not(_open(a, numbers)))
    return bool(solver.check() == z3.sat)


def _open(document: Document, numbers: dict[str, int]) -> Any:
    allowed = [_rule(rule, numbers) for rule in document.rules if rule.kind is Kind.ALLOW]
    denied = [_rule(rule, numbers) for rule in document.rules if rule.kind is Kind.DENY]
    return z3.And(z3.Or(allowed), z3.Not(z3.Or(denied)))


def _rule(rule: Rule, numbers: dict[str, int]) -> Any:
    ports = z3.Or([z3.And(port >= low, port <= high) for low, high in rule.ports])
    return z3.And(ports, z3.Or([_scope(scope, numbers) for scope in rule.to]))


def _scope(scope: Scope, numbers: dict[str, int]) -> Any:
    if scope.net is not None:
        shift = 32 - scope.net.length
        return z3.And(z3.Not(named), z3.LShR(ip, shift) == scope.net.value >> shift)
    labels = scope.name.split(".")[::-1]
    same = [label_at[n] == numbers.setdefault(label, len(numbers)) for n, label in enumerate(labels)]
    least = {Reach.HOST: length == len(labels), Reach.TREE: length >= len(labels)}
    return z3.And(named, *same, least.get(scope.reach, len(labels) < length))
