"""`exeat serve NAME`: one of the processes. `exeat up` and the units start these."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance import listeners
from exeat.appliance.client import load_config
from exeat.appliance.disks import disks_of
from exeat.appliance.errors import NotReachableError
from exeat.appliance.limits import node_limits
from exeat.appliance.preflight import runtime
from exeat.appliance.routing import host_table, identities
from exeat.appliance.supervisor import OPTIONAL, START_ORDER, witnesses
from exeat.ledger.supervised import notify_ready

if TYPE_CHECKING:
    import argparse

    from exeat.appliance.config import Config
    from exeat.proxy.chain import Upstream
    from exeat.proxy.credentials import Credentials

_PR_SET_PDEATHSIG = 1


def register(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run one process of the appliance (used by `exeat up`)")
    parser.add_argument("process", choices=(*START_ORDER, *OPTIONAL))
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    if os.environ.get("EXEAT_SUPERVISED"):
        _end_with_parent()
    _raise_descriptor_limit()
    serve = {
        "warden": _warden,
        "ledger": _ledger,
        "control": _control,
        "guard": _guard,
        "proxy": _proxy,
        "stream": _stream,
        "witness": _witness,
        "notify": _notify,
        "console": _console,
    }[args.process]
    try:
        return serve(config)
    except listeners.ListenError as error:
        raise NotReachableError(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NotReachableError(f"{args.process}: {where}{error.strerror or error}") from None
    except KeyError as error:
        if "name not found" not in str(error):  # as pwd.getpwnam says it
            raise
        raise NotReachableError(f"{args.process}: no such user: {error}: run `exeat doctor`") from None


def _end_with_parent() -> None:
    # After the change of user, which would clear it (prctl(2)).
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


# The imports stand in the functions so that each process loads only what it runs.


def _warden(config: Config) -> int:
    from exeat.appliance.device_config import devices
    from exeat.sandbox.spec import WardenSettings
    from exeat.sandbox.warden import serve

    own = map(_uid, (config.users.gateway, config.users.ledger, config.users.control))
    try:
        table = host_table(config, own)
    except ValueError as error:
        raise NotReachableError(f"warden: {error}") from None
    settings = WardenSettings(
        run_dir=config.run_dir,
        state_dir=config.state_dir,
        table=table,
        control_uid=_uid(config.users.control),
        uid_base=config.sandbox.uid_base,
        uid_count=config.sandbox.uid_count,
        roots=config.sandbox.roots,
        runtime=runtime(config.sandbox.runtime),
        limits=node_limits(config.sandbox.limits)[0],
        devices=devices(config.device),
        hook=str(config.sandbox.accelerator_hook or ""),
        disks=disks_of((config.state_dir, Path("/usr"), *config.sandbox.roots)),
    )
    return serve(settings, notify_ready)


def _ledger(config: Config) -> int:
    from exeat.appliance.ledger_archive import receipts_of
    from exeat.ledger.daemon import LedgerSettings, serve
    from exeat.ledger.retention import Rules

    writers = {_uid(config.users.gateway): "gateway", _uid(config.users.control): "control"}
    if witnesses(config):
        writers[_uid(config.users.export)] = "witness"
    if config.console.listen:
        writers.setdefault(_uid(config.users.console), "console")
    kept = config.ledger
    stores = [store.name for store in kept.archive]

    def archived() -> int:
        from exeat.ledger.archive import safely_archived

        return safely_archived(settings.directory, receipts_of(config, settings.directory), stores)

    settings = LedgerSettings(
        state_dir=config.state_dir,
        run_dir=config.run_dir,
        node=config.node.name,
        writers=writers,
        rules=Rules(kept.keep_days, kept.keep_bytes, kept.keep_at_least_days, archived if stores else None),
    )
    return serve(settings, notify_ready)


def _witness(config: Config) -> int:
    from exeat.appliance.sections import endpoints
    from exeat.ledger.note import parse_vkey
    from exeat.ledger.witnessing import WitnessSettings, serve

    settings = WitnessSettings(
        state_dir=config.state_dir,
        run_dir=config.run_dir,
        node=config.node.name,
        peers=tuple(witness.peer() for witness in config.ledger.witness),
        name=config.witness.name,
        listen=endpoints(config.witness.listen),
        logs=tuple(parse_vkey(text) for text in config.witness.logs),
        alarm_s=config.ledger.witness_alarm_s,
        silent_after_s=config.witness.silent_after_s,
        own=config.witness.identity(),
        clients_ca=config.witness.clients_ca,
    )
    return serve(settings, notify_ready)


def _guard(config: Config) -> int:
    from exeat.appliance.public_suffixes import bundled_suffixes
    from exeat.dns.guard import GuardSettings, serve
    from exeat.dns.upstream import Server

    settings = GuardSettings(
        run_dir=config.run_dir,
        upstreams=tuple(Server(*server) for server in config.dns.servers()),
        upstream_ca=config.dns.upstream_ca,
        registrable=bundled_suffixes().registrable,
        node=config.node.name,
        control_uid=_uid(config.users.control),
        proxy_uid=_uid(config.users.gateway),
        listeners=tuple(door.sock for door in listeners.take(config, listeners.GUARD_DOORS)),
        identities=identities(config),
    )
    return serve(settings, notify_ready)


def _proxy(config: Config) -> int:
    from exeat.appliance.prices import tariff
    from exeat.proxy.relays import NotBuiltError
    from exeat.proxy.server import ProxySettings, serve

    doors = listeners.take(config, listeners.PROXY_DOORS)
    settings = ProxySettings(
        run_dir=config.run_dir,
        node=config.node.name,
        control_uid=_uid(config.users.control),
        listeners=tuple((each.name, each.sock) for each in doors if each.door != "transparent"),
        transparent=tuple((each.name, each.sock) for each in doors if each.door == "transparent"),
        identities=identities(config),
        max_connections=config.proxy.max_connections,
        credentials=_credentials(config),
        upstream=_upstream(config),
        tariff=tariff(config.prices),
        relay=config.proxy.relay,
    )
    try:
        return serve(settings, notify_ready)
    except NotBuiltError as error:
        raise NotReachableError(str(error)) from None


def _credentials(config: Config) -> Credentials | None:
    from exeat.proxy.credentials import CredentialError, Credentials

    if config.proxy.credentials is None:
        return None
    try:
        return Credentials(config.proxy.credentials)
    except CredentialError as error:
        raise NotReachableError(f"[proxy] credentials: {error}") from None


def _upstream(config: Config) -> Upstream | None:
    from exeat.policy.addresses import parse_address
    from exeat.policy.scopes import parse_scope
    from exeat.proxy.chain import Upstream, authorization

    place = config.proxy.upstream_proxy()
    if place is None:
        return None
    path = config.proxy.upstream_credentials
    try:
        said = authorization(path) if path is not None else b""
    except ValueError as error:
        raise NotReachableError(f"[proxy] upstream_credentials: {path}: {error}") from None
    scopes = tuple(parse_scope(text) for text in config.proxy.no_upstream)
    return Upstream(parse_address(place[0]), place[1], said, config.proxy.upstream_resolves, scopes)


def _control(config: Config) -> int:
    from exeat.appliance.control.server import serve

    return serve(config, notify_ready)


def _notify(config: Config) -> int:
    from exeat.appliance.notify.follow import serve

    if not config.notify:
        raise NotReachableError("notify: no [[notify]] in the configuration")
    return serve(config, notify_ready)


def _stream(config: Config) -> int:
    from exeat.appliance.stream.follow import serve

    if not config.ledger.stream:
        raise NotReachableError("stream: no [[ledger.stream]] in the configuration")
    return serve(config, notify_ready)


def _console(config: Config) -> int:
    from exeat.appliance.console.app import serve

    return serve(config, listeners.take(config, listeners.CONSOLE_DOORS), notify_ready)
