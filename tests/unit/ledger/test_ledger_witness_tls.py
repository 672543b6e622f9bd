"""A witness by HTTPS: both sides are checked, and its certificate is renewed as it runs."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.witnesses import Ledger, serving

from exeat.appliance.config import ConfigError, load
from exeat.appliance.lab import pki
from exeat.ledger import keys
from exeat.ledger.witness import Witness
from exeat.ledger.witness_client import UNREACHABLE, Rounds
from exeat.ledger.witness_tls import DoorTls, Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.ledger.witness_client import Peer

HOST = "api.example.org:443"  # a name of the lab's certificate `north`


class World:
    """A ledger, a witness for it, and the certificates of the lab."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ledger = Ledger(base / "l")
        pki.create(base)
        for path in base.glob("*.key"):
            path.chmod(0o400)
        (base / "w").mkdir()
        self.witness = Witness(base / "w", "witness.test/w1", [keys.verifier(self.ledger.directory)])
        (base / "seals").mkdir()

    def identity(self, name: str) -> Identity:
        return Identity(self.base / f"{name}.pem", self.base / f"{name}.key")

    def ask(self, peer: Peer) -> str:
        """What is the matter, "" if it cosigned."""
        rounds = Rounds(self.ledger.directory, self.base / "seals", [peer])
        rounds.run()
        (standing,) = rounds.standings
        assert standing.trouble in ("", UNREACHABLE)
        return standing.what if standing.trouble else ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.store.close()


def _client(folder: Path, name: str) -> Identity:
    """A certificate that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    builder = builder.serial_number(7).not_valid_before(now - dt.timedelta(hours=1))
    made = builder.not_valid_after(now + dt.timedelta(days=1)).sign(key, hashes.SHA256())
    own = Identity(folder / f"{name}.pem", folder / f"{name}.key")
    own.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    own.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    own.key.chmod(0o400)
    return own


def test_a_witness_is_asked_by_https(world: World) -> None:
    tls = DoorTls(world.identity("north"))
    with serving(world.witness, tls, host=HOST, ca=world.base / "ca.pem") as peer:
        assert world.ask(peer) == ""
        world.ledger.grow(20)
        assert world.ask(peer) == ""


@pytest.mark.parametrize(
    ("shown", "host", "ca", "what"),
    [
        pytest.param("north", "other.example.net:443", "ca.pem", "mismatch", id="another name"),
        pytest.param("evil", HOST, "ca.pem", "self.signed", id="of nobody's"),
        pytest.param("north", HOST, "evil.pem", "unable to get local issuer", id="not the pinned root"),
        pytest.param("north", HOST, None, "unable to get local issuer", id="not a root of the system"),
    ],
)
def test_another_who_answers_there_gets_nothing(
    world: World, shown: str, host: str, ca: str | None, what: str
) -> None:
    tls = DoorTls(world.identity(shown))
    with serving(world.witness, tls, host=host, ca=world.base / ca if ca else None) as peer:
        said = world.ask(peer)
    assert what.replace(".", "-") in said.replace(" ", "-") or what in said, said
    assert world.witness.standing(world.witness.origins[0]) == (0, 0)


def test_a_door_that_knows_its_clients_lets_in_nobody_else(world: World) -> None:
    known, stranger = _client(world.base, "known"), _client(world.base, "stranger")
    tls = DoorTls(world.identity("north"), known.certificate)
    place: dict[str, Any] = {"host": HOST, "ca": world.base / "ca.pem"}
    for own, comes_in in ((known, True), (stranger, False), (None, False)):
        with serving(world.witness, tls, own=own, **place) as peer:
            assert (world.ask(peer) == "") is comes_in
            world.ledger.grow(5)


def test_plain_http_to_a_door_with_tls_is_no_answer(world: World) -> None:
    with serving(world.witness, DoorTls(world.identity("north"))) as peer:
        assert world.ask(replace(peer, place=peer.place._replace(tls=False)))
        with socket.create_connection(peer.place.address) as sock:
            sock.settimeout(30)
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1.1" not in sock.recv(4096)


def test_a_renewed_certificate_is_shown_and_a_wrong_one_is_not(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _client(world.base, "first"), _client(world.base, "second")
    own = Identity(world.base / "own.pem", world.base / "own.key")
    for source, target in zip(first, own, strict=True):
        shutil.copy(source, target)
    tls = DoorTls(own)
    before = tls.context()
    assert tls.context() is before
    os.replace(second.certificate, own.certificate)  # half of the change
    assert tls.context() is before
    assert tls.context() is before
    assert capsys.readouterr().err.count("the certificate stays as it was") == 1
    os.replace(second.key, own.key)
    after = tls.context()
    assert after is not before
    own.key.unlink()
    assert tls.context() is after


@pytest.mark.parametrize("fault", ["open to others", "of another certificate", "no PEM", "missing"])
def test_a_door_does_not_begin_without_its_key(world: World, fault: str) -> None:
    own = world.identity("north")
    if fault == "open to others":
        own.key.chmod(0o644)
    elif fault == "of another certificate":
        own = own._replace(key=world.identity("south").key)
    elif fault == "no PEM":
        own.key.chmod(0o600)
        own.key.write_text("nothing")
    else:
        own.key.unlink()
    with pytest.raises(OSError, match=r"north") as error:
        DoorTls(own)
    assert not isinstance(error.value, ssl.SSLError)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[witness]\ncertificate = "/x/c.pem"\n', "go together"),
        ('[witness]\ncertificate = "c.pem"\nkey = "k.pem"\n', "absolute path"),
        ('[witness]\nclients_ca = "/x/ca.pem"\n', "needs `certificate`"),
        ("[witness]\nsilent_after_s = 60\n", "greater than or equal to 120"),
        ('[[ledger.witness]]\nurl = "http://127.0.0.1:1"\nca = "/x"\nvkey = "%s"\n', "are for https"),
        ('[[ledger.witness]]\nurl = "https://127.0.0.1:1"\nkey = "/x"\nvkey = "%s"\n', "go together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(world: World, text: str, what: str) -> None:
    path = world.base / "exeat.toml"
    path.write_text(text.replace("%s", str(world.witness.verifier)))
    with pytest.raises(ConfigError, match=what):
        load(path)


def test_settings_become_a_place(world: World) -> None:
    path = world.base / "exeat.toml"
    path.write_text(
        f'[[ledger.witness]]\nurl = "https://w.test:8/x"\naddress = "192.0.2.7:8"\nca = "/x/ca"\n'
        f'certificate = "/x/c"\nkey = "/x/k"\nvkey = "{world.witness.verifier}"\n'
        '[witness]\ncertificate = "/y/c"\nkey = "/y/k"\n'
    )
    config = load(path)
    place = config.ledger.witness[0].peer().place
    assert (place.host, place.tls, str(place.ca)) == ("w.test:8", True, "/x/ca")
    assert place.own is not None
    assert list(map(str, place.own)) == ["/x/c", "/x/k"]
    assert config.witness.identity() is not None
