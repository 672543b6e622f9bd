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


def register(
    actions: Any, ledgers: Callable[[argparse.Namespace], list[Path]]
) -> list[argparse.ArgumentParser]:
    show = actions.add_parser("witness", help="the newest checkpoint, and who has cosigned it")
    show.set_defaults(handler=lambda args: _run(ledgers(args), args))
    return [show]


def _run(directories: list[Path], args: argparse.Namespace) -> int:
    from exeat.ledger.keys import KeyMissingError
    from exeat.ledger.note import NoteError

    config = load_config(args)
    try:
        found = [look(config, directory) for directory in directories]
    except (OSError, NoteError, KeyMissingError) as error:
        raise NotReachableError(str(error)) from None
    if args.json:
        print(json.dumps({"ledgers": [asdict(each) for each in found]}))
    else:
        print("\n".join(line for each in found for line in _lines(each)))
    return 1 if any(each.alarms for each in found) else 0


def _lines(seals: Seals) -> list[str]:
    lines = [f"checkpoint  {seals.signed} of {seals.size} records, {seals.age_s:.0f} s old"]
    for each in seals.witnesses:
        name = each["vkey"].partition("+")[0]
        state = f"behind by {each['behind']}" if each["behind"] else "cosigned"
        lines.append(f"witness     {name}: {each['trouble'] or state}, {each['size']} records")
    return lines + [f"ALARM       {alarm}" for alarm in seals.alarms]
