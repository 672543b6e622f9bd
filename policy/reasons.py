"""Every reason code with a short text for people, and the command that would change the answer."""

from __future__ import annotations

from exeat.policy.addresses import Address, format_address
from exeat.policy.model import Decision, Verdict

MAX_ADVICE = 160

TEXTS: dict[str, str] = {
    "ok": "permitted",
    # 0: what was asked is not a host and port
    "malformed.host": "not a valid host name",
    "malformed.host_length": "host name longer than 253 characters",
    "malformed.non_ascii_host": "host name is not ASCII: use its xn-- form",
    "malformed.ip": "not a valid IP address",
    "malformed.ip_zone": "IPv6 zones are not permitted",
    "malformed.legacy_ip": "not a dotted quad: write addresses in full",
    "malformed.port": "not a port from 1 to 65535",
    # 1: built in, no policy can lift these
    "meta.attribution": "no known job or agent asked for this",
    "meta.project": "no policy is bound to this project",
    "meta.proto": "only tcp and udp can be let out",
    "meta.dns_bypass": "DNS goes through the guard only",
    "meta.loopback": "this machine's own addresses are never reachable",
    "meta.metadata": "cloud metadata services are never reachable",
    "meta.special_address": "link-local, multicast and reserved addresses are never reachable",
    "meta.control_plane": "exeat's own control plane is never reachable",
    "meta.self_grant": "agents, workers and drivers cannot grant",
    "meta.sod": "nobody approves their own request",
    "meta.role": "this role may not do that",
    "meta.ledger": "the ledger cannot be changed, and agents cannot read it",
    "meta.second_reviewer": "a widening policy change needs a second reviewer",
    "meta.unknown_action": "unknown action",
    "policy.expired": "the policy has expired or is stale",
    "policy.changed": "the policy no longer permits this flow",
    "sni.mismatch": "the TLS server name is not the host that was asked for",
    "sni.missing": "the TLS ClientHello carries no server name",
    # 2-4
    "rule.deny": "a deny rule matches",
    "ceiling.exceeded": "outside the organisation's ceiling",
    "budget.exceeded": "a budget is used up",
    "budget.ask": "a budget is used up and needs a person",
    "budget.state": "a budget's counter cannot be trusted",
    # 5-8
    "lease.active": "an active lease permits this",
    "address.not_public": "the name resolves to an address that is not public",
    "rule.ask": "needs a person's approval",
    "rule.allow": "a rule permits this",
    "file.ask": "no rule speaks of this folder: needs a person's approval",
    "file.outside": "the folder is not below [sandbox] roots",
    "file.default_deny": "no rule allows this folder",
    "posture.off": "the posture is off: nothing is enforced",
    "posture.public": "a public host on a permitted port",
    "posture.not_public_name": "not a public host name",
    "posture.port": "this port or protocol is not open to public hosts",
    "posture.ask": "unknown host: needs a person's approval",
    "posture.ask_ip": "unknown address: needs a person's approval",
    "posture.default_deny": "no rule allows this host",
    "ip_literal.denied": "no rule allows this address",
    "internal.error": "the decision failed, so nothing is opened",
    # leases and their requests
    "lease.expired": "the lease has ended",
    "lease.exhausted": "the lease's bytes or uses are spent",
    "lease.revoked": "the lease was revoked",
    "lease.max_ttl": "longer than max_ttl permits",
    "lease.max_ttl_capped": "prolonged, but only up to max_ttl",
    "lease.invalid": "not a request for a lease",
    "review.widened": "an approver may narrow a request, never widen it",
    "review.stale": "what is decided about has changed since: look again",
    "state.requested": "the lease is still waiting for approval",
    "state.active": "the lease is already active",
    "state.expired": "the lease has ended",
    "state.exhausted": "the lease's bytes or uses are spent",
    "state.revoking": "the lease is being revoked",
    "state.revoked": "the lease was revoked",
    "state.denied": "the request was denied",
    "state.lapsed": "nobody answered the request in time",
    # tokens and bundles, and what a node may do by itself
    "token.malformed": "not a token in canonical form",
    "sig.invalid": "the signature does not fit",
    "meta.worker_widen": "only Home grants; a node may narrow, never widen",
    "chain.delegate": "signed by a key that the link before does not name",
    "chain.parent": "the links do not belong together",
    "chain.depth": "more than three links",
    "chain.scope": "reaches further than the link before",
    "chain.time": "lasts longer than the link before",
    "chain.agents": "for more agents than the link before",
    "chain.nodes": "for more nodes than the link before",
    "chain.job": "for another job than the link before",
    "chain.bytes": "more bytes than the link before",
    "chain.uses": "more uses than the link before",
    "chain.budget": "not charged to the budget of the link before",
    "chain.private": "private addresses, which the link before does not grant",
    "chain.speech": "raw bytes, ECH, `direct` or `records`, which the link before does not grant",
    "lease.epoch": "of an epoch that was fenced off",
    "lease.audience": "for other nodes",
    "replay.seq": "seen before, or older than what is known",
    "bundle.audience": "a bundle for other nodes",
    "replay.version": "not newer than the policies in force",
    "trust.pin": "not the trust document that was pinned",
    "trust.threshold": "too few of the root's keys have signed",
    "trust.expired": "the trust document has ended; a newer one must come first",
    "beat.time": "a beat from the future",
    "allotment.audience": "an allotment for another node",
    "allotment.over": "an allotment of a window that is over",
    "event.gap": "an event is missing before this one",
    "scope.too_broad": "a wildcard over names of many owners",
    # the doors around the core
    "dns.nxdomain": "the name does not exist",
    "dns.no_address": "the name has no address",
    "dns.unavailable": "the DNS guard or its resolver does not answer",
    "dns.refused": "the resolver refused the name",
    "dns.rate": "too many lookups at once",
    "dns.encrypted_resolver": "a public encrypted resolver: names are looked up by the guard only",
    "dns.tunnel": "too much data left in the names looked up below this domain",
    "dns.tunnel_suspected": "the names looked up below this domain look like data",
    "dns.anomaly": "the lookups of this client are not like a client's; it waits ten minutes",
    "dns.anomaly_suspected": "the lookups of this client are not like a client's",
    "tls.not_tls": "this port takes TLS only",
    "tls.malformed": "malformed TLS ClientHello",
    "tls.ech": "encrypted ClientHello hides the server name",
    "tls.two_names": "more than one server name in the ClientHello",
    "tls.name_type": "unknown server name type in the ClientHello",
    "tls.sni_ip": "the server name is an IP address",
    "tls.sslv2": "SSLv2 hello",
    "tls.too_large": "ClientHello is too large",
    "tls.early_data": "data before a complete ClientHello",
    "tls.timeout": "no ClientHello in time",
    "quic.not_quic": "datagrams to a TLS port must begin with a QUIC Initial packet",
    "quic.version": "only QUIC versions 1 and 2 can be judged",
    "quic.malformed": "malformed QUIC Initial packet",
    "quic.second_connection": "a second QUIC connection in the same flow",
    "http.nested_connect": "CONNECT inside a tunnel",
    "http.host_mismatch": "Host differs from the tunnel's target",
    # what ends or stops a flow at the gateway's doors
    "http.body": "malformed chunked body",
    "http.connect_body": "CONNECT takes no body",
    "http.framing": "ambiguous or unknown body framing",
    "http.head_too_large": "request head is over 16 KiB",
    "http.header": "malformed header field",
    "http.host_missing": "no Host field",
    "http.host_twice": "more than one Host field",
    "http.line_ending": "line endings must be CRLF, without NUL",
    "http.request_line": "not an HTTP/1.1 request line",
    "http.switched": "the destination changed the protocol without being asked",
    "http.origin_form": "a redirected request has a path, and its host in Host",
    "http.scheme": "only http:// URLs; use CONNECT for anything else",
    "http.no_answer": "the destination closed the connection without an answer",
    "http.target_form": "send CONNECT host:port or an absolute http:// URL",
    "http.timeout": "no complete request in time",
    "http.upgrade": "only an Upgrade to websocket is passed on; use CONNECT",
    "http.version": "only HTTP/1.0 and HTTP/1.1 are spoken here",
    "socks.address_type": "unknown SOCKS address type",
    "socks.auth": "malformed SOCKS authentication",
    "socks.command": "SOCKS takes CONNECT, and UDP ASSOCIATE where a rule or lease is for UDP",
    "socks.malformed": "malformed SOCKS request",
    "socks.method": "no SOCKS authentication method in common",
    "socks.version": "only SOCKS5 is spoken here",
    "auth.required": "a name and password are needed here: exeat identity add makes them",
    "auth.failed": "this name and password are not known here",
    "auth.rate": "too many wrong passwords; wait a minute",
    "client.gone": "the client closed before its tunnel was there",
    "transparent.direct": "this port is for redirected connections; use the proxy's own",
    "jail.removed": "the job has ended",
    "gateway.stopped": "the gateway was stopped",
    "ledger.orphaned": "the ledger settled this flow while it could not be reached",
    "upstream.unavailable": "the upstream proxy cannot be reached",
    "upstream.unreachable": "the upstream proxy cannot reach the destination",
    "upstream.refused": "the upstream proxy refused the destination",
    "upstream.credentials": "the upstream proxy wants other credentials",
    "upstream.malformed": "the upstream proxy does not answer in HTTP/1.1",
    "dial.refused": "the destination refused the connection",
    "dial.timeout": "the destination did not answer in time",
    "dial.unreachable": "the destination is not reachable",
    "limit.connections": "too many open connections of this job",
    "limit.descriptors": "the gateway is full",
    "limit.asks": "too many requests wait for approval",
    "desk.length": "a question to exeat has a Content-Length, and no Upgrade",
    "desk.json": "a question to exeat with a body is application/json",
    "desk.too_large": "a question to exeat is at most 32 KiB",
    "desk.origin": "pages in a browser cannot ask exeat",
    "desk.unavailable": "exeat's control process does not answer",
    "policy.unavailable": "no policy has been loaded yet",
    "ledger.unavailable": "the ledger cannot record, so nothing is opened",
    "kill": "stopped by the kill switch",
    "cut": "an operator ended this flow",
}

