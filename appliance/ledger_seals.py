"""How far the ledger is sealed: the age of its checkpoint, and what each witness cosigned.

`exeat ledger witness` shows it, and `exeat status` what is wrong with it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.appliance.client import load_config
from exeat.appliance.errors import NotReachableError
from exeat.ledger.reader import find_ledgers
from exeat.ledger.watched import STATUS_S, read_status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from exeat.appliance.config import Config

_LATE_S = 30  # a checkpoint follows the records within a second


@dataclass(slots=True)
class Seals:
    """`size` records are on the disk, `signed` of them under a checkpoint that is `age_s` old."""

    size: int
    signed: int
    age_s: float
    witnesses: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def look(config: Config, directory: Path) -> Seals:
    """The state of the ledger in `directory`. Raises OSError, NoteError, KeyMissingError."""
    from exeat.ledger import headfile, keys, note
    from exeat.ledger.published import read_checkpoint
    from exeat.ledger.witness_client import FORK, Standing, read_standings
    from exeat.ledger.witnessing import seals

    text, head = read_checkpoint(directory), headfile.read(directory)
    if text is None:
        return Seals(head[0] if head else 0, 0, 0.0, alarms=["there is no checkpoint yet"])
    signed = note.open_checkpoint(text, *keys.known(directory)).size
    now = time.time()
    found = Seals(
        max(head[0] if head else 0, signed), signed, now - (directory / "checkpoint").stat().st_mtime
    )
    if found.size > signed and found.age_s > _LATE_S:
        found.alarms.append(f"the newest {found.size - signed} records are under no checkpoint")
    standings = {each.vkey: each for each in read_standings(seals(config.state_dir, directory.name))}
    limit = config.ledger.witness_alarm_s
    for peer in config.ledger.witness:
        told, name = standings.get(peer.vkey) or Standing(peer.vkey), peer.vkey.partition("+")[0]
        found.witnesses.append({**asdict(told), "url": peer.url, "behind": signed - told.size})
        troubled_s = now - told.since_s if told.trouble else 0.0
        if told.trouble == FORK:
            found.alarms.append(f"REWRITTEN? {name} refuses to cosign: {told.what}")
        elif troubled_s > limit:
            found.alarms.append(f"{name} has not cosigned for {troubled_s:.0f} s: {told.what}")
        elif told.size < signed and not told.trouble and found.age_s > limit:
            found.alarms.append(
                f"{name} does not have the newest checkpoint: does `exeat serve witness` run?"
            )
    return found


def watched(config: Config) -> list[str]:
    """What is wrong with the ledgers that this node watches, one line each. Raises OSError."""
    if not config.witness.listen:
        return []
    status = read_status(config.state_dir / "witness" / "logs")
    if status is None or time.time() - status[0] > _LATE_S + STATUS_S:
        return ["nobody watches the ledgers of `[witness] logs`: does `exeat serve witness` run?"]
    alarms = [
        f"{log.origin} has sent no checkpoint for {log.silent_s} s: stopped, or cut off"
        for log in status[1]
        if log.alarm
    ]
    folder = config.state_dir / "witness" / "logs"
    return alarms + [
        f"REWRITTEN? {log.origin} showed {log.forks} histories that were refused: {folder}/*/forks"
        for log in status[1]
        if log.forks
    ]


def register(
    actions: Any, ledgers: Callable[[argparse.Namespace], list[Path]]
) -> list[argparse.ArgumentParser]:
    show = actions.add_parser("witness", help="the newest checkpoint, and who has cosigned it")
    show.set_defaults(handler=lambda args: _run(ledgers, args))
    return [show]


def _run(ledgers: Callable[[argparse.Namespace], list[Path]], args: argparse.Namespace) -> int:
    from exeat.ledger.keys import KeyMissingError
    from exeat.ledger.note import NoteError

    config = load_config(args)
    try:
        alarms = watched(config)
        # A machine that is only a witness for others has no ledger of its own.
        only = config.witness.listen and not find_ledgers(config.state_dir)
        found = [look(config, directory) for directory in ([] if only else ledgers(args))]
    except (OSError, NoteError, KeyMissingError) as error:
        raise NotReachableError(str(error)) from None
    if args.json:
        print(json.dumps({"ledgers": [asdict(each) for each in found], "watched": alarms}))
    else:
        lines = [line for each in found for line in _lines(each)]
        lines += _watching(config) + [f"ALARM       {alarm}" for alarm in alarms]
        print("\n".join(lines))
    return 1 if alarms or any(each.alarms for each in found) else 0


def _watching(config: Config) -> list[str]:
    status = read_status(config.state_dir / "witness" / "logs") if config.witness.listen else None
    return [
        f"watching    {log.origin}: {log.size} records, heard of {log.silent_s} s ago"
        for log in (status[1] if status is not None else ())
    ]


def _lines(seals: Seals) -> list[str]:
    lines = [f"checkpoint  {seals.signed} of {seals.size} records, {seals.age_s:.0f} s old"]
    for each in seals.witnesses:
        name = each["vkey"].partition("+")[0]
        state = f"behind by {each['behind']}" if each["behind"] else "cosigned"
        lines.append(f"witness     {name}: {each['trouble'] or state}, {each['size']} records")
    return lines + [f"ALARM       {alarm}" for alarm in seals.alarms]
