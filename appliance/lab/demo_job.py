"""The job of `exeat lab demo`: what an agent's command does, with the clients it would use.

Runs inside the jail on the system's own Python, alone, mounted read-only beside the lab's CA.
Prints one JSON line for each thing it did. It knows what ought to happen only to be compared
with; nothing it says is evidence.

    demo_job.py tour             every client against allowed, asked and refused destinations
    demo_job.py download URL     read a large file until it ends, however it ends
    demo_job.py watch            try again and again to reach something, until told on stdin to stop
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ALLOWED, ASKED, REFUSED = "allowed", "asked", "refused"
NO_ROUTE = "no route"  # refused by the kernel: the jail has no way there, so nothing records it
HERE = Path(__file__).resolve().parent
WORK = Path("/work")


class Attempt(NamedTuple):
    """One thing the job tries. `reason` is the code a refusal should carry, "" when allowed."""

    client: str
    what: str
    host: str
    port: int
    want: str
    reason: str
    command: tuple[str, ...]


def _curl(host: str, path: str, want: str, reason: str = "", *more: str, **named: str) -> Attempt:
    scheme = named.get("scheme", "https")
    host, _, port = host.partition(":")
    number = int(port or {"https": 443, "http": 80}[scheme])
    url = f"{scheme}://{host}{':' + port if port else ''}{path}"
    command = (
        "curl",
        "-sS",
        "-f",
        "--max-time",
        "12",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        *more,
        url,
    )
    target = named.get("tunnel", host)
    return Attempt(named.get("client", "curl"), named.get("what", url), target, number, want, reason, command)


def _python(client: str, code: str, host: str, path: str, want: str, reason: str = "") -> Attempt:
    url = f"https://{host}{path}"
    return Attempt(client, url, host, 443, want, reason, ("python3", "-I", "-c", code, url))


def _requests(host: str, path: str, want: str, reason: str = "") -> Attempt:
    code = (
        "import requests, sys; r = requests.get(sys.argv[1], timeout=12);"
        " r.raise_for_status(); print(len(r.content))"
    )
    return _python("requests", code, host, path, want, reason)


def _urllib(host: str, path: str, want: str, reason: str = "") -> Attempt:
    code = "import sys, urllib.request as u; print(len(u.urlopen(sys.argv[1], timeout=12).read()))"
    return _python("urllib", code, host, path, want, reason)


def _git(host: str, want: str, reason: str = "") -> Attempt:
    url = f"https://{host}/git/field-notes.git"
    target = str(WORK / f"clone-{host}")
    return Attempt("git", f"clone {url}", host, 443, want, reason, ("git", "clone", "--quiet", url, target))


def _pip(host: str, want: str, reason: str = "") -> Attempt:
    target = str(WORK / f"pip-{host}")
    command = (
        "python3", "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-input", "--target", target,
        "--index-url", f"https://{host}/simple", "lab-greeting",
    )  # fmt: skip
    return Attempt("pip", f"install lab-greeting from {host}", host, 443, want, reason, command)


def _lookup(host: str, want: str, reason: str = "") -> Attempt:
    return Attempt("getent", f"look up {host}", host, 0, want, reason, ("getent", "ahosts", host))


def _direct(url: str, host: str, port: int, want: str, reason: str = "", *more: str) -> Attempt:
    command = ("curl", "-sS", "-f", "-g", "--noproxy", "*", "--max-time", "12", "-o", "/dev/null",
               "-w", "%{size_download}", *more, url)  # fmt: skip
    return Attempt("curl", f"{url} without the proxy", host, port, want, reason, command)


def _raw(what: str, reason: str, *parts: str, host: str = "", port: int = 0) -> Attempt:
    """Bytes no honest client sends, to the proxy's port. Without a host the gateway saw none either."""
    return Attempt("raw bytes", what, host, port, REFUSED, reason, ("python3", "-I", "-c", _RAW, *parts))


def _connect(target: str) -> str:
    return f"CONNECT {target} HTTP/1.1\\r\\nHost: index.example.org\\r\\n\\r\\n"


_RAW = """
import socket, sys
with socket.create_connection(("127.0.0.1", 3128), 5) as sock:
    for part in sys.argv[1:]:
        sock.sendall(part.encode().decode("unicode_escape").encode("latin-1"))
        answer = sock.recv(400)
print(answer.split(bytes([13, 10]))[0].decode("latin-1") or "closed")
raise SystemExit(not answer.startswith(b"HTTP/1.1 200"))
"""
_UDP = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 443))"

