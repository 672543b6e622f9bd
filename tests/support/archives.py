"""Archives for tests: ordinary ones, and the hostile ones that everybody has to expect."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def tar_of(*members: tuple[str, object], form: int = tarfile.PAX_FORMAT) -> bytes:
    """`members`: (name, content as bytes, or (type, link name))."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                assert isinstance(what, tuple)
                info.type, info.linkname = what
                tar.addfile(info)
    return out.getvalue()


def zip_of(*members: tuple[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """All members with the Unix mode `mode`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return out.getvalue()


def _device(kind: bytes) -> bytes:
    return tar_of(("dev", (kind, "")))


def _zip_with_twice_the_same_bytes() -> bytes:
    """Two entries of the directory point to one file's bytes (Fifield, "A better zip bomb", 2019)."""
    plain = zip_of(("a", b"x" * 100), method=zipfile.ZIP_STORED)
    start = plain.index(b"PK\x01\x02")
    end = plain.index(b"PK\x05\x06")
    entry = plain[start:end]
    tail = bytearray(plain[end:])
    struct.pack_into("<HHI", tail, 8, 2, 2, 2 * len(entry))
    return plain[:start] + entry + entry + bytes(tail)


def _encrypted_zip() -> bytes:
    plain = bytearray(zip_of(("a", b"text")))
    for at in (6, plain.index(b"PK\x01\x02") + 8):
        plain[at] |= 1
    return bytes(plain)


def _lying_zip() -> bytes:
    """Its directory says 4 bytes, its content is longer."""
    plain = bytearray(zip_of(("a", b"text" * 1000)))
    struct.pack_into("<I", plain, plain.index(b"PK\x01\x02") + 24, 4)
    return bytes(plain)


def _nul_zip() -> bytes:
    return zip_of(("aXb.txt", b"text")).replace(b"aXb", b"a\0b")


def _broken_in_the_middle() -> bytes:
    plain = bytearray(tar_of(("a", b"text"), ("b", b"text")))
    plain[1024:1100] = b"\xff" * 76
    return bytes(plain)


def _link_through_a_link() -> bytes:
    return tar_of(("d/e/f", b""), ("a", (tarfile.SYMTYPE, "d/e")), ("b", (tarfile.SYMTYPE, "a/../../..")))


# (what it is, the archive, the code of the refusal)
HOSTILE: Iterable[tuple[str, Callable[[], bytes], str]] = (
    ("a tar that climbs", lambda: tar_of(("../evil", b"x")), "archive.path"),
    ("a tar that climbs in the middle", lambda: tar_of(("a/../../evil", b"x")), "archive.path"),
    ("a tar with an absolute name", lambda: tar_of(("/etc/evil", b"x")), "archive.path"),
    ("a zip that climbs", lambda: zip_of(("../evil", b"x")), "archive.path"),
    ("a zip with an absolute name", lambda: zip_of(("/etc/evil", b"x")), "archive.path"),
    ("a zip with backslashes", lambda: zip_of(("..\\evil", b"x")), "archive.path"),
    ("a zip with a drive", lambda: zip_of(("C:evil", b"x")), "archive.path"),
    ("a zip with a NUL in a name", _nul_zip, "archive.path"),
    ("a name that hides its ending", lambda: zip_of(("a\u202etxt.exe", b"x")), "archive.path"),
    ("an escape sequence in a name", lambda: tar_of(("a\x1b[2Jb", b"x")), "archive.path"),
    ("a name that is not UTF-8", lambda: tar_of(("a\udcff", b"x"), form=tarfile.GNU_FORMAT), "archive.path"),
    ("a name too long", lambda: tar_of(("a" * 256, b"x")), "archive.path"),
    ("a path too deep", lambda: tar_of(("/".join("d" * 33), b"x")), "archive.depth"),
    ("a link to an absolute place", lambda: tar_of(("a", (tarfile.SYMTYPE, "/etc/passwd"))), "archive.link"),
    ("a link that climbs", lambda: tar_of(("d/a", (tarfile.SYMTYPE, "../../x"))), "archive.link"),
    ("a link through a link", _link_through_a_link, "archive.link"),
    (
        "a file through a link",
        lambda: tar_of(("a", (tarfile.SYMTYPE, "b")), ("a/evil", b"x")),
        "archive.conflict",
    ),
    (
        "a link to the folder itself, and a file",
        lambda: tar_of(("a", b"x"), ("a/b", b"x")),
        "archive.conflict",
    ),
    ("a hard link out", lambda: tar_of(("a", (tarfile.LNKTYPE, "../../etc/passwd"))), "archive.path"),
    (
        "a hard link to nothing before it",
        lambda: tar_of(("a", (tarfile.LNKTYPE, "etc/passwd"))),
        "archive.link",
    ),
    (
        "a hard link to a link",
        lambda: tar_of(("a", (tarfile.SYMTYPE, "b")), ("c", (tarfile.LNKTYPE, "a"))),
        "archive.link",
    ),
    (
        "a zip with a link out",
        lambda: zip_of(("a", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
        "archive.link",
    ),
    ("a zip with a device", lambda: zip_of(("a", b""), mode=stat.S_IFBLK | 0o666), "archive.kind"),
    ("a character device", lambda: _device(tarfile.CHRTYPE), "archive.kind"),
    ("a block device", lambda: _device(tarfile.BLKTYPE), "archive.kind"),
    ("a FIFO", lambda: _device(tarfile.FIFOTYPE), "archive.kind"),
    ("the same file twice", lambda: tar_of(("a", b"1"), ("./a", b"2")), "archive.conflict"),
    ("a file named as the folder itself", lambda: tar_of((".", b"1")), "archive.conflict"),
    ("too many files", lambda: tar_of(*((f"f{n}", b"") for n in range(101))), "archive.count"),
    ("many files in a zip", lambda: zip_of(*((f"f{n}", b"") for n in range(101))), "archive.count"),
    ("a file too large", lambda: tar_of(("a", bytes((1 << 20) + 1))), "archive.size"),
    (
        "files too large together",
        lambda: tar_of(*((f"f{n}", bytes(1 << 20)) for n in range(33))),
        "archive.size",
    ),
    ("a gzip bomb", lambda: gzip.compress(b"x" * (4 << 20)), "archive.size"),
    ("an xz bomb", lambda: lzma.compress(b"x" * (4 << 20)), "archive.size"),
    ("a bzip2 bomb", lambda: bz2.compress(b"x" * (4 << 20)), "archive.size"),
    (
        "a zip bomb",
        lambda: zip_of(*((f"f{n}", bytes(1 << 20)) for n in range(20))),
        "archive.ratio",
    ),
    ("a zip whose entries share bytes", _zip_with_twice_the_same_bytes, "archive.overlap"),
    ("an encrypted zip", _encrypted_zip, "archive.encrypted"),
    ("a zip that lies about a size", _lying_zip, "archive.broken"),
    ("a tar that is broken in the middle", _broken_in_the_middle, "archive.broken"),
    ("a tar cut off in a file", lambda: tar_of(("a", bytes(4096)))[:2048], "archive.broken"),
    ("a tar cut off between files", lambda: tar_of(("a", bytes(512)), ("b", b""))[:1024], "archive.broken"),
    ("a gzip that is cut off", lambda: gzip.compress(bytes(range(256)) * 64)[:-20], "archive.broken"),
    ("a zip that is cut off", lambda: zip_of(("a", b"text"))[:-10], "archive.broken"),
    ("something else", lambda: b"#!/bin/sh\n" + b"x" * 4096, "archive.format"),
    ("nothing", lambda: b"", "archive.format"),
    ("a program with a zip behind it", lambda: b"\x7fELF" + zip_of(("a", b"x")), "archive.format"),
)
