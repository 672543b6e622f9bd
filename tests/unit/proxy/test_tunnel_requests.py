"""Requests inside a tunnel: each names the tunnel's host, and begins where the server thinks it does."""

from __future__ import annotations

import pytest

from exeat.proxy.fields import HttpError
from exeat.proxy.tunnel_requests import TunnelRequests

GET = b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: www.example.org:80\r\nContent-Length: 30\r\n\r\n"
EVIL = b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: www.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def passed(data: bytes, step: int) -> tuple[bytes, str, TunnelRequests]:
    requests, out = TunnelRequests("www.example.org", 80), b""
    for at in range(0, len(data), step or len(data)):
        try:
            out += requests.take(data[at : at + (step or len(data))])
        except HttpError as error:
            return out, error.code, requests
    return out, "", requests


@pytest.mark.parametrize("step", [0, 1, 7])
def test_requests_pass_as_they_are(step: int) -> None:
    body = POST + b"GET / HTTP/1.1\r\nHost: evil..\r\n"
    chunked = POST.replace(b"Content-Length: 30", b"Transfer-Encoding: chunked") + b"3\r\nGET\r\n0\r\n\r\n"
    data = GET + body + chunked + GET
    assert passed(data, step)[:2] == (data, "")


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("second", "code"),
    [
        (EVIL, "http.host_mismatch"),
        (GET.replace(b"org\r", b"org:8080\r"), "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "http.host_missing"),
        (GET.replace(b"\r\n\r\n", b"\r\nHost: www.example.org\r\n\r\n"), "http.host_twice"),
        (b"GET http://evil.example.net/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n", "http.target_form"),
        (b"CONNECT evil.example.net:443 HTTP/1.1\r\nHost: www.example.org\r\n\r\n", "http.nested_connect"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http.version"),
        (b"\r\n" + GET, "http.request_line"),
        (GET.replace(b"\r\n", b"\n"), "http.line_ending"),
        (POST.replace(b"30", b"3\r\nTransfer-Encoding: chunked"), "http.framing"),
        (UPGRADE, "http.upgrade"),
    ],
)
def test_a_later_request_is_judged_too(second: bytes, code: str, step: int) -> None:
    for first in (GET, POST + b"x" * 30):
        out, found, _ = passed(first + second, step)
        assert found == code
        assert out in (first, b"")


@pytest.mark.parametrize("step", [0, 1])
def test_nothing_follows_an_upgrade_until_it_is_answered(step: int) -> None:
    out, code, requests = passed(UPGRADE, step)
    assert (out, code, requests.asking) == (UPGRADE, "", True)
    with pytest.raises(HttpError):
        requests.take(b"x")
    requests.asking = False  # it was refused: requests go on as before
    assert requests.take(GET) == GET
    with pytest.raises(HttpError):
        requests.take(EVIL)
    _, _, granted = passed(UPGRADE, step)
    granted.asking, granted.switched = False, True
    assert granted.take(EVIL) == EVIL


@pytest.mark.parametrize("field", [b"Upgrade: h2c", b"HTTP2-Settings: AA", b"Upgrade: websocket, h2c"])
def test_no_protocol_that_carries_requests(field: bytes) -> None:
    assert passed(GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n"), 0)[1] == "http.upgrade"
