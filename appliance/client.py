"""How the command line talks to a running appliance (control.sock, and guard.sock for what it answered)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exeat.appliance import config as configuration
from exeat.appliance.errors import NotReachableError, RefusedError, UsageError
from exeat.ledger.ipc import Channel, IpcError, Message

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from exeat.appliance.config import Config


def load_config(args: argparse.Namespace) -> Config:
    """The configuration the global options name; UsageError says what is wrong with it."""
    try:
        return configuration.load(args.config, state_dir=args.state_dir, run_dir=args.run_dir)
    except configuration.ConfigError as error:
        raise UsageError(str(error)) from None


class Client:
    """One connection to control, or to another process that answers people. Requests are answered in turn."""

    def __init__(self, config: Config, process: str = "control") -> None:
        path = config.run_dir / process / f"{process}.sock"
        try:
            self._channel = Channel.connect(path)
        except PermissionError:
            raise NotReachableError(f"{path}: permission denied: run this as root") from None
        except OSError:
            raise NotReachableError("the appliance is not running: start it with `exeat up`") from None
        self._next = 0

    def call(self, verb: str, fds: Sequence[int] = (), **arguments: Any) -> Message:
        """One request; raises RefusedError, or NotReachableError if control goes away."""
        self._next += 1
        request = {"id": self._next, "verb": verb, **arguments}
        try:
            reply, _ = self._channel.call(request, list(fds))
        except (OSError, IpcError):
            raise NotReachableError("the appliance went away in the middle of a request") from None
        if not reply.get("ok"):
            raise RefusedError(
                str(reply.get("error", "internal.error")), str(reply.get("message", "refused"))
            )
        return reply

    def close(self) -> None:
        self._channel.close()
