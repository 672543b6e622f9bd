"""A refusal, said so that the client can read it. Pure: reason in, bytes out.

Most clients show only the status line of a refused CONNECT, so the reason phrase carries the
short why and the next command. Who can read more finds `Proxy-Status` (RFC 9209) and a
problem document (RFC 9457). SOCKS has only a code, and inside a TLS tunnel there is an alert.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from exeat.policy.addresses import format_address
from exeat.policy.model import Address, Decision
from exeat.policy.reasons import advise, text
from exeat.proxy import socks5

MAX_PHRASE: Final = 160  # characters

# Reasons that are the proxy's own: status, Proxy-Status error type (RFC 9209 section 2.3).
_OWN: Final[dict[str, tuple[int, str]]] = {
    "http.line_ending": (400, "http_request_error"),
    "http.request_line": (400, "http_request_error"),
    "http.version": (505, "http_request_error"),
    "http.target_form": (400, "http_request_error"),
    "http.origin_form": (400, "http_request_error"),
    "http.scheme": (400, "http_request_error"),
    "http.header": (400, "http_request_error"),
    "http.head_too_large": (431, "http_request_error"),
    "http.host_twice": (400, "http_request_error"),
    "http.host_missing": (400, "http_request_error"),
    "http.host_mismatch": (403, "http_request_denied"),
    "http.framing": (400, "http_request_error"),
    "http.connect_body": (400, "http_request_error"),
    "http.upgrade": (400, "http_request_error"),
    "http.body": (400, "http_request_error"),
    "http.no_answer": (502, "http_response_incomplete"),
    "http.switched": (502, "http_protocol_error"),
    "http.nested_connect": (403, "http_request_denied"),
    "http.timeout": (408, "http_request_error"),
    "tls.not_tls": (403, "http_request_denied"),
    "tls.malformed": (403, "http_request_denied"),
    "tls.ech": (403, "http_request_denied"),
    "tls.two_names": (403, "http_request_denied"),
    "tls.name_type": (403, "http_request_denied"),
    "tls.sni_ip": (403, "http_request_denied"),
    "tls.sslv2": (403, "http_request_denied"),
    "tls.too_large": (403, "http_request_denied"),
    "tls.early_data": (403, "http_request_denied"),
    "tls.timeout": (403, "http_request_denied"),
    "dns.nxdomain": (502, "dns_error"),
    "dns.no_address": (502, "dns_error"),
    "dns.unavailable": (503, "dns_error"),
    "dns.refused": (502, "dns_error"),
    "dial.refused": (502, "connection_refused"),
    "dial.timeout": (504, "connection_timeout"),
    "dial.unreachable": (502, "destination_ip_unroutable"),
    "upstream.unavailable": (502, "destination_unavailable"),
    "upstream.unreachable": (502, "destination_unavailable"),
    "upstream.refused": (502, "http_request_denied"),
    "upstream.credentials": (502, "proxy_configuration_error"),
    "upstream.malformed": (502, "http_protocol_error"),
    "ledger.unavailable": (503, "proxy_internal_error"),
    "limit.connections": (503, "connection_limit_reached"),
    "limit.descriptors": (503, "connection_limit_reached"),
    "limit.asks": (503, "connection_limit_reached"),
    "auth.required": (407, "http_request_denied"),
    "auth.failed": (407, "http_request_denied"),
    "auth.rate": (429, "http_request_denied"),
    "client.gone": (400, "http_request_error"),
    "policy.unavailable": (503, "proxy_internal_error"),
    "desk.length": (411, "http_request_error"),
    "desk.json": (415, "http_request_error"),
    "desk.too_large": (413, "http_request_error"),
    "desk.origin": (403, "http_request_denied"),
    "desk.unavailable": (503, "proxy_internal_error"),
}
_UNAVAILABLE: Final = frozenset({"policy.expired", "internal.error", "budget.state"})
_RETRY_AFTER_S: Final = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told. `advice` is the next command to run, "" if there is none."""

    reason: str
    status: int
    error: str  # RFC 9209 error type
    text: str
    advice: str = ""
    request: str = ""  # id under which the ask can be approved
    host: str = ""
    port: int = 0


def host_text(host: str | Address) -> str:
    return format_address(host) if isinstance(host, Address) else host


