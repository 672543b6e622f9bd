"""`./dev package`: a wheel, a Debian package, what is in them (CycloneDX), digests and a signature.

What is packed is what was tested: the tracked files of this checkout, and of each dependency the version in
the virtual environment of the checkout. Times are those of the last commit (SOURCE_DATE_EPOCH), so that two
builds on one machine are the same, byte by byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import sbom

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = ROOT / "packaging/debian"
PYTHON = "/usr/bin/python3"  # of the machine it will run on, too: see `Depends` in control.in
EXTRAS = "archive,passkey,secrets"  # what a unit or a command on a server needs; the others are large
KEPT = {"exeat", "python", "python3", f"python3.{sys.version_info.minor}"}
SCRIPTS = ("postinst", "prerm", "postrm")
UNITS = "usr/lib/systemd/system"


class PackageError(Exception):
    """One line about what is in the way."""


def run(*command: object, **environment: str) -> str:
    """Its output. Raises PackageError with the last that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PackageError(f"{command[0]}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def git(*words: str) -> str:
    """Of this checkout, whoever owns it: we are asked by root, and run nothing that it says."""
    return run("git", "-c", f"safe.directory={ROOT}", "-C", ROOT, *words)


def epoch() -> str:
    """Seconds: what SOURCE_DATE_EPOCH says, or the time of the last commit."""
    return os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct").strip()


def copy_of_checkout(target: Path) -> None:
    """Tracked files, and what the console loads in the browser: nothing else that lies around."""
    tracked = git("ls-files", "-z").split("\0")
    vendor = ROOT / "appliance/console/static/vendor"
    fetched = [str(path.relative_to(ROOT)) for path in vendor.iterdir()]
    for name in (*filter(None, tracked), *fetched):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path, follow_symlinks=False)


def make_wheel(work: Path, out: Path, when: str) -> Path:
    """Built from a copy, so that no stale file of an earlier build gets in."""
    source = work / "source"
    copy_of_checkout(source)
    flags = f"-ffile-prefix-map={source}=. -g0"
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    run(*pip, SOURCE_DATE_EPOCH=when, CFLAGS=flags)
    (wheel,) = out.glob("exeat-*.whl")
    return wheel


def make_environment(wheel: Path, work: Path, stage: Path) -> Path:
    """/opt/exeat below `stage`: a virtual environment of the distribution's Python. Returns its program."""
    place = stage / "opt/exeat"
    run(PYTHON, "-m", "venv", "--without-pip", place)
    tested = work / "tested.txt"
    tested.write_text(run(sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "exeat"))
    pip = (sys.executable, "-m", "pip", f"--python={place}/bin/python", "install", "--quiet", "--no-compile")
    run(*pip, "--constraint", tested, f"exeat[{EXTRAS}] @ {wheel.as_uri()}")
    _forget_where(place, stage)
    return place / "bin/python"


def _forget_where(place: Path, stage: Path) -> None:
    """Take out what tells of the folder it was made in."""
    for path in (place / "bin").iterdir():
        if path.name not in KEPT:
            path.unlink()
    program = place / "bin/exeat"
    program.write_text(program.read_text().replace(str(stage), ""))
    settings = place / "pyvenv.cfg"
    lines = (line for line in settings.read_text().splitlines() if not line.startswith("command"))
    settings.write_text("\n".join(lines) + "\n")
    for record in place.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        # The digests of scripts are those of scripts that named the folder; dpkg has digests of its own.
        lines = (line for line in record.read_text().splitlines() if not line.startswith("../../../bin/"))
        record.write_text("".join(f"{line}\n" for line in lines if "direct_url.json" not in line))
        record.with_name("direct_url.json").unlink(missing_ok=True)


def lay_out(stage: Path, version: str, document: bytes) -> None:
    """Units, users, folders, configuration and documents, each where Debian has it."""
    systemd = ROOT / "systemd"
    units = [path for path in systemd.iterdir() if path.is_file()]
    for path in units:
        _put(stage / UNITS / path.name, path.read_bytes())
    for kind in ("sysusers.d", "tmpfiles.d"):
        _put(stage / "usr/lib" / kind / "exeat.conf", (systemd / kind / "exeat.conf").read_bytes())
    _put(stage / "etc/exeat/exeat.toml", (DEBIAN / "exeat.toml").read_bytes())
    (stage / "etc/exeat/policies").mkdir()
    (stage / "var/lib/exeat").mkdir(parents=True)
    (stage / "usr/bin").mkdir(parents=True)
    (stage / "usr/bin/exeat").symlink_to("../../opt/exeat/bin/exeat")
    doc = stage / "usr/share/doc/exeat"
    for path in (ROOT / "docs").glob("*.md"):
        _put(doc / path.name, path.read_bytes())
    _put(doc / "README.md", (ROOT / "README.md").read_bytes())
    _put(doc / "copyright", (DEBIAN / "copyright").read_bytes())
    _put(doc / "exeat.cdx.json", document)
    log = gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0)
    _put(doc / "changelog.gz", log)
    _control(stage, version)


