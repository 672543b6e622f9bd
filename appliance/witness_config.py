"""`[[ledger.witness]]` and `[witness]`: who watches this node's ledger, and whose ledgers it watches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from exeat.appliance.sections import Endpoints, Section, endpoint

if TYPE_CHECKING:
    from typing import Self

    from exeat.ledger.witness_client import Peer
    from exeat.ledger.witness_tls import Identity

_PORTS = {"http": 80, "https": 443}
_SIGNS, _COSIGNS = 1, 4  # as in `ledger.note`, which is loaded only where a key stands: it takes its time


def _checked_key(text: str, kind: int, what: str) -> str:
    from exeat.ledger import note

    try:
        key = note.parse_vkey(text)
    except note.NoteError as error:
        raise ValueError(f"`{text}`: {error}") from None
    if key.kind != kind:
        raise ValueError(f"`{text}` is not the key of a {what}")
    return text


def _pair(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("`certificate` and `key` go together")
    for path in (certificate, key):
        if path is not None and not path.is_absolute():
            raise ValueError(f"`{path}`: an absolute path")


class WitnessPeer(Section):
    """A witness (C2SP tlog-witness) of this node's ledger: its URL, and the key with which it cosigns.

    `address` is ADDRESS:PORT, needed where the URL has a name: names are never looked up here. `ca` is a
    PEM file with the roots for https, in place of the system's: its own, and no other certificate counts.
    `certificate` and `key` are shown to a witness that lets in only whom it knows (`clients_ca`).
    """

    url: str
    vkey: str
    address: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @field_validator("vkey")
    @classmethod
    def _cosigns(cls, value: str) -> str:
        return _checked_key(value, _COSIGNS, "witness")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"`{self.url}`: {error}") from None
        if (
            parts.scheme not in _PORTS
            or not parts.hostname
            or parts.username
            or parts.query
            or parts.fragment
        ):
            raise ValueError(f"`{self.url}` is not http(s)://HOST[:PORT][/PATH]")
        if not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise ValueError(f"`{self.url}`: ASCII without spaces")
        if self.address:
            endpoint(self.address)
        else:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            try:
                endpoint(f"{host}:{port or _PORTS[parts.scheme]}")
            except ValueError:
                raise ValueError(f"`{self.url}` has a name: give its `address`, ADDRESS:PORT") from None
        if parts.scheme != "https" and (self.ca or self.certificate):
            raise ValueError(f"`{self.url}`: `ca` and `certificate` are for https://")
        _pair(self.certificate, self.key)
        return self

    def peer(self) -> Peer:
        from exeat.ledger import note
        from exeat.ledger.witness_client import Peer
        from exeat.ledger.witness_http import Place
        from exeat.ledger.witness_tls import Identity

        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        address = endpoint(self.address or f"{host}:{parts.port or _PORTS[parts.scheme]}")
        tls, path = parts.scheme == "https", parts.path.rstrip("/")
        own = Identity(self.certificate, self.key) if self.certificate and self.key else None
        return Peer(Place(parts.netloc, path, address, tls, self.ca, own), note.parse_vkey(self.vkey))


class Watched(Section):
    """A witness that has not cosigned what is new for `witness_alarm_s` raises an alarm."""

    witness: tuple[WitnessPeer, ...] = ()
    witness_alarm_s: Annotated[int, Field(ge=5, le=86_400)] = 60


class Kept(Section):
    """Records older than `keep_days` are dropped, and the oldest where all are more than `keep_bytes`.

    0 is no limit. `keep_at_least_days` always stay: a policy that counts over longer is refused.
    """

    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 0
    keep_bytes: Annotated[int, Field(ge=0)] = 0
    keep_at_least_days: Annotated[int, Field(ge=1, le=36_500)] = 32

    @model_validator(mode="after")
    def _not_less(self) -> Self:
        if 0 < self.keep_days < self.keep_at_least_days:
            raise ValueError("`keep_days` is less than `keep_at_least_days`")
        return self


class Witnessing(Section):
    """This node as a witness for the ledgers of `logs` (their vkeys), on `listen`; `name` of its key.

    With `certificate` and `key` (PEM) it answers by HTTPS; with `clients_ca` only whom those roots vouch for.
    A log that has sent no checkpoint for `silent_after_s` raises an alarm.
    """

    listen: Endpoints = ()
    name: str = ""
    logs: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    clients_ca: Path | None = None
    silent_after_s: Annotated[int, Field(ge=120, le=604_800)] = 300

    @field_validator("logs")
    @classmethod
    def _sign(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_key(text, _SIGNS, "ledger") for text in value)

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        from exeat.ledger import note

        try:
            return note.check_name(value) if value else value
        except note.NoteError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.listen and not self.name:
            raise ValueError("a witness needs a `name`, such as example.org/witness")
        _pair(self.certificate, self.key)
        if self.clients_ca and not self.certificate:
            raise ValueError("`clients_ca` needs `certificate` and `key`: without TLS nobody shows one")
        return self

    def identity(self) -> Identity | None:
        """What `listen` shows by TLS."""
        from exeat.ledger.witness_tls import Identity

        return Identity(self.certificate, self.key) if self.certificate and self.key else None
