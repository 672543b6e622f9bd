"""`exeat status`: is it running, and with what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import Client, load_config
from exeat.appliance.commands.kill import lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from exeat.appliance.config import Config


def register(commands: Any) -> None:
    parser = commands.add_parser("status", help="whether the appliance runs, and with what")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    reply = Client(config).call("status")
    reply["seals"] = _alarms(config)
    gateway = set(reply["gateway"]) == {"guard", "proxy"}
    whole = gateway and reply["clock_trusted"] and not (reply["policy_error"] or reply["down"])
    whole = whole and reply["console"] != "down"
    routing = reply["routing"]
    whole = whole and not (routing.get("failed") or reply["seals"] or reply["books"]["drifts"])
    if args.json:
        print(json.dumps({key: value for key, value in reply.items() if key not in ("id", "ok")}))
        return 0 if whole else 1
    leases = ", ".join(f"{count} {state}" for state, count in sorted(reply["leases"].items())) or "none"
    print(f"node       {reply['node']}")
    print(f"gateway    {', '.join(reply['gateway']) or 'DOWN: jails reach nothing'}")
    print(f"relay      {reply['relay'] or 'none yet'}")
    for door, places in sorted(_by_door(reply["listeners"]).items()):
        print(f"{door + ' door':<10} {', '.join(places)}")
    print(f"projects   {', '.join(reply['projects']) or 'none'}")
    if reply["baseline"]:
        print(f"baseline   holds for every project, digest {reply['baseline'][:12]}")
    if reply["shadows"]:
        print(f"shadow     {', '.join(reply['shadows'])}: judged beside the policy, not enforced")
    print(f"jobs       {reply['jobs']} running")
    print(f"leases     {leases}")
    for line in lines(reply["killed"]):
        print(f"KILLED     {line}: reaches nothing until `exeat kill off`")
    for line in _routing_lines(routing):
        print(line)
    if reply["down"]:
        print(f"DOWN       {', '.join(reply['down'])}: nothing new opens")
    if reply["console"] == "down":
        print("CONSOLE    DOWN: decide with `exeat lease`; nothing else waits for it")
    if not reply["clock_trusted"]:
        print("CLOCK      stands before a time already seen: no lease holds until it is set")
    if reply["policy_error"]:
        print(f"policy     NOT RELOADED: {reply['policy_error']}")
    if drifts := reply["books"]["drifts"]:
        print(f"BOOKS      {drifts} flows differ from the kernel's counts: {reply['books']['last']}")
    for alarm in reply["seals"]:
        print(f"SEALS      {alarm}")
    if reply["lab"]:
        print(f"WARNING    test network: {', '.join(reply['lab'])} count as public")
    return 0 if whole else 1


def _alarms(config: Config) -> list[str]:
    """What is wrong with checkpoints and their witnesses, and with ledgers that are watched here.

    Looked for only where there are witnesses.
    """
    if not (config.ledger.witness or config.witness.listen):
        return []
    from exeat.appliance.ledger_seals import look, watched
    from exeat.ledger.keys import KeyMissingError
    from exeat.ledger.note import NoteError
    from exeat.ledger.reader import find_ledgers

    try:
        own = find_ledgers(config.state_dir) if config.ledger.witness else []
        return [*(alarm for each in own for alarm in look(config, each).alarms), *watched(config)]
    except (OSError, NoteError, KeyMissingError) as error:
        return [str(error)]


def _routing_lines(routing: dict[str, Any]) -> Iterator[str]:
    """Who is confined by the host's table, and what has happened to it."""
    if routing.get("members"):
        labels = ", ".join(member["label"] for member in routing["members"])
        yield f"confined   {labels}, by table {routing['digest'][:12]}"
    if routing.get("repairs"):
        yield f"ROUTING    repaired {routing['repairs']} times, last: {routing['note']}"
    if routing.get("failed"):
        yield f"ROUTING    CANNOT BE KEPT: {routing['failed']}"


def _by_door(listeners: list[dict[str, str]]) -> dict[str, list[str]]:
    """Where clients outside jails may come in, by the kind of door."""
    found: dict[str, list[str]] = {}
    for listener in listeners:
        found.setdefault(listener["door"], []).append(listener["at"])
    return found