ATTEMPTS = (
    # What the policy allows, by every client.
    _curl("api.example.org", "/echo", ALLOWED),
    _requests("index.example.org", "/simple/", ALLOWED),
    _urllib("pages.cdn.example.org", "/bytes/70000", ALLOWED),
    _git("git.example.org", ALLOWED),
    _pip("index.example.org", ALLOWED),
    _curl("plain.example.org", "/bytes/5000", ALLOWED, scheme="http"),
    _curl("six.cdn.example.org", "/", ALLOWED, what="https://six.cdn.example.org/ (IPv6 only)"),
    _curl("many.cdn.example.org", "/", ALLOWED, what="https://many.cdn.example.org/ (62 addresses)"),
    _curl("api.example.org", "/upload", ALLOWED, "", "-T", str(WORK / "upload"),
          what="upload 3 MB to api.example.org"),
    _curl("pages.cdn.example.org", "/bytes/8000000", ALLOWED, "", "--proxy", "socks5h://127.0.0.1:3128",
          client="curl socks5h"),
    _lookup("index.example.org", ALLOWED),
    _curl("flip.cdn.example.org", "/", ALLOWED, what="https://flip.cdn.example.org/ (flips to metadata)"),
    # What a person has to approve.
    _curl("files.downloads.example.com", "/bytes/1000", ASKED, "rule.ask"),
    _requests("mirror.downloads.example.com", "/bytes/1000", ASKED, "rule.ask"),
    # What is refused by name.
    _curl("paste.example.net", "/", REFUSED, "rule.deny"),
    _requests("stolen-data.exfil.example.net", "/", REFUSED, "rule.deny"),
    _urllib("telemetry.downloads.example.com", "/", REFUSED, "posture.default_deny"),
    _git("evil.example.net", REFUSED, "posture.default_deny"),
    _pip("evil.example.net", REFUSED, "posture.default_deny"),
    _lookup("paste.example.net", REFUSED, "rule.deny"),
    # By port, by address, by what TLS says, by where the name leads.
    _curl("api.example.org:8443", "/", REFUSED, "posture.default_deny"),
    _curl("203.0.113.10", "/", REFUSED, "ip_literal.denied", "-k"),
    _curl("169.254.169.254", "/latest/meta-data/", REFUSED, "meta.metadata", scheme="http"),
    _curl("index.example.org", "/", REFUSED, "sni.mismatch", "--connect-to", "::api.example.org:443",
          what="index.example.org inside a tunnel to api.example.org", tunnel="api.example.org"),
    _curl("private.cdn.example.org", "/", REFUSED, "rule.deny",
          what="https://private.cdn.example.org/ (10.20.0.5)"),
    _curl("metadata.cdn.example.org", "/", REFUSED, "meta.metadata",
          what="https://metadata.cdn.example.org/ (169.254.169.254)"),
    _curl("loopback.cdn.example.org", "/", REFUSED, "meta.loopback",
          what="https://loopback.cdn.example.org/ (127.0.0.1)"),
    _curl("nat64.cdn.example.org", "/", REFUSED, "meta.metadata",
          what="https://nat64.cdn.example.org/ (64:ff9b::a9fe:a9fe)"),
    _curl("mixed.cdn.example.org", "/", REFUSED, "rule.deny",
          what="https://mixed.cdn.example.org/ (a good one and 10.20.0.5)"),
    _curl("alias.cdn.example.org", "/", REFUSED, "rule.deny",
          what="https://alias.cdn.example.org/ (an alias of paste)"),
    # By bytes that mean one thing to a checker and another to a resolver.
    _raw("evil.example.net\\0.cdn.example.org", "http.line_ending",
         _connect("evil.example.net\\x00.cdn.example.org:443")),
    _raw("index.example.org@evil.example.net:443", "malformed.host",
         _connect("index.example.org@evil.example.net:443")),
    _raw("a full-width letter in the name", "malformed.host",
         _connect("\\xef\\xbd\\x89ndex.example.org:443")),
    _raw("2852039166:80 (169.254.169.254 as a number)", "malformed.legacy_ip", _connect("2852039166:80")),
    _raw("index.example.org:65979 (443 to some)", "malformed.port", _connect("index.example.org:65979")),
    _raw("SOCKS 4 to evil.example.net", "socks.version",
         "\\x04\\x01\\x00\\x50\\x00\\x00\\x00\\x01x\\x00evil.example.net\\x00"),
    _raw("plain HTTP in a tunnel to index.example.org:443", "tls.not_tls", _connect("index.example.org:443"),
         "GET / HTTP/1.1\\r\\nHost: evil.example.net\\r\\n\\r\\n", host="index.example.org", port=443),
    # By clients that know of no proxy, or would rather not.
    _direct("https://api.example.org/bytes/3000", "api.example.org", 443, ALLOWED),
    _direct("http://plain.example.org/bytes/3000", "plain.example.org", 80, ALLOWED),
    _direct("https://paste.example.net/", "paste.example.net", 443, REFUSED, "rule.deny",
            "--resolve", "paste.example.net:443:203.0.113.10"),
    _direct("http://203.0.113.10/", "203.0.113.10", 80, REFUSED, "ip_literal.denied"),
    _direct("https://[2001:db8:0:1::10]/", "2001:db8:0:1::10", 443, REFUSED, "ip_literal.denied"),
    Attempt("socket", "a QUIC datagram to 203.0.113.10", "203.0.113.10", 443, REFUSED, NO_ROUTE,
            ("python3", "-I", "-c", _UDP, "203.0.113.10")),
)  # fmt: skip


