"""Proofs and bundles: made by the commands, checked by the stand-alone verifier, which knows no exeat."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ledgers import DEST, deny, record

from exeat.appliance.cli import main
from exeat.ledger import keys, note, proofs, verify_offline
from exeat.ledger.merkle import Frontier, leaf_hash
from exeat.ledger.publish import Publisher
from exeat.ledger.published import read_checkpoint
from exeat.ledger.records import Kind
from exeat.ledger.store import Store
from exeat.ledger.verify_offline import ed25519_holds

ORIGIN = "exeat/n1"


def flows(first: int, count: int, job: str) -> list[bytes]:
    """Three records a flow; only the first and the last name the job, as the proxy writes them."""
    made = []
    for flow in range(first, first + count):
        made += [
            record(Kind.OPEN, flow, job=job, dest=DEST, decision="allow", rule_id="r1"),
            record(Kind.RESERVE, flow, reserved=65536),
            record(Kind.CLOSE, flow, bytes_out=100, bytes_in=flow, reserved=65536, job=job, dest=DEST),
        ]
    return made


def signed(base: Path, batches: list[list[bytes]]) -> Store:
    store = Store.create(base, ORIGIN, 1)
    keys.ensure(base, ORIGIN)
    for batch in batches:
        store.append(batch, 1)
    publish(store)
    return store


def publish(store: Store) -> None:
    Publisher(store.directory).publish(store.size, store.root())


@pytest.fixture
def ledger(tmp_path: Path) -> Store:
    """300 records: j1 has flows 0-9 and 40-49, j2 the others between, then refusals."""
    batches = [flows(0, 10, "j1"), flows(10, 30, "j2"), flows(40, 10, "j1"), [deny(n) for n in range(150)]]
    return signed(tmp_path / "state" / "ledger" / "abc", batches)


def exeat(store: Store, *argv: str) -> int:
    return main(["--state-dir", str(store.directory.parent.parent), "ledger", *argv])


def offline(*argv: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = verify_offline.main([*map(str, argv), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def vkey(store: Store) -> str:
    return str(keys.verifier(store.directory))


def test_a_bundle_of_a_job(ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert exeat(ledger, "export", str(out), "--job", "j1") == 0
    code, found = offline(out, "--key", vkey(ledger), capsys=capsys)
    assert code == 0
    assert found["kinds"] == {"open": 20, "reserve": 20, "close": 20}
    assert (found["bytes_out"], found["bytes_in"]) == (2000, sum(range(10)) + sum(range(40, 50)))
    assert (found["origin"], found["size"]) == (ORIGIN, 300)


@pytest.mark.parametrize(("first", "last"), [(0, 299), (0, 0), (299, 299), (17, 203), (300, 400)])
def test_a_bundle_of_a_range(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int, last: int
) -> None:
    out = tmp_path / "bundle"
    assert exeat(ledger, "export", str(out), "--from", str(first), "--to", str(last)) == 0
    code, found = offline(out, capsys=capsys)
    assert code == 0
    assert found["records"] == max(0, min(last, 299) - first + 1)
    assert "compare it" in found["key"]


def test_a_bundle_in_an_empty_environment(ledger: Store, tmp_path: Path) -> None:
    """One file, carried to an environment with nothing in it, isolated from this checkout."""
    exeat(ledger, "export", str(tmp_path / "bundle"), "--job", "j1")
    venv.create(tmp_path / "empty", with_pip=False)
    shutil.copy(verify_offline.__file__, tmp_path / "verify_offline.py")
    command = [tmp_path / "empty/bin/python", "-I", tmp_path / "verify_offline.py", tmp_path / "bundle"]
    probe = [tmp_path / "empty/bin/python", "-I", "-c", "import cryptography"]
    assert subprocess.run(probe, capture_output=True, check=False).returncode == 1
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "result        verified" in done.stdout
    checkpoint = tmp_path / "bundle" / "checkpoint"
    checkpoint.write_text(checkpoint.read_text().replace("\n300\n", "\n301\n"))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def rewrite_records(bundle: Path, change: Any) -> None:
    import lzma

    found = verify_offline.read_records((bundle / "records.xz").read_bytes())
    packed = b"".join(
        seq.to_bytes(8, "big") + len(data).to_bytes(2, "big") + data for seq, data in change(found)
    )
    (bundle / "records.xz").write_bytes(lzma.compress(packed))


CHANGES = {
    "one dropped": lambda found: found[:7] + found[8:],
    "the last dropped": lambda found: found[:-1],
    "one altered": lambda found: [*found[:7], (found[7][0], deny(999)), *found[8:]],
    "two swapped": lambda found: [(found[0][0], found[1][1]), (found[1][0], found[0][1]), *found[2:]],
    "one inserted": lambda found: [*found, (299, deny(999))],
    "renumbered": lambda found: [(seq + 1, data) for seq, data in found],
    "out of order": lambda found: found[::-1],
    "beyond the tree": lambda found: [*found, (300, deny(999))],
    "none": lambda found: [],
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_altered_bundle_is_refused(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    exeat(ledger, "export", str(tmp_path / "b"), "--job", "j1")
    rewrite_records(tmp_path / "b", CHANGES[name])
    code, found = offline(tmp_path / "b", capsys=capsys)
    assert code == 1
    assert found["problem"]


@pytest.mark.parametrize("part", ["checkpoint", "proof", "records.xz", "log.vkey"])
def test_any_damaged_part_of_a_bundle_is_refused(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    exeat(ledger, "export", str(tmp_path / "b"), "--from", "3", "--to", "30")
    clean = (tmp_path / "b" / part).read_bytes()
    step = max(1, len(clean) // 25)
    for at in range(0, len(clean) - 1, step):
        (tmp_path / "b" / part).write_bytes(clean[:at] + bytes([clean[at] ^ 1]) + clean[at + 1 :])
        code, _ = offline(tmp_path / "b", capsys=capsys)
        assert code in (1, 2), at


def test_a_proof_of_one_record(ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.tlog-proof"
    for seq in (0, 5, 255, 256, 299):
        capsys.readouterr()
        assert exeat(ledger, "prove", str(seq)) == 0
        path.write_text(capsys.readouterr().out)
        code, found = offline(path, "--key", vkey(ledger), capsys=capsys)
        assert (code, found["index"]) == (0, seq)
        path.write_text(path.read_text().replace(f"index {seq}\n", f"index {seq + 1}\n"))
        assert offline(path, "--key", vkey(ledger), capsys=capsys)[0] == 1
    assert exeat(ledger, "prove", "300") == 1


def test_a_bundle_shows_that_it_goes_on_from_a_checkpoint_kept(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(read_checkpoint(ledger.directory) or "")
    ledger.append([deny(n) for n in range(500)], 2)
    publish(ledger)
    exeat(ledger, "export", str(tmp_path / "without"), "--job", "j1")
    exeat(ledger, "export", str(tmp_path / "with"), "--job", "j1", "--since", str(kept))
    assert offline(tmp_path / "without", "--checkpoint", kept, capsys=capsys)[0] == 2
    code, found = offline(tmp_path / "with", "--checkpoint", kept, capsys=capsys)
    assert (code, found["goes_on_from"], found["size"]) == (0, 300, 800)


def test_an_old_checkpoint_replayed_is_named(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle made before the one the receiver knows of: everything in it is true, but old."""
    exeat(ledger, "export", str(tmp_path / "old"), "--job", "j1")
    ledger.append([deny(n) for n in range(50)], 2)
    publish(ledger)
    kept = tmp_path / "kept"
    kept.write_text(read_checkpoint(ledger.directory) or "")
    code, found = offline(tmp_path / "old", "--checkpoint", kept, capsys=capsys)
    assert (code, found["problem"]) == (1, "the checkpoint of 300 records is older than yours of 350")


