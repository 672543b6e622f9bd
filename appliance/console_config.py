"""`[console]`: where people meet exeat, and who may come in how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, field_validator, model_validator

from exeat.appliance.sections import Section, endpoint
from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from typing import Self

_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_GROUP: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)


class ConsoleSection(Section):
    """`listen` is ADDRESS:PORT; empty: `exeat up` starts no console.

    Without `certificate` and `key` (PEM) it is plain HTTP, and on loopback only. `client_ca`: a PEM file;
    who shows a certificate of it is the account of its common name. `hosts`: names beside the address by
    which browsers may call it. Members of `unix_group` may use `RUN/console/api.sock` as the account of
    their user name. Sessions end after `idle_s` without a request, and `longest_s` after the sign-in.
    """

    listen: str = "127.0.0.1:8440"
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    hosts: tuple[str, ...] = ()
    unix_group: str = ""
    idle_s: Annotated[int, Field(ge=60, le=86_400)] = 1800
    longest_s: Annotated[int, Field(ge=300, le=7 * 86_400)] = 43_200

    @field_validator("hosts")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _HOST.fullmatch(text):
                raise ValueError(f"`{text}` is not a host name in lower case, without a port")
        return value

    @field_validator("unix_group")
    @classmethod
    def _group(cls, value: str) -> str:
        if value and not _GROUP.fullmatch(value):
            raise ValueError(f"`{value}` is not the name of a group")
        return value

    @field_validator("certificate", "key", "client_ca")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        place = self.place()
        if place is not None and not place[1]:
            raise ValueError("a port from 1: control has to know the door that jails may not reach")
        if place is not None and self.certificate is None and not _is_loopback(place[0]):
            raise ValueError(f"`{self.listen}` is not loopback: set certificate and key")
        return self

    def place(self) -> tuple[str, int] | None:
        """(address text, port), None where there is no console."""
        return endpoint(self.listen) if self.listen else None

    def url(self) -> str:
        """Where a browser finds the console: by the first name in `hosts`, or by its address."""
        place = self.place()
        if place is None:
            raise ValueError("[console] listen is empty")
        address, port = place
        host = self.hosts[0] if self.hosts else f"[{address}]" if ":" in address else address
        return f"{'https' if self.certificate is not None else 'http'}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    address = parse_address(host)
    return address.packed()[:1] == b"\x7f" if address.family == 4 else address.value == 1
