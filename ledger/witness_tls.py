"""TLS of a witness's door, and of who asks a witness.

The witness's certificate is taken anew when its files change, so that one that is renewed every few weeks
needs no restart; while a new one does not fit its key, the one before goes on being shown.
"""

from __future__ import annotations

import os
import ssl
import stat
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Identity(NamedTuple):
    """PEM files: a certificate with those up to its root, and its key, which nobody else can read."""

    certificate: Path
    key: Path


class DoorTls:
    """Shows `own`; with `clients`, a PEM file of roots, only who has a certificate from one of them comes in.

    Raises OSError if there is nothing to begin with.
    """

    def __init__(self, own: Identity, clients: Path | None = None) -> None:
        self._own, self._clients = own, clients
        self._lock = threading.Lock()
        self._said = ""
        self._seen = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The one to greet the next client with."""
        with self._lock:
            try:
                seen = self._look()
                if seen != self._seen:
                    self._context, self._seen, self._said = self._load(), seen, ""
            except OSError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    what = f"{error}: the certificate stays as it was"
                    print(f"exeat: witness: {what}", file=sys.stderr, flush=True)
            return self._context

    def _look(self) -> list[tuple[int, int]]:
        files = (*self._own, *([self._clients] if self._clients else []))
        return [(status.st_mtime_ns, status.st_ino) for status in map(os.stat, files)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._clients)
        return _with(context, self._own)


def asking(ca: Path | None, own: Identity | None) -> ssl.SSLContext:
    """For who asks: `ca` in place of the system's roots; `own` is shown if wanted. Raises OSError."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    return context if own is None else _with(context, own)


def _with(context: ssl.SSLContext, own: Identity) -> ssl.SSLContext:
    status = own.key.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o037:
        raise OSError(f"{own.key}: must be a file of root's or of the exporting user's, mode 0440 or less")
    try:
        context.load_cert_chain(own.certificate, own.key, password=_no_password)
    except ssl.SSLError as error:
        what = error.reason or "no certificate and key in PEM"
        raise OSError(f"{own.certificate} and {own.key} are not of one piece ({what})") from None
    return context


def _no_password() -> str:
    return ""  # without it OpenSSL would ask whoever sits at the terminal
