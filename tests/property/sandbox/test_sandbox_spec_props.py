"""Whatever control sends, the warden's judge either makes values that hold, or raises SpecError."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path, PurePosixPath
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exeat.sandbox import oci
from exeat.sandbox.launcher import Places
from exeat.sandbox.limits import Limits
from exeat.sandbox.names import SpecError
from exeat.sandbox.spec import MIN_UID, VERBS, choose_uid, parse_request

ROOTS = (PurePosixPath("/srv"), PurePosixPath("/home/work"))
SEGMENT = st.sampled_from(
    ["srv", "home", "work", "etc", "..", ".", "", "a", "a b", "\0", "ü", "\ud800", "proc"]
)
PATH = st.lists(SEGMENT, max_size=6).map("/".join) | st.lists(SEGMENT, max_size=5).map(
    lambda s: "/" + "/".join(s)
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | PATH
ANY = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
MOUNT = st.fixed_dictionaries({"path": PATH, "mode": st.sampled_from(["ro", "rw", "edit", "x"])})
NEARLY: dict[str, st.SearchStrategy[Any]] = {
    "job": st.sampled_from(["a", "job-1", "-", "a/b"]) | ANY,
    "argv": st.lists(st.text(max_size=5), min_size=1, max_size=3) | ANY,
    "env": st.dictionaries(st.sampled_from(["A", "B_1", "1", ""]), st.text(max_size=3), max_size=2) | ANY,
    "mounts": st.lists(MOUNT, max_size=3) | ANY,
    "cwd": st.sampled_from(["/work", "/tmp", "/srv/a"]) | PATH | ANY,
    "profile": st.sampled_from(["strict", "standard", "standard-net"]) | ANY,
    "user": st.sampled_from(["fresh", 1000, 0]) | ANY,
    "root": st.just("") | PATH | ANY,
}


@given(st.fixed_dictionaries(NEARLY))
def test_a_start_is_refused_or_sound(raw: dict[str, Any]) -> None:
    try:
        job = parse_request({"id": 1, "verb": "job.start", **raw}, 3, ROOTS, Limits()).job
    except SpecError:
        return
    assert job is not None
    for mount in job.mounts:
        assert posixpath.normpath(mount.path) == mount.path
        assert any(PurePosixPath(mount.path).is_relative_to(root) for root in ROOTS)
        assert not mount.owned or job.uid is not None
    assert sum(mount.edited for mount in job.mounts) <= 1
    if job.root:
        assert posixpath.normpath(job.root) == job.root
        assert any(PurePosixPath(job.root).is_relative_to(root) for root in ROOTS)
    assert job.uid is None or job.uid >= MIN_UID
    host = oci.Host("x86_64", (), (), cgroups=True, max_open_files=64)
    places = Places(Path("/run/w"), Path("/var/w"))
    config = json.loads(oci.plan(job, uid=5000, host=host, places=places).config)
    assert config["process"]["args"][-len(job.argv) :] == list(job.argv)
    assert config["process"]["noNewPrivileges"] is True


@given(
    st.sampled_from(sorted(VERBS)) | st.text(max_size=12),
    st.dictionaries(st.text(max_size=6), ANY, max_size=4),
)
def test_no_message_raises_anything_else(verb: str, extra: dict[str, Any]) -> None:
    try:
        request = parse_request({"id": 1, "verb": verb, **extra}, 0, ROOTS, Limits())
    except SpecError:
        return
    assert request.verb in VERBS


@given(st.sets(st.integers(5000, 5010)))
def test_a_fresh_user_is_never_a_taken_one(taken: set[int]) -> None:
    fresh = range(5000, 5008)
    try:
        uid = choose_uid(None, taken, fresh, 1)
    except SpecError:
        assert set(fresh) <= taken
    else:
        assert uid in fresh
        assert uid not in taken