def place_text(address: Address, port: int) -> str:
    """ADDRESS:PORT, with brackets for IPv6."""
    text = format_address(address)
    return f"[{text}]:{port}" if address.family == 6 else f"{text}:{port}"


def from_code(code: str, host: str | Address = "", port: int = 0) -> Refusal:
    """A refusal for one of the proxy's own reasons, or for bytes that are no target at all."""
    status, error = _OWN.get(code, (0, ""))
    if not status:
        status = 400 if code.startswith(("malformed.", "socks.")) else 403
        error = "http_request_error" if status == 400 else "http_request_denied"
    return Refusal(code, status, error, text(code), host=host_text(host), port=port)


def from_decision(
    decision: Decision, host: str | Address, port: int, project: str, request: str = ""
) -> Refusal:
    """A refusal for what the policy core said (deny, or an ask nobody answered in time)."""
    own = from_code(decision.reason, host, port)
    if decision.reason in _OWN:
        return own
    status = 503 if decision.reason in _UNAVAILABLE else own.status
    error = "proxy_internal_error" if status == 503 else own.error
    if request:
        advice = f"run: exeat lease approve {request}"
    else:
        _, _, advice = advise(decision, host, port, project).partition("; ")
    return Refusal(decision.reason, status, error, own.text, advice, request, own.host, port)


def phrase(refusal: Refusal) -> str:
    """The reason phrase: printable ASCII, at most MAX_PHRASE characters."""
    words = f"{refusal.text}; {refusal.advice}" if refusal.advice else refusal.text
    clean = "".join(c if " " <= c <= "~" else "?" for c in words)
    code = f" [{refusal.reason}]"
    room = MAX_PHRASE - len(code)
    return (clean if len(clean) <= room else clean[: room - 3] + "...") + code


def http_answer(refusal: Refusal, *, body: bool = True, stays: bool = False) -> bytes:
    """The complete HTTP/1.1 response; without its `body` to HEAD. `stays`: others may follow."""
    problem = json.dumps(_problem(refusal), separators=(",", ":")).encode() + b"\n"
    lines = [
        f"HTTP/1.1 {refusal.status} {phrase(refusal)}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(problem)}",
        f'Proxy-Status: exeat; error={refusal.error}; details="{refusal.reason}"',
        "Cache-Control: no-store",
    ]
    if not stays:
        lines.append("Connection: close")
    if refusal.status == 407:
        lines.append('Proxy-Authenticate: Basic realm="exeat", charset="UTF-8"')  # RFC 7617 section 2
    if refusal.status in (429, 503) or refusal.request or refusal.reason == "rule.ask":
        lines.append(f"Retry-After: {_RETRY_AFTER_S}")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + (problem if body else b"")


def _problem(refusal: Refusal) -> dict[str, str | int]:
    document: dict[str, str | int] = {
        "type": f"urn:exeat:reason:{refusal.reason}",
        "title": refusal.text,
        "status": refusal.status,
        "reason_code": refusal.reason,
    }
    if refusal.host:
        document |= {"host": refusal.host, "port": refusal.port}
    if refusal.advice:
        document["next"] = refusal.advice
    if refusal.request:
        document["request"] = refusal.request
    return document


def socks_answer(refusal: Refusal) -> bytes:
    """A SOCKS5 reply (RFC 1928 section 6): 02 for policy, else the code that fits."""
    codes = {"dial.refused": socks5.CONNECTION_REFUSED}
    if refusal.reason.startswith("dns."):
        code = socks5.HOST_UNREACHABLE
    elif refusal.reason.startswith(("ledger.", "limit.", "policy.", "internal.", "upstream.")):
        code = socks5.GENERAL_FAILURE
    elif refusal.reason.startswith("dial."):
        code = codes.get(refusal.reason, socks5.HOST_UNREACHABLE)
    else:
        code = socks5.NOT_ALLOWED
    return socks5.reply(code)


def tls_alert(reason: str) -> bytes:
    """A fatal alert record (RFC 8446 section 6): unrecognized_name for a wrong name, else access_denied."""
    description = 112 if reason.startswith("sni.") else 49
    return bytes((21, 3, 3, 0, 2, 2, description))