# Nobody's permission would change these: the client or the far side has to.
_NO_COMMAND = (
    "auth.",
    "malformed.",
    "tls.",
    "quic.",
    "http.",
    "socks.",
    "client.",
    "transparent.",
    "dial.",
    "upstream.",
    "dns.",
    "sni.",
    "desk.",
)
# Where a person's lease could open the door: what deny, meta and ceiling refuse, no lease can.
_LEASABLE = frozenset(
    {"posture.default_deny", "posture.not_public_name", "posture.port", "ip_literal.denied"}
)


def short_text(reason: str) -> str:
    """The short text of a code; the code itself where there is none."""
    return TEXTS.get(reason, reason)


text = short_text


def advise(decision: Decision, host: str | Address, port: int, project: str) -> str:
    """Why, and the next command: one line of printable ASCII, at most 160 characters.

    Fit for an HTTP reason phrase. `host` may be anything a client sent; it is shown only if it is
    plain and short. Nobody's project, "", gets no command.
    """
    why, place = short_text(decision.reason), _shown(host, port)
    if not place or not project or decision.reason.startswith(_NO_COMMAND):
        return _plain(why)
    return _plain(f"{why}; {_next(decision, place, project)}")


def leasable(decision: Decision) -> bool:
    """Whether a lease could change this answer."""
    return decision.verdict is Verdict.ASK or decision.reason in _LEASABLE


