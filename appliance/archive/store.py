"""One bucket of an S3-compatible server. boto3 speaks; here is what it is asked, and a word for each failure.

Nothing is ever overwritten or deleted, so a bucket may be locked against both. Every upload carries
SHA-256 checksums that the server compares (S3 API, "Checking object integrity"), part by part.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger.records import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.appliance.ledger_config import ArchiveStore

PART: Final = 8 * 1024 * 1024  # bytes; the servers take no smaller one than 5 MiB but as the last
_CONNECT_S, _READ_S, _ATTEMPTS = 10, 60, 4
_MAX_SECRET: Final = 4096
_PAGES: Final = 1000  # of a list, with a thousand names on each; a server may have no end of them
# What the servers call the same thing; docs/ledger.md has the words for people.
_MEANING: Final = {
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure"), "archive.credentials"),
    **dict.fromkeys(("InvalidClientTokenId", "ExpiredToken", "RequestTimeTooSkewed"), "archive.credentials"),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "403"), "archive.denied"),
    **dict.fromkeys(("NoSuchBucket", "NoSuchKey", "NotFound", "NoSuchUpload", "404"), "archive.missing"),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"), "archive.full"),
    **dict.fromkeys(("EntityTooLarge", "TooManyParts", "StorageFull"), "archive.full"),
    **dict.fromkeys(("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"), "archive.mismatch"),
}
NEXT: Final = {
    "archive.credentials": "check the two lines of its credentials file, and the clock",
    "archive.denied": "the key may not do this: it needs to put, get, list, and to list and abort uploads",
    "archive.missing": "check bucket, prefix and region",
    "archive.full": "the bucket takes no more: raise its quota; nothing is lost, batches wait here",
    "archive.mismatch": "what it stores is not what was sent: look at that server",
    "archive.unavailable": "not reachable now; the next run goes on where this one stopped",
    "archive.refused": "the server does not do what is needed",
}


class StoreError(Exception):
    """A bucket did not do what it was asked; `code` is one of `NEXT`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message}: {NEXT[code]} [{code}]")
        self.code = code


class Part(NamedTuple):
    number: int
    size: int
    etag: str
    sha256: str  # base64; "" if the server does not say


class Held(NamedTuple):
    """An object as the server describes it; `checksum` is base64 of its SHA-256, or BASE64-PARTS, or ""."""

    size: int
    checksum: str


