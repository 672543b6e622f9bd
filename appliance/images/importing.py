"""From an OCI image layout, or an archive of a whole tree, to a tree in the store.

Each blob is copied while it is hashed, so that what was checked is what is read, whoever may write to the
layout. Then a job reads the copy (`exeat.appliance.archives`), and what it tells is laid over the tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from exeat.appliance.archives import Reading, Sums
from exeat.appliance.errors import UsageError
from exeat.appliance.images.store import Image, Images, row
from exeat.sandbox import image_layout
from exeat.sandbox.archive_inside import ArchiveError, Caps
from exeat.sandbox.image_layers import Layer
from exeat.sandbox.image_layout import Descriptor, ImageError, Manifest
from exeat.sandbox.spec import IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.config import Config

CAPS: Final = Caps(
    size=16 << 30, file=8 << 30, count=300_000, ratio=1000, depth=64, seconds=600, tree=True
)  # of an image: `size` of all its layers, the others of each
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK: Final = 1 << 20


class Layout:
    """An OCI image layout in a folder, which others may write to."""

    def __init__(self, folder: Path, machine: str) -> None:
        """Raises ImageError."""
        self._folder, self._machine = folder, machine
        image_layout.check_layout(self._document("oci-layout"))

    def manifest_of(self, tag: str) -> tuple[Descriptor, Manifest]:
        """Of the image that `tag` means here ("": the only one). Raises ImageError."""
        index, depth = self._document("index.json"), 0
        chosen = image_layout.choose(index, tag, self._machine)
        while chosen.media in image_layout.INDEXES:
            depth = image_layout.nested(depth)
            chosen = image_layout.choose(self.checked(chosen), "", self._machine)
        return chosen, image_layout.manifest(self.checked(chosen))

    def config_of(self, manifest: Manifest) -> image_layout.ImageConfig:
        """Raises ImageError."""
        return image_layout.config(self.checked(manifest.config), len(manifest.layers), self._machine)

    def checked(self, what: Descriptor) -> bytes:
        """A document by its digest. Raises ImageError."""
        return what.check(self._document(self._blob(what)))

    @contextlib.contextmanager
    def copied(self, what: Descriptor, into: Path) -> Iterator[IO[bytes]]:
        """A blob as a file without a name, its digest checked. Raises ImageError."""
        kind, _, wanted = what.digest.partition(":")
        with self._opened(self._blob(what)) as source:
            digest, size, copy = _copy(source, kind, what.size, into)
        with copy:
            if (digest, size) != (wanted, what.size):
                raise ImageError("image.digest", f"{what.digest}: its bytes are others than the image says")
            yield copy

    def _blob(self, what: Descriptor) -> str:
        return f"blobs/{what.digest.replace(':', '/')}"

    def _document(self, name: str) -> bytes:
        with self._opened(name) as source:
            data = source.read(image_layout.MAX_DOCUMENT + 1)
        if len(data) > image_layout.MAX_DOCUMENT:
            raise ImageError("image.layout", f"{name}: more than {image_layout.MAX_DOCUMENT} bytes")
        return data

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        try:
            handle = os.open(self._folder / name, _OPEN)
        except OSError as error:
            raise ImageError("image.layout", f"{name}: {error.strerror}") from None
        with open(handle, "rb") as source:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ImageError("image.layout", f"{name}: no file")
            yield source


def _copy(source: IO[bytes], kind: str, most: int, into: Path) -> tuple[str, int, IO[bytes]]:
    """Hash, bytes and copy of `source`, of which at most one byte more than `most` is read."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    sums, size = hashlib.new(kind), 0
    copy: IO[bytes] = tempfile.TemporaryFile(dir=into)  # noqa: SIM115 - the caller closes it
    while size <= most and (data := source.read(min(_CHUNK, most + 1 - size))):
        sums.update(data)
        copy.write(data)
        size += len(data)
    copy.flush()
    return sums.hexdigest(), size, copy


def image_row(config: Config, name: str) -> dict[str, Any]:
    """What is known of an image: by name or digest, or of a layout (`oci:DIR[:TAG]`), which is imported.

    Raises UsageError, RefusedError.
    """
    images = Images(config.state_dir / IMAGES)
    try:
        image = imported(config, images, name) if ":" in name and not _is_digest(name) else images.find(name)
    except (ImageError, ArchiveError) as error:
        raise UsageError(f"--image {name}: {error} [{error.code}]") from None
    if not has_shell(images.tree(image.digest)):
        raise UsageError(f"--image {name}: it has no /bin/sh: this is what starts a command in its tree")
    return row(images, image)


def _is_digest(name: str) -> bool:
    return name.startswith(("sha256:", "sha512:"))


def has_shell(tree: Path) -> bool:
    """Is there a /bin/sh? /bin may be a link, which is not followed here: it is meant inside."""
    return any(os.path.lexists(tree / name) for name in ("bin/sh", "usr/bin/sh"))


def imported(config: Config, images: Images, source: str) -> Image:
    """`oci:DIR[:TAG]` or `tar:FILE`. Raises ImageError, ArchiveError, RefusedError."""
    kind, _, rest = source.partition(":")
    if kind == "tar" and rest:
        return from_archive(config, images, Path(rest), source)
    folder, _, tag = rest.partition(":")
    if kind != "oci" or not folder:
        raise ImageError("image.source", "not oci:DIR[:TAG] and not tar:FILE")
    return from_layout(config, images, Path(folder).absolute(), tag)


def from_layout(config: Config, images: Images, folder: Path, tag: str) -> Image:
    """The tree of an image, made if it is not there. Raises ImageError, ArchiveError, RefusedError."""
    layout = Layout(folder, os.uname().machine)
    chosen, manifest = layout.manifest_of(tag)
    if image := images.get(chosen.digest):
        return image
    env = dict(layout.config_of(manifest).env)
    with images.part() as part:
        sums = Sums()
        for layer in manifest.layers:
            with layout.copied(layer, images.folder) as archive:
                _lay(config, archive, part, sums)
        source = f"oci:{folder}" + (f":{tag}" if tag else "")
        return images.keep(part, _image(chosen.digest, source, env, sums))


def from_archive(config: Config, images: Images, path: Path, source: str) -> Image:
    """The tree in an archive, of which all is in it. Raises ImageError, ArchiveError, RefusedError."""
    try:
        with path.open("rb") as file:
            digest, size, archive = _copy(file, "sha256", image_layout.MAX_BLOB, images.folder)
    except OSError as error:
        raise ImageError("image.archive", f"{path}: {error.strerror}") from None
    with archive:
        if size > image_layout.MAX_BLOB:
            raise ImageError("image.size", f"more than {image_layout.MAX_BLOB} bytes")
        digest = f"sha256:{digest}"
        if image := images.get(digest):
            return image
        with images.part() as part:
            sums = Sums()
            _lay(config, archive, part, sums)
            return images.keep(part, _image(digest, source, {}, sums))


def _lay(config: Config, archive: IO[bytes], part: Path, sums: Sums) -> None:
    caps = replace(CAPS, size=CAPS.size - sums.size)
    with Layer(part / "layer") as layer:
        added = Reading(config, caps, archive.fileno(), "layer").into(layer)
        try:
            layer.lay(part / "rootfs")
        except OSError as error:
            raise ArchiveError("archive.write", f"it cannot be written: {error.strerror}") from None
    sums.files, sums.size = sums.files + added.files, sums.size + added.size


def _image(digest: str, source: str, env: dict[str, str], sums: Sums) -> Image:
    return Image(digest, source, env, sums.files, sums.size, time.time_ns() // 1_000_000)
