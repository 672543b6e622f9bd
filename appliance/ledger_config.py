"""`[ledger]`: where evidence goes besides this disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from exeat.appliance.sections import LABEL, Section, endpoint
from exeat.policy.addresses import parse_address
from exeat.policy.errors import MalformedError

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,64}(?:/[A-Za-z0-9._-]{1,64}){0,7})?", re.ASCII)
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


class Ledger(Section):
    """`archive_segments` make a batch of an archive, or fewer once the first is `archive_after_s` old."""

    archive: Annotated[tuple[ArchiveStore, ...], AfterValidator(_distinct)] = ()
    archive_segments: Annotated[int, Field(ge=1, le=64)] = 8
    archive_after_s: Annotated[int, Field(ge=0, le=604_800)] = 3600
    archive_waiting: Annotated[int, Field(ge=1, le=1024)] = 4
    archive_compression: Literal["zst", "gz"] = "zst"

    @property
    def exports(self) -> bool:
        """Whether the exporting user has anything to do."""
        return bool(self.archive)
