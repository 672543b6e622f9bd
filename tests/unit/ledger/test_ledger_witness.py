"""A witness and the ledgers it watches: each answer of the protocol, each way to lie to it, each crash."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.ledgers import deny
from tests.support.witnesses import ORIGIN, Ledger, own, serving

from exeat.appliance.lab import pki
from exeat.ledger import bundle, keys, note, proofs, succession, verify_offline
from exeat.ledger.published import read_checkpoint, tile_loader
from exeat.ledger.records import Kind, encode
from exeat.ledger.store import Store
from exeat.ledger.tiles import Tree
from exeat.ledger.witness import MAX_PROOF, Request, Witness, read_request, write_request
from exeat.ledger.witness_client import FORK, REFUSED, UNREACHABLE, Peer, Rounds, Standing, read_standings
from exeat.ledger.witness_http import HttpError, Place, post

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "witness.test/w1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "l")
    yield made
    made.store.close()


@pytest.fixture
def witness(tmp_path: Path, ledger: Ledger) -> Witness:
    return watching(tmp_path / "w", ledger)


def watching(folder: Path, ledger: Ledger, name: str = NAME) -> Witness:
    folder.mkdir()
    return Witness(folder, name, [keys.verifier(ledger.directory)])


def request(ledger: Ledger, old: int) -> str:
    text = read_checkpoint(ledger.directory) or ""
    size = note.parse_checkpoint(note.parse(text).text).size
    proof = proofs.consistency(old, size, Tree(size, tile_loader(ledger.directory)).roots)
    return write_request(Request(old, tuple(proof), text))


def seals(tmp_path: Path) -> Path:
    folder = tmp_path / "seals"
    folder.mkdir(exist_ok=True)
    return folder


# --- the protocol


def test_a_log_that_goes_on_is_cosigned(ledger: Ledger, witness: Witness) -> None:
    old = 0
    for count in (1, 7, 300):
        ledger.grow(count)
        reply = witness.add_checkpoint(request(ledger, old))
        assert reply.status == 200
        text = (read_checkpoint(ledger.directory) or "") + reply.body
        both = (keys.verifier(ledger.directory), witness.verifier)
        assert note.verify(note.parse(text), *both) == list(both)
        old = ledger.store.size
    assert witness.add_checkpoint(request(ledger, old)).status == 200  # the same again, with a new time


def test_each_refusal_has_its_status(tmp_path: Path, ledger: Ledger, witness: Witness) -> None:
    def status(body: str) -> int:
        return witness.add_checkpoint(body).status

    ledger.grow(10)
    good = request(ledger, 0)
    assert status("old 0\n" + good.partition("\n")[2].replace(ORIGIN, "exeat/n2")) == 404
    stranger = note.Signer(ORIGIN, bytes(32))
    checkpoint = note.Checkpoint(ORIGIN, 12, bytes(32))
    assert status(f"old 0\n\n{stranger.sign(checkpoint.text())}") == 403
    forged = good.replace("\n12\n", "\n13\n")
    assert status(forged) == 403
    assert status(good) == 200
    size = ledger.store.size
    reply = witness.add_checkpoint(good)
    assert (reply.status, reply.body, reply.content_type) == (409, f"{size}\n", "text/x.tlog.size")
    text = read_checkpoint(ledger.directory)
    assert status(f"old {size + 1}\n\n{text}") == 400
    ledger.grow(5)
    body = request(ledger, size)
    lines = body.split("\n")
    lines[1] = base64.b64encode(bytes(32)).decode()
    assert status("\n".join(lines)) == 422
    assert status(body) == 200
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "old\n\n",
        "old 00\n\n",
        "old -1\n\n",
        "old 1 \n\n",
        "old 0\nnothing\n\n",
        "old 0\n",
        "new 0\n\n",
        "old 0\n" + "AAAA\n" * (MAX_PROOF + 1) + "\n",
    ],
)
def test_what_is_no_request(ledger: Ledger, witness: Witness, body: str) -> None:
    text = read_checkpoint(ledger.directory) or ""
    assert witness.add_checkpoint(body + text).status == 400
    assert witness.add_checkpoint(body).status == 400


@given(st.data())
def test_requests_are_read_as_they_were_written(data: st.DataObject) -> None:
    made = Request(
        data.draw(st.integers(0, 2**60)),
        tuple(data.draw(st.lists(st.binary(min_size=32, max_size=32), max_size=MAX_PROOF))),
        data.draw(st.text()),
    )
    assert read_request(write_request(made)) == made


def test_nothing_is_cosigned_that_is_not_on_the_disk(
    ledger: Ledger, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file fails at each call in turn: no answer but an error, and the next time all is as before."""
    ledger.grow(3)
    body = request(ledger, 0)
    for name in ("fsync", "open"):
        with monkeypatch.context() as patch:

            def fail(*_args: object, **_named: object) -> int:
                raise OSError(5, "Input/output error")

            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="Input/output"):
                witness.add_checkpoint(body)
    assert witness.add_checkpoint(body).status in (200, 409)
    assert witness.add_checkpoint(request(ledger, ledger.store.size)).status == 200


