"""`exeat run -- CMD`: one command in a jail, its output here, its exit code ours."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.errors import NotReachableError, RefusedError, UsageError
from exeat.appliance.limits import TIME, parse_limits
from exeat.ledger.files import write_all
from exeat.policy.errors import ScopeError, UnitError
from exeat.policy.files import SCHEME, Access, FileScope, parse_file_scope
from exeat.policy.units import parse_duration
from exeat.sandbox.forwarder import forwarded
from exeat.sandbox.spec import Profile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from exeat.appliance.config import Config
    from exeat.appliance.template import Template

RECONNECT_S = 30.0
_CODES = {"timeout": 124, "lost": 125}  # the first as timeout(1) says it; others are the job's own
_ENDED = {
    "oom": "it needed more memory than it may have (exeat run --limits memory=..)",
    "timeout": "its time is up (exeat run --limits time=..)",
    "killed": "somebody asked for that",
    "kill": "the kill switch is on (exeat kill)",
    "lease": "it may no longer have a folder that it had (exeat lease ls --all)",
    "lost": "nobody saw how; the ledger may say more (exeat ledger tail)",
}
_CHUNK = 65536


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run a command in a jail that reaches the network only by policy",
        usage="exeat run [options] -- CMD [ARG ...]",
    )
    job_options(parser)
    parser.add_argument("--policy", type=Path, metavar="FILE", help="a policy for this job alone")
    parser.add_argument(
        "--hold", metavar="TIME", help="how long a flow waits for approval (2500ms, at most 55s)"
    )
    parser.add_argument(
        "--as",
        dest="person",
        metavar="NAME",
        help="the person who wants it, who then cannot approve its asks",
    )
    parser.add_argument("--quiet", action="store_true", help="no summary at the end")
    parser.add_argument("--json", action="store_true", help="the summary as JSON, on standard error")
    parser.add_argument("cmd", nargs="+", metavar="CMD", help="the command, after `--`")
    parser.set_defaults(handler=run)


def job_options(parser: argparse.ArgumentParser) -> None:
    """What `request_of` reads, for a job now and for one that waits in the queue."""
    parser.add_argument("--project", metavar="P", help="whose policy holds (default: that of --policy)")
    parser.add_argument("--network", choices=("jail", "none"), default="jail", help="none: only by the proxy")
    parser.add_argument(
        "--template", metavar="NAME", help="profile, limits and policy of `exeat template ls`"
    )
    parser.add_argument("--profile", choices=[*map(str, Profile)], help=f"default: {Profile.STANDARD_NET}")
    parser.add_argument(
        "--rw", type=Path, action="append", default=[], metavar="PATH", help="writable in the job"
    )
    parser.add_argument(
        "--ro", type=Path, action="append", default=[], metavar="PATH", help="readable in the job"
    )
    parser.add_argument(
        "--edit",
        type=Path,
        metavar="PATH",
        help="a folder whose changes wait for `exeat job merge`",
    )
    parser.add_argument(
        "--scope",
        action="append",
        default=[],
        metavar="SCOPE",
        help="a folder by policy or lease: project:///FOLDER[:ro|rw|edit]",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the tree it sees as /, read-only, in place of this machine's",
    )
    parser.add_argument(
        "--image", metavar="NAME", help="the same of an image: its name, its digest, or oci:DIR[:TAG]"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set in the job")
    parser.add_argument(
        "--limits", metavar="NAME=VALUE,..", help="memory=512MiB,pids=64,cpu=1.5,time=10m,work=1GiB,..."
    )


def run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise UsageError("`exeat run` makes a jail and needs root: run it with sudo")
    config = load_config(args)
    who = {"as": args.person} if args.person else {}
    job, code, reason = execute(config, request_of(args, config) | who)
    if args.edit and not args.quiet:
        print(f"exeat: what it changed: exeat job diff {job}", file=sys.stderr)
    if reason in _ENDED:
        print(f"exeat: the job was ended: {_ENDED[reason]}", file=sys.stderr)
    if not args.quiet:
        _print_summary(config, job, as_json=args.json)
    return code


def execute(config: Config, request: dict[str, Any]) -> tuple[str, int, str]:
    """Run a job with our own standard streams; its name, its exit code and why it ended."""
    pipes = _Pipes()
    client = Client(config)
    interrupts = _Interrupts(config)
    try:
        reply = client.call("run", pipes.theirs, **request)
    finally:
        pipes.close_theirs()
    client.close()
    job = str(reply["job"])
    interrupts.started(job)
    if reply["stopped"]:
        print("exeat: this job has no network: the kill switch is on (exeat kill)", file=sys.stderr)
    return job, *_attend(config, job, pipes)


def _template(name: str) -> Template:
    from exeat.appliance.template import load  # with YAML, which most runs can do without

    return load(name)


def request_of(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    roots = config.sandbox.roots
    template = _template(args.template) if args.template else None
    request: dict[str, Any] = {"argv": args.cmd, "profile": args.profile or str(Profile.STANDARD_NET)}
    if template:
        request["argv"], request["profile"] = template.argv(args.cmd), args.profile or str(template.profile)
        if not (args.project or args.policy):
            request["policy"], request["file"] = template.policy, f"template {template.name}"
    if args.network == "none":
        request["network"] = args.network
        if request["profile"] == Profile.STANDARD_NET:
            request["argv"] = forwarded(request["argv"])
    if args.project:
        request["project"] = args.project
    if args.policy:
        request["policy"], request["file"] = _read(args.policy), str(args.policy)
    request["limits"] = _limits(template.limits if template else "") | _limits(args.limits or "")
    request["time_ms"] = request["limits"].pop(TIME, 0)
    if args.hold:
        request["hold_ms"] = _hold(args.hold)
    edits = [args.edit] if args.edit else []
    owned = [*edits, *args.rw]
    mounts = [(path, "edit") for path in edits]
    mounts += [(path, "rw") for path in args.rw] + [(path, "ro") for path in args.ro]
    request["mounts"] = [{"path": _mountable(path, roots), "mode": mode} for path, mode in mounts]
    scopes = [_scope(text, roots) for text in args.scope]
    request["scopes"] = [str(scope) for scope in scopes]
    owned += [Path(scope.path) for scope in scopes if scope.access is not Access.RO]
    image = _image(args.image, config) if args.image else None
    if args.root and image:
        raise UsageError("--root and --image: a job has one tree")
    if args.root or image:
        request["root"] = image["tree"] if image else _tree(args.root, roots)
    request["cwd"] = str(owned[0].resolve()) if owned and owned[0].is_dir() else "/work"
    if args.edit and not args.edit.is_dir():
        raise UsageError(f"--edit {args.edit}: not a folder")
    if owned:
        request["user"] = _owner(owned[0].resolve())
    own = dict(_variable(text) for text in args.env)
    request["env"] = (image["env"] if image else {}) | (template.env if template else {}) | own
    return request


def _image(name: str, config: Config) -> dict[str, Any]:
    from exeat.appliance.images.importing import image_row  # reads archives: not for jobs without an image

    return image_row(config, name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _hold(text: str) -> int:
    try:
        value = parse_duration(text)
    except UnitError as error:
        raise UsageError(f"--hold {text}: {error}") from None
    if value > 55_000:
        raise UsageError(f"--hold {text}: at most 55s")
    return value


def _limits(text: str) -> dict[str, int]:
    try:
        return parse_limits(text)
    except UnitError as error:
        raise UsageError(f"--limits: {error}") from None


def _mountable(path: Path, roots: Sequence[Path]) -> str:
    """The real path; the warden checks it again, but cannot say it as clearly."""
    try:
        real = path.resolve(strict=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if not any(real.is_relative_to(root) for root in roots):
        allowed = ", ".join(map(str, roots))
        raise UsageError(f"{real} lies outside of what jobs may be given ({allowed}): see [sandbox] roots")
    return str(real)


def _scope(text: str, roots: Sequence[Path]) -> FileScope:
    """Of the real path: rules and leases are about that."""
    try:
        scope = parse_file_scope(text)
        real = parse_file_scope(f"{SCHEME}{_mountable(Path(scope.path), roots)}:{scope.access}")
    except ScopeError as error:
        raise UsageError(f"--scope: {error}") from None
    if scope.access is Access.EDIT and not Path(real.path).is_dir():
        raise UsageError(f"--scope {text}: not a folder")
    return real


def _tree(path: Path, roots: Sequence[Path]) -> str:
    real = _mountable(path, roots)
    if not os.path.lexists(f"{real}/bin/sh"):
        raise UsageError(f"{real} has no /bin/sh: this is what starts a command in its tree")
    return real


def _owner(path: Path) -> int:
    uid = path.stat().st_uid
    if uid == 0:
        raise UsageError(
            f"{path} belongs to root and a job never runs as root: chown it to the user it is for"
        )
    return uid


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--env {text}: want NAME=VALUE")
    return name, value


class _Pipes:
    """The job's standard streams: pipes always, so that no socket or terminal of ours goes in."""

    def __init__(self) -> None:
        self.theirs: list[int] = []
        stdin, self.stdin = os.pipe2(os.O_CLOEXEC)
        self.stdout, stdout = os.pipe2(os.O_CLOEXEC)
        self.stderr, stderr = os.pipe2(os.O_CLOEXEC)
        self.theirs = [stdin, stdout, stderr]

    def close_theirs(self) -> None:
        for fd in self.theirs:
            os.close(fd)


