"""`exeat notify`: who is told, what waits to be sent, and a test of it."""

from __future__ import annotations

import json
import os
import pwd
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError, RefusedError, UsageError

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config
    from exeat.appliance.notify_config import Notify


def register(commands: Any) -> None:
    parser = commands.add_parser("notify", help="who is told of requests and alerts, and a test of it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=_show)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    test = verbs.add_parser("test", help="send a test notice now, and say what came of it")
    test.add_argument("name", nargs="?", metavar="NAME", help="of one [[notify]] (default: all)")
    test.set_defaults(handler=_test)


def _show(args: argparse.Namespace) -> int:
    """What waits, out of the outbox."""
    from exeat.appliance.notify.follow import outbox_of
    from exeat.appliance.notify.outbox import Outbox

    config = load_config(args)
    rows = []
    for notify in config.notify:
        waiting, failed, dropped = 0, "", 0
        if outbox_of(config).exists():
            _become(config)
            outbox = Outbox(outbox_of(config))
            waiting, failed, dropped = outbox.state(notify.name)
            outbox.close()
        row = {"name": notify.name, "to": notify.to, "topics": list(notify.topics), "waiting": waiting}
        rows.append({**row, "failed": failed, "dropped": dropped})
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        trouble = f"; {row['failed']}" if row["failed"] else ""
        gone = f", {row['dropped']} were dropped" if row["dropped"] else ""
        print(f"{row['name']} to {row['to']}: {row['waiting']} wait{gone}{trouble}")
    if not rows:
        print("nobody: no [[notify]] in the configuration")
    return 0


def _test(args: argparse.Namespace) -> int:
    from exeat.appliance.notify.notices import test_notice
    from exeat.appliance.notify.senders import sender_of
    from exeat.appliance.stream.post import SinkError

    config = load_config(args)
    chosen = [each for each in config.notify if args.name in (None, each.name)]
    if not chosen:
        if not config.notify:
            raise UsageError("no [[notify]] in the configuration: nobody is told")
        known = ", ".join(each.name for each in config.notify)
        raise UsageError(f"no [[notify]] `{args.name}` (there are: {known})")
    _become(config)
    failed: list[Notify] = []
    for notify in chosen:
        try:
            sender_of(notify).send(test_notice(config.node.name, notify, time.time_ns() // 1_000_000))
            print(f"{notify.name}: sent")
        except SinkError as error:
            print(f"{notify.name}: {error}")
            failed.append(notify)
    if failed:
        raise RefusedError("notify.failed", f"{len(failed)} of {len(chosen)} did not get it")
    return 0


def _become(config: Config) -> None:
    """The account that sends: what it may not read or reach, this must not either."""
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(config.users.export)
    except KeyError:
        raise NotReachableError(f"user `{config.users.export}` does not exist: run `exeat doctor`") from None
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
