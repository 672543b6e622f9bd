"""A bundle as options of podman. What they do is tried by tests/integration/test_warden_runc.py."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from exeat.sandbox import oci, podman
from exeat.sandbox.cgroup import Layout
from exeat.sandbox.launcher import Places, Podman, runtime
from exeat.sandbox.limits import Limits
from exeat.sandbox.names import JailName, SpecError
from exeat.sandbox.spec import JobSpec, Mount, Profile

PLACES = Places(Path("/run/x/warden"), Path("/var/x/work"))
FOLDER = PLACES.job("j")
HOST = oci.Host("x86_64", (("bin", "usr/bin"),), ("/etc/ssl/certs",), cgroups=True, max_open_files=512)
JOB = JobSpec(
    job=JailName("j"), argv=("echo", "--rm"), env=(("A", "b=c"), ("KEY", "secret")), mounts=(),
    cwd="/work", profile=Profile.STRICT, uid=None,
)  # fmt: skip


def planned(job: JobSpec) -> oci.Plan:
    return oci.plan(job, uid=1000, host=replace(HOST, beside=podman.files), places=PLACES)


def options(job: JobSpec = JOB) -> list[str]:
    return podman.options(json.loads(planned(job).config), FOLDER)


def test_what_confines_is_there() -> None:
    said = options()
    assert {"--cap-drop=all", "--security-opt=no-new-privileges", "--read-only", "--log-driver=none"} < {
        *said
    }
    assert f"--network=ns:{PLACES.netns('j')}" in said
    assert f"--security-opt=seccomp={FOLDER}/seccomp.json" in said
    assert "--user=1000:1000" in said
    assert said[said.index("--rootfs") + 1] == f"{FOLDER}/rootfs"
    assert said[-2:] == ["echo", "--rm"]  # behind the name of the root nothing is an option


def test_variables_are_in_a_file_and_not_in_the_list_of_processes() -> None:
    made = dict(planned(JOB).files)
    assert made[FOLDER / "environment"] == "A=b=c\nKEY=secret\n"
    assert json.loads(made[FOLDER / "seccomp.json"])["defaultAction"] == "SCMP_ACT_ERRNO"
    command = Podman("podman", PLACES, "", limits=True).run("j", planned(JOB).config)
    assert not any("secret" in word for word in command)


def test_a_path_is_one_field_whatever_is_in_it() -> None:
    path = '/srv/a,destination=/etc,"b'
    (said,) = [word for word in options(replace(JOB, mounts=(Mount(path, writable=False),))) if "srv" in word]
    (fields,) = csv.reader([said.removeprefix("--mount=")])
    assert f"destination={path}" in fields
    assert {"ro=true", "bind-nonrecursive=true", "nosuid", "nodev"} < {*fields}


def test_limits() -> None:
    limits = Limits(memory=2**26, pids=9, cpu=1500, tmp=2**16, work=2**20, file=2**19, files=100)
    said = options(replace(JOB, limits=limits))
    held = {"--memory=67108864b", "--pids-limit=9", "--cpu-quota=150000", "--ulimit=fsize=524288:524288"}
    assert held < {*said}
    assert any(word.startswith("--tmpfs=/work:size=1048576,") for word in said)
    assert "--ulimit=nofile=100:100" in said


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, env=(("A", "b\nKEY=c"),)),
        replace(JOB, mounts=(Mount("/srv/a", writable=False, edited=True),), uid=1000),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_made(job: JobSpec) -> None:
    with pytest.raises(SpecError) as caught:
        planned(job)
    assert caught.value.code == "runtime"


def test_no_limit_of_io_is_promised() -> None:
    host = replace(HOST, beside=podman.files, disks=((8, 0),))
    with pytest.raises(SpecError, match="io"):
        oci.plan(replace(JOB, limits=Limits(io=2**20)), uid=1000, host=host, places=PLACES)


def test_it_is_known_by_its_name() -> None:
    made = runtime("/usr/bin/podman", PLACES, Layout("", limits=True))
    assert type(made) is Podman
    assert made.delete("j")[-4:] == ["--force", "--time=0", "--ignore", "j"]