def _control(stage: Path, version: str) -> None:
    minor = sys.version_info.minor
    size = sum(path.lstat().st_size for path in stage.rglob("*") if path.is_file()) // 1024
    facts = {
        "@VERSION@": version,
        "@ARCHITECTURE@": architecture(),
        "@SIZE@": str(size),
        "@PYTHON@": f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})",
    }
    text = (DEBIAN / "control.in").read_text()
    for name, value in facts.items():
        text = text.replace(name, value)
    _put(stage / "DEBIAN/control", text.encode())
    _put(stage / "DEBIAN/conffiles", b"/etc/exeat/exeat.toml\n")
    for name in SCRIPTS:
        _put(stage / "DEBIAN" / name, (DEBIAN / name).read_bytes(), 0o755)
    sums = b""
    for path in sorted(stage.rglob("*")):
        name = path.relative_to(stage).as_posix()
        if path.is_file() and not path.is_symlink() and not name.startswith("DEBIAN/"):
            sums += f"{hashlib.md5(path.read_bytes()).hexdigest()}  {name}\n".encode()  # noqa: S324 - dpkg's own
    _put(stage / "DEBIAN/md5sums", sums)


def _put(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def architecture() -> str:
    """What dpkg calls this machine."""
    return run("dpkg", "--print-architecture").strip()


def make_deb(stage: Path, out: Path, version: str, when: str) -> Path:
    """Compile, set all times, and pack; all files are root's."""
    compiler = (
        PYTHON,
        "-m",
        "compileall",
        "-q",
        "-s",
        stage,
        "-p",
        "/",
        "--invalidation-mode=unchecked-hash",
    )
    run(*compiler, stage / "opt/exeat/lib", PYTHONHASHSEED="0")
    for path in stage.rglob("*"):
        os.utime(path, (int(when), int(when)), follow_symlinks=False)
    deb = out / f"exeat_{version}_{architecture()}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z5", "--build", stage, deb, SOURCE_DATE_EPOCH=when)
    return deb


def load_key(key_file: Path) -> Ed25519PrivateKey:
    """Raises PackageError for a key that others can read, or another kind of key."""
    if key_file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PackageError(f"{key_file}: others can read it: chmod 600")
    cure = f"openssl genpkey -algorithm ed25519 -out {key_file}"
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (ValueError, TypeError):
        raise PackageError(f"{key_file}: no private key in PEM without a password: {cure}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageError(f"{key_file}: not an Ed25519 key: {cure}")
    return key


def build(out: Path, key: Ed25519PrivateKey | None) -> list[Path]:
    """Everything into the empty folder `out`. Returns the files."""
    os.umask(0o022)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise PackageError(f"{out}: is not empty: what lies there would be signed, too")
    when = epoch()
    with tempfile.TemporaryDirectory(prefix="exeat-package-") as folder:
        work, stage = Path(folder), Path(folder) / "stage"
        stage.mkdir(mode=0o755)
        wheel = make_wheel(work, out, when)
        version = wheel.name.split("-")[1]
        python = make_environment(wheel, work, stage)
        document = sbom.of_environment(python, work / "sbom.json")
        lay_out(stage, version, sbom.about(document, wheel))
        deb = make_deb(stage, out, version, when)
    for file in (wheel, deb):
        (out / f"{file.name}.cdx.json").write_bytes(sbom.about(document, file))
    files = sorted(out.iterdir())
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    sums = out / "SHA256SUMS"
    sums.write_text("".join(lines))
    if key is not None:
        # 64 bytes (RFC 8032, section 5.1.6), as `openssl pkeyutl` checks them.
        sums.with_name(f"{sums.name}.sig").write_bytes(key.sign(sums.read_bytes()))
    return sorted(out.iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev package", description="build what is released")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="an empty folder (default: dist)")
    parser.add_argument("--key", type=Path, help="Ed25519 private key, PEM: sign the digests")
    args = parser.parse_args()
    try:
        made = build(args.out, load_key(args.key) if args.key else None)
    except (PackageError, OSError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    if args.key is None:
        print("package: not signed: give --key", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
