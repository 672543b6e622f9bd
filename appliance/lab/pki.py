"""The lab's certificates: a private CA, two origins under it, and an impostor outside it."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

_LIFE = dt.timedelta(days=7)
_NORTH_NAMES = (
    "example.org",
    "index.example.org",
    "git.example.org",
    "api.example.org",
    "plain.example.org",
    "*.cdn.example.org",
)
_SOUTH_NAMES = ("downloads.example.com", "*.downloads.example.com")


def create(folder: Path) -> None:
    """Write `ca.pem` and NAME.pem/NAME.key for north, south and evil into `folder`."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("exeat lab CA", ca_key, None, ca_key, ())
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for side, names in (("north", _NORTH_NAMES), ("south", _SOUTH_NAMES)):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, side, _certificate(names[0], key, ca, ca_key, names), key)
    rogue = ec.generate_private_key(ec.SECP256R1())
    _write(folder, "evil", _certificate("evil.example.net", rogue, None, rogue, _NORTH_NAMES), rogue)


def _certificate(
    title: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
) -> x509.Certificate:
    """A leaf for `names`, or a CA when there are none. Without `issuer` it signs itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    authority = not names
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _LIFE)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), True)
        .add_extension(_key_usage(authority), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(pem)
