"""What a flow leaves behind in the process when it has ended: nothing that only the collector could free."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import HOME, Origin, World, in_namespace, read_all

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {to: www.example.org, ports: [80, 443, 7000, 7001]}
"""


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.close()


class Uncollected(World):
    """A proxy that never collects, and at its end says what a collection would have found."""

    proxy_code = """
import collections, gc, os, sys
from pathlib import Path
from exeat.proxy.server import ProxySettings, serve
gc.set_threshold(0)
gc.set_threshold = lambda *_: None
base = Path(sys.argv[1])
code = serve(ProxySettings(base, "n1", os.getuid()), lambda: os.write(1, b"r") and None)
gc.set_debug(gc.DEBUG_SAVEALL)
gc.collect()
found = collections.Counter(type(each).__name__ for each in gc.garbage)
(base / "garbage").write_text(" ".join(f"{name}:{count}" for name, count in found.items()))
sys.exit(code)
"""


OF_A_FLOW = {
    "Flow",
    "Tunnel",
    "Relay",
    "CompiledRelay",
    "_Direction",
    "End",
    "Gate",
    "Evidence",
    "Dialer",
    "Request",
    "HttpDoor",
}


def test_ended_flows_are_no_garbage(tmp_path: Path) -> None:
    def body() -> None:
        with Uncollected(tmp_path, POLICY) as w:
            w.guard.names["www.example.org"] = [HOME]
            Origin(7000, echo)
            Origin(443, echo)
            for count in range(8):
                sock = w.tunnel("www.example.org", 7000, b"early ")
                if count % 2:
                    sock.sendall(b"x" * 200_000)
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
            for port, wanted in ((7001, 502), (22, 403)):
                status, _, sock = w.ask(b"CONNECT www.example.org:%d HTTP/1.1\r\n\r\n" % port)
                assert status == wanted
                read_all(sock)
                sock.close()
            sock = w.tunnel("www.example.org", 443, b"not a hello")
            read_all(sock)
            w.connect().close()
            w.closes(8)
            w.proxy.send_signal(signal.SIGTERM)
            w.proxy.wait(30)
            found = dict(each.split(":") for each in (tmp_path / "garbage").read_text().split())
            assert not OF_A_FLOW & found.keys(), found

    in_namespace(body)