def test_a_memory_that_is_damaged_stops_cosigning(tmp_path: Path, ledger: Ledger, witness: Witness) -> None:
    witness.add_checkpoint(request(ledger, 0))
    (kept,) = (tmp_path / "w").glob("*/checkpoint")
    kept.write_text("nothing\n")
    with pytest.raises(OSError, match="damaged"):
        witness.add_checkpoint(request(ledger, 0))


def test_the_key_is_made_once(tmp_path: Path, ledger: Ledger) -> None:
    one = watching(tmp_path / "w", ledger)
    two = Witness(tmp_path / "w", NAME, [])
    assert one.verifier == two.verifier
    assert one.verifier.kind == note.COSIGNATURE
    assert stat.S_IMODE((tmp_path / "w" / "key").stat().st_mode) == 0o400
    assert (tmp_path / "w" / "vkey").read_text() == f"{one.verifier}\n"


# --- histories that are rewritten with the real key


def rewritten(ledger: Ledger, kept: int, total: int) -> None:
    """Put another history in the place of the ledger's, the same up to `kept`, signed with its own key."""
    directory = ledger.directory
    before = [data for _, data in _read(directory)][:kept]
    ledger.store.close()
    for name in ("seg", "tile"):
        shutil.rmtree(directory / name)
    for name in ("head", "checkpoint"):
        (directory / name).unlink()
    ledger.store = Store.create(directory, ORIGIN, 1, segment_bytes=65536)
    ledger.store.append([*before, *(deny(10_000 + n) for n in range(total - kept))], 1)
    ledger.publish()


def _read(directory: Path) -> list[tuple[int, bytes]]:
    from exeat.ledger.reader import read

    return list(read(directory))


@pytest.mark.parametrize(("kept", "total"), [(5, 12), (5, 30), (11, 12), (0, 40)])
def test_a_fork_is_refused_kept_as_evidence_and_reported(
    tmp_path: Path, ledger: Ledger, witness: Witness, kept: int, total: int
) -> None:
    ledger.grow(10)
    with serving(witness) as peer:
        rounds = Rounds(ledger.directory, seals(tmp_path), [peer])
        assert rounds.run() == []
        cosigned = (tmp_path / "seals" / "cosigned").read_text()
        rewritten(ledger, kept, total)
        ((standing, code),) = rounds.run()
    assert code == standing.trouble == FORK
    assert "another history than the first 12 records" in standing.what
    assert read_standings(tmp_path / "seals")[0].trouble == FORK
    (evidence,) = (tmp_path / "w").glob("*/forks/*")
    stood, presented = evidence.read_text().split("\n\n\n")[0], read_checkpoint(ledger.directory) or ""
    assert evidence.read_text().endswith(presented)
    assert stood
    assert (tmp_path / "seals" / "cosigned").read_text() == cosigned
    kept_note = note.open_checkpoint(cosigned, keys.verifier(ledger.directory))
    assert kept_note.size == 12


