"""Name servers that other people wrote: nsd as the authority, unbound as the resolver over TLS before it.

Both run in the network namespace of the thread that starts them (`proxy_world.in_namespace`) and
end with the block. What crosses to either is counted by the kernel's packet filter and captured.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.dnssec
import dns.exception
import dns.message
import dns.query
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.running import wait_for

from exeat.appliance.lab import pki

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUTHORITY, AUTHORITY_PORT = "203.0.113.1", 5300
RESOLVER = "203.0.113.2"
NAME = "api.example.org"  # one that the lab's certificate `north` is for
_ETH_P_ALL = 3
_HEAD = "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns host 1 3600 600 86400 2\n@ NS ns\nns A 203.0.113.1\n"
# rrl-ratelimit: nsd answers 200 questions a second by default and lets the others fall.
_NSD = """
server:
  ip-address: {address}@{port}
  username: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: "{folder}/nsd.pid"
  xfrdfile: "{folder}/xfrd"
  zonelistfile: "{folder}/zones"
  xfrdir: "{folder}"
  server-count: 1
  rrl-ratelimit: 0
remote-control:
  control-enable: no
{zones}
"""
_UNBOUND = """
server:
  interface: {address}@853
  tls-service-key: "{folder}/north.key"
  tls-service-pem: "{folder}/north.pem"
  tls-port: 853
  access-control: 203.0.113.0/24 allow
  do-daemonize: no
  use-syslog: no
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  num-threads: 1
  module-config: "validator iterator"
{anchors}
remote-control:
  control-enable: no
{stubs}
"""
# Packets that carry data to the servers; what only acknowledges is no question.
_COUNTERS = """
table inet watch {
  counter authority {}
  counter resolver {}
  chain out {
    type filter hook output priority 0;
    udp dport 5300 counter name authority
    tcp dport 853 tcp flags & (syn | psh) != 0 counter name resolver
  }
}
"""


@dataclass
class RealDns:
    """The two servers; `upstream` is what `[dns] upstream` takes for the resolver."""

    folder: Path
    nsd: subprocess.Popen[bytes]
    packets: list[bytes] = field(default_factory=list)
    upstream: str = f"tls://{RESOLVER}:853#{NAME}"

    def rewrite(self, zone: str, records: str) -> None:
        """Put other records into an unsigned zone, and wait until the authority has them."""
        serial = (self.folder / f"{zone}.zone").read_text().split("host ", 1)[1].split(" ", 1)[0]
        head = _HEAD.format(zone=zone).replace("host 1 ", f"host {int(serial) + 1} ")
        (self.folder / f"{zone}.zone").write_text(head + records)
        self.nsd.send_signal(signal.SIGHUP)
        wait_for(lambda: f" {int(serial) + 1} " in str(ask_authority(zone, "SOA")))

    def sent(self, counter: str) -> int:
        """How many packets went to `authority` or `resolver` so far."""
        words = ["nft", "-j", "list", "counter", "inet", "watch", counter]
        out = subprocess.run(words, check=True, capture_output=True).stdout
        listed = json.loads(out)["nftables"]
        return next(int(each["counter"]["packets"]) for each in listed if "counter" in each)


def ask_authority(name: str, kind: str) -> dns.message.Message | None:
    """What nsd says of a name, None when it says nothing."""
    try:
        return dns.query.udp(dns.message.make_query(name, kind), AUTHORITY, 0.3, AUTHORITY_PORT)
    except (OSError, dns.exception.DNSException):
        return None


def _signed(zone: str, records: str, spoil: str) -> tuple[str, str]:
    """(the zone with signatures, its trust anchor). The address of `spoil` is not the one that was signed."""
    parsed = dns.zone.from_text(_HEAD.format(zone=zone) + records, origin=zone, relativize=False)
    key = ec.generate_private_key(ec.SECP256R1())
    public = dns.dnssec.make_dnskey(key.public_key(), dns.dnssec.Algorithm.ECDSAP256SHA256, flags=257)
    dns.dnssec.sign_zone(parsed, keys=[(key, public)], lifetime=86400)
    lines = [line.split() for line in parsed.to_text(relativize=False).splitlines()]
    for words in lines:
        if words[0] == f"{spoil}.{zone}." and words[3] == "A":
            words[4] = "203.0.113.99"  # what was signed is another address
    text = "".join(f"{' '.join(words)}\n" for words in lines)
    return text, f'  trust-anchor: "{zone}. DNSKEY {public.to_text()}"\n'


def _start(folder: Path, program: str, config: str) -> subprocess.Popen[bytes]:
    """Run a copy: where the distribution confines the program by its path it could not read our files."""
    copy = folder / program
    shutil.copy(f"/usr/sbin/{program}", copy)
    (folder / f"{program}.conf").write_text(config)
    log = (folder / f"{program}.log").open("wb")
    with log:
        return subprocess.Popen(
            [str(copy), "-d", "-c", str(folder / f"{program}.conf")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@contextmanager
def real_dns(folder: Path, zones: dict[str, str], *, signed: str, spoil: str) -> Iterator[RealDns]:
    """Serve `zones` (records by zone), of which `signed` has signatures, and a bad one for `spoil`."""
    pki.create(folder)
    anchor = ""
    for zone, records in zones.items():
        text = _HEAD.format(zone=zone) + records
        if zone == signed:
            text, anchor = _signed(zone, records, spoil)
        (folder / f"{zone}.zone").write_text(text)
    entries = "".join(f'zone:\n  name: "{zone}"\n  zonefile: "{zone}.zone"\n' for zone in zones)
    stubs = "".join(
        f'stub-zone:\n  name: "{zone}"\n  stub-addr: {AUTHORITY}@{AUTHORITY_PORT}\n' for zone in zones
    )
    config = _NSD.format(address=AUTHORITY, port=AUTHORITY_PORT, folder=folder, zones=entries)
    with ExitStack() as stack:
        subprocess.run(["nft", "-f", "-"], input=_COUNTERS.encode(), check=True)
        nsd = stack.enter_context(_ended(_start(folder, "nsd", config)))
        unbound = _UNBOUND.format(address=RESOLVER, folder=folder, anchors=anchor, stubs=stubs)
        stack.enter_context(_ended(_start(folder, "unbound", unbound)))
        made = RealDns(folder, nsd)
        wait_for(lambda: all(ask_authority(zone, "SOA") is not None for zone in zones))
        wait_for(_listens)
        stack.enter_context(_capture(made.packets))
        yield made


def _listens() -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((RESOLVER, 853)) == 0


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _capture(packets: list[bytes]) -> Iterator[None]:
    """Every packet of this namespace, as it crosses `lo`."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    sock.bind(("lo", 0))
    sock.settimeout(0.1)
    end = threading.Event()

    def run() -> None:
        while not end.is_set():
            try:
                packets.append(sock.recv(65535))
            except TimeoutError:
                continue

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(30)
        sock.close()
