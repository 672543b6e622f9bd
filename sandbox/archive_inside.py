"""Reads one archive from standard input, inside a jail, and tells what is in it as frames.

The text of this file is run as the job (`python3 -I -c`), so it stands alone: the standard library
only. What it says is not believed outside, where the same rules are applied once more; the jail is
for the parsers, which were not written for hostile input.

A frame is a letter, a u32 length (big-endian) and so many bytes:
    D path            a folder
    F mode path       a file (mode: x if it can be executed, else -); its content is in the
    C bytes           frames that follow, none if it is empty
    H path NUL path   a second name of a file told before
    S path NUL text   a symbolic link
    E                 that was all
    X code NUL text   refused, and why
"""

from __future__ import annotations

import bz2
import ctypes
import gzip
import io
import json
import lzma
import re
import resource
import stat
import struct
import sys
import tarfile
import zipfile
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 64 * 1024
HEAD = struct.Struct(">cI")
MEMORY = 1 << 30  # bytes of address space for the parsers
RATIO_FROM = 16 << 20  # bytes: what is smaller does no harm, however well it was packed
_NAME, _PATH = 255, 4096  # bytes; limits.h
# Control characters, and those that make a terminal or a browser show a name as another one.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_LOCAL_HEADER = 30


class ArchiveError(Exception):
    """`code` is stable; the text says what is wrong with which entry."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Caps:
    """`size` and `file` in bytes, `ratio` of what comes out to the archive's own size.

    With `tree` it is to be the root of a job, or a layer over one: links may say what they like, for
    they are followed in it and nowhere else; names may have a backslash (units of systemd do), and
    devices, FIFOs and sockets are left out.
    """

    size: int = 1 << 30
    file: int = 1 << 30
    count: int = 10_000
    ratio: int = 200
    depth: int = 32
    seconds: int = 60
    tree: bool = False


def parts_of(name: str, caps: Caps) -> tuple[str, ...]:
    """The canonical form of a path in an archive, () for its root. Raises ArchiveError."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ArchiveError("archive.path", f"{shown(name)}: not UTF-8") from None
    if _UNSEEN.search(name):
        raise ArchiveError("archive.path", f"{shown(name)}: characters that cannot be seen")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise ArchiveError("archive.path", f"{shown(name)}: not a relative path")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or ("\\" in name and not caps.tree):
        raise ArchiveError("archive.path", f"{shown(name)}: leads out of its folder")
    if length > _PATH or any(len(part.encode()) > _NAME for part in parts):
        raise ArchiveError("archive.path", f"{shown(name)}: longer than a name may be")
    if len(parts) > caps.depth:
        raise ArchiveError("archive.depth", f"{shown(name)}: more than {caps.depth} folders deep")
    return parts


def check_link(parts: tuple[str, ...], target: str, caps: Caps) -> None:
    """Refuse a symbolic link that, by its text, leads out. Raises ArchiveError."""
    outside = f"{shown('/'.join(parts))}: a link out of the archive"
    if not target or _UNSEEN.search(target) or len(target.encode()) >= _PATH:
        raise ArchiveError("archive.link", outside)
    if caps.tree:
        return
    if target.startswith("/"):
        raise ArchiveError("archive.link", outside)
    depth = len(parts) - 1
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise ArchiveError("archive.link", outside)


def shown(name: str) -> str:
    """A name as it may be printed."""
    return name[:200].encode("ascii", "backslashreplace").decode().translate(dict.fromkeys(range(32), "?"))


@dataclass
class Meter:
    """What has come out so far, held against the caps; nothing twice, nothing below a file or link."""

    caps: Caps
    packed: int  # bytes of the archive
    size: int = 0
    file: int = 0  # bytes of the present file
    kinds: dict[tuple[str, ...], str] = field(default_factory=dict)

    def entry(self, parts: tuple[str, ...], kind: str) -> None:
        """One more: D, F, H or S. Raises ArchiveError."""
        name = shown("/".join(parts))
        for end in range(1, len(parts)):
            if self.kinds.setdefault(parts[:end], "D") != "D":
                raise ArchiveError("archive.conflict", f"{name}: lies below something that is no folder")
        if not parts or self.kinds.get(parts, kind) != kind or (kind != "D" and parts in self.kinds):
            raise ArchiveError("archive.conflict", f"{name or '.'}: stands there twice")
        self.kinds[parts] = kind
        self.file = 0
        if len(self.kinds) > self.caps.count:
            raise ArchiveError("archive.count", f"more than {self.caps.count} files and folders")

    def hard_link(self, parts: tuple[str, ...], target: tuple[str, ...]) -> None:
        """A second name for an earlier file. Raises ArchiveError."""
        if self.kinds.get(target) not in ("F", "H"):
            raise ArchiveError("archive.link", f"{shown('/'.join(parts))}: a link to no file before it")
        self.entry(parts, "H")

    def content(self, size: int) -> None:
        """So many more bytes of the present file. Raises ArchiveError."""
        self.size += size
        self.file += size
        if self.file > self.caps.file:
            raise ArchiveError("archive.size", f"a file of more than {self.caps.file} bytes")
        if self.size > self.caps.size:
            raise ArchiveError("archive.size", f"more than {self.caps.size} bytes in all")
        if self.size > max(RATIO_FROM, self.caps.ratio * self.packed):
            raise ArchiveError("archive.ratio", f"more than {self.caps.ratio} times the archive's own size")


