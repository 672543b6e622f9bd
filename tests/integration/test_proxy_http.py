"""Plain HTTP through the proxy: every request of a connection is judged, recorded and ended by itself."""

from __future__ import annotations

import http.client
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import HOME, Origin, World, in_namespace, read_all, read_head

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: www.example.org, ports: [80, 443, 7000]}
  - {id: other, to: other.example.org, ports: 80}
deny:
  - {id: paste, to: paste.example.org}
"""
OTHER = "203.0.113.2"
NAMES = {"www.example.org": [HOME], "other.example.org": [OTHER], "paste.example.org": [OTHER]}
CLOSE = b"\r\nConnection: close\r\n"


def world(tmp_path: Path, body: Callable[[World], None], **settings: float) -> None:
    def run() -> None:
        with World(tmp_path, POLICY, **settings) as made:
            made.guard.names = dict(NAMES)
            body(made)

    in_namespace(run)


def get(host: str, path: str = "/", more: str = "") -> bytes:
    return f"GET http://{host}.example.org{path} HTTP/1.1\r\nHost: evil.example.net\r\n{more}\r\n".encode()


class Site(Origin):
    """Answers each connection's one request with its path and Host, and keeps the connection open."""

    def __init__(self, address: str = HOME, answer: bytes = b"", port: int = 80) -> None:
        self.heads: list[bytes] = []
        self.after: list[bytes] = []
        self._fixed = answer
        super().__init__(port, self._answer, address)

    def _answer(self, sock: socket.socket) -> None:
        head = read_head(sock)
        self.heads.append(head)
        body = head.split(b" ")[1] + b" of " + head.partition(b"Host: ")[2].partition(b"\r\n")[0]
        sock.sendall(self._fixed or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        self.after.append(read_all(sock))


def read_answer(sock: socket.socket, method: str = "GET") -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection closes after it."""
    answer = http.client.HTTPResponse(sock, method=method)
    answer.begin()
    body = answer.read(answer.length) if answer.length is not None else answer.read()
    return answer.status, body, answer.will_close


def unbuffered(sock: socket.socket) -> tuple[bytes, bytes]:
    """One answer with a Content-Length, read so that nothing behind it is touched."""
    head = read_head(sock)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head, sock.recv(length, socket.MSG_WAITALL) if length else b""


def test_each_request_is_a_flow_of_its_own(tmp_path: Path) -> None:
    def body(w: World) -> None:
        site, other = Site(), Site(OTHER)
        sock = w.connect()
        sock.sendall(get("www", "/1", "Proxy-Authorization: Basic c2VjcmV0\r\n"))
        assert unbuffered(sock)[1] == b"/1 of www.example.org"
        sock.sendall(get("other", "/2"))
        assert unbuffered(sock)[1] == b"/2 of other.example.org"
        sock.sendall(get("paste", "/3"))
        head, problem = unbuffered(sock)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert CLOSE not in head
        assert b"rule.deny" in problem
        sock.sendall(get("www", "/4", "Connection: close\r\n"))
        head, text = unbuffered(sock)
        assert (CLOSE in head, text) == (True, b"/4 of www.example.org")
        assert read_all(sock) == b""
        closes = w.closes(3)
        assert [c.dest.host for c in closes if c.dest] == [
            f"{n}.example.org" for n in ("www", "other", "www")
        ]
        assert {c.close_reason for c in closes} == {"eof"}
        assert len({c.flow for c in closes}) == 3
        for closed, head in zip(closes, [site.heads[0], other.heads[0], site.heads[1]], strict=True):
            size = len(head)
            assert (closed.bytes_out, closed.kernel_out, closed.client_kernel_out) == (size, size, size)
            assert closed.bytes_in == closed.kernel_in == closed.client_kernel_in > 0
        denied = w.wait_record(lambda r: r.kind is Kind.DENY)
        assert (denied.dest and denied.dest.host, denied.rule_id) == ("paste.example.org", "paste")
        assert site.heads[0] == b"GET /1 HTTP/1.1\r\nHost: www.example.org\r\nConnection: close\r\n\r\n"
        assert site.after == [b"", b""]
        assert other.after == [b""]

    world(tmp_path, body)


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    def body(w: World) -> None:
        site, other = Site(), Site(OTHER)
        post = b"POST http://paste.example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n"
        sock = w.connect()
        sock.sendall(
            get("www", "/a")
            + post
            + b"GET http://www.example.org/no "
            + get("other", "/b")
            + post.replace(b"Content-Length: 30", b"Transfer-Encoding: chunked")
            + b"3\r\nGET\r\n0\r\n\r\n"
            + get("www", "/c", "Connection: close\r\n")
            + get("www", "/never")
        )
        sock.shutdown(socket.SHUT_WR)
        answers = [unbuffered(sock) for _ in range(5)]
        assert [head.split(b" ")[1] for head, _ in answers] == [b"200", b"403", b"200", b"403", b"200"]
        assert [text for _, text in answers[::2]] == [
            b"/a of www.example.org",
            b"/b of other.example.org",
            b"/c of www.example.org",
        ]
        assert read_all(sock) == b""
        assert len(site.heads + other.heads) == 3
        for closed in w.closes(3):
            assert closed.bytes_out == closed.kernel_out == closed.client_kernel_out
            assert closed.bytes_in == closed.kernel_in == closed.client_kernel_in

    world(tmp_path, body)


def test_a_flood_of_refused_requests_is_answered_one_by_one(tmp_path: Path) -> None:
    def body(w: World) -> None:
        sock = w.connect()
        count = 400
        request = b"HEAD http://paste.example.org/ HTTP/1.1\r\nHost: x\r\n\r\n"
        threading.Thread(target=sock.sendall, args=(request * count,)).start()
        for _ in range(count):
            head = read_head(sock)
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b"Content-Length: " in head
        status, _, _ = w.ask(get("paste"))
        assert status == 403

    world(tmp_path, body)


UNSURE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\n\r\nas long as it lasts",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
]


def test_an_answer_without_a_sure_end_ends_the_connection(tmp_path: Path) -> None:
    def body(w: World) -> None:
        answers = list(UNSURE)

        def once(sock: socket.socket) -> None:
            read_head(sock)
            sock.sendall(answers.pop(0))

        Origin(80, once)
        other = Site(OTHER)
        for count, answer in enumerate(UNSURE, 1):
            sock = w.connect()
            sock.sendall(get("www") + get("other", "/next"))
            got = read_all(sock)
            assert got.replace(CLOSE, b"\r\n", 1) == answer
            closed = w.closes(count)[-1]
            assert closed.kernel_in == closed.bytes_in == closed.client_kernel_in == len(got)
        assert other.heads == []

    world(tmp_path, body)


def test_what_an_origin_says_beyond_its_answer_goes_nowhere(tmp_path: Path) -> None:
    def body(w: World) -> None:
        forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
        Site(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + forged)
        Site(OTHER)
        sock = w.connect()
        sock.sendall(get("www") + get("other", "/true"))
        assert unbuffered(sock)[1] == b"ok"
        assert unbuffered(sock)[1] == b"/true of other.example.org"
        closed = w.closes(2)[0]
        assert closed.bytes_in == closed.kernel_in == closed.client_kernel_in

    world(tmp_path, body)


def test_a_destination_that_does_not_answer(tmp_path: Path) -> None:
    def body(w: World) -> None:
        def mute(sock: socket.socket) -> None:
            read_head(sock)
            sock.sendall(b"HTTP/1.1 103 Early\r\n\r\n")

        Origin(80, mute)
        status, head, sock = w.ask(get("www"))
        assert status == 103
        head = read_head(sock)
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"http.no_answer" in read_all(sock)
        w.wait_record(lambda r: r.kind is Kind.CLOSE and r.close_reason == "http.no_answer")

    world(tmp_path, body)


def test_head_and_empty_answers_leave_nothing_behind(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        Site(OTHER, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")
        sock = w.connect()
        for request in (
            get("www").replace(b"GET", b"HEAD"),
            get("other"),
            get("paste").replace(b"GET", b"HEAD"),
        ):
            sock.sendall(request)
            assert read_head(sock).startswith(b"HTTP/1.1 ")
        sock.sendall(get("other"))
        assert read_head(sock).startswith(b"HTTP/1.1 304 ")

    world(tmp_path, body)


def test_a_client_waits_for_100_continue(tmp_path: Path) -> None:
    def body(w: World) -> None:
        got = bytearray()

        def careful(sock: socket.socket) -> None:
            assert b"\r\nExpect: 100-continue\r\n" in read_head(sock)
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            got.extend(sock.recv(5, socket.MSG_WAITALL))
            sock.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        Origin(80, careful)
        put = b"PUT http://%s.example.org/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        put += b"Content-Length: 5\r\n\r\n"
        sock = w.connect()
        sock.sendall(put % b"www")
        assert read_head(sock) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert read_head(sock).startswith(b"HTTP/1.1 201 ")
        assert bytes(got) == b"hello"
        sock.sendall(put % b"paste")
        head = read_head(sock)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert CLOSE in head, "whether the body comes is the client's choice: nothing can be asked after it"

    world(tmp_path, body)


def test_an_early_answer_ends_the_connection_after_it_was_read(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site(answer=b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        sock = w.connect()
        sock.sendall(
            b"POST http://www.example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 999
        )
        assert unbuffered(sock)[1] == b"big"
        assert sock.recv(1) == b""

    world(tmp_path, body)


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


def test_a_websocket_becomes_a_tunnel_of_its_flow(tmp_path: Path) -> None:
    def body(w: World) -> None:
        heard = bytearray()

        def echo(sock: socket.socket) -> None:
            assert read_head(sock).endswith(b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            sock.sendall(SWITCH + b"\x81\x02hi")
            while data := sock.recv(65536):
                heard.extend(data)
                sock.sendall(data)

        Origin(80, echo)
        other = Site(OTHER)
        sock = w.connect()
        sock.sendall(get("www", "/chat", UPGRADE))
        assert read_head(sock) == SWITCH
        assert sock.recv(4, socket.MSG_WAITALL) == b"\x81\x02hi"
        raw = get("other", "/raw")
        sock.sendall(raw)
        assert sock.recv(len(raw), socket.MSG_WAITALL) == raw, "it stays where the tunnel leads"
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        (closed,) = w.closes()
        assert closed.bytes_in == closed.kernel_in == closed.client_kernel_in == len(SWITCH + raw) + 4
        assert closed.bytes_out == closed.kernel_out == closed.client_kernel_out
        assert other.heads == []
        sock = w.connect()
        sock.sendall(get("www", "/chat", UPGRADE))
        assert read_head(sock) == SWITCH
        w.control.send({"t": "cut", "reason": "kill", "all": True})
        assert read_all(sock)[:4] == b"\x81\x02hi"
        assert {c.close_reason for c in w.closes(2)} == {"eof", "kill"}

    world(tmp_path, body)


@pytest.mark.parametrize(
    ("request_", "answer", "status", "reason"),
    [
        (get("www"), SWITCH, 502, "http.switched"),
        (get("www", "/", UPGRADE), SWITCH.replace(b"websocket", b"h2c"), 502, "http.switched"),
        (get("www", "/", UPGRADE) + b"early", SWITCH, 0, "http.upgrade"),
        (
            get("www", "/", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
            b"",
            400,
            "http.upgrade",
        ),
    ],
)
def test_other_changes_of_protocol_end_the_flow(
    tmp_path: Path, request_: bytes, answer: bytes, status: int, reason: str
) -> None:
    def body(w: World) -> None:
        if answer:
            Site(answer=answer)
        found, head, _ = w.ask(request_)
        assert found == status, head
        assert w.wait_record(lambda r: r.kind is Kind.DENY).reason_code == reason

    world(tmp_path, body)


def test_a_refused_websocket_can_be_followed_by_a_request(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site(answer=b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno")
        Site(OTHER)
        sock = w.connect()
        sock.sendall(get("www", "/", UPGRADE))
        assert unbuffered(sock)[1] == b"no"
        sock.sendall(get("other"))
        assert unbuffered(sock)[1] == b"/ of other.example.org"

    world(tmp_path, body)


def test_an_old_client_gets_one_answer(tmp_path: Path) -> None:
    def body(w: World) -> None:
        site = Site()
        sock = w.connect()
        sock.sendall(b"GET http://www.example.org/ HTTP/1.0\r\n\r\n" + get("www", "/2"))
        assert read_all(sock).endswith(CLOSE + b"\r\n/ of www.example.org")
        assert len(site.heads) == 1
        assert site.heads[0].startswith(b"GET / HTTP/1.0\r\nHost: www.example.org\r\n")

    world(tmp_path, body)


def test_a_client_that_says_nothing_more_is_let_go(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site()
        sock = w.connect()
        sock.sendall(get("www"))
        assert unbuffered(sock)[1] == b"/ of www.example.org"
        assert read_all(sock) == b"", "no answer to what was not asked"
        w.closes()
        assert [r for r in w.records() if r.kind is Kind.DENY] == []

    world(tmp_path, body, keep_alive_s=0.3)


def test_a_cut_meets_a_client_between_two_requests(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site()
        sock = w.connect()
        sock.sendall(get("www"))
        assert unbuffered(sock)[1] == b"/ of www.example.org"
        w.control.send({"t": "cut", "reason": "kill", "all": True})
        assert read_all(sock) == b""

    world(tmp_path, body)


def test_a_tunnel_after_requests(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site()
        Origin(7000, lambda sock: sock.sendall(sock.recv(5)))
        sock = w.connect()
        sock.sendall(get("www"))
        assert unbuffered(sock)[1] == b"/ of www.example.org"
        sock.sendall(b"CONNECT www.example.org:7000 HTTP/1.1\r\n\r\nhello")
        assert read_head(sock).startswith(b"HTTP/1.1 200 ")
        assert read_all(sock) == b"hello"
        sock.close()
        closed = w.closes(2)[1]
        assert (closed.bytes_out, closed.kernel_out, closed.client_kernel_out) == (5, 5, 5)
        assert (closed.bytes_in, closed.kernel_in, closed.client_kernel_in) == (5, 5, 5)

    world(tmp_path, body)


def test_socks_is_not_spoken_after_http(tmp_path: Path) -> None:
    def body(w: World) -> None:
        Site()
        sock = w.connect()
        sock.sendall(get("www") + b"\x05\x01\x00")
        assert unbuffered(sock)[1] == b"/ of www.example.org"
        assert read_head(sock).startswith(b"HTTP/1.1 400 ")

    world(tmp_path, body)


def read_on(sock: socket.socket) -> None:
    while sock.recv(100):
        pass


def in_tunnel(host: str, more: str = "") -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}.example.org\r\n{more}\r\n".encode()


@pytest.mark.parametrize("early", [True, False])
def test_every_request_in_a_tunnel_names_its_host(tmp_path: Path, early: bool) -> None:
    def body(w: World) -> None:
        heads: list[bytes] = []

        def serve(sock: socket.socket) -> None:
            while head := read_head(sock):
                heads.append(head)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        Origin(80, serve)
        good = in_tunnel("www")
        sock = w.tunnel("www.example.org", 80, good if early else b"")
        for count in range(3):
            if count or not early:
                sock.sendall(good)
            assert unbuffered(sock)[1] == b"ok"
        sock.sendall(good + in_tunnel("other"))
        with pytest.raises(ConnectionResetError):
            read_on(sock)
        assert w.wait_record(lambda r: r.kind is Kind.DENY).reason_code == "http.host_mismatch"
        assert w.closes()[0].close_reason == "http.host_mismatch"
        assert set(heads) == {good}

    world(tmp_path, body)


@pytest.mark.parametrize("granted", [True, False])
def test_an_upgrade_in_a_tunnel_waits_for_its_answer(tmp_path: Path, granted: bool) -> None:
    def body(w: World) -> None:
        heard = bytearray()
        refusal = b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"

        def serve(sock: socket.socket) -> None:
            read_head(sock)
            sock.sendall(SWITCH if granted else refusal)
            while data := sock.recv(65536):
                heard.extend(data)
                sock.sendall(data)

        Origin(80, serve)
        sock = w.tunnel("www.example.org", 80, in_tunnel("www", UPGRADE))
        assert sock.recv(200)
        other = in_tunnel("other")
        sock.sendall(other)
        if granted:
            assert sock.recv(len(other), socket.MSG_WAITALL) == other
        else:
            with pytest.raises(ConnectionResetError):
                read_on(sock)
        assert bytes(heard) == (other if granted else b"")

    world(tmp_path, body)
