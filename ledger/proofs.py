"""Merkle proofs (RFC 6962 sections 2.1.1 and 2.1.2, checked as in RFC 9162), and proofs of many. Pure.

Makers ask a `Roots` function for the hashes of ranges; checkers need nothing but the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exeat.ledger.merkle import EMPTY_ROOT, HASH, node_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

Roots = Callable[[int, int], bytes]  # (first, end) -> root of the tree over these leaves


class ProofError(ValueError):
    """The proof does not show what it was given for."""


def split(count: int) -> int:
    """The largest power of two below `count` (at least 2): where RFC 6962 divides a tree."""
    return 1 << (count - 1).bit_length() - 1


def inclusion(index: int, size: int, roots: Roots) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root of `size` leaves. Raises ValueError."""
    if not 0 <= index < size:
        raise ValueError(f"no record {index} in a tree of {size}")
    first, end = 0, size
    proof: list[bytes] = []
    while end - first > 1:
        middle = first + split(end - first)
        if index < middle:
            proof.append(roots(middle, end))
            end = middle
        else:
            proof.append(roots(first, middle))
            first = middle
    return proof[::-1]


def consistency(old: int, size: int, roots: Roots) -> list[bytes]:
    """The hashes that show the tree of `old` leaves to be the beginning of that of `size`."""
    if not 0 <= old <= size:
        raise ValueError(f"a tree of {size} has no beginning of {old}")
    first, end, whole = 0, size, True
    proof: list[bytes] = []
    if old in (0, size):
        return proof
    while old != end:
        middle = first + split(end - first)
        if old <= middle:
            proof.append(roots(middle, end))
            end = middle
        else:
            proof.append(roots(first, middle))
            first, whole = middle, False
    if not whole:
        proof.append(roots(first, end))
    return proof[::-1]


def check_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raises ProofError unless `proof` leads from the leaf's hash at `index` to `root`."""
    if not 0 <= index < size or any(len(node) != HASH for node in (leaf, root, *proof)):
        raise ProofError("not a proof of inclusion in such a tree")
    at, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    if last or node != root:
        raise ProofError("the proof leads to another root")


def check_consistency(old: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Raises ProofError unless `proof` shows `old_root` of `old` leaves to be the beginning of `root`."""
    if not 0 <= old <= size or any(len(node) != HASH for node in (old_root, root, *proof)):
        raise ProofError("not a proof of consistency of such trees")
    if old == size or old == 0:
        if proof or (old == size and old_root != root) or (old == 0 and old_root != EMPTY_ROOT):
            raise ProofError("the roots differ, or there is a proof where none is due")
        return
    hashes = list(proof)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise ProofError("the proof is empty")
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = now = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            before, now = node_hash(sibling, before), node_hash(sibling, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        at, last = at >> 1, last >> 1
    if last or before != old_root or now != root:
        raise ProofError("the two trees do not belong together")


def of_many(indices: Sequence[int], size: int, roots: Roots) -> list[bytes]:
    """The fewest hashes that lead from these leaves (ascending, each once) to the root of `size`.

    They stand in the order in which `exeat.ledger.verify_offline` meets the parts of the tree that
    hold none of the leaves, from left to right.
    """
    proof: list[bytes] = []
    parts = [(0, size, 0, len(indices))]
    while parts:
        first, end, low, high = parts.pop()
        if low == high:
            proof.append(roots(first, end))
        elif end - first > 1:
            middle = first + split(end - first)
            cut = low
            while cut < high and indices[cut] < middle:
                cut += 1
            parts.append((middle, end, cut, high))
            parts.append((first, middle, low, cut))
    return proof
