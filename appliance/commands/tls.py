"""`exeat tls dev|template|check`: the console under a host name of its own."""

from __future__ import annotations

import datetime as dt
import json
import pwd
import subprocess
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.commands.doctor import render
from exeat.appliance.doctor import Check, Status, fail
from exeat.appliance.errors import NotReachableError, UsageError
from exeat.policy.addresses import parse_address
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config
    from exeat.policy.model import Address

FOLDER = Path("/etc/exeat/tls")


def register(commands: Any) -> None:
    parser = commands.add_parser("tls", help="a certificate for the console, and whether it will do")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    dev = actions.add_parser("dev", help="make a small authority and a certificate of it (root)")
    dev.add_argument("names", nargs="+", metavar="NAME", help="host names by which browsers call the console")
    dev.add_argument("--days", type=int, default=90, metavar="N", help="how long it is good (default: 90)")
    dev.set_defaults(handler=run_dev)
    template = actions.add_parser("template", help="print a configuration for a proxy before the console")
    template.add_argument("kind", choices=("caddy", "nginx"))
    template.add_argument("name", metavar="NAME", help="the host name")
    template.set_defaults(handler=run_template)
    check = actions.add_parser("check", help="would a browser that calls NAME get there? changes nothing")
    check.add_argument("name", metavar="NAME", help="the host name")
    check.add_argument(
        "--server", metavar="ADDR:PORT", help="ask this name server, not those of [dns] upstream"
    )
    check.add_argument("--certificate", type=Path, metavar="FILE", help="instead of [console] certificate")
    check.add_argument("--key", type=Path, metavar="FILE", help="instead of [console] key")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(handler=run_check)
    for action in (dev, template):
        action.add_argument("--dir", type=Path, default=FOLDER, metavar="DIR", help=f"(default: {FOLDER})")


def run_dev(args: argparse.Namespace) -> int:
    from exeat.appliance.tls.authority import AuthorityError, issue

    names = tuple(dict.fromkeys(_host(name) for name in args.names))
    if not 1 <= args.days <= 397:
        raise UsageError("--days: 1 to 397; browsers take no certificate that is good for longer")
    user = _console_user(load_config(args))
    try:
        made = issue(args.dir.absolute(), names, args.days, user.pw_gid, dt.datetime.now(dt.UTC))
    except AuthorityError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise NotReachableError(f"{error.filename or args.dir}: {error.strerror}") from None
    hosts = ", ".join(f'"{name}"' for name in names)
    print(f'[console]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\nhosts = [{hosts}]\n')
    print("# Write this to the configuration; after a renewal: systemctl reload exeat-console")
    if made.fresh:
        print(f"# Let browsers trust {made.authority}: it vouches for these names and those below them.")
    return 0


def run_template(args: argparse.Namespace) -> int:
    name, listen = _host(args.name), load_config(args).console.listen
    if not listen:
        raise UsageError("[console] listen is empty: there is no console to stand before")
    text = (files("exeat.appliance") / "tls" / "templates" / f"{args.kind}.txt").read_text(encoding="utf-8")
    values = {"@NAME@": name, "@CONSOLE@": listen, "@AUTHORITY@": str(args.dir.absolute() / "ca.pem")}
    for word, value in values.items():
        text = text.replace(word, value)
    print(text, end="")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """0 when nothing fails (warnings are allowed), else 1."""
    config, name = load_config(args), _host(args.name)
    if (args.certificate is None) != (args.key is None):
        raise UsageError("--certificate and --key: both or neither")
    checks = _checks(config, name, args)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(render(checks))
    return 1 if any(check.status is Status.FAIL for check in checks) else 0


def _checks(config: Config, name: str, args: argparse.Namespace) -> list[Check]:
    from exeat.appliance.tls import check

    servers = _servers(config, args.server)
    try:
        found = check.addresses_of(name, servers, config.dns.upstream_ca)
    except (OSError, ValueError) as error:
        raise UsageError(f"name server: {error}") from None
    checks = [check.check_dns(name, found, _own_addresses()), check.check_host(name, config.console)]
    certificate, key = args.certificate or config.console.certificate, args.key or config.console.key
    if certificate is None or key is None:
        return [*checks, fail("certificate", "[console] has none", f"exeat tls dev {name}")]
    checks += check.check_certificate(name, certificate, key, dt.datetime.now(dt.UTC))
    user = _console_user(config)
    if key.exists():
        checks.append(check.check_key(key, user.pw_uid, user.pw_gid, user.pw_name))
    return checks


def _servers(config: Config, named: str | None) -> list[Any]:
    from exeat.appliance.sections import endpoint
    from exeat.dns.upstream import Server

    if named is not None:
        try:
            return [Server(*endpoint(named))]
        except ValueError as error:
            raise UsageError(f"--server: {error}") from None
    if not config.dns.upstream:
        raise UsageError("[dns] upstream is empty, and the system's resolver is never asked: give --server")
    return [Server(*server) for server in config.dns.servers()]


def _own_addresses() -> set[Address]:
    done = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReachableError(f"ip address: {done.stderr.strip()}")
    links = json.loads(done.stdout)
    return {parse_address(each["local"]) for link in links for each in link["addr_info"] if "local" in each}


def _console_user(config: Config) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(config.users.console)
    except KeyError:
        raise NotReachableError(f"no such user {config.users.console}: run `exeat doctor`") from None


def _host(text: str) -> str:
    try:
        host = parse_host(text)
    except MalformedError as error:
        raise UsageError(f"`{text}`: {error}") from None
    if not isinstance(host, str):
        raise UsageError(f"`{text}` is an address: a certificate here is for a host name")
    return host
