"""`[ledger]`: where evidence goes besides this disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from exeat.appliance.sections import LABEL, Section, endpoint
from exeat.appliance.witness_config import Kept, Watched
from exeat.ledger.filters import FIELDS, Filter, parse_kinds
from exeat.ledger.records import Kind
from exeat.policy.addresses import parse_address
from exeat.policy.errors import MalformedError
from exeat.policy.names import parse_host

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,64}(?:/[A-Za-z0-9._-]{1,64}){0,7})?", re.ASCII)
_PASSING: Final = frozenset({Kind.RESERVE, Kind.PROGRESS, Kind.RESUME})  # what a `close` says in the end
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def safe_url(text: str) -> str:
    """An https:// URL, or an http:// one to this machine: evidence is not sent in the clear."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"`{text}`: {error}") from None
    if not parts.hostname or parts.username or parts.query or parts.fragment or not text.isprintable():
        raise ValueError(f"`{text}` is not https://HOST[:PORT][/PATH]")
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return text
    raise ValueError(f"`{text}`: https://, or http:// to 127.0.0.1 or ::1")


def _is_loopback(host: str) -> bool:
    try:
        address = parse_address(host)
    except MalformedError:
        return False
    return address.packed()[:1] == b"\x7f" if address.family == 4 else address.value == 1


def _proxy(text: str) -> str:
    if not text:
        return text
    if not text.startswith("http://"):
        raise ValueError(f"`{text}` is not http://ADDRESS:PORT")
    endpoint(text.removeprefix("http://"))
    return text


def _secret(value: Path) -> Path:
    if not value.is_absolute() and not _CREDENTIAL.fullmatch(str(value)):
        raise ValueError(f"`{value}`: an absolute path, or the name of a systemd credential")
    return value


Url = Annotated[str, AfterValidator(safe_url)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
# An absolute path, or the name of a file in $CREDENTIALS_DIRECTORY (systemd.exec(5), LoadCredential=).
Secret = Annotated[Path, AfterValidator(_secret)]


class ArchiveStore(Section):
    """A bucket that sealed segments are kept in; the same ones in each of several.

    `endpoint` is for any S3-compatible server, "" for Amazon's own of `region`. `credentials` is a file
    of two lines, key id and secret. `encryption` asks the server to encrypt what it stores. `proxy` is
    http://ADDRESS:PORT of the way out, such as `[proxy] listen` of this appliance.
    """

    name: Annotated[str, Field(pattern=LABEL)]
    bucket: str
    endpoint: str = ""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "us-east-1"
    prefix: str = ""
    credentials: Secret
    encryption: Literal["", "AES256", "aws:kms"] = ""
    kms_key: Annotated[str, Field(max_length=2048)] = ""
    proxy: ProxyUrl = ""
    ca: Path | None = None

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        return safe_url(value) if value else value

    @field_validator("bucket")
    @classmethod
    def _is_bucket(cls, value: str) -> str:
        if not _BUCKET.fullmatch(value):
            raise ValueError(f"`{value}` is not the name of a bucket")
        return value

    @field_validator("prefix")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        if not _PREFIX.fullmatch(value) or any(part.strip(".") == "" for part in value.split("/") if value):
            raise ValueError(f"`{value}`: words of letters, digits, `.`, `_`, `-`, joined by /")
        return value


def _distinct(value: tuple[ArchiveStore, ...]) -> tuple[ArchiveStore, ...]:
    if len({store.name for store in value}) < len(value):
        raise ValueError("two of the same name")
    return value


class Stream(Section):
    """Records as they come, to another system: see docs/ledger.md for the forms of `to`.

    `secret` is a file with the key that signs what a webhook gets. `begin` counts for a new stream.
    """

    name: Annotated[str, Field(pattern=LABEL)]
    to: str
    begin: Literal["now", "start"] = "now"
    kinds: tuple[str, ...] = tuple(kind.label for kind in Kind if kind not in _PASSING)
    project: str = ""
    job: str = ""
    agent: str = ""
    host: str = ""
    lease: str = ""
    verdict: str = ""
    reason: str = ""
    secret: Secret | None = None
    proxy: ProxyUrl = ""
    ca: Path | None = None

    @field_validator("kinds")
    @classmethod
    def _are_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_kinds(value)
        return value

    @field_validator("to")
    @classmethod
    def _known_form(cls, value: str) -> str:
        scheme, _, rest = value.partition(":")
        if scheme in ("file", "syslog+unix"):
            if not Path(rest).is_absolute():
                raise ValueError(f"`{value}`: {scheme}: and an absolute path")
        elif scheme in ("syslog+tcp", "syslog+tls"):
            _syslog_server(value)
        else:
            safe_url(value.removeprefix("otlp+").removeprefix("otlp-traces+"))
        return value

    def filter(self) -> Filter:
        return Filter(parse_kinds(self.kinds), **{name: getattr(self, name) for name in FIELDS})

    def syslog_server(self) -> tuple[str, int, str]:
        """(address text, port, name in its certificate or "" without TLS)."""
        return _syslog_server(self.to)


def _syslog_server(text: str) -> tuple[str, int, str]:
    scheme, _, rest = text.partition("://")
    place, _, name = rest.partition("#")
    address, port = endpoint(place)
    if scheme == "syslog+tls":
        try:
            host = parse_host(name)
        except MalformedError as error:
            raise ValueError(f"`{text}`: after # comes the name in its certificate ({error})") from None
        return address, port, name if isinstance(host, str) else address
    if name or not _is_loopback(address):
        raise ValueError(f"`{text}`: without TLS only to this machine: syslog+tls://ADDRESS:PORT#NAME")
    return address, port, ""


def _distinct_streams(value: tuple[Stream, ...]) -> tuple[Stream, ...]:
    if len({stream.name for stream in value}) < len(value):
        raise ValueError("two of the same name")
    return value


class Ledger(Watched, Kept):
    """`archive_segments` make a batch of an archive, or fewer once the first is `archive_after_s` old.

    `exeat up` looks every `archive_every_s`; units have a timer.
    """

    archive: Annotated[tuple[ArchiveStore, ...], AfterValidator(_distinct)] = ()
    stream: Annotated[tuple[Stream, ...], AfterValidator(_distinct_streams)] = ()
    archive_segments: Annotated[int, Field(ge=1, le=64)] = 8
    archive_after_s: Annotated[int, Field(ge=0, le=604_800)] = 3600
    archive_every_s: Annotated[int, Field(ge=5, le=86_400)] = 600
    archive_waiting: Annotated[int, Field(ge=1, le=1024)] = 4
    archive_compression: Literal["zst", "gz"] = "zst"

    @property
    def exports(self) -> bool:
        """Whether the exporting user has anything to do."""
        return bool(self.archive or self.stream or self.witness)
