"""The servers beside the guard in bench.dns, each told to let the same 1000 names through.

Those that can ask over TLS do, as the guard does, of the same nsd: unbound (twice) and dnsdist.
dnsmasq and dnslib's server ask in the clear, which is less work.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from bench.dns_load import POPULAR, SERVICES, ZONE

if TYPE_CHECKING:
    from pathlib import Path

TLS_NAME = "api.example.org"  # one that the lab's certificate `north` is for


class Authority(NamedTuple):
    """Where nsd is asked, in the clear and over TLS, and the roots of its certificate."""

    port: int
    tls_port: int
    ca: Path


def write_authority(folder: Path, where: Authority) -> list[str]:
    """The zone and nsd's configuration; its command."""
    from exeat.appliance.lab import pki

    if not where.ca.exists():
        pki.create(folder)
    records = [
        f"{ZONE}. 300 IN SOA ns.{ZONE}. h.{ZONE}. 1 3600 600 86400 30",
        f"{ZONE}. 300 IN NS ns.{ZONE}.",
        f"ns.{ZONE}. 300 IN A 192.0.2.1",
    ]
    records += [f"*.svc{i}.{ZONE}. 300 IN A 198.51.100.{i % 250 + 1}" for i in range(SERVICES)]
    for i in range(POPULAR):
        data = f"A 198.51.100.{i % 250 + 1}" if i % 4 else f"CNAME edge.svc{i}.{ZONE}."
        records.append(f"pop{i}.svc{i}.{ZONE}. 300 IN {data}")
    (folder / "zone").write_text("\n".join(records) + "\n")
    (folder / "nsd.conf").write_text(
        f"""server:
  ip-address: 127.0.0.1@{where.port}
  ip-address: 127.0.0.1@{where.tls_port}
  tls-port: {where.tls_port}
  tls-service-key: "{folder}/north.key"
  tls-service-pem: "{folder}/north.pem"
  tcp-count: 400
  username: ""
  zonesdir: "{folder}"
  pidfile: "{folder}/nsd.pid"
  database: ""
  xfrdfile: "{folder}/xfrd"
  zonelistfile: "{folder}/zonelist"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {folder}/zone
"""
    )
    return ["nsd", "-d", "-c", str(folder / "nsd.conf")]


def unbound(folder: Path, port: int, where: Authority) -> list[str]:
    """An allowlist of local zones."""
    policy = ['  local-zone: "." always_nxdomain']
    policy += [f'  local-zone: "svc{i}.{ZONE}" always_transparent' for i in range(SERVICES)]
    return _unbound(folder, port, where, "unbound", "iterator", policy, [])


def unbound_rpz(folder: Path, port: int, where: Authority) -> list[str]:
    """The same as a response policy zone."""
    records = ["$ORIGIN rpz.bench.", "@ 3600 IN SOA ns. h. 1 3600 600 86400 30", "@ 3600 IN NS ns."]
    for i in range(SERVICES):
        records += [f"{dot}svc{i}.{ZONE} 30 IN CNAME rpz-passthru." for dot in ("", "*.")]
    records.append("* 30 IN CNAME .")
    zone = folder / "rpz.zone"
    zone.write_text("\n".join(records) + "\n")
    rpz = ["rpz:", "  name: rpz.bench", f'  zonefile: "{zone}"']
    return _unbound(folder, port, where, "unbound-rpz", "respip iterator", [], rpz)


def _unbound(
    folder: Path, port: int, where: Authority, name: str, modules: str, policy: list[str], more: list[str]
) -> list[str]:
    lines = [
        "server:", f"  interface: 127.0.0.1@{port}", "  num-threads: 1", "  do-daemonize: no",
        '  chroot: ""', '  username: ""', '  pidfile: ""', f'  directory: "{folder}"', "  use-syslog: no",
        "  do-not-query-localhost: no", f'  module-config: "{modules}"',
        "  access-control: 127.0.0.0/8 allow", "  outgoing-range: 4096", "  num-queries-per-thread: 2048",
        "  outgoing-num-tcp: 100", "  msg-cache-size: 64m", "  rrset-cache-size: 128m",
        f'  tls-cert-bundle: "{where.ca}"', *policy, *more,
        "remote-control:", "  control-enable: no",
        "forward-zone:", f'  name: "{ZONE}"', "  forward-tls-upstream: yes",
        f"  forward-addr: 127.0.0.1@{where.tls_port}#{TLS_NAME}",
    ]  # fmt: skip
    path = folder / f"{name}.conf"
    path.write_text("\n".join(lines) + "\n")
    return ["unbound", "-d", "-c", str(path)]


def dnsdist(folder: Path, port: int, where: Authority) -> list[str]:
    path = folder / "dnsdist.conf"
    path.write_text(
        f"""setLocal("127.0.0.1:{port}")
newServer{{address="127.0.0.1:{where.tls_port}", tls="openssl", subjectName="{TLS_NAME}",
  caStore="{where.ca}", validateCertificates=true, healthCheckMode="up"}}
getPool(""):setCache(newPacketCache(200000))
allowed = newSuffixMatchNode()
for i = 0, {SERVICES - 1} do allowed:add(newDNSName("svc" .. i .. ".{ZONE}")) end
addAction(NotRule(SuffixMatchNodeRule(allowed)), RCodeAction(DNSRCode.NXDOMAIN))
"""
    )
    return ["dnsdist", "--supervised", "--disable-syslog", "-C", str(path)]


def dnsmasq(folder: Path, port: int, where: Authority) -> list[str]:
    lines = [
        f"port={port}", "listen-address=127.0.0.1", "bind-interfaces", "no-resolv", "no-hosts",
        "cache-size=10000", "keep-in-foreground", "user=root", "pid-file", "dns-forward-max=4096",
    ]  # fmt: skip
    lines += [f"server=/svc{i}.{ZONE}/127.0.0.1#{where.port}" for i in range(SERVICES)]
    lines.append("address=/#/")  # NXDOMAIN for everything else
    path = folder / "dnsmasq.conf"
    path.write_text("\n".join(lines) + "\n")
    return ["dnsmasq", "-C", str(path)]


def dnslib(_folder: Path, port: int, where: Authority) -> list[str]:
    child = ["--child", "dnslib", "--authority", str(where.port), "--port", str(port)]
    return [sys.executable, "-m", "bench.dns", *child]


def run_dnslib(port: int, authority: int) -> None:
    """dnslib's own forwarding server, as its documentation shows it; it has no allowlist."""
    from dnslib.proxy import ProxyResolver
    from dnslib.server import DNSLogger, DNSServer

    logger = DNSLogger("-request,-reply,-truncated,-error,-recv,-send,-data")
    DNSServer(ProxyResolver("127.0.0.1", authority, 5), port=port, address="127.0.0.1", logger=logger).start()


PEERS = {
    "unbound": unbound,
    "unbound-rpz": unbound_rpz,
    "dnsdist": dnsdist,
    "dnsmasq": dnsmasq,
    "dnslib": dnslib,
}
