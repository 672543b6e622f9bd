"""The pure builders: OCI configuration, system call profiles, environment, cgroup layout, commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exeat.sandbox import cgroup, oci, seccomp
from exeat.sandbox.env import job_environment
from exeat.sandbox.launcher import Crun, Places, Runc, runtime
from exeat.sandbox.limits import Limits
from exeat.sandbox.names import SpecError, parse_name
from exeat.sandbox.spec import JobSpec, Mount, Profile

HOST = oci.Host("x86_64", (("bin", "usr/bin"),), ("/etc/ssl/certs",), cgroups=True, max_open_files=512)
PLACES = Places(Path("/run/exeat/warden"), Path("/var/lib/exeat/work"))
JOB = JobSpec(
    job=parse_name("job-1"),
    argv=("echo", "a b", "$(reboot)"),
    env=(("PATH", "/usr/bin"),),
    mounts=(Mount("/srv/in", writable=False), Mount("/srv/out", writable=True)),
    cwd="/work",
    profile=Profile.STANDARD,
    uid=1000,
)


def build(host: oci.Host = HOST) -> dict[str, Any]:
    plan = oci.plan(JOB, uid=1000, host=host, places=PLACES)
    config: dict[str, Any] = json.loads(plan.config)
    return config


def test_the_process_has_no_power() -> None:
    process = build()["process"]
    assert process["noNewPrivileges"] is True
    assert process["terminal"] is False
    assert all(held == [] for held in process["capabilities"].values())
    assert set(process["capabilities"]) == {"bounding", "effective", "inheritable", "permitted", "ambient"}
    assert (process["user"]["uid"], process["user"]["gid"]) == (1000, 1000)
    assert "additionalGids" not in process["user"]
    assert process["rlimits"][0]["hard"] == 512  # our own hard limit, not raised


def test_arguments_are_passed_and_never_part_of_the_shell_text() -> None:
    args = build()["process"]["args"]
    assert args[-3:] == ["echo", "a b", "$(reboot)"]
    assert args[:2] == ["/bin/sh", "-c"]
    assert "reboot" not in args[2]


def test_namespaces_and_root() -> None:
    config = build()
    kinds = {entry["type"]: entry.get("path") for entry in config["linux"]["namespaces"]}
    assert set(kinds) == {"pid", "mount", "ipc", "uts", "cgroup", "network"}
    assert kinds["network"] == "/run/exeat/warden/netns/job-1"
    assert config["root"] == {"path": "rootfs", "readonly": True}
    assert config["hostname"] == "job-1"


def test_mounts() -> None:
    mounts = {mount["destination"]: mount for mount in build()["mounts"]}
    for target, mount in mounts.items():
        assert "nosuid" in mount["options"], target
        if mount["type"] == "bind":
            assert "nodev" in mount["options"], target
            writable = target in ("/work", "/srv/out")
            assert ("rw" in mount["options"], "ro" in mount["options"]) == (writable, not writable), target
    assert mounts["/run/exeat"]["source"] == "/run/exeat/warden/jails/job-1"
    assert mounts["/srv/in"]["source"] == "/run/exeat/warden/mounts/job-1.0"  # the checked one, not the name
    assert "/sys" not in mounts


def test_limits_only_where_they_hold() -> None:
    assert build()["linux"]["resources"]["pids"]["limit"] == Limits().pids
    assert build(replace(HOST, cgroups=False))["linux"]["resources"] == {}


def test_two_appliances_do_not_share_a_cgroup() -> None:
    other = replace(PLACES, run=Path("/run/other/warden"))
    plans = [oci.plan(JOB, uid=1000, host=HOST, places=places) for places in (PLACES, other)]
    paths = {json.loads(plan.config)["linux"]["cgroupsPath"] for plan in plans}
    assert len(paths) == 2


def test_the_tree_names_the_job_and_the_guard() -> None:
    files = dict(oci.skeleton(JOB, 1000, HOST).files)
    assert files["etc/resolv.conf"].splitlines()[0] == "nameserver 127.0.0.1"
    assert "::1 localhost" in files["etc/hosts"]
    assert "job:x:1000:1000:" in files["etc/passwd"]


def test_a_tree_of_its_own_has_nothing_of_the_hosts() -> None:
    job = replace(JOB, root="/srv/tree", mounts=())
    plan = oci.plan(job, uid=1000, host=HOST, places=PLACES)
    config = json.loads(plan.config)
    bound = {mount["destination"] for mount in config["mounts"] if mount["type"] == "bind"}
    assert bound == {"/run/exeat", "/work"}
    assert plan.links == ()
    assert config["root"] == {"path": "/run/exeat/warden/mounts/job-1.tree", "readonly": True}
    # What is mounted is the checked place and not the name; what the job gets over it is our own folder.
    assert plan.staged == ((Mount("/srv/tree", writable=False), PLACES.staged("job-1", "lower")),)
    assert plan.overlay is not None
    assert plan.overlay[0] == PLACES.staged("job-1", "tree")
    assert dict(each.split("=") for each in plan.overlay[1].split(",")) == {
        "redirect_dir": "nofollow",
        "metacopy": "off",
        "lowerdir": "/run/exeat/warden/mounts/job-1.lower",
        "upperdir": "/run/exeat/warden/jobs/job-1/rootfs",
        "workdir": "/run/exeat/warden/jobs/job-1/scratch",
    }
    with pytest.raises(SpecError, match="no cgroup keeps jobs from devices"):
        oci.plan(job, uid=1000, host=replace(HOST, cgroups=False), places=PLACES)


def rules(kind: Profile, name: str) -> list[dict[str, Any]]:
    return [rule for rule in seccomp.profile(kind, "x86_64")["syscalls"] if name in rule["names"]]


def verdict(kind: Profile, name: str, *args: int) -> str:
    """What the filter answers, by a direct reading of the rules (libseccomp is judged in the jail tests)."""
    for rule in rules(kind, name):
        if all(_holds(condition, args[condition["index"]]) for condition in rule.get("args", [])):
            return "allow" if rule["action"] == "SCMP_ACT_ALLOW" else str(rule["errnoRet"])
    return "38"


def _holds(condition: dict[str, Any], value: int) -> bool:
    if condition["op"] == "SCMP_CMP_EQ":
        return bool(value == condition["value"])
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    return bool(value & condition["value"] == condition["valueTwo"])


SOCKETS = [
    # family, type, protocol, allowed under standard-net
    (1, 1, 0, True),
    (2, 1, 0, True),
    (2, 1, 6, True),
    (2, 2, 17, True),
    (10, 1 | 0o2000000, 6, True),
    (10, 2 | 0o4000, 0, True),
    (16, 3, 0, True),
    (2, 3, 1, False),  # raw ICMP
    (2, 2, 1, False),  # ping socket
    (10, 2, 58, False),
    (2, 1, 262, False),  # MPTCP
    (2, 1, 132, False),  # SCTP
    (2, 5, 132, False),
    (16, 3, 12, False),  # netfilter
    (16, 3, 15, False),  # kobject uevent
    (17, 3, 768, False),  # AF_PACKET
    (38, 5, 0, False),  # AF_ALG
    (40, 1, 0, False),  # AF_VSOCK
    (44, 3, 0, False),  # AF_XDP
    (15, 3, 2, False),  # AF_KEY
    (30, 2, 0, False),  # AF_TIPC
    (29, 3, 1, False),  # AF_CAN
    (21, 5, 0, False),  # AF_RDS
    (31, 3, 1, False),  # AF_BLUETOOTH
]


@pytest.mark.parametrize(("family", "kind", "protocol", "allowed"), SOCKETS)
def test_which_sockets_may_be_made(family: int, kind: int, protocol: int, allowed: bool) -> None:
    assert (verdict(Profile.STANDARD_NET, "socket", family, kind, protocol) == "allow") is allowed
    for narrow in (Profile.STRICT, Profile.STANDARD):
        assert (verdict(narrow, "socket", family, kind, protocol) == "allow") is (family == 1)


@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x1_0000_5412, 0xFFFF_FFFF_0000_541C])
def test_no_typing_into_a_terminal(request_number: int) -> None:
    assert verdict(Profile.STANDARD_NET, "ioctl", 0, request_number, 0) == "38"


@pytest.mark.parametrize(
    "request_number", [0x5401, 0x5410, 0x5411, 0x5413, 0x5414, 0x541A, 0x541B, 0x541D, 0x541E, 0]
)
def test_other_ioctls_pass(request_number: int) -> None:
    assert verdict(Profile.STANDARD_NET, "ioctl", 0, request_number, 0) == "allow"


def test_new_namespaces_are_refused_and_threads_are_not() -> None:
    assert verdict(Profile.STRICT, "clone", 0x3D0F00) == "allow"
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(Profile.STANDARD_NET, "clone", 0x11 | flag) == "38"
    assert verdict(Profile.STANDARD_NET, "clone3") == "38"
    for name in ("unshare", "setns", "mount", "ptrace", "bpf", "keyctl", "io_uring_setup", "userfaultfd"):
        assert verdict(Profile.STANDARD_NET, name) == "1"


@pytest.mark.parametrize("kind", list(Profile))
def test_profiles_are_allow_lists_for_one_architecture(kind: Profile) -> None:
    profile = seccomp.profile(kind, "x86_64")
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]
    allowed = {
        name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    refused = {
        name for rule in profile["syscalls"] if rule["action"] != "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    assert not allowed & refused
    assert {"capset", "seccomp", "prctl", "landlock_restrict_self", "execve"} <= allowed
    assert "socketcall" not in allowed


def test_profiles_widen_in_order() -> None:
    strict, standard, net = (
        {name for rule in seccomp.profile(kind, "x86_64")["syscalls"] for name in rule["names"]}
        for kind in Profile
    )
    assert strict < standard
    assert standard == net  # only the arguments of socket differ


def test_an_unknown_machine_has_no_profile() -> None:
    with pytest.raises(KeyError):
        seccomp.profile(Profile.STRICT, "riscv64")


def test_environment() -> None:
    env = job_environment(
        job="j", project="p", extra={"FOO": "1", "ALL_PROXY": "socks5h://x", "https_proxy": "http://x"}
    )
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        assert env[name] == "http://127.0.0.1:3128"
    assert env["FOO"] == "1"
    assert env["NODE_USE_ENV_PROXY"] == "1"
    assert not {name for name in env if name.upper() == "ALL_PROXY"}
    assert "socks" not in " ".join(env.values())
    assert env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1,::1"
    assert job_environment(job="j", extra={"PIP_RETRIES": "9"})["PIP_RETRIES"] == "9"


HYBRID = """\
35 25 0:30 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
36 35 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 35 0:32 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
38 35 0:33 / /sys/fs/cgroup/devices rw,relatime shared:5 - cgroup cgroup rw,devices
39 35 0:34 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "35 25 0:30 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "controllers", "mask", "limits", "io"),
    [
        (HYBRID, "", cgroup.UNIFIED, True, False),
        (HYBRID.replace("devices", "blkio") + HYBRID, "", cgroup.UNIFIED, True, True),
        ("\n".join(HYBRID.splitlines()[:-1]), "", "", True, False),
        (HYBRID.replace("/pids rw", "/pids ro"), "", cgroup.UNIFIED, False, False),
        (UNIFIED, "cpu io memory pids\n", "", True, True),
        (UNIFIED, "memory pids\n", "", True, False),
        (UNIFIED, "cpu\n", "", False, False),
        (UNIFIED.replace("rw,relatime -", "ro,relatime -"), "io memory pids", "", False, False),
        ("", "", "", False, False),
        ("garbage\n\n - \n", "", "", False, False),
    ],
)
def test_cgroup_layout(mountinfo: str, controllers: str, mask: str, limits: bool, io: bool) -> None:
    found = cgroup.layout(mountinfo, controllers)
    assert found == cgroup.Layout(mask, limits, io)
    assert found.held(((8, 0),)) == (((8, 0),) if io else ())


