"""What `./dev package` makes: it installs, runs and goes again without a trace, and can be checked.

Installed by dpkg on this very machine, under an overlay that takes every write: what is in the overlay's
upper folder afterwards is all that the package left behind.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).resolve().parents[1]
TOOL = REPO / "tools/package.py"
# $1 is a folder, $2 the package. What each step says goes to a file of its name, its exit code to NAME.code.
ON_THIS_MACHINE = r"""
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/said"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
for folder in run tmp; do mount -t tmpfs none "$1/root/$folder"; done
cp "$2" "$1/root/tmp/exeat.deb"
step() {
  local name=$1 code=0
  shift
  chroot "$SCRATCH/root" "$@" >"$SCRATCH/said/$name" 2>&1 </dev/null || code=$?
  echo $code >"$SCRATCH/said/$name.code"
}
SCRATCH=$1
for user in exeat exeat-ledger exeat-control exeat-export exeat-console; do
  step user userdel "$user"
done
step install dpkg --install /tmp/exeat.deb
step version exeat version
step verify dpkg --verify exeat
step bare exeat doctor
step server sed -i 's/^# upstream/upstream/' /etc/exeat/exeat.toml
step doctor exeat doctor
step config exeat config check
step users getent passwd exeat exeat-ledger exeat-control exeat-export exeat-console
step enabled find /etc/systemd -name 'exeat*'
step write sh -c 'echo "# ours" >>/etc/exeat/exeat.toml; mkdir /var/lib/exeat/ledger'
step again dpkg --install /tmp/exeat.deb
step kept grep -x '# ours' /etc/exeat/exeat.toml
step remove dpkg --remove exeat
step evidence ls -d /var/lib/exeat/ledger /etc/exeat/exeat.toml
step purge dpkg --purge exeat
step nobody sh -c 'getent passwd | grep ^exeat'
(cd "$1/upper" && find . ! -type d) >"$1/said/left"
cp -r "$1/said" "$3"
"""
# What any installation leaves: dpkg's own books, and those of users.
BOOKS = re.compile(
    r"\./(var/lib/dpkg/.*|var/log/dpkg\.log|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?|etc/\.pwd\.lock)"
)

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.network]  # pip fetches what is packed


class Released(NamedTuple):
    folder: Path
    public: Path
    wheel: Path
    deb: Path
    unpacked: Path


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_key(path: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> Path:
    plain = serialization.NoEncryption()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    work = tmp_path_factory.mktemp("package")
    key = ed25519.Ed25519PrivateKey.generate()
    public = work / "exeat.pub"
    how = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(*how))
    folder = work / "dist"
    done = tool("--out", folder, "--key", write_key(work / "key.pem", key))
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (deb,) = folder.glob("*.whl"), folder.glob("*.deb")
    unpacked = work / "unpacked"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, unpacked], check=True)
    return Released(folder, public, wheel, deb, unpacked)


@pytest.fixture(scope="module")
def said(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each step of ON_THIS_MACHINE said; NAME.code is its exit code."""
    work = tmp_path_factory.mktemp("machine")
    (work / "scratch").mkdir()
    arguments = [str(work / "scratch"), str(released.deb), str(work / "said")]
    command = ["unshare", "--mount", "bash", "-euc", ON_THIS_MACHINE, "machine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield {path.name: path.read_text().strip() for path in (work / "said").iterdir()}
    shutil.rmtree(work)


def test_it_installs_and_is_fit_to_run(said: dict[str, str]) -> None:
    assert said["install.code"] == "0", said["install"]
    assert re.fullmatch(r"exeat \d+\.\d+\.\d+\S*", said["version"])
    assert said["bare.code"] == "1"  # there is one thing that we cannot know
    assert re.findall(r"^fail +(\w+)", said["bare"], re.MULTILINE) == ["resolver"]
    assert (said["doctor.code"], said["config.code"]) == ("0", "0"), said["doctor"] + said["config"]
    assert "relay         compiled" in said["doctor"]
    assert len(said["users"].splitlines()) == 5
    assert (said["verify"], said["verify.code"]) == ("", "0")


def test_nothing_is_started_unasked(said: dict[str, str]) -> None:
    assert said["enabled"] == ""
    assert "nothing was started" in said["install"]


def test_an_upgrade_keeps_what_was_written(said: dict[str, str]) -> None:
    assert (said["again.code"], said["kept.code"]) == ("0", "0"), said["again"]


def test_removing_keeps_evidence_and_purging_nothing(said: dict[str, str]) -> None:
    assert (said["remove.code"], said["evidence.code"]) == ("0", "0"), said["remove"]
    assert said["purge.code"] == "0", said["purge"]
    assert said["nobody"] == ""
    left = said["left"].splitlines()
    assert [path for path in left if not BOOKS.fullmatch(path)] == []
    assert "./var/lib/dpkg/status" in left  # the overlay did take the writes


def test_the_digests_are_of_all_that_is_there(released: Released) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=released.folder, check=True)
    listed = {line.split()[1] for line in (released.folder / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS", "SHA256SUMS.sig"} == {path.name for path in released.folder.iterdir()}


def test_openssl_checks_the_signature(released: Released, tmp_path: Path) -> None:
    signature, sums = released.folder / "SHA256SUMS.sig", released.folder / "SHA256SUMS"
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", released.public, "-rawin"]
    command += ["-sigfile", signature, "-in"]
    assert subprocess.run([*command, sums], capture_output=True, check=False).returncode == 0
    other = tmp_path / "SHA256SUMS"
    other.write_bytes(sums.read_bytes().replace(b"a", b"b", 1))
    assert subprocess.run([*command, other], capture_output=True, check=False).returncode == 1


def document(file: Path) -> dict[str, Any]:
    text = file.with_name(f"{file.name}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("kind", ["wheel", "deb"])
def test_the_document_says_what_is_in_it(released: Released, kind: str) -> None:
    file = released.wheel if kind == "wheel" else released.deb
    whole = document(file)
    root = whole["metadata"]["component"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (root["name"], root["hashes"]) == ("exeat", [{"alg": "SHA-256", "content": digest}])
    said = {(each["name"].lower().replace("_", "-"), each["version"]) for each in whole["components"]}
    packed = released.unpacked.glob("opt/exeat/lib/python3*/site-packages/*.dist-info")
    names = (path.name.removesuffix(".dist-info").lower().replace("_", "-") for path in packed)
    there = {(name, version) for name, _, version in (text.rpartition("-") for text in names)}
    assert len(there) > 20
    assert {pair for pair in there if pair[0] != "exeat"} <= said
    npm = {
        each["purl"].rpartition("@")[0]
        for each in whole["components"]
        if each.get("purl", "").startswith("pkg:npm/")
    }
    assert {"pkg:npm/preact", "pkg:npm/htm"} <= npm
    assert "pkg:npm/axe-core" not in npm  # of the tests


def test_the_packed_program_knows_nothing_of_where_it_was_made(released: Released) -> None:
    place = released.unpacked / "opt/exeat"
    assert (place / "bin/exeat").read_text().startswith("#!/opt/exeat/bin/python")
    assert {path.name for path in (place / "bin").iterdir()} >= {"exeat", "python3"}
    assert not any("pip" in path.name for path in (place / "bin").iterdir())
    found = subprocess.run(
        ["grep", "-rl", "exeat-package-", released.unpacked], capture_output=True, check=False
    )
    assert (found.stdout, found.returncode) == (b"", 1)


def test_all_files_are_roots(released: Released) -> None:
    listing = subprocess.run(
        ["dpkg-deb", "--contents", released.deb], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode.startswith("l") or (mode[5] == "-" and mode[8] == "-" and "s" not in mode), line


def test_a_key_that_will_not_do_is_refused_first(tmp_path: Path) -> None:
    elliptic = write_key(tmp_path / "elliptic.pem", ec.generate_private_key(ec.SECP256R1()))
    open_to_all = write_key(tmp_path / "open.pem", ed25519.Ed25519PrivateKey.generate())
    open_to_all.chmod(0o644)
    words = tmp_path / "words.pem"
    words.touch(mode=0o600)
    for key, why in ((elliptic, "not an Ed25519 key"), (open_to_all, "others can read it"), (words, "PEM")):
        done = tool("--out", tmp_path / "dist", "--key", key)
        assert done.returncode == 1
        assert why in done.stderr
    assert not (tmp_path / "dist").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.deb").touch()
    done = tool("--out", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [tmp_path / "old.deb"])
    assert "is not empty" in done.stderr
