"""Would a browser that calls the console by a name get there, and believe it? A dry run: nothing is changed.

The name servers are those of the guard, or one that is named; never the system's resolver.
"""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING, Final

from cryptography import x509

from exeat.appliance.doctor import Check, fail, ok, warn
from exeat.dns.upstream import Server, Upstream
from exeat.dns.wire import Answer, Qtype, wire_name
from exeat.ledger.reactor import Reactor
from exeat.policy.addresses import format_address
from exeat.policy.model import Address

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from exeat.appliance.console_config import ConsoleSection

PATIENCE_S: Final = 15.0
SOON: Final = dt.timedelta(days=14)


def addresses_of(name: str, servers: Sequence[Server], ca: Path | None) -> list[Address] | None:
    """A and AAAA of a canonical name; [] where there are none, None where nobody answered.

    Raises OSError or ValueError for servers that cannot be used.
    """
    reactor = Reactor()
    upstream = Upstream(reactor, servers, ca)
    said: list[Answer | None] = []
    try:
        for qtype in (Qtype.A, Qtype.AAAA):
            upstream.ask(wire_name(name), qtype, said.append)
        until = reactor.now() + PATIENCE_S
        while len(said) < 2 and reactor.now() < until:
            reactor.turn(0.2)
    finally:
        upstream.close()
        reactor.close()
    answers = [answer for answer in said if answer is not None]
    if len(answers) < 2:
        return None
    found = {record.value for answer in answers for record in answer.records}
    return sorted((each for each in found if isinstance(each, Address)), key=lambda a: (a.family, a.value))


def check_dns(name: str, found: list[Address] | None, own: Collection[Address]) -> Check:
    """`found` as `addresses_of` has it, `own` are this machine's."""
    if found is None:
        return fail("dns", "no name server answered", "look at [dns] upstream, or name one with --server")
    if not found:
        return fail("dns", f"{name} has no address", f"publish an A or AAAA record for {name}")
    text = " ".join(format_address(address) for address in found)
    strange = [address for address in found if address not in own]
    if not strange:
        return ok("dns", f"{name} is {text}, of this machine")
    elsewhere = " ".join(format_address(address) for address in strange)
    cure = "right where a balancer or NAT leads here; else change the record"
    return warn("dns", f"{name} leads to {elsewhere}, not an address of this machine", cure)


def check_host(name: str, section: ConsoleSection) -> Check:
    """Does the console let itself be called so?"""
    if name in section.hosts:
        return ok("host", f"{name} is in [console] hosts")
    return fail("host", f"the console answers 421 to {name}", f'write `hosts = ["{name}"]` under [console]')


def check_certificate(name: str, path: Path, key: Path, now: dt.datetime) -> list[Check]:
    """Is it for this name, for now, and does the key fit?"""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key)
    except (OSError, ValueError) as error:
        return [
            fail(
                "certificate", f"{path}: {error}", "name the certificate with its chain, and its key, in PEM"
            )
        ]
    return [_names(name, certificate), _times(certificate, now)]


def _names(name: str, certificate: x509.Certificate) -> Check:
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return fail("names", "it has no subjectAltName, and browsers read no other", "have it issued again")
    names = [each.lower() for each in said.get_values_for_type(x509.DNSName)]
    # RFC 9525, section 6.3: a wildcard is the whole leftmost label and stands for one label.
    if name in names or f"*.{name.partition('.')[2]}" in names:
        return ok("names", f"it is for {name}")
    return fail("names", f"it is for {' '.join(names) or 'no host name'}", f"have it issued for {name}")


def _times(certificate: x509.Certificate, now: dt.datetime) -> Check:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    until = f"{end:%Y-%m-%d %H:%M} UTC"
    if not begin <= now < end:
        return fail("dates", f"good from {begin:%Y-%m-%d %H:%M} to {until}", "renew it, or set the clock")
    if end - now < SOON:
        return warn("dates", f"ends soon: {until}", "renew it; then systemctl reload exeat-console")
    return ok("dates", f"until {until}")


def check_key(key: Path, uid: int, gid: int, user: str) -> Check:
    """The console, a user of its own, has to read it, and others must not. Raises OSError."""
    status = key.stat()
    cure = f"chown root:{user} {key} && chmod 640 {key}"
    if status.st_mode & 0o007:
        return fail("key", f"{key}: open to everybody", cure)
    closed = next((each for each in key.resolve().parents if not each.stat().st_mode & 0o001), None)
    if closed is not None:
        return fail("key", f"{user} cannot enter {closed}", f"chmod o+x {closed}, or move the key")
    mine = status.st_uid == uid and status.st_mode & 0o400
    if not mine and not (status.st_gid == gid and status.st_mode & 0o040):
        return fail("key", f"{key}: {user} cannot read it", cure)
    return ok("key", f"{user} can read {key}, others cannot")