def _attend(config: Config, job: str, pipes: _Pipes) -> tuple[int, str]:
    """Pump the streams until the job has ended and its output is drained; exit code and reason."""
    threading.Thread(target=_pump_stdin, args=(pipes.stdin,), daemon=True).start()
    out = threading.Thread(target=_pump_output, args=(pipes,), daemon=True)
    out.start()
    code, reason = _wait(config, job)
    out.join()
    return code, reason


class _Interrupts:
    """ctrl-c, SIGTERM and SIGHUP kill the job, whose end then ends us; a second one ends us at once.

    The handler never raises the first time: there is no place in this program where an exception
    out of nowhere would be sure to reach the one that kills the job.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._job = ""
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_signal)

    def started(self, job: str) -> None:
        self._job = job
        if self._asked:
            self._kill()

    def _on_signal(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._job:
            self._kill()

    def _kill(self) -> None:
        threading.Thread(target=self._call_kill, daemon=True).start()

    def _call_kill(self) -> None:
        with contextlib.suppress(NotReachableError, RefusedError):
            Client(self._config).call("job.kill", job=self._job)


def _wait(config: Config, job: str) -> tuple[int, str]:
    """Exit code and reason. Control may be restarted meanwhile: the job is then adopted by the new one."""
    give_up = 0.0
    while True:
        try:
            reply = Client(config).call("job.wait", job=job)
            reason = str(reply["reason"])
            return _CODES.get(reason, int(reply["code"])), reason
        except RefusedError as error:
            if error.code != "job.unknown":
                raise
            return _CODES["lost"], "lost"  # it ended, and control was restarted before we heard how
        except NotReachableError:
            now = time.monotonic()
            give_up = give_up or now + RECONNECT_S
            if now > give_up:
                raise
            time.sleep(0.1)


def _pump_stdin(into: int) -> None:
    source = sys.stdin.fileno() if sys.stdin is not None else -1
    try:
        while source >= 0 and (data := os.read(source, _CHUNK)):
            write_all(into, data)
    except OSError:
        pass  # the job closed its input
    os.close(into)


def _pump_output(pipes: _Pipes) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipes.stdout, selectors.EVENT_READ, 1)
        selector.register(pipes.stderr, selectors.EVENT_READ, 2)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    continue
                with contextlib.suppress(BrokenPipeError):
                    write_all(key.data, data)


def _print_summary(config: Config, job: str, *, as_json: bool) -> None:
    from exeat.appliance import summary  # reads the ledger: not before the job runs, not where it is quiet

    lines = summary.of_job(config.state_dir / "ledger", job)
    sys.stdout.flush()
    print(summary.as_json(job, lines) if as_json else summary.as_text(lines), file=sys.stderr)
