"""A real Redis with TLS 1.3 client certificates and an ACL user for each node, on loopback, for one test."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.running import wait_for

from exeat.appliance.errors import RefusedError
from exeat.appliance.fleet.acl import DEFAULT, home_rule, worker_rule
from exeat.appliance.fleet.engine import Access, answer, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "localhost"
PASSWORD = "only for a test"
_PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A CA that lives for a day; `issue` writes NAME.pem and NAME.key."""

    def __init__(self, folder: Path, title: str = "fleet CA") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._title = title
        builder = self._builder(title, self._key.public_key())
        self._cert = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True).sign(
            self._key, hashes.SHA256()
        )
        self.ca = folder / f"{title.replace(' ', '-')}.pem"
        self.ca.write_bytes(self._cert.public_bytes(_PEM))

    def _builder(self, subject: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(self._title))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.DNSName(name)])
        cert = self._builder(name, key.public_key()).add_extension(names, False)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(cert.sign(self._key, hashes.SHA256()).public_bytes(_PEM))
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(_PEM, form, none))
        return paths


class RedisServer:
    """`process` is the server's; `access` gives a node's way in."""

    def __init__(self, folder: Path, nodes: tuple[str, ...]) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.issued = {name: self.authority.issue(name) for name in ("redis", "home", *nodes)}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        rules = [home_rule("home", PASSWORD), *(worker_rule(name, PASSWORD) for name in nodes)]
        (folder / "users.acl").write_text("\n".join([DEFAULT, *rules]) + "\n")
        certificate, key = self.issued["redis"]
        lines = [
            *("bind 127.0.0.1", "port 0", f"tls-port {self.port}", f"dir {folder}", "daemonize no"),
            *(f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {self.authority.ca}"),
            *("tls-auth-clients yes", 'tls-protocols "TLSv1.3"', f"aclfile {folder}/users.acl"),
            *("appendonly yes", "appendfsync always", 'save ""', "loglevel warning", f"logfile {folder}/log"),
        ]
        (folder / "redis.conf").write_text("\n".join(lines) + "\n")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(["redis-server", str(self.folder / "redis.conf")])
        wait_for(self._listens, 30)
        return self.process

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(RefusedError):
            asyncio.run(self._ping())
            return True
        return False

    async def _ping(self) -> None:
        redis = connect(self.access("home"))
        try:
            await answer(redis.ping())
        finally:
            await redis.aclose()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def freeze(self, *, on: bool) -> None:
        os.kill(self.process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def access(self, node: str) -> Access:
        certificate, key = self.issued[node]
        return Access(HOST, self.port, node, PASSWORD, self.authority.ca, certificate, key)


@contextlib.contextmanager
def redis_server(*nodes: str) -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="exeat-redis-"))
    server = RedisServer(folder, nodes)
    try:
        yield server
    finally:
        server.freeze(on=False)
        server.kill()
        shutil.rmtree(folder)
