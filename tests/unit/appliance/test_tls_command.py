"""`exeat tls`: certificates in real handshakes, name servers on loopback, files as they lie on a disk."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import pwd
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.dns_servers import name_server, zone_handler

from exeat.appliance.cli import main
from exeat.appliance.config import Config
from exeat.appliance.console.app import renew, tls
from exeat.appliance.doctor import Status
from exeat.appliance.tls.authority import AuthorityError, issue
from exeat.appliance.tls.check import check_certificate, check_dns, check_key
from exeat.policy.addresses import parse_address

pytestmark = pytest.mark.root  # keys are given to root and to the console's group

NAME = "console.example.org"
NOW = dt.datetime.now(dt.UTC)


def shake(server: ssl.SSLContext, trusted: Path, name: str) -> dict[str, Any]:
    """A handshake in memory; what the client knows of the certificate. Raises ssl.SSLError."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    trust = ssl.create_default_context(cafile=str(trusted))
    client = trust.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(client.getpeercert() or {})


def speaking(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def section(folder: Path, **more: Any) -> Config:
    console = {
        "certificate": str(folder / "console.pem"),
        "key": str(folder / "console.key"),
        "hosts": [NAME],
    }
    return Config.model_validate({"console": {**console, **more}})


def configured(folder: Path) -> list[str]:
    file = folder / "exeat.toml"
    text = (
        f'[console]\ncertificate = "{folder}/console.pem"\nkey = "{folder}/console.key"\nhosts = ["{NAME}"]\n'
    )
    file.write_text(text)
    return ["--config", str(file)]


def test_a_browser_that_trusts_the_authority_believes_the_certificate(tmp_path: Path) -> None:
    made = issue(tmp_path, (NAME, "other.example.org"), 90, 0, NOW)
    for name in (NAME, "other.example.org"):
        assert shake(speaking(made.certificate, made.key), made.authority, name)["subject"]
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(speaking(made.certificate, made.key), made.authority, "www.example.org")


@pytest.mark.parametrize("other", ["www.bank.example", "127.0.0.1"])
def test_its_stolen_key_is_good_for_nothing_else(tmp_path: Path, other: str) -> None:
    made = issue(tmp_path, (NAME,), 90, 0, NOW)
    signer = x509.load_pem_x509_certificate(made.authority.read_bytes())
    stolen = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    assert isinstance(stolen, ec.EllipticCurvePrivateKey)
    own = ec.generate_private_key(ec.SECP256R1())
    which = x509.DNSName(other) if other[0] == "w" else x509.IPAddress(ipaddress.ip_address(other))
    forged = (
        x509.CertificateBuilder(
            issuer_name=signer.subject,
            subject_name=x509.Name([]),
            public_key=own.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=NOW - dt.timedelta(hours=1),
            not_valid_after=NOW + dt.timedelta(days=1),
        )
        .add_extension(x509.SubjectAlternativeName([which]), critical=True)
        .sign(stolen, hashes.SHA256())
    )
    certificate, key = tmp_path / "forged.pem", tmp_path / "forged.key"
    certificate.write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree"):
        shake(speaking(certificate, key), made.authority, other)


def test_again_is_a_renewal_by_the_same_authority(tmp_path: Path) -> None:
    first = issue(tmp_path, (NAME,), 90, 0, NOW)
    before = first.authority.read_bytes(), first.certificate.read_bytes()
    second = issue(tmp_path, (NAME,), 90, 0, NOW)
    assert (first.fresh, second.fresh) == (True, False)
    assert second.authority.read_bytes() == before[0]
    assert second.certificate.read_bytes() != before[1]
    with pytest.raises(AuthorityError, match=r"not for www\.example\.net"):
        issue(tmp_path, (NAME, "www.example.net"), 90, 0, NOW)


@pytest.mark.parametrize("file", ["ca.pem", "ca.key"])
def test_an_authority_that_is_damaged_is_not_replaced(tmp_path: Path, file: str) -> None:
    issue(tmp_path, (NAME,), 90, 0, NOW)
    (tmp_path / file).write_text("nothing of the kind")
    with pytest.raises(AuthorityError, match="move it away"):
        issue(tmp_path, (NAME,), 90, 0, NOW)
    assert (tmp_path / file).read_text() == "nothing of the kind"


def test_dev_says_what_to_write_and_who_reads_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*configured(tmp_path), "tls", "dev", "Console.Example.ORG", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f'hosts = ["{NAME}"]' in said
    assert str(tmp_path / "ca.pem") in said
    group = pwd.getpwnam("exeat-console").pw_gid
    modes = {path.name: (oct(path.stat().st_mode & 0o777), path.stat().st_gid) for path in tmp_path.iterdir()}
    assert modes["ca.key"] == ("0o600", 0)
    assert modes["console.key"] == ("0o640", group)
    assert modes["console.pem"] == modes["ca.pem"] == ("0o644", 0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["127.0.0.1"], "is an address"),
        (["no name"], "no name"),
        ([NAME, "--days", "400"], "--days"),
        ([NAME, "--days", "0"], "--days"),
    ],
)
def test_dev_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str) -> None:
    assert main([*configured(tmp_path), "tls", "dev", *words, "--dir", str(tmp_path / "new")]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_reload_takes_the_new_pair_and_no_broken_one(tmp_path: Path) -> None:
    """SIGHUP in the console: connections to come see what lies there now."""
    made = issue(tmp_path, (NAME,), 90, 0, NOW)
    config = section(tmp_path)
    context = tls(config)
    assert context is not None
    first = shake(context, made.authority, NAME)["serialNumber"]
    issue(tmp_path, (NAME,), 90, 0, NOW)
    renew(config, context)
    second = shake(context, made.authority, NAME)["serialNumber"]
    assert second != first
    elsewhere = issue(tmp_path / "other", (NAME,), 90, 0, NOW)
    made.certificate.write_bytes(elsewhere.certificate.read_bytes())  # a certificate without its key
    renew(config, context)
    assert shake(context, made.authority, NAME)["serialNumber"] == second


def test_check_asks_the_server_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issue(tmp_path, (NAME,), 90, pwd.getpwnam("exeat-console").pw_gid, NOW)
    zone = [(NAME, 60, "A", "127.0.0.1"), (NAME, 60, "AAAA", "2001:db8::7")]
    with name_server(zone_handler(zone)) as server:
        asked = ["--server", f"127.0.0.1:{server.address[1]}"]
        code = main([*configured(tmp_path), "tls", "check", NAME, *asked, "--json"])
    said = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert {name for name, _ in server.seen} == {NAME}
    assert "2001:db8::7, not an address of this machine" in said["dns"]["detail"]
    assert {name: said[name]["status"] for name in ("dns", "host", "names", "dates")} == {
        "dns": "warn", "host": "ok", "names": "ok", "dates": "ok",
    }  # fmt: skip
    # Below pytest's folder, which is closed to others: the console could not get there.
    assert "cannot enter" in said["key"]["detail"]
    assert code == 1


def test_check_never_falls_back_to_the_systems_resolver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*configured(tmp_path), "tls", "check", NAME]) == 2
    assert "system's resolver is never asked" in capsys.readouterr().err