def test_a_ledger_that_is_set_back_is_reported(tmp_path: Path, ledger: Ledger, witness: Witness) -> None:
    """An old copy put back, checkpoint and all: the witness has seen more."""
    shutil.copytree(ledger.directory, tmp_path / "copy")
    ledger.grow(10)
    with serving(witness) as peer:
        assert Rounds(ledger.directory, seals(tmp_path), [peer]).run() == []
        for fresh in (True, False):  # also one who forgot what the witness knows
            folder = tmp_path / "seals" if not fresh else tmp_path / "new"
            folder.mkdir(exist_ok=True)
            ((standing, code),) = Rounds(tmp_path / "copy", folder, [peer]).run()
            assert (code, standing.trouble) == (FORK, FORK)
            assert "has seen 12 records, the ledger has 2" in standing.what


# --- the ledger's side


def test_a_round_collects_what_each_witness_says(tmp_path: Path, ledger: Ledger) -> None:
    names = [f"witness.test/w{n}" for n in range(3)]
    witnesses = [watching(tmp_path / f"w{n}", ledger, name) for n, name in enumerate(names)]
    gone = Peer(Place("127.0.0.1:9", "", ("127.0.0.1", 9), tls=False), witnesses[2].verifier)
    ledger.grow(400)
    with serving(witnesses[0]) as first, serving(witnesses[1]) as second:
        rounds = Rounds(ledger.directory, seals(tmp_path), [first, second, gone])
        ((standing, code),) = rounds.run()
        assert (standing.vkey, code) == (str(gone.key), UNREACHABLE)
        assert rounds.run() == []  # still gone: said once
        with serving(witnesses[2]) as back:
            rounds.peers = [first, second, back]
            assert [code for _, code in rounds.run()] == [UNREACHABLE]
        ledger.grow(1)
        again = Rounds(ledger.directory, seals(tmp_path), [first, second, gone])
        assert [standing.size for standing in again.standings] == [402] * 3
        again.run()
    text = (tmp_path / "seals" / "cosigned").read_text()
    known = [keys.verifier(ledger.directory), *(each.verifier for each in witnesses)]
    assert note.verify(note.parse(text), *known) == known[:3]


def test_a_bundle_with_cosignatures_is_judged_by_their_number(tmp_path: Path, ledger: Ledger) -> None:
    witnesses = [watching(tmp_path / f"w{n}", ledger, f"witness.test/w{n}") for n in range(2)]
    with serving(witnesses[0]) as peer:
        Rounds(ledger.directory, seals(tmp_path), [peer]).run()
    cosigned = (tmp_path / "seals" / "cosigned").read_text()
    bundle.export(ledger.directory, tmp_path / "out", cosigned=cosigned)
    (tmp_path / "one.tlog-proof").write_text(bundle.prove(ledger.directory, 1, cosigned=cosigned))
    key = ["--key", str(keys.verifier(ledger.directory))]
    here, other = (["--witness", str(each.verifier)] for each in witnesses)
    for handed_out in ("out", "one.tlog-proof"):
        argv = [str(tmp_path / handed_out), *key]
        assert verify_offline.main([*argv, *here]) == 0
        assert verify_offline.main([*argv, *here, *other, "--quorum", "1"]) == 0
        assert verify_offline.main([*argv, *here, *other]) == 1
        assert verify_offline.main([*argv, *other]) == 1
        assert verify_offline.main([*argv, "--witness", key[1]]) == 2
    checkpoint = tmp_path / "out" / "checkpoint"
    lines = checkpoint.read_text().splitlines(keepends=True)
    raw = bytearray(base64.b64decode(lines[-1].split()[2]))
    raw[20] ^= 1
    lines[-1] = " ".join([*lines[-1].split()[:2], base64.b64encode(raw).decode()]) + "\n"
    checkpoint.write_text("".join(lines))
    assert verify_offline.main([str(tmp_path / "out"), *key, *here]) == 1


