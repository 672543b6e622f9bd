"""A small certificate authority for one console: good for its own names, and in no list but the operator's.

X.509 as RFC 5280 has it. The authority is constrained to the names it was made for and those below them
(section 4.2.1.10), so that whoever trusts it for the console trusts it for nothing else, also if its key is
stolen.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY_DAYS: Final = 3650
_BACK: Final = dt.timedelta(hours=1)  # clocks of browsers may be behind ours
_AUTHORITY, _AUTHORITY_KEY = "ca.pem", "ca.key"
_CERTIFICATE, _KEY = "console.pem", "console.key"


class AuthorityError(Exception):
    """One line that says what is in the way, and what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """The files: what browsers are told to trust, and what the console shows them."""

    authority: Path
    certificate: Path
    key: Path
    fresh: bool  # the authority was made just now


def issue(folder: Path, names: tuple[str, ...], days: int, group: int, now: dt.datetime) -> Issued:
    """A certificate for these host names (canonical text), by the authority in `folder`, made if need be.

    Private keys are root's; that of the certificate is readable for `group`. Raises AuthorityError for names
    that the authority there is not for, and OSError.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = not (folder / _AUTHORITY).exists()
    if fresh:
        _make_authority(folder, names, now)
    signer, key = _load_authority(folder)
    constraints = signer.extensions.get_extension_for_class(x509.NameConstraints).value
    allowed = {
        str(each.value) for each in constraints.permitted_subtrees or () if isinstance(each, x509.DNSName)
    }
    if foreign := sorted(set(names) - allowed):
        raise AuthorityError(
            f"{folder / _AUTHORITY} is not for {', '.join(foreign)}: name another --dir, or move it away"
        )
    own = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(names[0], signer.subject, own.public_key(), now, days)
    usage = [ExtendedKeyUsageOID.SERVER_AUTH]
    signed = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / _KEY, _private(own), 0o640, group)
    _write(folder / _CERTIFICATE, signed.public_bytes(serialization.Encoding.PEM), 0o644, 0)
    return Issued(folder / _AUTHORITY, folder / _CERTIFICATE, folder / _KEY, fresh)


def _make_authority(folder: Path, names: tuple[str, ...], now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"exeat console {names[0]}"[:64])])
    # What is not named of a kind is open: addresses have to be taken away by name.
    addresses = [x509.IPAddress(ipaddress.ip_network(each)) for each in ("0.0.0.0/0", "::/0")]
    constraints = x509.NameConstraints([x509.DNSName(name) for name in names], addresses)
    usage = x509.KeyUsage(
        False, False, False, False, False, True, True, False, False
    )  # certificates and CRLs
    signed = (
        _builder("", title, key.public_key(), now, AUTHORITY_DAYS)
        .subject_name(title)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / _AUTHORITY_KEY, _private(key), 0o600, 0)
    _write(folder / _AUTHORITY, signed.public_bytes(serialization.Encoding.PEM), 0o644, 0)


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key_file = folder / _AUTHORITY_KEY
    try:
        signer = x509.load_pem_x509_certificate((folder / _AUTHORITY).read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        signer.extensions.get_extension_for_class(x509.NameConstraints)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise AuthorityError(f"{folder}: not an authority of ours ({error}): move it away") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != signer.public_key():
        raise AuthorityError(f"{key_file}: not the key of {_AUTHORITY}: move {folder} away")
    return signer, key


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _BACK,
        not_valid_after=now + dt.timedelta(days=days),
    )
    if not name:
        return builder
    return builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, *how)


def _write(path: Path, content: bytes, mode: int, group: int) -> None:
    """Whole or not at all, and never open to more than `mode`."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.write(content)
    fresh.replace(path)