def test_what_dns_may_say() -> None:
    own = {parse_address("192.0.2.1"), parse_address("2001:db8::1")}
    assert check_dns(NAME, None, own).status is Status.FAIL
    assert check_dns(NAME, [], own).status is Status.FAIL
    assert check_dns(NAME, list(own), own).status is Status.OK
    assert check_dns(NAME, [parse_address("192.0.2.9")], own).status is Status.WARN


def test_what_a_certificate_may_be(tmp_path: Path) -> None:
    made = issue(tmp_path, (NAME,), 90, 0, NOW)

    def verdicts(name: str, days: float = 0) -> list[str]:
        found = check_certificate(name, made.certificate, made.key, NOW + dt.timedelta(days=days))
        return [f"{each.name}:{each.status}" for each in found]

    assert verdicts(NAME) == ["names:ok", "dates:ok"]
    assert verdicts("www.example.org") == ["names:fail", "dates:ok"]
    assert verdicts(NAME, 80) == ["names:ok", "dates:warn"]
    assert verdicts(NAME, 90) == ["names:ok", "dates:fail"]
    assert verdicts(NAME, -1) == ["names:ok", "dates:fail"]
    made.key.write_text("")
    assert verdicts(NAME) == ["certificate:fail"]
    made.key.unlink()
    assert verdicts(NAME) == ["certificate:fail"]


def test_who_may_read_a_key() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - to be passed through
        key = Path(folder) / "key"
        key.touch()
        os.chown(key, 0, 4321)

        def verdict(mode: int, uid: int = 1234, gid: int = 4321) -> Status:
            key.chmod(mode)
            return check_key(key, uid, gid, "somebody").status

        assert verdict(0o640) is Status.OK
        assert verdict(0o644) is Status.FAIL
        assert verdict(0o600) is Status.FAIL
        assert verdict(0o640, gid=99) is Status.FAIL
        assert verdict(0o400, uid=0) is Status.OK


@pytest.mark.parametrize("kind", ["caddy", "nginx"])
def test_a_template_has_no_blank_left(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert main([*configured(tmp_path), "tls", "template", kind, NAME, "--dir", "/etc/exeat/tls"]) == 0
    said = capsys.readouterr().out
    assert "@" not in said
    for value in (NAME, "https://127.0.0.1:8440", "/etc/exeat/tls/ca.pem"):
        assert value in said
