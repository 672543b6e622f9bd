"""docs/formats/ledger.md is enough: a reader written from it alone, on its own example and on real ledgers.

Nothing of exeat's readers or verifiers is used here. Hashes and proofs are also put beside another
implementation of RFC 9162, sigstore-python's.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sigstore._internal import merkle
from sigstore._internal.rekor.checkpoint import LogCheckpoint, SignedNote
from tests.support.ledgers import deny
from tests.support.witnesses import Ledger

from exeat.ledger import proofs, retention, segment
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.published import tile_loader
from exeat.ledger.tiles import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[3] / "docs" / "formats" / "ledger.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    match = re.search(rf"^```{name}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


# --- the reader: what another team would write


class Found(NamedTuple):
    origin: str
    records: list[bytes]
    roots: list[tuple[int, bytes]]  # of commits and seals


def frames(data: bytes) -> Iterator[tuple[int, str, bytes]]:
    at = 0
    while at + 16 <= len(data) and (length := int.from_bytes(data[at : at + 4], "big")):
        body = data[at + 16 : at + 16 + length]
        checked = data[at : at + 4] + data[at + 8 : at + 16] + body
        assert zlib.crc32(checked) == int.from_bytes(data[at + 4 : at + 8], "big")
        yield int.from_bytes(data[at + 8 : at + 16], "big"), chr(body[0]), body[1:]
        at += 16 + length
    assert not data[at:].strip(b"\0")


def unpacked(data: bytes) -> bytes:
    """A segment with its packed frames as they were."""
    parts = []
    for seq, kind, payload in frames(data):
        if kind == "Z":
            parts.append(zlib.decompress(payload))
            assert next(frames(parts[-1]))[0] == seq
        else:
            body = kind.encode() + payload
            counted, number = len(body).to_bytes(4, "big"), seq.to_bytes(8, "big")
            parts.append(counted + zlib.crc32(counted + number + body).to_bytes(4, "big") + number + body)
    return b"".join(parts)


def read_ledger(segments: list[bytes]) -> Found:
    origin, records, roots = "", [], []
    for data in segments:
        for number, (seq, kind, payload) in enumerate(frames(unpacked(data))):
            assert (kind == "H") == (number == 0)
            assert seq == len(records)
            if kind == "H":
                assert payload[0] == 1
                length = payload[9]
                origin = payload[10 : 10 + length].decode()
                count = payload[10 + length]
                assert count == seq.bit_count()
            elif kind == "R":
                records.append(payload)
            else:
                assert kind in "CS"
                assert int.from_bytes(payload[:8], "big") == len(records)
                roots.append((len(records), payload[8:40]))
    return Found(origin, records, roots)


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + tree_root(leaves[:k]) + tree_root(leaves[k:])).digest()


def item(data: bytes, at: int) -> tuple[object, int]:
    """CBOR (RFC 8949), as much of it as the page allows."""
    first = data[at]
    at += 1
    if first == 0xF6:
        return None, at
    major, size = first >> 5, first & 31
    if size >= 24:
        width = {24: 1, 25: 2, 26: 4, 27: 8}[size]
        size, at = int.from_bytes(data[at : at + width], "big"), at + width
    if major == 0:
        return size, at
    if major in (2, 3):
        raw = data[at : at + size]
        return (raw if major == 2 else raw.decode()), at + size
    assert major == 4
    items = []
    for _ in range(size):
        found, at = item(data, at)
        items.append(found)
    return items, at


def fields_of_the_table() -> list[str]:
    table = PAGE[PAGE.index("\n## Records\n") :]
    return [name.strip() for name in re.findall(r"^\| [0-9, ]+ \| ([a-z_, ]+) \|", table, re.MULTILINE)]


def checked(text: str, vkey: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint."""
    name, _, rest = vkey.partition("+")
    key = base64.b64decode(rest.partition("+")[2])
    key_id = hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]
    body, _, lines = text.rpartition("\n\n")
    (raw,) = [base64.b64decode(line.split()[2]) for line in lines.splitlines() if line.split()[1] == name]
    assert raw[:4] == key_id
    Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], body.encode() + b"\n")
    origin, size, root = body.split("\n")
    return origin, int(size), base64.b64decode(root)


# --- on the page's own example