class Teller:
    """Writes the frames, within the caps."""

    def __init__(self, out: IO[bytes], caps: Caps, packed: int) -> None:
        self._out = out
        self._meter = Meter(caps, packed)
        self.caps = caps

    def say(self, kind: bytes, body: bytes = b"") -> None:
        self._out.write(HEAD.pack(kind, len(body)) + body)

    def folder(self, name: str) -> None:
        parts = parts_of(name, self.caps)
        if parts:
            self._meter.entry(parts, "D")
            self.say(b"D", _joined(parts))

    def file(self, name: str, *, executable: bool, source: IO[bytes], size: int | None) -> None:
        """`size`: what the archive says it is, None if it does not say."""
        parts = parts_of(name, self.caps)
        self._meter.entry(parts, "F")
        self.say(b"F", (b"x" if executable else b"-") + _joined(parts))
        while data := source.read(CHUNK):
            self._meter.content(len(data))
            self.say(b"C", data)
        if size is not None and self._meter.file != size:
            raise ArchiveError("archive.broken", f"{shown(name)}: ends too early")

    def hard_link(self, name: str, target: str) -> None:
        parts, other = parts_of(name, self.caps), parts_of(target, self.caps)
        self._meter.hard_link(parts, other)
        self.say(b"H", _joined(parts) + b"\0" + _joined(other))

    def symbolic_link(self, name: str, target: str) -> None:
        parts = parts_of(name, self.caps)
        check_link(parts, target, self.caps)
        self._meter.entry(parts, "S")
        self.say(b"S", _joined(parts) + b"\0" + target.encode())


def _joined(parts: tuple[str, ...]) -> bytes:
    return "/".join(parts).encode()


def tell(source: IO[bytes], name: str, teller: Teller) -> None:
    """All of the archive, or why not; `name` is for what is in a file that was only compressed."""
    try:
        _tell_any(source, name, teller)
        teller.say(b"E")
    except ArchiveError as error:
        teller.say(b"X", f"{error.code}\0{error}".encode("ascii", "backslashreplace"))
    except MemoryError:
        teller.say(b"X", b"archive.memory\0it takes more memory than any honest archive")
    except Exception as error:  # these parsers raise whatever comes up in them
        teller.say(b"X", f"archive.broken\0it cannot be read ({type(error).__name__})".encode())


def _tell_any(source: IO[bytes], name: str, teller: Teller) -> None:
    start = source.read(512)
    source.seek(0)
    if start.startswith(_ZIP) and not teller.caps.tree:
        _tell_zip(source, teller)
        return
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    plain = opener(source) if opener else source
    tar = _tar(plain)
    if tar is not None:
        _tell_tar(tar, plain, teller)
    elif opener is not None and not teller.caps.tree:
        plain.seek(0)
        teller.file(name, executable=False, source=plain, size=None)
    else:
        known = "zip, tar, gzip, bzip2, xz and zstd" if not teller.caps.tree else "tar"
        raise ArchiveError("archive.format", f"no archive of a kind that is known ({known})")


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer (zstd.h)."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