def test_a_change_of_keys_is_followed_by_the_witness(
    tmp_path: Path, ledger: Ledger, witness: Witness
) -> None:
    """Even when the former key signs no more: the chain is shown, and kept."""
    with serving(witness) as peer:
        rounds = Rounds(ledger.directory, seals(tmp_path), [peer])
        rounds.run()
        for _ in range(2):
            ledger.rotate(until_s=1)
            ledger.run_errands()
            ledger.grow(1)
        assert rounds.run() == []
        assert rounds.standings[0].size == ledger.store.size
        ledger.grow(1)
        assert rounds.run() == []
    again = Witness(tmp_path / "w", NAME, [keys.known(ledger.directory)[0]])
    assert again.add_checkpoint(request(ledger, ledger.store.size)).status == 200


def test_a_chain_that_leads_from_no_known_key_is_refused(tmp_path: Path, witness: Witness) -> None:
    other = Ledger(tmp_path / "other")
    other.rotate(until_s=1)
    assert witness.add_keys(keys.chain(other.directory)).status == 403
    assert witness.add_keys("").status == 404
    assert witness.add_keys("junk").status == 400
    assert not list((tmp_path / "w").glob("*/log.chain"))
    other.store.close()


def test_a_key_that_made_way_long_ago_leads_nowhere(tmp_path: Path, ledger: Ledger, witness: Witness) -> None:
    """Whoever has it can vouch for a key of their own; what the witness follows already stands."""
    stolen = keys.signer(ledger.directory)
    ledger.rotate(until_s=1)
    assert witness.add_keys(keys.chain(ledger.directory)).status == 200
    ledger.run_errands()
    ledger.grow(1)
    assert witness.add_checkpoint(request(ledger, 0)).status == 200
    evil = note.Signer(ORIGIN, bytes(32))
    assert witness.add_keys(succession.join([succession.make(stolen, evil, 0)])).status == 403
    ledger.grow(1)
    assert witness.add_checkpoint(request(ledger, ledger.store.size - 1)).status == 200
    ledger.rotate(until_s=1)
    assert witness.add_keys(keys.chain(ledger.directory)).status == 200


