"""Plain HTTP with the clients people use: connections that stay, uploads, ranges, WebSocket.

The list of behaviours follows curl's own tests of proxies and SOCKS (its tests/http/test_10_proxy.py
and test_40_socks.py).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import urllib.request
from typing import TYPE_CHECKING

import aiohttp
import pytest
import requests
from tests.support.proxy_world import HOME, Origin, World, in_namespace, read_head

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: [www.example.org, ws.example.org], ports: [80, 8080]}
deny:
  - {id: paste, to: paste.example.org}
"""
PAGE = b"0123456789" * 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Handler(http.server.BaseHTTPRequestHandler):
    """A page with ranges, the same in chunks, and uploads that answer with their size."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(PAGE), 30):
                part = PAGE[at : at + 30]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        first, _, last = self.headers.get("Range", "bytes=0-99").removeprefix("bytes=").partition("-")
        body = PAGE[int(first) : int(last) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        body = b"%d bytes" % size
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def world(tmp_path: Path, body: Callable[[World, str], None]) -> None:
    """Run `body` with a proxy, its address, and the site on port 80."""

    def run() -> None:
        site = http.server.ThreadingHTTPServer((HOME, 80), Handler)
        thread = threading.Thread(target=site.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            with World(tmp_path, POLICY) as made:
                made.guard.names = {f"{n}.example.org": [HOME] for n in ("www", "ws", "paste")}
                body(made, f"127.0.0.1:{made.listener.getsockname()[1]}")
        finally:
            site.shutdown()
            site.server_close()
            thread.join()

    in_namespace(run)


def run(*words: str) -> subprocess.CompletedProcess[bytes]:
    """A client without any settings of the machine's."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(words, capture_output=True, timeout=60, check=False, env=env)


WWW = "http://www.example.org/"


def test_curl(tmp_path: Path) -> None:
    def body(w: World, proxy: str) -> None:
        def curl(*words: str, way: tuple[str, ...] = ("-x", f"http://{proxy}")) -> bytes:
            done = run("curl", "-sS", *way, *words)
            return done.stdout + done.stderr

        upload = tmp_path / "upload"
        upload.write_bytes(b"u" * 3_000_000)
        both = run(
            "curl", "-sSv", "-x", f"http://{proxy}", WWW, f"{WWW}chunks", "http://paste.example.org/", WWW
        )
        assert both.stdout.count(PAGE) == 3
        assert both.stderr.count(b"Re-using existing connection") == 3
        assert b"rule.deny" in both.stdout
        assert b"HTTP/1.1 200 " in curl("-I", WWW)
        assert curl("-r", "3-5", WWW) == b"345"
        assert curl("-0", WWW) == PAGE
        assert curl("-T", str(upload), WWW) == b"3000000 bytes"
        assert curl("-T", str(upload), "-H", "Expect: 100-continue", WWW) == b"3000000 bytes"
        assert curl("--proxytunnel", WWW, f"{WWW}chunks") == PAGE * 2
        assert b"http.upgrade" in curl("--http2", WWW)
        assert curl(WWW, way=("--socks5-hostname", proxy)) == PAGE
        assert curl("-U", "u:p", WWW, way=("--socks5-hostname", proxy)) == PAGE
        resolved = ("--resolve", f"www.example.org:80:{HOME}")
        assert b"(2)" in curl(*resolved, WWW, way=("--socks5", proxy)), "its own lookup counts for nothing"
        before = ("--preproxy", f"socks5h://{proxy}", "-x", "http://paste.example.org:3128")
        assert b"(2)" in curl(WWW, way=before), "another proxy is a destination like others"
        assert w.wait_record(lambda r: r.reason_code == "ip_literal.denied")
        flows = [r for r in w.records() if r.kind is Kind.OPEN]
        assert {r.dest.host for r in flows if r.dest} == {"www.example.org"}
        assert all(r.bytes_in == r.kernel_in for r in w.closes(len(flows)))

    world(tmp_path, body)


def test_python(tmp_path: Path) -> None:
    def body(w: World, proxy: str) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": f"http://{proxy}"}
            for path in ("", "chunks", ""):
                assert session.get(WWW + path, timeout=30).content == PAGE
            assert session.put(WWW, data=b"x" * 100_000, timeout=10).text == "100000 bytes"
            assert session.head(WWW, timeout=10).headers["Content-Length"] == "100"
            assert session.get("http://paste.example.org/", timeout=30).json()["reason_code"] == "rule.deny"
            assert session.get(WWW, timeout=30).content == PAGE
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{proxy}"}))
        with opener.open(WWW, timeout=10) as answer:
            assert answer.read() == PAGE
        opens = [r for r in w.records() if r.kind is Kind.OPEN]
        assert len(opens) == 7
        assert len({r.src for r in opens}) == 1  # the door of the jail
        asyncio.run(_aiohttp(f"http://{proxy}"))

    world(tmp_path, body)


async def _aiohttp(proxy: str) -> None:
    """Requests on one connection, then a WebSocket."""
    Origin(8080, _websocket_echo)
    async with aiohttp.ClientSession() as session:
        for path in ("", "chunks"):
            async with session.get(WWW + path, proxy=proxy) as answer:
                assert await answer.read() == PAGE
        async with session.ws_connect("ws://ws.example.org:8080/chat", proxy=proxy) as chat:
            await chat.send_str("over")
            assert await chat.receive_str() == "over"
        async with session.get("http://paste.example.org/", proxy=proxy) as answer:
            assert answer.status == 403


def _websocket_echo(sock: socket.socket) -> None:
    """One short text message, unmasked and sent back (RFC 6455 section 5.2)."""
    head = read_head(sock)
    key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    frame = sock.recv(10, 0x100)  # MSG_WAITALL: two bytes, the mask, four letters
    text = bytes(byte ^ frame[2 + at % 4] for at, byte in enumerate(frame[6:10]))
    sock.sendall(b"\x81\x04" + text)
    while sock.recv(1024):
        pass


if shutil.which("wget"):  # `./dev setup` does not install it

    def test_wget(tmp_path: Path) -> None:
        def body(w: World, proxy: str) -> None:
            done = run(
                "wget", "-nv", "-O-", "-e", f"http_proxy=http://{proxy}", "--tries=1", WWW, WWW + "chunks"
            )
            assert done.stdout == PAGE * 2, done.stderr
            done = run("wget", "-e", f"http_proxy=http://{proxy}", "--tries=1", "http://paste.example.org/")
            assert b"rule.deny" in done.stderr

        world(tmp_path, body)
