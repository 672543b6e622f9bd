"""`exeat identity add|ls|rm`: the names and passwords in `[proxy] credentials`."""

from __future__ import annotations

import os
import pwd
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, RefusedError, UsageError
from exeat.proxy import credentials

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config

_MODE = 0o640
_PASSWORD_BYTES = 24


def register(commands: Any) -> None:
    parser = commands.add_parser("identity", help="names and passwords for clients outside jails")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, words, handler in (
        ("add", "make a password for NAME and print it, this once", _add),
        ("rm", "forget NAME: its password opens nothing from its next connection on", _remove),
    ):
        action = verbs.add_parser(verb, help=words)
        action.add_argument("name", metavar="NAME", help='as in `source = "user:NAME"` of an [[identity]]')
        action.set_defaults(handler=handler)
    verbs.add_parser("ls", help="the names").set_defaults(handler=_list)


def _file(config: Config) -> Path:
    if config.proxy.credentials is None:
        raise UsageError("set [proxy] credentials to the file they are to be kept in")
    return config.proxy.credentials


def _entries(path: Path) -> list[str]:
    """The lines of the file, none if there is no file yet."""
    try:
        credentials.read(path)
        return path.read_text(encoding="ascii").splitlines()
    except credentials.CredentialError as error:
        if not path.exists():
            return []
        raise UsageError(str(error)) from None


def _add(args: argparse.Namespace) -> int:
    config = load_config(args)
    path = _file(config)
    if not credentials.NAME.fullmatch(args.name):
        raise UsageError(f"`{args.name}` is not a name: letters, digits, `.`, `_` and `-`, at most 63")
    lines = _entries(path)
    if any(row.startswith(f"{args.name} ") for row in lines):
        raise RefusedError("identity.exists", f"{args.name} is there already: rm it first")
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    salt = secrets.token_bytes(credentials.SALT_BYTES)
    _write(config, path, [*lines, credentials.line(args.name, password.encode(), salt)])
    print(f"{args.name}:{password}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    config = load_config(args)
    path = _file(config)
    lines = _entries(path)
    kept = [row for row in lines if not row.startswith(f"{args.name} ")]
    if kept == lines:
        raise RefusedError("identity.unknown", f"{args.name} is not there")
    _write(config, path, kept)
    return 0


def _list(args: argparse.Namespace) -> int:
    rows = _entries(_file(load_config(args)))
    for row in rows:
        if row and not row.startswith("#"):
            print(row.partition(" ")[0])
    return 0


def _write(config: Config, path: Path, lines: list[str]) -> None:
    """Replace the file at once; root's, readable by the gateway."""
    name = ""
    try:
        group = pwd.getpwnam(config.users.gateway).pw_gid
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write("".join(f"{row}\n" for row in lines))
            file.flush()
            os.fchown(fd, 0, group)
            os.fchmod(fd, _MODE)
            os.fsync(fd)
        Path(name).replace(path)
    except KeyError:
        raise NotReachableError(f"user `{config.users.gateway}` does not exist: run `exeat doctor`") from None
    except OSError as error:
        raise NotReachableError(f"{path}: {error.strerror}") from None
    finally:
        if name:
            Path(name).unlink(missing_ok=True)