class _Zstd(io.RawIOBase):
    """What is in zstd frames (RFC 8878), by the system's library: Python has none before 3.14."""

    def __init__(self, source: IO[bytes]) -> None:
        try:
            self._lib = ctypes.CDLL("libzstd.so.1")
        except OSError:
            raise ArchiveError("archive.format", "zstd, for which this node lacks libzstd.so.1") from None
        self._lib.ZSTD_createDStream.restype = ctypes.c_void_p
        self._lib.ZSTD_decompressStream.restype = ctypes.c_size_t
        self._stream = ctypes.c_void_p(self._lib.ZSTD_createDStream())
        self._source = source
        self._rewind()

    def _rewind(self) -> None:
        self._lib.ZSTD_initDStream(self._stream)
        self._source.seek(0)
        self._data, self._in = ctypes.create_string_buffer(0), _Buffer()
        self._at, self._wants = 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a place told by its distance from the start or from here; back is from the start again."""
        offset += {io.SEEK_SET: 0, io.SEEK_CUR: self._at}[whence]
        if offset < self._at:
            self._rewind()
        while self._at < offset and self.read(min(CHUNK, offset - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        out = _Buffer(ctypes.addressof(ctypes.c_char.from_buffer(into)), len(into), 0)
        while out.pos == 0 and out.size:
            if self._in.pos == self._in.size:
                data = self._source.read(CHUNK)
                self._data = ctypes.create_string_buffer(data, len(data))
                self._in = _Buffer(ctypes.addressof(self._data), len(data), 0)
                if not data and not self._wants:
                    return 0
            self._wants = self._lib.ZSTD_decompressStream(
                self._stream, ctypes.byref(out), ctypes.byref(self._in)
            )
            if self._lib.ZSTD_isError(ctypes.c_size_t(self._wants)):
                raise ArchiveError("archive.broken", "no zstd after all")
            if not self._in.size and not out.pos:
                raise ArchiveError("archive.broken", "its zstd is cut off")
        self._at += int(out.pos)
        return int(out.pos)


_OPENERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda source: io.BufferedReader(_Zstd(source), CHUNK),
}


def _tar(plain: IO[bytes]) -> tarfile.TarFile | None:
    try:
        tar = tarfile.open(fileobj=plain, mode="r:")  # noqa: SIM115
    except tarfile.ReadError:
        return None
    if tar.next() is None:  # nothing but zeros: a tar of nothing is one record at most
        plain.seek(0)
        if len(plain.read(tarfile.RECORDSIZE + 1)) > tarfile.RECORDSIZE:
            return None
    plain.seek(0)
    return tarfile.open(fileobj=plain, mode="r:")


def _tell_tar(tar: tarfile.TarFile, plain: IO[bytes], teller: Teller) -> None:
    for member in _members(tar):
        if member.isdir():
            teller.folder(member.name)
        elif member.issym():
            teller.symbolic_link(member.name, member.linkname)
        elif member.islnk():
            teller.hard_link(member.name, member.linkname)
        elif member.isreg() and (content := tar.extractfile(member)):
            teller.file(member.name, executable=bool(member.mode & 0o100), source=content, size=member.size)
        elif not teller.caps.tree:
            raise ArchiveError("archive.kind", f"{shown(member.name)}: neither file, folder nor link")
    plain.seek(tar.offset)
    if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # for tarfile any nonsense is the end
        raise ArchiveError("archive.broken", "it has no end: cut off, or a header that cannot be read")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One after the other, without keeping them all, as iterating over `tar` would."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]


def _tell_zip(source: IO[bytes], teller: Teller) -> None:
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        if len(entries) > teller.caps.count:
            raise ArchiveError("archive.count", f"more than {teller.caps.count} files and folders")
        _check_overlap(entries)
        for entry in entries:
            _tell_zip_entry(archive, entry, teller)


def _check_overlap(entries: list[zipfile.ZipInfo]) -> None:
    """Entries that share their bytes are how a small archive holds petabytes."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise ArchiveError("archive.overlap", f"{shown(entry.filename)}: shares bytes with another entry")
        end = entry.header_offset + _LOCAL_HEADER + len(entry.orig_filename) + entry.compress_size


def _tell_zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, teller: Teller) -> None:
    name = entry.orig_filename  # `filename` ends at a NUL
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0
    if entry.flag_bits & 0x41:
        raise ArchiveError("archive.encrypted", f"{shown(name)}: encrypted")
    if entry.compress_type not in _ZIP_METHODS:
        raise ArchiveError("archive.format", f"{shown(name)}: compressed in a way that is not known")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise ArchiveError("archive.kind", f"{shown(name)}: neither file, folder nor link")
    if stat.S_ISDIR(mode) or name.endswith("/"):
        teller.folder(name)
        return
    with archive.open(entry) as content:
        if stat.S_ISLNK(mode):
            teller.symbolic_link(name, content.read(_PATH + 1).decode())
        else:
            teller.file(name, executable=bool(mode & 0o100), source=content, size=entry.file_size)


def main(words: list[str]) -> None:
    """`words`: the caps as JSON, and a name for what was only compressed."""
    caps = Caps(**json.loads(words[0]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (caps.seconds, caps.seconds))
    source = open(0, "rb", closefd=False)  # noqa: SIM115
    packed = source.seek(0, 2)
    source.seek(0)
    tell(source, words[1], Teller(sys.stdout.buffer, caps, packed))


def words_for(caps: Caps, name: str) -> list[str]:
    """What `main` is called with."""
    return [json.dumps(asdict(caps)), name]


if __name__ == "__main__":
    main(sys.argv[1:])