class Liar:
    """A witness that answers what the test wants."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(8)
        self.answer = answer

    def __enter__(self) -> tuple[str, int]:
        import threading

        def run() -> None:
            while True:
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    return
                with sock:
                    sock.recv(65536)
                    sock.sendall(self.answer)

        threading.Thread(target=run, daemon=True).start()
        address: tuple[str, int] = self._listener.getsockname()
        return address

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", UNREACHABLE),
        (b"SSH-2.0-x\r\n", UNREACHABLE),
        (http(200, ""), REFUSED),
        (http(200, "\u2014 x AAAA\n"), REFUSED),
        (http(200, note.Signer(NAME, bytes(32), note.COSIGNATURE).line("another text\n", 1)), REFUSED),
        (http(200, "x" * 300_000), UNREACHABLE),
        (http(409, "0\n"), REFUSED),
        (http(409, "-1\n"), REFUSED),
        (http(409, "9" * 100), REFUSED),
        (http(409, "9" * 20), REFUSED),  # a number, but of no ledger: 64 bits hold every size
        (http(409, "\u0663\n"), REFUSED),  # a decimal digit to Unicode
        (b"HTTP\x1b[2J\r\n\r\n", UNREACHABLE),
        (http(409, "99\n"), FORK),
        (http(422, "\x1b[2J no"), FORK),
        (http(500, "no"), REFUSED),
        (http(403, "no"), REFUSED),
    ],
)
def test_whatever_a_witness_answers_is_named(
    tmp_path: Path, ledger: Ledger, answer: bytes, code: str
) -> None:
    key = note.Signer(NAME, bytes(32), note.COSIGNATURE).verifier
    with Liar(answer) as address:
        peer = Peer(Place("w", "", address, tls=False), key)
        ((standing, found),) = Rounds(ledger.directory, seals(tmp_path), [peer]).run()
    assert found == code
    assert standing.size == 0
    assert "\x1b" not in standing.what
    encode(own(Kind.WITNESS, detail=standing.what, count=standing.seen))
    assert not (tmp_path / "seals" / "cosigned").exists()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_witness_that_trickles_is_left(tmp_path: Path, tls: bool) -> None:
    """Behind its certificate too: what it says comes in time for every single reading, and never ends."""
    import threading

    pki.create(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "north.pem", tmp_path / "north.key")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    ended, cut_off = threading.Event(), threading.Event()

    def trickle() -> None:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) if tls else plain as sock:
            for _ in range(200):
                ended.wait(0.05)
                try:
                    sock.sendall(b"H")
                except OSError:
                    cut_off.set()
                    return

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    place = Place("api.example.org:443", "", listener.getsockname(), tls=tls, ca=tmp_path / "ca.pem")
    with pytest.raises(HttpError):
        post(place, "add-checkpoint", "x", 1.0)
    ended.set()
    thread.join(30)
    assert cut_off.is_set()
    listener.close()


def test_a_status_of_another_version_is_asked_anew(tmp_path: Path) -> None:
    strange = json.dumps({"witnesses": [{"vkey": "v", "since_s": "yesterday"}]})
    for text in ("", "[]", '{"witnesses": [{"color": 1}]}', strange, '{"witnesses":' + "[" * 90_000):
        (tmp_path / "status.json").write_text(text)
        assert read_standings(tmp_path) == []
    assert Standing("v").trouble == ""


# --- the server's door


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 400),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 2\r\n\r\n\xff\xff", 400),
        (b"PUT / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
    ],
)
def test_what_the_door_does_not_take(witness: Witness, sent: bytes, status: int) -> None:
    with serving(witness) as peer, socket.create_connection(peer.place.address, 10) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(64).split()[1] == str(status).encode()


def test_a_request_byte_by_byte(ledger: Ledger, witness: Witness) -> None:
    body = request(ledger, 0).encode()
    head = b"POST /add-checkpoint HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serving(witness) as peer, socket.create_connection(peer.place.address, 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head + body:
            sock.sendall(bytes((byte,)))
        assert sock.recv(64).split()[1] == b"200"


def test_monitors_see_the_newest_checkpoint_cosigned(ledger: Ledger, witness: Witness) -> None:
    ledger.grow(20)
    witness.add_checkpoint(request(ledger, 0))
    from hashlib import sha256

    path = sha256(ORIGIN.encode()).hexdigest()
    with serving(witness) as peer, socket.create_connection(peer.place.address, 10) as sock:
        sock.sendall(b"GET /%s/checkpoint HTTP/1.1\r\n\r\n" % path.encode())
        text = sock.makefile("rb").read().partition(b"\r\n\r\n")[2].decode()
    both = (keys.verifier(ledger.directory), witness.verifier)
    assert note.verify(note.parse(text), *both) == list(both)
    assert note.open_checkpoint(text, *both).size == ledger.store.size


def test_the_door_stays_open_when_descriptors_run_out(
    ledger: Ledger, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failures = socket.socket.accept, [OSError(24, "Too many open files"), RuntimeError("no thread")]

    def failing(self: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    monkeypatch.setattr("exeat.ledger.witness_http._PAUSE_S", 0)
    with serving(witness) as peer:
        assert post(peer.place, "add-checkpoint", request(ledger, 0), 10).status == 200
