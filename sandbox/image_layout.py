"""Images of containers as an OCI image layout keeps them: its documents, judged (pure).

Sources: OCI Image Format Specification 1.1, image-layout.md, image-index.md, manifest.md, config.md,
descriptor.md, and the two media types of Docker's image manifest v2 schema 2 that say the same. Nothing in
a layout is believed before its digest and its size fit, and the index has neither.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final

MAX_DOCUMENT: Final = 4 << 20  # bytes; what registries take at most
MAX_LAYERS: Final = 128
MAX_BLOB: Final = 16 << 30  # bytes of one layer as it is stored
MAX_ENV: Final = 256
_NESTED: Final = 4  # an index in an index

_OCI, _DOCKER = "application/vnd.oci.image.", "application/vnd.docker.distribution."
MANIFESTS: Final = (f"{_OCI}manifest.v1+json", f"{_DOCKER}manifest.v2+json")
INDEXES: Final = (f"{_OCI}index.v1+json", f"{_DOCKER}manifest.list.v2+json")
_LAYER: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+(gzip|zstd))?"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar(\.gzip)?)",
    re.ASCII,
)
_DIGEST: Final = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)
_NAME: Final = "org.opencontainers.image.ref.name"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)


class ImageError(Exception):
    """`code` is stable; the text says what is wrong and holds nothing of the image unescaped."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What something is, and how it can be told from everything else. `size` in bytes."""

    media: str
    digest: str
    size: int

    def check(self, data: bytes) -> bytes:
        """`data`, if it is what is meant. Raises ImageError(image.digest)."""
        kind, _, wanted = self.digest.partition(":")
        if len(data) != self.size or hashlib.new(kind, data).hexdigest() != wanted:
            raise ImageError("image.digest", f"{self.digest}: its bytes are others than the image says")
        return data


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]  # the lowest first


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """`env`: what programs in it are meant to find in their environment."""

    env: tuple[tuple[str, str], ...]


def check_layout(data: bytes) -> None:
    """Of the file `oci-layout`. Raises ImageError."""
    version = _object(data, "oci-layout").get("imageLayoutVersion")
    if version != "1.0.0":
        raise ImageError("image.layout", "no OCI image layout of version 1.0.0")


def choose(index: bytes, tag: str, machine: str) -> Descriptor:
    """The manifest, or a further index, of `tag` ("": the only one) for `machine` (uname -m).

    Raises ImageError(image.tag) where none fits, or more than one.
    """
    found = [
        (descriptor, raw)
        for raw in _list(_object(index, "the index"), "manifests", 1024)
        if (descriptor := _descriptor(raw)).media in MANIFESTS + INDEXES
    ]
    if tag:
        found = [each for each in found if _tagged(each[1], tag)]
    if len(found) > 1:
        found = [each for each in found if _platform(each[1]) == ("linux", _MACHINES.get(machine, machine))]
    if len({descriptor.digest for descriptor, _ in found}) != 1:
        many = "more than one image" if found else "no image"
        raise ImageError("image.tag", f"{many} of this tag and for this machine: say oci:DIR:TAG")
    return found[0][0]


def _tagged(raw: dict[str, Any], tag: str) -> bool:
    annotations = raw.get("annotations")
    name = annotations.get(_NAME) if isinstance(annotations, dict) else None
    return isinstance(name, str) and (name == tag or name.endswith(f":{tag}"))


def _platform(raw: dict[str, Any]) -> tuple[object, object]:
    platform = raw.get("platform")
    return (platform.get("os"), platform.get("architecture")) if isinstance(platform, dict) else ("", "")


def nested(depth: int) -> int:
    """One index further down. Raises ImageError."""
    if depth >= _NESTED:
        raise ImageError("image.layout", "indexes within indexes, without end")
    return depth + 1


def manifest(data: bytes) -> Manifest:
    """Raises ImageError, also for layers of a kind that is not known (encrypted ones are such)."""
    raw = _object(data, "the manifest")
    layers = tuple(_descriptor(each) for each in _list(raw, "layers", MAX_LAYERS))
    config = _descriptor(raw.get("config"))
    for layer in layers:
        if not _LAYER.fullmatch(layer.media):
            raise ImageError("image.media", "a layer that is no tar, or is encrypted")
        if layer.size > MAX_BLOB:
            raise ImageError("image.size", f"a layer of more than {MAX_BLOB} bytes")
    if not layers or config.size > MAX_DOCUMENT:
        raise ImageError("image.layout", "a manifest without layers, or with a configuration beyond measure")
    return Manifest(config, layers)


def config(data: bytes, layers: int, machine: str) -> ImageConfig:
    """The configuration of an image with so many layers, for `machine`. Raises ImageError."""
    raw = _object(data, "the configuration")
    if (raw.get("os"), raw.get("architecture")) != ("linux", _MACHINES.get(machine, machine)):
        raise ImageError("image.platform", "an image for another system or another machine")
    rootfs = raw.get("rootfs")
    if not isinstance(rootfs, dict) or len(_list(rootfs, "diff_ids", MAX_LAYERS, dict_items=False)) != layers:
        raise ImageError("image.layout", "its configuration is of other layers than its manifest")
    inner = raw.get("config") or {}
    if not isinstance(inner, dict):
        raise ImageError("image.layout", "config is no object")
    return ImageConfig(tuple(_environment(inner.get("Env") or []).items()))


def _environment(raw: object) -> dict[str, str]:
    if not isinstance(raw, list) or len(raw) > MAX_ENV or not all(isinstance(each, str) for each in raw):
        raise ImageError("image.layout", f"Env is no list of at most {MAX_ENV} texts")
    pairs = (text.partition("=") for text in raw)
    return {name: value for name, _, value in pairs if _ENV.fullmatch(name) and "\0" not in value}


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ImageError("image.layout", f"{what} is no JSON object")
    return raw


def _list(raw: dict[str, Any], name: str, most: int, *, dict_items: bool = True) -> list[Any]:
    items = raw.get(name)
    kind = dict if dict_items else str
    if not isinstance(items, list) or len(items) > most or not all(isinstance(each, kind) for each in items):
        raise ImageError("image.layout", f"{name} is no list of at most {most} of what belongs there")
    return items


def _descriptor(raw: object) -> Descriptor:
    if isinstance(raw, dict):
        media, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
        texts = isinstance(media, str) and isinstance(digest, str) and _DIGEST.fullmatch(digest)
        if texts and type(size) is int and 0 <= size < 2**63:
            return Descriptor(str(media), str(digest), size)
    raise ImageError("image.layout", "a descriptor without media type, digest (SHA-256 or -512) and size")