def _next(decision: Decision, place: str, project: str) -> str:
    if decision.verdict is Verdict.ALLOW:
        return "nothing to do"
    if decision.verdict is Verdict.ASK:
        return f"run: exeat lease ls --project {project}, then exeat lease approve ID"
    if decision.reason == "rule.deny":
        return f"an operator must change rule {decision.rule}"
    if decision.reason == "address.not_public":
        return f"an operator must set private: true on {decision.rule or 'a rule for it'}"
    if decision.reason.startswith("budget."):
        return f"wait for the next window, or an operator must raise budget {decision.rule}"
    if decision.reason == "kill":
        return "an operator must end that: exeat kill says what is stopped, exeat kill off ends it"
    if decision.reason == "ceiling.exceeded":
        return "an operator must change the ceiling"
    if decision.reason in _LEASABLE:
        return f"run: exeat lease request --project {project} {place}"
    return f"run: exeat why --project {project} {place}"


def _shown(host: str | Address, port: int) -> str:
    if isinstance(host, Address):
        literal = format_address(host)
        host = f"[{literal}]" if host.family == 6 else literal
    plain = host.isascii() and host.isprintable() and " " not in host and len(host) <= 64
    return f"{host}:{port}" if plain else ""


def _plain(line: str) -> str:
    kept = "".join(char if " " <= char <= "~" else "?" for char in line)
    return kept if len(kept) <= MAX_ADVICE else kept[: MAX_ADVICE - 3] + "..."