@pytest.mark.parametrize("size", [299, 300, 400])
def test_a_fork_with_the_real_key_is_found_by_an_earlier_checkpoint(
    ledger: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Who has the key and the disk rewrites everything; by itself the new history is sound."""
    kept = tmp_path / "kept"
    kept.write_text(read_checkpoint(ledger.directory) or "")
    base = tmp_path / "forged" / "ledger" / "abc"
    forged = Store.create(base, ORIGIN, 1)
    shutil.copytree(ledger.directory / "keys", base / "keys")
    forged.append(flows(0, 10, "j1") + [deny(n) for n in range(size - 30)], 1)
    publish(forged)
    forged.close()
    assert exeat(forged, "verify") == 0
    assert exeat(forged, "fsck") == 0
    exeat(forged, "export", str(tmp_path / "b"), "--job", "j1")
    assert offline(tmp_path / "b", "--key", vkey(ledger), capsys=capsys)[0] == 0

    assert exeat(forged, "verify", "--checkpoint", str(kept), "--json") == 1
    (found,) = json.loads(capsys.readouterr().out)["ledgers"]
    expected = {"record": 299, "what": "the root at size 300 is not the one that was noted"}
    if size == 299:
        expected["what"] = "records 299 to 299 are gone: the tail was cut"
    assert found["problems"] == [expected]
    if size == 299:
        code, verdict = offline(tmp_path / "b", "--checkpoint", kept, capsys=capsys)
        assert (code, "older than yours" in verdict["problem"]) == (1, True)
    elif size == 300:
        code, verdict = offline(tmp_path / "b", "--checkpoint", kept, capsys=capsys)
        assert (code, "two histories" in verdict["problem"]) == (1, True)
    else:
        exeat(forged, "export", str(tmp_path / "c"), "--job", "j1", "--since", str(kept))
        code, verdict = offline(tmp_path / "c", "--checkpoint", kept, capsys=capsys)
        assert (code, "was rewritten" in verdict["problem"]) == (1, True)


def test_verify_checks_the_ledgers_own_checkpoint(ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert exeat(ledger, "verify") == 0
    path = ledger.directory / "checkpoint"
    path.write_text(path.read_text().replace("\n300\n", "\n200\n"))
    assert exeat(ledger, "verify") == 1
    assert "its checkpoint does not count" in capsys.readouterr().out


def test_fsck_names_and_repairs_tiles(ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert exeat(ledger, "fsck") == 0
    tile = ledger.directory / "tile" / "0" / "000"
    clean = tile.read_bytes()
    tile.write_bytes(bytes(8192))
    (ledger.directory / "tile" / "1" / "000.p" / "1").unlink()
    capsys.readouterr()
    assert exeat(ledger, "fsck") == 1
    assert capsys.readouterr().out == "tile/0/000 is wrong\ntile/1/000.p/1 is missing\n"
    assert exeat(ledger, "fsck", "--repair") == 0
    assert tile.read_bytes() == clean
    assert exeat(ledger, "fsck") == 0


def test_the_checkpoint_command(ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert exeat(ledger, "checkpoint") == 0
    text = capsys.readouterr().out
    assert note.open_checkpoint(text, keys.verifier(ledger.directory)).size == 300
    assert exeat(ledger, "checkpoint", "--key") == 0
    assert capsys.readouterr().out == vkey(ledger) + "\n"


def test_export_does_not_write_over_a_folder(ledger: Store, tmp_path: Path) -> None:
    assert exeat(ledger, "export", str(tmp_path), "--job", "j1") == 2
    assert exeat(ledger, "export", str(tmp_path / "x"), "--job", "j1", "--from", "3") == 2


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=60), st.data())
@settings(max_examples=100)
def test_proofs_of_many(leaves: list[bytes], data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(leaves) - 1))))

    def roots(first: int, end: int) -> bytes:
        tree = Frontier()
        tree.extend(leaves[first:end])
        return tree.root()

    proof = proofs.of_many(chosen, len(leaves), roots)
    found = [(index, leaf_hash(leaves[index])) for index in chosen]
    assert verify_offline.root_of(found, len(leaves), proof) == roots(0, len(leaves))
    if proof:
        with pytest.raises(verify_offline.FalseError):
            verify_offline.root_of(found, len(leaves), proof[:-1])
    with pytest.raises(verify_offline.FalseError):
        verify_offline.root_of(found, len(leaves), [*proof, bytes(32)])


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.integers(0, 63))
@settings(max_examples=15)
def test_our_ed25519_agrees_with_the_library(seed: bytes, message: bytes, at: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert ed25519_holds(public, message, signature)
    assert not ed25519_holds(public, message + b"x", signature)
    assert not ed25519_holds(
        public, message, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
    )
    more = (int.from_bytes(signature[32:], "little") + verify_offline._L).to_bytes(33, "little")[:32]
    assert not ed25519_holds(public, message, signature[:32] + more)


def test_the_verifier_imports_nothing_but_the_standard_library() -> None:
    text = Path(verify_offline.__file__).read_text()
    modules = {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }
    assert modules <= set(sys.stdlib_module_names)
