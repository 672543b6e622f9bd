"""The documents of an OCI image layout: which image is meant, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.sandbox import image_layout
from exeat.sandbox.image_layout import Descriptor, ImageError

MANIFEST, INDEX = image_layout.MANIFESTS[0], image_layout.INDEXES[0]
NAME = "org.opencontainers.image.ref.name"


def descriptor(number: int, media: str = MANIFEST, **more: object) -> dict[str, Any]:
    return {"mediaType": media, "digest": f"sha256:{number:064x}", "size": number, **more}


def tagged(number: int, tag: str, architecture: str = "amd64") -> dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture}
    return descriptor(number, annotations={NAME: tag}, platform=platform)


def index(*manifests: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()


@pytest.mark.parametrize(
    ("rows", "tag", "number"),
    [
        ([descriptor(1)], "", 1),
        ([descriptor(1), descriptor(1)], "", None),  # of no platform, and two
        ([tagged(1, "a"), tagged(2, "b")], "b", 2),
        ([tagged(1, "localhost/x:a"), tagged(2, "localhost/x:b")], "a", 1),
        ([tagged(1, "a", "arm64"), tagged(2, "a")], "a", 2),
        ([tagged(1, "a"), tagged(2, "a")], "a", None),
        ([tagged(1, "a")], "c", None),
        ([descriptor(1, "text/plain")], "", None),
        ([descriptor(1, INDEX)], "", 1),
        ([descriptor(1), descriptor(2, "application/vnd.example+json")], "", 1),
        ([], "", None),
    ],
)
def test_which_image_is_meant(rows: list[dict[str, Any]], tag: str, number: int | None) -> None:
    if number is None:
        with pytest.raises(ImageError) as caught:
            image_layout.choose(index(*rows), tag, "x86_64")
        assert caught.value.code == "image.tag"
    else:
        assert image_layout.choose(index(*rows), tag, "x86_64").size == number


def whole(*layers: str, **more: object) -> bytes:
    rows = [descriptor(2, f"application/vnd.{media}") for media in layers]
    return json.dumps({"config": descriptor(1, "application/json"), "layers": rows, **more}).encode()


def test_kinds_of_layers() -> None:
    known = (
        *("oci.image.layer.v1.tar", "oci.image.layer.v1.tar+gzip", "oci.image.layer.v1.tar+zstd"),
        *("oci.image.layer.nondistributable.v1.tar", "docker.image.rootfs.diff.tar.gzip"),
    )
    assert len(image_layout.manifest(whole(*known)).layers) == len(known)
    for media in (
        "oci.image.layer.v1.tar+encrypted",
        "oci.image.layer.v1.tar+gzip+encrypted",
        "in-toto+json",
    ):
        with pytest.raises(ImageError, match="encrypted"):
            image_layout.manifest(whole(media))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"layers": [], "config": 1}', whole(),
        whole(*["oci.image.layer.v1.tar"] * 129), whole("oci.image.layer.v1.tar", config={}),
        *(
            json.dumps({"config": descriptor(1), "layers": [descriptor(2) | wrong]}).encode()
            for wrong in ({"size": -1}, {"digest": "md5:00"}, {"digest": "sha256:../../x"})
        ),
    ],
)  # fmt: skip
def test_manifests_that_are_none(data: bytes) -> None:
    with pytest.raises(ImageError):
        image_layout.manifest(data)


def config(**more: Any) -> bytes:
    raw = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ["sha256:00"]}, **more}
    return json.dumps(raw).encode()


def test_the_environment_is_the_images_where_it_can_be_one() -> None:
    env = ["PATH=/bin", "EMPTY=", "NONE", "1=x", "a b=c", "NUL=\0", "TWICE=1", "TWICE=2=3"]
    read = image_layout.config(config(config={"Env": env}), 1, "x86_64")
    assert dict(read.env) == {"PATH": "/bin", "EMPTY": "", "NONE": "", "TWICE": "2=3"}
    assert image_layout.config(config(config=None), 1, "x86_64").env == ()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (config(architecture="arm64"), "image.platform"),
        (config(os="windows"), "image.platform"),
        (config(rootfs={"diff_ids": []}), "image.layout"),
        (config(rootfs={"diff_ids": [1]}), "image.layout"),
        (config(config={"Env": "PATH=/"}), "image.layout"),
        (config(config=["x"]), "image.layout"),
    ],
)
def test_configurations_that_do_not_fit(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        image_layout.config(data, 1, "x86_64")
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["sha256", "sha512"])
def test_bytes_are_what_their_digest_says(kind: str) -> None:
    data = b"document"
    right = Descriptor("x", f"{kind}:{hashlib.new(kind, data).hexdigest()}", len(data))
    assert right.check(data) == data
    for wrong in (b"", b"Document", data + b" "):
        with pytest.raises(ImageError):
            right.check(wrong)


def test_indexes_in_indexes_have_an_end() -> None:
    assert [image_layout.nested(depth) for depth in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ImageError):
        image_layout.nested(4)


@pytest.mark.parametrize("data", [b"{}", b'{"imageLayoutVersion": "2.0.0"}', b"1"])
def test_other_layouts(data: bytes) -> None:
    with pytest.raises(ImageError):
        image_layout.check_layout(data)


KEYS = [
    "manifests",
    "layers",
    "config",
    "mediaType",
    "digest",
    "size",
    "rootfs",
    "diff_ids",
    "os",
    "Env",
    "annotations",
    "platform",
]
PLAIN = st.none() | st.integers() | st.text() | st.booleans()


def _more(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner)


@given(st.recursive(PLAIN, _more))
def test_nothing_but_a_refusal_comes_of_nonsense(value: object) -> None:
    data = json.dumps(value).encode()
    for read in (
        image_layout.manifest,
        image_layout.check_layout,
        lambda data: image_layout.choose(data, "a", "x86_64"),
        lambda data: image_layout.config(data, 1, "x86_64"),
    ):
        try:
            read(data)
        except ImageError:
            continue
