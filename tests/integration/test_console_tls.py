"""The console over TLS, with certificates of people, and for members of a group on its Unix socket."""

from __future__ import annotations

import datetime as dt
import grp
import http.client
import ipaddress
import json
import os
import pwd
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.support.console import ConsoleRig, Person

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

NOBODY = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name
_USAGE = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
_LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


class Authority:
    """A CA in a folder that signs for whoever is named."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title = folder, title
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path = self._write("ca", self._signed(title, self._key, ca=True), self._key)

    def issue(self, name: str) -> Path:
        """A file with certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write(name, self._signed(name, key, ca=False), key)

    def _signed(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.title)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=begin,
            not_valid_after=begin + dt.timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(_USAGE), critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName([_LOOPBACK]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, signed: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self.folder / f"{self.title}-{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
        return path


@pytest.fixture(scope="module")
def ours() -> Iterator[Authority]:
    with tempfile.TemporaryDirectory() as folder:
        yield Authority(Path(folder), "ours")


@pytest.fixture(scope="module")
def rig(ours: Authority) -> Iterator[ConsoleRig]:
    def prepare(base: Path) -> str:
        """The files as an operator would lay them: readable for the console's group alone."""
        lines = ""
        console = grp.getgrnam("exeat-console").gr_gid
        for key, path in (("certificate", server), ("key", server), ("client_ca", ours.path)):
            copy = base / f"{key}.pem"
            copy.write_bytes(path.read_bytes())
            os.chown(copy, 0, console)
            copy.chmod(0o640)
            lines += f'{key} = "{copy}"\n'
        return lines + f'unix_group = "{GROUP}"\nhosts = ["exeat.example.org"]\n'

    server = ours.issue("server")
    made = ConsoleRig(prepare=prepare, trust=ssl.create_default_context(cafile=ours.path))
    try:
        yield made
    finally:
        made.close()


def shows(rig: ConsoleRig, ours: Authority, path: Path) -> http.client.HTTPResponse:
    """The answer of GET /session to who shows this certificate."""
    context = ssl.create_default_context(cafile=ours.path)
    context.load_cert_chain(path)
    connection = http.client.HTTPSConnection("127.0.0.1", rig.port, timeout=30, context=context)
    try:
        connection.request("GET", "/api/v1/session")
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        return response
    finally:
        connection.close()


def test_a_cookie_is_bound_to_this_host(rig: ConsoleRig) -> None:
    link = json.loads(rig.exeat("console", "login", "anna", "--json"))
    assert link["url"].startswith(f"https://exeat.example.org:{rig.port}/#login=")
    answer = rig.nobody().post("/session", {"link": link["link"]})
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-sid=")
    assert {"secure", "httponly", "path=/", "samesite=strict"} <= {
        part.strip().lower() for part in cookie.split(";")[1:]
    }
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    named = Person(rig, {"Host": f"exeat.example.org:{rig.port}", "Cookie": cookie.partition(";")[0]})
    assert named.get("/session").json["via"] == "session"
    assert rig.nobody().get("/session", Host=f"localhost:{rig.port}").status == 421


def test_a_proxy_before_it_calls_it_by_its_own_names_alone(rig: ConsoleRig) -> None:
    """On 443, where a browser says no port, something may stand that speaks TLS on to it."""
    link = json.loads(rig.exeat("console", "login", "anna", "--json"))["link"]
    by_name = {"Host": "exeat.example.org", "Origin": "https://exeat.example.org"}
    assert Person(rig, by_name).post("/session", {"link": link}).status == 200
    foreign = {"Host": "exeat.example.org", "Origin": "https://example.org"}
    assert Person(rig, foreign).post("/session", {"link": link}).json["reason_code"] == "auth.origin"
    for host in ("127.0.0.1", "www.exeat.example.org", "exeat.example.org:443"):
        assert rig.nobody().get("/session", Host=host).status == 421


def test_a_certificate_is_the_account_of_its_name(rig: ConsoleRig, ours: Authority) -> None:
    answer = shows(rig, ours, ours.issue("anna"))
    assert answer.status == 200
    said = json.loads(answer.body)  # type: ignore[attr-defined]
    assert (said["name"], said["role"], said["via"]) == ("anna", "approver", "certificate")
    stranger = shows(rig, ours, ours.issue("stranger"))
    assert stranger.status == 401
    assert json.loads(stranger.body)["reason_code"] == "auth.certificate"  # type: ignore[attr-defined]


def test_a_certificate_of_somebody_elses_ends_the_connection(rig: ConsoleRig, ours: Authority) -> None:
    with tempfile.TemporaryDirectory() as folder:
        forged = Authority(Path(folder), "ours").issue("anna")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shows(rig, ours, forged)


def test_who_speaks_no_tls_gets_nothing(rig: ConsoleRig) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=30)
    plain.request("GET", "/api/v1/session")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.getresponse()
    plain.close()


def test_a_member_of_the_group_is_the_account_of_their_name(rig: ConsoleRig) -> None:
    script = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "sock.sendall(b'GET /api/v1/session HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "while part := sock.recv(65536): sys.stdout.buffer.write(part)\n"
    )
    path = str(rig.run_dir / "console" / "api.sock")
    command = [sys.executable, "-c", script, path, str(NOBODY.pw_uid), str(NOBODY.pw_gid)]

    def says() -> bytes:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout

    assert says().startswith(b"HTTP/1.1 401"), "in the group, and without an account"
    rig.exeat("user", "add", "nobody", "--role", "viewer")
    assert b'"name":"nobody","role":"viewer"' in says()