def test_commands_are_fixed_text_with_arguments() -> None:
    first = Crun("crun", PLACES, "/sys/fs/cgroup/unified", limits=True).run("a", "{}")
    second = Crun("/opt/x y/crun", PLACES, "", limits=False).run("b", "{}")
    assert first[:4] == second[:4] == ["unshare", "-m", "/bin/sh", "-c"]
    assert first[4] == second[4]
    assert "--cgroup-manager=disabled" in second
    assert "--cgroup-manager=disabled" not in first
    assert Crun("crun", PLACES, "", limits=True).delete("a")[-3:] == ["delete", "--force", "a"]


def test_the_limits_of_a_job_are_in_its_configuration() -> None:
    limits = Limits(memory=2**26, pids=9, cpu=1500, tmp=2**16, work=2**20, file=2**19, files=100)
    plan = oci.plan(replace(JOB, limits=limits), uid=1000, host=HOST, places=PLACES)
    config = json.loads(plan.config)
    resources = config["linux"]["resources"]
    assert (resources["memory"]["limit"], resources["pids"]["limit"]) == (2**26, 9)
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert "blockIO" not in config["linux"]["resources"]
    rlimits = {row["type"]: row["hard"] for row in config["process"]["rlimits"]}
    assert rlimits == {"RLIMIT_NOFILE": 100, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 2**19}
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    assert len(mounts) == len(config["mounts"])
    assert (mounts["/work"]["type"], "size=1048576" in mounts["/work"]["options"]) == ("tmpfs", True)
    assert {"uid=1000", "gid=1000", "mode=0700"} <= set(mounts["/work"]["options"])
    assert "size=65536" in mounts["/tmp"]["options"]


