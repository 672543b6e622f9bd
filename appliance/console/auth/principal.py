"""Who calls: found out once for each request, before anything of it is read."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.permissions import PERMISSIONS, scope_of
from exeat.appliance.console.problems import Problem
from exeat.ledger.ipc import peer_uid

if TYPE_CHECKING:
    from aiohttp import web

    from exeat.appliance.console.auth.accounts import Account, Session
    from exeat.appliance.console.state import Console

BEARER: Final = "Bearer "


@dataclass(frozen=True, slots=True)
class Principal:
    """A person, and how they came: unix, token, certificate or session. No projects: all of them."""

    name: str
    role: str
    projects: frozenset[str]
    via: str
    scopes: frozenset[str] | None = None
    session: Session | None = None

    def may(self, permission: str) -> bool:
        allowed = self.role in PERMISSIONS[permission]
        return allowed and (self.scopes is None or permission in self.scopes)

    def sees(self, project: str) -> bool:
        return not self.projects or project in self.projects

    def need(self, project: str) -> None:
        """Raises Problem for a project that is not theirs, the same as for one that is not there."""
        if not self.sees(project):
            raise Problem(404, "project.unknown", f"there is no project `{project}` that you may see")

    def one_project(self, asked: str | None) -> str | None:
        """What a listing is narrowed to in control: the project asked for. Raises Problem."""
        if asked is not None:
            self.need(asked)
        return asked


ROOT: Final = Principal("root", "admin", frozenset(), "unix")


def cookie_name(console: Console) -> str:
    """`__Host-` (RFC 6265bis section 4.1.3.2) needs Secure, which plain HTTP on loopback has not."""
    return "__Host-sid" if console.secure else "sid"


def identify(console: Console, request: web.Request) -> Principal | None:
    """Who calls; None for somebody unknown. Raises Problem for a credential that opens nothing."""
    said = request.headers.get("Authorization")
    if said is not None:
        return _by_token(console, said)
    uid = unix_uid(request)
    if uid is not None:
        return _by_uid(console, uid)
    return _by_certificate(console, request) or _by_session(console, request)


def unix_uid(request: web.Request) -> int | None:
    """The uid behind a Unix socket (SO_PEERCRED), None on TCP."""
    sock: Any = request.transport.get_extra_info("socket") if request.transport else None
    return peer_uid(sock) if sock is not None and sock.family == socket.AF_UNIX else None


def _of(account: Account, via: str) -> Principal:
    return Principal(account.name, account.role, frozenset(account.projects), via)


def _by_token(console: Console, said: str) -> Principal:
    secret = said.removeprefix(BEARER)
    token = console.accounts.token(secret, console.now_ms()) if said.startswith(BEARER) else None
    account = console.accounts.find(token.account) if token is not None else None
    if token is None or account is None:
        raise Problem(
            401, "auth.token", "this token opens nothing (any more): `exeat token create` makes one"
        )
    return replace(_of(account, "token"), scopes=scope_of(token.scopes))


def _by_uid(console: Console, uid: int) -> Principal | None:
    if uid == 0:
        return ROOT
    group = console.config.console.unix_group
    if not group:
        return None
    try:
        user = pwd.getpwuid(uid)
        member = grp.getgrnam(group).gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    except KeyError:
        return None
    account = console.accounts.find(user.pw_name) if member else None
    return _of(account, "unix") if account is not None else None


def _by_certificate(console: Console, request: web.Request) -> Principal | None:
    """The common name of a certificate that TLS has checked against `client_ca`."""
    shown: Any = request.transport.get_extra_info("peercert") if request.transport else None
    if not shown:
        return None
    names = [value for parts in shown.get("subject", ()) for key, value in parts if key == "commonName"]
    account = console.accounts.find(names[0]) if len(names) == 1 else None
    if account is None:
        raise Problem(401, "auth.certificate", "there is no account of this certificate's common name")
    return _of(account, "certificate")


def _by_session(console: Console, request: web.Request) -> Principal | None:
    cookie = request.cookies.get(cookie_name(console))
    if not cookie:
        return None
    limits = console.config.console
    session = console.accounts.session(
        cookie, console.now_ms(), limits.idle_s * 1000, limits.longest_s * 1000
    )
    account = console.accounts.find(session.account) if session is not None else None
    return replace(_of(account, "session"), session=session) if account is not None else None
