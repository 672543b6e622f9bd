"""OCI image layouts for tests, made of layers that are made here."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OCI = "application/vnd.oci.image."
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def tar_tree(folder: Path) -> bytes:
    """All that is in a folder, as root's."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(folder, ".")
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    """One frame of it, by the system's library."""
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compressBound.restype = library.ZSTD_compress.restype = ctypes.c_size_t
    room = library.ZSTD_compressBound(ctypes.c_size_t(len(data)))
    packed = ctypes.create_string_buffer(room)
    size = library.ZSTD_compress(packed, ctypes.c_size_t(room), data, ctypes.c_size_t(len(data)), 3)
    return packed.raw[:size]


class Layout:
    """An image layout at `folder`, a new one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests: list[dict[str, Any]] = []
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes) -> tuple[str, int]:
        """Its digest and size."""
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    def described(self, data: bytes, media: str) -> dict[str, Any]:
        digest, size = self.blob(data)
        return {"mediaType": media, "digest": digest, "size": size}

    def image(self, *layers: bytes, tag: str = "", env: tuple[str, ...] = (), **config: object) -> str:
        """One more image of these tars, each with gzip; the digest of its manifest."""
        return self.packed(*map(gzip.compress, layers), tag=tag, env=env, **config)

    def packed(
        self, *layers: bytes, tag: str = "", env: tuple[str, ...] = (), kind: str = "+gzip", **config: object
    ) -> str:
        whole = {
            "os": "linux",
            "architecture": MACHINE,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * len(layers)},
            "config": {"Env": list(env)},
            **config,
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.described(json.dumps(whole).encode(), f"{OCI}config.v1+json"),
            "layers": [self.described(layer, f"{OCI}layer.v1.tar{kind}") for layer in layers],
        }
        row = self.described(json.dumps(manifest).encode(), f"{OCI}manifest.v1+json")
        if tag:
            row["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(row)
        self.write()
        return str(row["digest"])

    def write(self) -> None:
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))