def test_reading_and_writing_of_each_disk_is_limited() -> None:
    job = replace(JOB, limits=Limits(io=2**20))
    plan = oci.plan(job, uid=1000, host=replace(HOST, disks=((8, 0), (259, 3))), places=PLACES)
    rates = [{"major": 8, "minor": 0, "rate": 2**20}, {"major": 259, "minor": 3, "rate": 2**20}]
    resources = json.loads(plan.config)["linux"]["resources"]
    assert resources["blockIO"] == {"throttleReadBpsDevice": rates, "throttleWriteBpsDevice": rates}
    with pytest.raises(SpecError) as caught:
        oci.plan(job, uid=1000, host=HOST, places=PLACES)
    assert caught.value.code == "limits"


def test_a_job_that_needs_what_does_not_hold_here_is_refused() -> None:
    without = replace(HOST, cgroups=False)
    oci.plan(JOB, uid=1000, host=without, places=PLACES)
    with pytest.raises(SpecError) as caught:
        oci.plan(replace(JOB, needs_cgroup=True), uid=1000, host=without, places=PLACES)
    assert caught.value.code == "limits"


@pytest.mark.parametrize(
    ("binary", "kind", "disabled"),
    [
        ("crun", Crun, True),
        ("/opt/crun-1.20", Crun, True),
        ("runc", Runc, False),
        ("/x/crun/youki", Runc, False),
    ],
)
def test_a_runtime_is_known_by_its_name(binary: str, kind: type, disabled: bool) -> None:
    made = runtime(binary, PLACES, cgroup.Layout("", limits=False))
    assert type(made) is kind
    assert ("--cgroup-manager=disabled" in made.run("a", "{}")) is disabled


