"""The trees of images below `STATE/images`, by what they are made of; only root may enter.

`sha256-<hex>/rootfs` is a tree, `image.json` beside it says what it is. A tree is complete or not there, and
never changed. `names.json` says what people call them; one without a name was made by `--image oci:..` and
goes with the next `exeat image gc`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import subprocess
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.files import sync_dir
from exeat.sandbox.image_layout import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_PREFIX: Final = 8  # hexadecimal digits that are enough to mean a tree
_PART, _GONE = ".part-", ".gone-"


@dataclass(frozen=True, slots=True)
class Image:
    """`digest` is of the manifest, or of the archive where there is none. `size` in bytes of content."""

    digest: str
    source: str
    env: dict[str, str]
    files: int
    size: int
    made_ms: int


class Images:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tree(self, digest: str) -> Path:
        """What a job may have as `--root`."""
        return self._place(digest) / "rootfs"

    def _place(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def get(self, digest: str) -> Image | None:
        """None where there is no such tree."""
        try:
            raw = json.loads((self._place(digest) / "image.json").read_text())
        except FileNotFoundError:
            return None
        return Image(**{field.name: raw[field.name] for field in fields(Image)})

    def all(self) -> list[Image]:
        """The newest first."""
        found = [self.get(path.name.replace("-", ":")) for path in self.folder.glob("sha*-*")]
        return sorted((each for each in found if each), key=lambda each: -each.made_ms)

    def find(self, name: str) -> Image:
        """By its name, or by the first digits of its digest. Raises ImageError(image.unknown)."""
        named = self.names().get(name)
        if named and (image := self.get(named)):
            return image
        digits = name.partition(":")[2] or name
        found = [each for each in self.all() if each.digest.partition(":")[2].startswith(digits)]
        if len(digits) < _PREFIX or len(found) != 1:
            raise ImageError("image.unknown", "no image of this name or digest (see `exeat image ls`)")
        return found[0]

    # -- names

    def names(self) -> dict[str, str]:
        """Digests by name."""
        with contextlib.suppress(FileNotFoundError):
            names: dict[str, str] = json.loads((self.folder / "names.json").read_text())
            return names
        return {}

    def name(self, name: str, digest: str) -> None:
        """From now on `name` means this tree. Raises ImageError(image.name)."""
        check_name(name)
        with self._names() as names:
            names[name] = digest

    def unname(self, digest: str) -> None:
        with self._names() as names:
            for name in [name for name, each in names.items() if each == digest]:
                del names[name]

    @contextlib.contextmanager
    def _names(self) -> Iterator[dict[str, str]]:
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            names = self.names()
            yield names
            fresh = self.folder / "names.json.new"
            with fresh.open("w") as file:
                json.dump(names, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.folder / "names.json")
            sync_dir(os, self.folder)

    # -- coming and going

    @contextlib.contextmanager
    def part(self) -> Iterator[Path]:
        """A folder to make a tree in; what is not kept is removed. It is locked as long as it is in use."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f"{_PART}{secrets.token_hex(6)}"
        part.mkdir(mode=0o755)
        handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            (part / "rootfs").mkdir(mode=0o755)
            yield part
        finally:
            os.close(handle)
            remove(part)

    def keep(self, part: Path, image: Image) -> Image:
        """All of it is on the disk before it has its place. Who comes second finds it there."""
        (part / "image.json").write_text(json.dumps(asdict(image)))
        subprocess.run(["sync", "-f", str(part)], check=True)
        with contextlib.suppress(OSError):  # ENOTEMPTY
            part.rename(self._place(image.digest))
        sync_dir(os, self.folder)
        kept = self.get(image.digest)
        if kept is None:
            raise ImageError("image.store", f"{self.folder}: it could not be put there")
        return kept

    def drop(self, digest: str, users: Callable[[str], list[str]]) -> None:
        """Remove a tree that nobody has. Raises ImageError(image.used).

        `users` of a path. It is asked when no new one can come any more.
        """
        gone = self.folder / f"{_GONE}{self._place(digest).name}"
        remove(gone)
        self._place(digest).rename(gone)
        try:
            found = users(str(self.tree(digest)))
            if found:
                raise ImageError("image.used", f"it is the tree of {', '.join(found[:5])}")
        except BaseException:
            gone.rename(self._place(digest))
            raise
        self.unname(digest)
        remove(gone)

    def leftovers(self) -> list[Path]:
        """Of imports and removals that were killed."""
        parts = [part for part in self.folder.glob(f"{_PART}*") if _is_free(part)]
        return [*parts, *self.folder.glob(f"{_GONE}*")]


def check_name(name: str) -> None:
    """Raises ImageError(image.name)."""
    if not _NAME.fullmatch(name):
        raise ImageError("image.name", f"a name is {_NAME.pattern}")


def _is_free(part: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(handle)
    return False


def remove(folder: Path) -> None:
    """All of it. Not shutil.rmtree: layers may nest folders deeper than Python recurses."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(folder)], check=True)


def row(images: Images, image: Image) -> dict[str, Any]:
    """What is shown of one."""
    names = sorted(name for name, digest in images.names().items() if digest == image.digest)
    return {**asdict(image), "names": names, "tree": str(images.tree(image.digest))}