class Body:
    """An object's content on its way; `read` raises StoreError when the connection breaks."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream

    def read(self, most: int) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            return self._stream.read(most)
        except (BotoCoreError, OSError) as error:
            raise _unavailable(self._name, "get_object", error) from None

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _unavailable(name: str, operation: str, error: Exception) -> StoreError:
    # Such messages name endpoint and cause, never a secret; but they may run over several lines.
    said = printable(" ".join(str(error).split()), 300)
    return StoreError("archive.unavailable", f"{name}: {operation}: {said}")


def read_secret(path: Path) -> tuple[str, str]:
    """(key id, secret) of a credentials file. Raises ValueError, OSError; no message holds what it read."""
    if not path.is_absolute():
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ValueError(f"`{path}` is a systemd credential, and none were handed over")
        path = type(path)(folder) / path
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o037
        if not stat.S_ISREG(status.st_mode) or not ours:
            raise ValueError("must be a file of root's or of the exporting user's, mode 0440 or less")
        lines = file.read(_MAX_SECRET).split(b"\n")
    if len(lines) not in (2, 3) or (len(lines) == 3 and lines[2]) or not all(lines[:2]):
        raise ValueError("must hold two lines: key id, secret")
    try:
        return lines[0].decode("ascii"), lines[1].decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("must hold two lines of ASCII") from None


class Store:
    """`settings`' bucket. All calls raise StoreError."""

    def __init__(self, settings: ArchiveStore) -> None:
        self.name = settings.name
        self._bucket, self._prefix = settings.bucket, f"{settings.prefix}/" if settings.prefix else ""
        self._sealed: dict[str, str] = {}
        if settings.encryption:
            self._sealed["ServerSideEncryption"] = settings.encryption
        if settings.kms_key:
            self._sealed["SSEKMSKeyId"] = settings.kms_key
        self._s3 = _client(settings)

    def greet(self) -> None:
        """The cheapest question whose refusal says why (that of a HEAD has no words)."""
        self._call("list_objects_v2", Prefix=self._prefix, MaxKeys=1)

    def look(self, key: str) -> Held | None:
        """None if there is no such object."""
        try:
            found = self._call("head_object", Key=self._prefix + key, ChecksumMode="ENABLED")
        except StoreError as error:
            if error.code == "archive.missing":
                return None
            raise
        return Held(int(found["ContentLength"]), str(found.get("ChecksumSHA256", "")))

    def put(self, key: str, content: bytes) -> None:
        """A small object, in one request."""
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        self._call("put_object", Key=self._prefix + key, Body=content, ChecksumSHA256=digest, **self._sealed)

    def read(self, key: str) -> Body:
        """The object's content, as it comes."""
        return Body(self.name, self._call("get_object", Key=self._prefix + key)["Body"])

    def names(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix`, in order."""
        more: dict[str, str] = {}
        for _ in range(_PAGES):
            found = self._call("list_objects_v2", Prefix=self._prefix + prefix, **more)
            for each in found.get("Contents", ()):
                yield str(each["Key"]).removeprefix(self._prefix)
            if not found.get("IsTruncated"):
                return
            more = {"ContinuationToken": str(found.get("NextContinuationToken", ""))}
        raise StoreError("archive.refused", f"{self.name}: a list without an end")

    def begin(self, key: str) -> str:
        """The id of a new multipart upload."""
        found = self._call(
            "create_multipart_upload", Key=self._prefix + key, ChecksumAlgorithm="SHA256", **self._sealed
        )
        return str(found["UploadId"])

    def parts(self, key: str, upload: str) -> list[Part] | None:
        """What has arrived of an upload; None if the server knows it no more."""
        found: list[Part] = []
        more: dict[str, int] = {}
        for _ in range(_PAGES):
            try:
                page = self._call("list_parts", Key=self._prefix + key, UploadId=upload, **more)
            except StoreError as error:
                if error.code == "archive.missing":
                    return None
                raise
            for each in page.get("Parts", ()):
                checksum = str(each.get("ChecksumSHA256", ""))
                found.append(Part(int(each["PartNumber"]), int(each["Size"]), str(each["ETag"]), checksum))
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": int(page.get("NextPartNumberMarker", 0))}
        raise StoreError("archive.refused", f"{self.name}: a list without an end")

    def send_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        found = self._call(
            "upload_part",
            Key=self._prefix + key,
            UploadId=upload,
            PartNumber=number,
            Body=content,
            ChecksumSHA256=digest,
        )
        return Part(number, len(content), str(found["ETag"]), digest)

    def finish(self, key: str, upload: str, parts: list[Part]) -> None:
        listed = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumSHA256": part.sha256} for part in parts
        ]
        self._call(
            "complete_multipart_upload",
            Key=self._prefix + key,
            UploadId=upload,
            MultipartUpload={"Parts": listed},
        )

    def _call(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._s3, operation)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            said = error.response.get("Error", {})
            code = str(said.get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            meaning = _MEANING.get(code) or _MEANING.get(str(status))
            if meaning is None:
                meaning = "archive.unavailable" if status >= 500 or status == 429 else "archive.refused"
            raise StoreError(meaning, f"{self.name}: {operation}: {printable(code, 64) or status}") from None
        except BotoCoreError as error:
            raise _unavailable(self.name, operation, error) from None


@cache
def _session() -> Any:
    """One for all stores: it reads large descriptions of the service."""
    import boto3

    return boto3.session.Session()


def _client(settings: ArchiveStore) -> Any:
    try:
        from botocore.config import Config
    except ImportError:
        raise StoreError(
            "archive.refused", f"{settings.name}: boto3 is not installed (pip install 'exeat[archive]')"
        ) from None
    try:
        key, secret = read_secret(settings.credentials)
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            "archive.credentials", f"{settings.name}: {settings.credentials}: {reason}"
        ) from None
    # These credentials and no others: none from the environment, profiles, or an instance's metadata.
    return _session().client(
        "s3",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=settings.region,
        endpoint_url=settings.endpoint or None,
        verify=str(settings.ca) if settings.ca else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"mode": "standard", "max_attempts": _ATTEMPTS},
            s3={"addressing_style": "path" if settings.endpoint else "auto"},
            proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else {},
        ),
    )