def test_an_edited_folder_is_a_layer_over_the_checked_one() -> None:
    job = replace(JOB, mounts=(Mount("/srv/a,b:c", writable=False, edited=True),))
    plan = oci.plan(job, uid=1000, host=HOST, places=PLACES, kept=oci.MAX_EDITS - 1)
    (mount,) = (mount for mount in json.loads(plan.config)["mounts"] if mount["type"] == "overlay")
    assert mount["destination"] == "/srv/a,b:c"
    assert {
        "lowerdir=/run/exeat/warden/mounts/job-1.0",
        "upperdir=/var/lib/exeat/edits/job-1/upper",
        "workdir=/var/lib/exeat/edits/job-1/work",
        *("nosuid", "nodev", "redirect_dir=off", "metacopy=off"),
    } <= set(mount["options"])
    edit = PLACES.edit("job-1")
    assert edit / "upper" in plan.own
    assert edit not in plan.own  # nor what says which folder it is
    assert json.loads(dict(plan.files)[edit / "edit.json"]) == {"folder": "/srv/a,b:c", "uid": 1000}
    with pytest.raises(SpecError) as caught:
        oci.plan(job, uid=1000, host=HOST, places=PLACES, kept=oci.MAX_EDITS)
    assert caught.value.code == "edits.full"
    oci.plan(JOB, uid=1000, host=HOST, places=PLACES, kept=oci.MAX_EDITS)  # which edits nothing