LONG_HOST = "pages.cdn.example.org"
_LONG_DOWNLOAD = f"https://{LONG_HOST}/bytes/2000000000?rate=5000000"


def main(arguments: list[str]) -> int:
    ca = str(HERE / "ca.pem")
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"):
        os.environ[name] = ca
    if arguments[:1] == ["tour"]:
        return tour()
    if arguments[:1] == ["download"]:
        return download(arguments[1])
    if arguments[:1] == ["watch"]:
        return watch()
    print(__doc__, file=sys.stderr)
    return 2


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def tour() -> int:
    (WORK / "upload").write_bytes(b"\x5a" * 3_000_000)
    for number, attempt in enumerate(ATTEMPTS):
        begun = time.monotonic()
        done = subprocess.run(attempt.command, capture_output=True, text=True, check=False)
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        say(
            n=number,
            reached=done.returncode == 0,
            said=lines[-1][:300] if lines else "",
            ms=round((time.monotonic() - begun) * 1000),
        )
    greeting = subprocess.run(
        ("python3", "-c", "import lab_greeting; print(lab_greeting.GREETING)"),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(WORK / "pip-index.example.org")},
    )
    say(greeting=greeting.stdout.strip())
    return 0


def download(url: str) -> int:
    """Curl's own progress is for people; what is counted here is what came out of its pipe."""
    command = ("curl", "-sS", "-f", "-N", "--max-time", "120", url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        if client.stdout is None or client.stderr is None:
            raise RuntimeError("no pipes")
        count = 0
        while data := os.read(client.stdout.fileno(), 65_536):
            if not count:
                say(at="first byte")
            count += len(data)
        said = client.stderr.read().decode(errors="replace").strip()
    say(at="end", bytes=count, code=client.returncode, said=said)
    return 0


def watch() -> int:
    """One short try after the other; a line each, so that whoever reads can tell when it changed.

    Beside them a download runs all the time: one that must end when its gateway does.
    """
    command = ("curl", "-sS", "-f", "--max-time", "120", "-o", "/dev/null", _LONG_DOWNLOAD)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as client:
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            say(reached=_reaches(), resolved=_resolves(), flowing=client.poll() is None)
        client.kill()
    return 0


def _reaches() -> bool:
    """A tunnel to an allowed name, opened by hand: no client's own retries or caches in between."""
    try:
        with socket.create_connection(("127.0.0.1", 3128), 0.4) as sock:
            sock.sendall(b"CONNECT index.example.org:443 HTTP/1.1\r\nHost: index.example.org:443\r\n\r\n")
            return sock.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _resolves() -> bool:
    query = b"\x13\x37\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05index\x07example\x03org\x00\x00\x01\x00\x01"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.4)
            sock.connect(("127.0.0.1", 53))
            sock.send(query)
            answer = sock.recv(512)
            return answer[3] & 15 == 0 and answer[7] > 0
    except OSError:
        return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
