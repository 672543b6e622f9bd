"""`exeat image`: the trees that jobs may have in place of this machine's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.errors import RefusedError, UsageError
from exeat.appliance.images.build import Wish, build
from exeat.appliance.images.importing import from_archive, imported
from exeat.appliance.images.store import Image, Images, check_name, remove, row
from exeat.appliance.parsers import add_verb
from exeat.appliance.plain import plain
from exeat.sandbox.archive_inside import ArchiveError
from exeat.sandbox.image_layout import ImageError
from exeat.sandbox.spec import IMAGES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

_SHOWN = 12  # hexadecimal digits of a digest


def register(commands: Any) -> None:
    parser = commands.add_parser("image", help="file trees for jobs, from images of containers")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_verb(verbs, "ls", "what there is", _ls)
    take = add_verb(verbs, "import", "make a tree of an image, layer by layer in a jail", _import)
    take.add_argument("source", metavar="SOURCE", help="oci:DIR[:TAG], or tar:FILE of a whole tree")
    take.add_argument("--name", metavar="NAME", help="what it is called from now on")
    make = add_verb(verbs, "build", "make a tree of a distribution", _build)
    make.add_argument("--debootstrap", required=True, metavar="SUITE", help="bookworm, trixie, noble, ...")
    make.add_argument("--include", default="", metavar="PACKAGE,..", help="further packages")
    make.add_argument("--mirror", default="", metavar="URL", help="where from (default: the tool's own)")
    make.add_argument("--name", metavar="NAME", help="what it is called from now on (default: SUITE)")
    away = add_verb(verbs, "rm", "remove one that no job has", _rm)
    away.add_argument("image", metavar="NAME", help="its name, or the first 8 digits of its digest")
    add_verb(verbs, "gc", "remove those without a name that no job has, and what was left half-made", _gc)


def _images(args: argparse.Namespace) -> Images:
    if os.geteuid() != 0:
        raise UsageError("`exeat image` keeps trees that only root may change: run it with sudo")
    os.umask(0o022)  # what is in a tree is for every job that has it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # and nothing is left, as by ctrl-c
    return Images(load_config(args).state_dir / IMAGES)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with an image, as a refusal."""
    try:
        yield
    except (ImageError, ArchiveError) as error:
        raise RefusedError(error.code, str(error)) from None


def _ls(args: argparse.Namespace) -> int:
    images = _images(args)
    rows = [row(images, image) for image in images.all()]
    if args.json:
        print(json.dumps(rows))
        return 0
    for each in rows:
        names = ", ".join(each["names"]) or "-"
        size = f"{each['size'] / 2**20:.1f} MiB"
        print(
            f"{_short(each['digest'])} {size:>12} {each['files']:>7} files  {names:<20}",
            plain(each["source"]),
        )
    return 0


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_SHOWN]


def _import(args: argparse.Namespace) -> int:
    images = _images(args)
    with _told():
        if args.name:
            check_name(args.name)
        return _named(args, images, imported(load_config(args), images, args.source))


def _build(args: argparse.Namespace) -> int:
    images, name = _images(args), args.name or args.debootstrap
    packages = tuple(filter(None, args.include.split(",")))
    with _told():
        check_name(name)
        with images.part() as part:
            archive = build(Wish(args.debootstrap, packages, args.mirror), part)
            image = from_archive(load_config(args), images, archive, f"debootstrap:{args.debootstrap}")
        args.name = name
        return _named(args, images, image)


def _named(args: argparse.Namespace, images: Images, image: Image) -> int:
    if args.name:
        images.name(args.name, image.digest)
    if args.json:
        print(json.dumps(row(images, image)))
    else:
        print(f"{args.name or _short(image.digest)}: {image.files} files, {image.size} bytes, {image.digest}")
    return 0


def _users(args: argparse.Namespace) -> Callable[[str], list[str]]:
    client = Client(load_config(args))

    def users(tree: str) -> list[str]:
        found: list[str] = client.call("tree.users", root=tree)["users"]
        return found

    return users


def _rm(args: argparse.Namespace) -> int:
    images = _images(args)
    with _told():
        image = images.find(args.image)
        images.drop(image.digest, _users(args))
    print(json.dumps({"removed": [image.digest]}) if args.json else f"removed {_short(image.digest)}")
    return 0


def _gc(args: argparse.Namespace) -> int:
    images, users = _images(args), _users(args)
    named, removed = set(images.names().values()), []
    for image in images.all():
        if image.digest not in named:
            with contextlib.suppress(ImageError):  # a job has it
                images.drop(image.digest, users)
                removed.append(image.digest)
    for part in images.leftovers():
        remove(part)
    print(json.dumps({"removed": removed}) if args.json else f"removed {len(removed)} images")
    return 0
