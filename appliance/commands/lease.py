"""`exeat lease`: who may reach what until when; approve, deny, revoke."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.errors import UsageError
from exeat.appliance.parsers import add_verb
from exeat.policy.errors import UnitError
from exeat.policy.units import parse_duration, parse_size

if TYPE_CHECKING:
    import argparse

LOOK_S = 0.2


def register(commands: Any) -> None:
    parser = commands.add_parser("lease", help="list, ask for, approve and revoke leases")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = add_verb(verbs, "ls", "pending and active leases", _ls)
    listing.add_argument("--project", metavar="P", help="of this project only")
    listing.add_argument("--all", action="store_true", help="ended ones too")
    _with_lease(add_verb(verbs, "show", "one lease, whole", _show))
    request_options(add_verb(verbs, "request", "ask for a lease", _request))
    approve = _deciding(add_verb(verbs, "approve", "let a pending request through", _approve))
    approve.add_argument("--ttl", metavar="TIME", help="shorter than was asked for")
    approve.add_argument("--to", action="append", metavar="SCOPE", help="narrower than was asked for")
    approve.add_argument("--no-raw", action="store_true", help="without the raw bytes that were asked for")
    approve.add_argument("--no-ech", action="store_true", help="without the ECH that was asked for")
    approve.add_argument("--no-direct", action="store_true", help="through the proxy only")
    approve.add_argument("--bytes", metavar="SIZE", help="fewer than was asked for")
    approve.add_argument("--no-records", action="store_true", help="without the lookups that were asked for")
    _deciding(add_verb(verbs, "deny", "refuse a pending request for good", _deny))
    _deciding(add_verb(verbs, "renew", "extend an active lease, up to its limit", _renew))
    revoke = _deciding(add_verb(verbs, "revoke", "end a lease and its flows now", _revoke))
    revoke.add_argument("--prefix", action="store_true", help="every lease whose id begins so")


def request_options(request: argparse.ArgumentParser) -> None:
    """Of `exeat lease request`, and of `exeat request`, which is the same."""
    request.add_argument("to", metavar="HOST[:PORT]", help="or project:///FOLDER[:ro|rw|edit]")
    request.add_argument("--project", metavar="P")
    request.add_argument("--udp", action="store_true", help="datagrams instead of TCP connections")
    request.add_argument("--ttl", metavar="TIME", help="how long it shall last (for example 30m)")
    request.add_argument("--reason", default="", help="shown to the approver")
    request.add_argument("--raw", action="store_true", help="any bytes may be spoken, TLS or not")
    request.add_argument("--ech", action="store_true", help="TLS may hide its inner server name")
    request.add_argument("--direct", action="store_true", help="past the proxy, for a member of [routing]")
    request.add_argument("--bytes", metavar="SIZE", help="how much it may move (for example 200MB)")
    request.add_argument("--agent", metavar="A", help="for this agent of the project only")
    request.add_argument("--records", action="store_true", help="lookups of TXT, MX and the like too")
    request.add_argument("--as", dest="person", metavar="NAME", help="the person who asks")
    request.add_argument(
        "--wait", nargs="?", const="1h", metavar="TIME", help="until it is decided, at most so long (1h)"
    )
    request.set_defaults(handler=_request)


def _with_lease(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("lease", metavar="ID")
    return parser


def _deciding(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--as", dest="person", metavar="NAME", help="the person who decides (default: root)")
    parser.add_argument("--why", default="", help="kept with the decision")
    return _with_lease(parser)


def _call(args: argparse.Namespace, verb: str, **arguments: Any) -> dict[str, Any]:
    given = {name: value for name, value in arguments.items() if value is not None}
    return Client(load_config(args)).call(verb, **given)


def _ls(args: argparse.Namespace) -> int:
    rows = _call(args, "lease.ls", all=args.all, project=args.project)["leases"]
    if args.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print("no leases")
    for row in rows:
        print(_line(row))
    return 0


def _line(row: dict[str, Any]) -> str:
    to = ",".join(row["to"])
    ports = ",".join(str(port) for port in row["ports"])
    udp = "" if row["proto"] == ["tcp"] else "/" + ",".join(row["proto"])
    scope = " ".join([f"{to}:{ports}{udp}" if ports else to, *row["speech"]])
    who = f"{row['requester']} {_quoted(row)}"
    return f"{row['state']:<10} {row['id']:<28} {scope:<30} {_until(row):<15} {who}"


def _until(row: dict[str, Any]) -> str:
    now = time.time_ns() // 1_000_000
    if row["state"] == "active":
        return f"ends in {_span(row['exp'] - now)}"
    if row["state"] == "requested":
        return f"lapses in {_span(row['lapses'] - now)}"
    return ""


def _span(milliseconds: int) -> str:
    seconds = max(0, milliseconds // 1000)
    if seconds < 90:
        return f"{seconds}s"
    return f"{seconds // 60}m" if seconds < 5400 else f"{seconds / 3600:.1f}h"


def _quoted(row: dict[str, Any]) -> str:
    return f'"{row["reason"]}"' if row.get("reason") else ""


def _show(args: argparse.Namespace) -> int:
    row = _call(args, "lease.show", lease=args.lease)["lease"]
    if args.json:
        print(json.dumps(row))
        return 0
    for key, value in row.items():
        print(f"{key:<12} {value if not isinstance(value, list) else ', '.join(map(str, value))}")
    return 0


def _print_one(args: argparse.Namespace, row: dict[str, Any]) -> int:
    print(json.dumps(row) if args.json else _line(row))
    return 0


def _ttl(text: str | None, option: str = "--ttl") -> int | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except UnitError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except UnitError as error:
        raise UsageError(f"--bytes {text}: {error}") from None


def _request(args: argparse.Namespace) -> int:
    wait_ms = _ttl(args.wait, "--wait")
    reply = _call(
        args,
        "lease.request",
        to=args.to,
        proto="udp" if args.udp else "tcp",
        project=args.project,
        ttl_ms=_ttl(args.ttl),
        reason=args.reason,
        raw=args.raw or None,
        ech=args.ech or None,
        direct=args.direct or None,
        max_bytes=_size(args.bytes),
        agent=args.agent,
        records=args.records or None,
        **{"as": args.person},
    )
    row = reply["lease"]
    if wait_ms is None:
        return _print_one(args, row)
    if not args.json:
        print(f"exeat: {row['id']} waits for a person", file=sys.stderr)
    row = _decided(args, row, time.monotonic() + wait_ms / 1000)
    _print_one(args, row)
    return 0 if row["state"] == "active" else 1


def _decided(args: argparse.Namespace, row: dict[str, Any], until: float) -> dict[str, Any]:
    """The row once somebody has decided, the request has lapsed, or the time is over."""
    while row["state"] == "requested" and time.monotonic() < until:
        time.sleep(LOOK_S)
        row = _call(args, "lease.show", lease=row["id"])["lease"]
    return row


def _approve(args: argparse.Namespace) -> int:
    reply = _call(
        args,
        "lease.approve",
        lease=args.lease,
        ttl_ms=_ttl(args.ttl),
        to=args.to,
        raw=False if args.no_raw else None,
        ech=False if args.no_ech else None,
        direct=False if args.no_direct else None,
        max_bytes=_size(args.bytes),
        records=False if args.no_records else None,
        why=args.why,
        **{"as": args.person},
    )
    return _print_one(args, reply["lease"])


def _deny(args: argparse.Namespace) -> int:
    return _print_one(args, _decide(args, "lease.deny")["lease"])


def _renew(args: argparse.Namespace) -> int:
    return _print_one(args, _decide(args, "lease.renew")["lease"])


def _revoke(args: argparse.Namespace) -> int:
    rows = _decide(args, "lease.revoke", prefix=args.prefix)["leases"]
    for row in rows:
        _print_one(args, row)
    return 0


def _decide(args: argparse.Namespace, verb: str, **more: Any) -> dict[str, Any]:
    return _call(args, verb, lease=args.lease, why=args.why, **{"as": args.person}, **more)
