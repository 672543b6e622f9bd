"""What programs see of the whole appliance: how soon a no ends, and how soon a yes is there.

Started by bench.dns as `unshare -m -n python -m bench.dns_clients FOLDER`: with a network and an
/etc/resolv.conf of its own. Prints one JSON object. FOLDER holds bench/lookup.c, compiled for glibc
and for musl.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from bench.dns_load import FIFO
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import enter_namespace
from tests.support.standalone import Standalone

from exeat.appliance.client import Client
from exeat.appliance.config import load

LIBRARIES = {"glibc": ["gcc"], "musl": ["musl-gcc", "-static"]}
DENIED, ASKED = "no.example.net", "git.example.org"
POLICY = f"""
egress: v1
project: builds
posture: allowlist
allow: [{{id: site, to: www.example.org}}]
ask: [{{id: clone, to: {ASKED}, ports: 443}}]
"""
IDENTITIES = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\nagent = "local"\n'
LOOKUPS = 100  # each of a new name: it is decided, and its record durable, before the answer
CLIENTS = 24  # that ask by themselves; every second one asks with EDNS
WAIT_S = 5
EAI_NONAME = -2  # of both libraries


def compile_clients(folder: Path) -> None:
    source = Path(__file__).with_name("lookup.c")
    for name, words in LIBRARIES.items():
        subprocess.run([*words, "-O2", "-o", str(folder / name), str(source)], check=True)


def measured(folder: Path, *, fifo: bool) -> dict[str, list[float]]:
    """What `main` prints, from a process with a network of its own; with `fifo` first in line."""
    compile_clients(folder)
    first = ["chrt", "-f", str(FIFO)] if fifo else []
    argv = [*first, "unshare", "-m", "-n", sys.executable, "-m", "bench.dns_clients", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the clients' part failed:\n{done.stderr}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def query(name: str, *, edns: bool) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    opt = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0) if edns else b""
    return struct.pack(">6H", 7, 0x100, 1, 0, 0, int(edns)) + labels + b"\0\0\1\0\1" + opt


def denials(program: Path, code: int) -> list[float]:
    """Milliseconds of each lookup of a name that policy denies and that nobody asked for before."""
    out = subprocess.run([str(program), DENIED, str(LOOKUPS)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in out.stdout.splitlines()]
    assert {int(row[1]) for row in rows} == {code}, "a denial must end as `no such name`"
    return sorted(float(row[0]) / 1000 for row in rows)


def approval(folder: Path, client: Client) -> list[float]:
    """Milliseconds from an approval until each client has an address; all were denied just before."""
    socks = []
    for i in range(CLIENTS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(WAIT_S)
        sock.connect(("127.0.0.1", 53))
        socks.append((sock, query(ASKED, edns=bool(i % 2))))
    asked = [_ask(*each) for each in socks * 3]  # often enough to be remembered
    assert not any(asked), "nobody may have an address before the approval"
    programs = [
        subprocess.Popen([str(folder / name), ASKED, "until", str(WAIT_S)], stdout=subprocess.PIPE)
        for name in LIBRARIES
    ]
    lease = client.call("lease.request", project="builds", to=f"{ASKED}:443", **{"as": "ada"})["lease"]["id"]
    time.sleep(0.2)  # the programs ask by now, and again
    began = time.monotonic()
    client.call("lease.approve", lease=lease, **{"as": "grace"})
    found: list[float] = []
    while socks and time.monotonic() - began < WAIT_S:
        waiting = [each for each in socks if not _ask(*each)]
        found += [(time.monotonic() - began) * 1000] * (len(socks) - len(waiting))
        socks = waiting
    found += [WAIT_S * 1000.0] * len(socks)
    for program in programs:
        out, _ = program.communicate(timeout=2 * WAIT_S)
        ended = int(out.split()[1]) == 0
        found.append((time.monotonic() - began) * 1000 if ended else WAIT_S * 1000)
    return sorted(found)


def _ask(sock: socket.socket, message: bytes) -> bool:
    """Whether the reply holds an address."""
    sock.send(message)
    reply = sock.recv(4096)
    return reply[3] & 15 == 0 and reply[7] > 0


def main() -> None:
    folder = Path(sys.argv[1])
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    enter_namespace()
    zone = [(ASKED, 60, "A", "203.0.113.1"), (ASKED, 60, "AAAA", "2001:db8:1::1")]
    with name_server(zone_handler(zone)) as server:
        made = Standalone(server.address, {"builds": POLICY}, IDENTITIES)
        try:
            made.up()
            found = {name: denials(folder / name, EAI_NONAME) for name in LIBRARIES}
            found["approval"] = approval(folder, Client(load(made.config)))
        finally:
            made.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