def test_the_example_is_what_the_page_says() -> None:
    found = read_ledger([bytes.fromhex(example("hex segment"))])
    assert (found.origin, len(found.records)) == ("exeat/example", 2)
    assert found.roots == [(2, tree_root(found.records))]
    vkey = re.search(r"The key is `([^`]+)`", PAGE)
    assert vkey is not None
    assert checked(example("note checkpoint"), vkey[1]) == ("exeat/example", 2, found.roots[0][1])
    boot, refusal = (item(data, 0)[0] for data in found.records)
    assert isinstance(boot, list)
    assert isinstance(refusal, list)
    public = Ed25519PrivateKey.from_private_bytes(b"\x42" * 32).public_key().public_bytes_raw()
    assert boot[41] == public
    assert refusal[1:3] == [5, 1_790_000_000_000_000_001]
    assert (refusal[8], refusal[11], refusal[12], refusal[13]) == (
        *("j1", ["example.org", 443, "tcp", b"", ""], "deny"),
        "rule.deny",
    )


def test_the_table_of_fields_is_complete() -> None:
    names = ", ".join(fields_of_the_table()).split(", ")
    assert names[:5] == ["schema", "kind", "t_real_ns", "t_boot_ns", "flow"]
    assert len(names) == 42


# --- on a real one


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    made = Ledger(tmp_path_factory.mktemp("format") / "l", segment_bytes=16384)
    for first in range(0, 700, 50):
        made.store.append([deny(first + n) for n in range(50)], first)
    made.publish()
    yield made
    made.store.close()


def test_a_real_ledger(ledger: Ledger) -> None:
    paths = sorted((ledger.directory / "seg").iterdir())
    assert len(paths) > 3
    found = read_ledger([path.read_bytes() for path in paths if path.suffix == ".seg"])
    assert len(found.records) == ledger.store.size
    for size, root in found.roots[:: len(found.roots) // 5]:
        assert tree_root(found.records[:size]) == root
    vkey = (ledger.directory / "keys" / "log.vkey").read_text().strip()
    text = (ledger.directory / "checkpoint").read_text()
    assert checked(text, vkey) == (found.origin, len(found.records), tree_root(found.records))


def test_packed_segments(ledger: Ledger) -> None:
    """The same bytes come out, and another reader unpacks what exeat packed."""
    for path in sorted((ledger.directory / "seg").glob("*.seg"))[:-1]:
        data = path.read_bytes()
        packed = segment.pack(data)
        assert [kind for _, kind, _ in frames(packed)] == ["H", "Z", "S"]
        assert unpacked(packed) == data.rstrip(b"\0") == unpacked(data)


def test_a_tile_is_where_the_page_says(ledger: Ledger) -> None:
    data = (ledger.directory / "seg" / "000000000000.seg").read_bytes()
    record = next(payload for _, kind, payload in frames(data) if kind == "R")
    tile = (ledger.directory / "tile" / "0" / "000").read_bytes()
    assert tile[:32] == hashlib.sha256(b"\0" + record).digest()
    assert len(tile) == 8192


def test_a_segment_whose_records_were_dropped(ledger: Ledger) -> None:
    """Its head and its seal; the next one goes on from the root in the seal."""
    path = ledger.directory / "seg" / "000000000000.seg"
    whole, stub = list(frames(path.read_bytes())), list(frames(retention.stub(path)))
    assert stub == [whole[0], whole[-1]]
    assert [kind for _, kind, _ in stub] == ["H", "S"]


def test_inclusion_proofs_hold_for_another_implementation(ledger: Ledger) -> None:
    size = ledger.store.size
    tree = Tree(size, tile_loader(ledger.directory))
    records = [
        payload
        for path in sorted((ledger.directory / "seg").glob("*.seg"))
        for _, kind, payload in frames(path.read_bytes())
        if kind == "R"
    ]
    for index in (0, 1, 255, 256, 511, size - 2, size - 1):
        proof = proofs.inclusion(index, size, tree.roots)
        inner, border = merkle._decomp_inclusion_proof(index, size)
        assert len(proof) == inner + border
        node = merkle._chain_inner(leaf_hash(records[index]), proof[:inner], index)
        assert merkle._chain_border_right(node, proof[inner:]) == tree.root()
        assert merkle._hash_leaf(records[index]) == leaf_hash(records[index])


def test_another_implementation_reads_our_checkpoint(ledger: Ledger) -> None:
    text = (ledger.directory / "checkpoint").read_text()
    found = LogCheckpoint.from_text(SignedNote.from_text(text).note)
    assert (found.origin, found.log_size, found.log_hash) == (
        *("exeat/n1", ledger.store.size),
        ledger.store.root().hex(),
    )
