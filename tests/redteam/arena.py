"""Two namespaces: one for the proxy under test, one for everything it could reach.

`gw` has its default route into `world`, where every address is local (AnyIP) and one observer
answers on all of them. A second observer in `gw` waits on its loopback, for proxies that dial
127.0.0.1. Names and addresses are in corpus/arena.yaml.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
ARENA: dict[str, Any] = yaml.safe_load((HERE / "corpus" / "arena.yaml").read_text())
# In the gateway's own namespace: not the ports that the proxy or its name server may want.
_LOOPBACK_UDP = {"127.0.0.1": [7000], "::1": [7000]}
_LOOPBACK_TCP = [21, 22, 25, 80, 443, 853, 5432, 8443]


class ArenaError(Exception):
    """The arena cannot be made; the message is one line."""


class Arena:
    """Use as a context manager. `name` (a few letters) keeps arenas apart."""

    def __init__(self, name: str) -> None:
        # Its own for each checkout, so that two suites may run on one machine.
        tag = hashlib.sha256(f"{HERE}\0{name}".encode()).hexdigest()[:4]
        self.name = name = f"{name}{tag}"
        self.folder = Path(f"/run/exeat-redteam-{name}")
        self._observers: list[subprocess.Popen[str]] = []
        self._controls: list[socket.socket] = []
        self.ca = ""

    @property
    def gateway(self) -> str:
        return f"ert{self.name}-gw"

    @property
    def world(self) -> str:
        return f"ert{self.name}-world"

    @property
    def enter(self) -> list[str]:
        """Command words that start a process in the proxy's namespace, with the arena's resolver."""
        return ["ip", "netns", "exec", self.gateway]

    def __enter__(self) -> Arena:
        self._remove()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for control in self._controls:
            control.close()
        for process in self._observers:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._remove()

    # -- making

    def _make(self) -> None:
        self.folder.mkdir(mode=0o755)
        resolver = Path("/etc/netns") / self.gateway
        resolver.mkdir(parents=True)
        (resolver / "resolv.conf").write_text(f"nameserver {ARENA['resolver']}\n")
        self.ca = _certificates(self.folder)
        _ip(f"netns add {self.gateway}", f"netns add {self.world}")
        peer = f"peer name eth0 netns {self.gateway}"
        _ip("link set lo up", f"link add eth0 type veth {peer}", "link set eth0 up", netns=self.world)
        _ip("link set lo up", "link set eth0 up", netns=self.gateway)
        for netns, key in ((self.gateway, "gateway"), (self.world, "world")):
            _ip(
                *(f"address add {cidr} dev eth0" + " nodad" * (":" in cidr) for cidr in ARENA[key]),
                netns=netns,
            )
        extra = [*ARENA["ports"], ARENA["resolver"]]
        widths = [(address, 128 if ":" in address else 32) for address in extra]
        _ip(*(f"address add {a}/{w} dev eth0" + " nodad" * (w == 128) for a, w in widths), netns=self.world)
        via4, via6 = (cidr.partition("/")[0] for cidr in ARENA["world"])
        _ip(f"route add default via {via4}", netns=self.gateway)
        _ip(f"route add default via {via6}", netns=self.gateway, family="-6")
        for family in ("-4", "-6"):
            # Only what arrives is taken for local; the answers still follow the main table.
            lines = ("route add local default dev lo table 100", "rule add iif eth0 lookup 100")
            _ip(*lines, netns=self.world, family=family)
        tls = {"certificate": f"{self.folder}/origin.pem", "key": f"{self.folder}/origin.key"}
        world = {"tcp": ARENA["tcp"], "names": ARENA["names"], "dns": [ARENA["resolver"]], "packets": "eth0"}
        world["udp"] = ARENA["udp"]
        self._observe("world", self.world, {**tls, **world})
        self._observe("loopback", self.gateway, {**tls, "tcp": _LOOPBACK_TCP, "udp": _LOOPBACK_UDP})

    def _observe(self, name: str, netns: str, spec: dict[str, Any]) -> None:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        control = str(self.folder / f"{name}.sock")
        command = ["ip", "netns", "exec", netns, sys.executable, "-I", str(HERE / "observer.py")]
        process = subprocess.Popen(
            [*command, "--control", control, "--spec", str(path)], stdout=subprocess.PIPE, text=True
        )
        self._observers.append(process)
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise ArenaError(f"the observer `{name}` did not start")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(control)
        self._controls.append(sock)

    def _remove(self) -> None:
        for name in (self.gateway, self.world):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- watching

    def news(self, *, reset: bool = False) -> dict[str, list[Any]]:
        """What has reached anything since the last call: `tcp`, `udp`, `dns`, `packets`.

        `reset` makes names that change their answers begin again.
        """
        merged: dict[str, list[Any]] = {"tcp": [], "dns": [], "packets": [], "udp": []}
        for control, where in zip(self._controls, ("world", "loopback"), strict=True):
            control.sendall(b"reset\n" if reset else b"mark\n")
            for kind, found in json.loads(_line(control)).items():
                merged[kind] += [{**entry, "where": where} for entry in found]
        return merged

    def start(
        self, command: Sequence[str], log: Path, enter: Sequence[str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start the proxy under test in its namespace, by `enter` if that says how."""
        words = [*(enter or self.enter), *command]
        with log.open("ab") as out:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/")


def _line(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(1 << 20)
        if not part:
            raise ArenaError("an observer has ended")
        data += part
    return data


def _ip(*lines: str, netns: str = "", family: str = "") -> None:
    command = ["ip", *([family] if family else []), *(["-netns", netns] if netns else []), "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArenaError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[0]}")


def _certificates(folder: Path) -> str:
    """A certificate for every allowed name, made by itself; returns it as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "red-team origin")])
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    names = ["wild.example.org", "*.wild.example.org", "other.example.org"]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(text) for text in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "origin.pem").write_bytes(pem)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(folder / "origin.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    return pem.decode()


@contextlib.contextmanager
def running(arena: Arena, command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A proxy for as long as the block runs."""
    process = arena.start(command, log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
