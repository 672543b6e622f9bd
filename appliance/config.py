"""The appliance's configuration: `/etc/exeat/exeat.toml` and `conf.d/*.toml` beside it.

Read once, validated whole before anything starts. An unknown key, a wrong type or a value out
of range is one line `FILE:LINE: message`. `EXEAT_SECTION__KEY` in the environment overrides a
scalar. Secrets never stand here: they come as systemd credentials.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from exeat.appliance.console_config import ConsoleSection
from exeat.appliance.device_config import DeviceSection
from exeat.appliance.ledger_config import Ledger
from exeat.appliance.limits import node_limits
from exeat.appliance.notify_config import Notify, distinct
from exeat.appliance.oidc_config import OidcSection
from exeat.appliance.passkey_config import PasskeySection
from exeat.appliance.prices import PriceSection
from exeat.appliance.routing import Routing, parse_uids
from exeat.appliance.sections import (
    LABEL,
    Agent,
    Endpoints,
    Project,
    Section,
    endpoint,
    endpoints,
    source_cidr,
)
from exeat.appliance.witness_config import Witnessing
from exeat.policy.addresses import Cidr, parse_cidr
from exeat.policy.errors import MalformedError
from exeat.policy.identity import CgroupPath, Uids
from exeat.policy.names import parse_host
from exeat.policy.scopes import parse_scope
from exeat.sandbox.rules import Cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_CONFIG = Path("/etc/exeat/exeat.toml")
_ENV_PREFIX = "EXEAT_"
_RESERVED_ENV = {"EXEAT_CONFIG"}


_USER_SOURCE = re.compile(r"user:[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_MAX_SOCKET_PATH = 107  # bytes, unix(7)


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line that says where and why."""


class Node(Section):
    name: Annotated[str, Field(pattern=LABEL)] = "node"


class Paths(Section):
    state_dir: Path = Path("/var/lib/exeat")
    run_dir: Path = Path("/run/exeat")

    @field_validator("state_dir", "run_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value


class Users(Section):
    """Names of the service users; `./dev setup` and the sysusers file make them."""

    gateway: str = "exeat"
    ledger: str = "exeat-ledger"
    control: str = "exeat-control"
    export: str = "exeat-export"
    console: str = "exeat-console"


_HTTP: Final = "http://"


def _upstream(text: str) -> tuple[str, int, str]:
    """ADDRESS:PORT or tls://ADDRESS:PORT#NAME as (address text, port, name or "")."""
    if "://" not in text:
        return *endpoint(text), ""
    scheme, _, rest = text.partition("://")
    place, _, name = rest.partition("#")
    if scheme != "tls" or not name:
        raise ValueError(f"`{text}` is neither ADDRESS:PORT nor tls://ADDRESS:PORT#NAME")
    try:
        host = parse_host(name)
    except MalformedError as error:
        raise ValueError(f"`{text}`: `{name}` is not a host name ({error})") from None
    if not isinstance(host, str):
        raise ValueError(f"`{text}`: after # comes the name in the server's certificate, not an address")
    return *endpoint(place), host


def _checked_upstreams(value: tuple[str, ...]) -> tuple[str, ...]:
    if len({bool(_upstream(text)[2]) for text in value}) > 1:
        raise ValueError("upstreams with and without tls://: who blocks the one would see the other")
    return value


class Dns(Section):
    """`upstream`: resolvers in order of preference, all in the clear or all over TLS.

    `upstream_ca`: a PEM file with the roots for tls:// upstreams, in place of the system's.
    `resolvers_file`: public encrypted resolvers to refuse, in place of the list that comes with exeat.
    `listen`: for clients outside jails.
    """

    upstream: Annotated[tuple[str, ...], AfterValidator(_checked_upstreams)] = ()
    upstream_ca: Path | None = None
    resolvers_file: Path | None = None
    listen: Endpoints = ()

    @field_validator("resolvers_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    def servers(self) -> tuple[tuple[str, int, str], ...]:
        """(address text, port, name or "" for one in the clear) of each upstream."""
        return tuple(_upstream(text) for text in self.upstream)


class Proxy(Section):
    """Doors for clients outside jails; who they are is `[[identity]]`'s to say.

    Each port speaks HTTP CONNECT, absolute-form HTTP and SOCKS5, told apart by the first byte;
    `listen_socks` is for clients that want a port of its own. `listen_unix` are socket paths.
    `transparent` takes connections that a packet filter redirected there.
    `max_connections` bounds each identity. `credentials` is the file of `exeat identity`.

    `relay` moves the bytes of tunnels: `auto` is the compiled one where it was built.

    `upstream` is a proxy that all connections are made through, but for the scopes in `no_upstream`;
    `upstream_credentials` a file with NAME:PASSWORD for it. With `upstream_resolves` it gets names.
    """

    listen: Endpoints = ()
    listen_socks: Endpoints = ()
    listen_unix: tuple[Path, ...] = ()
    transparent: Endpoints = ()
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 16_384
    credentials: Path | None = None
    relay: Literal["auto", "python", "compiled"] = "auto"
    upstream: str = ""
    upstream_credentials: Path | None = None
    upstream_resolves: bool = False
    no_upstream: tuple[str, ...] = ()

    @field_validator("upstream")
    @classmethod
    def _upstream_proxy(cls, value: str) -> str:
        if value and not value.startswith(_HTTP):
            raise ValueError(f"`{value}` is not http://ADDRESS:PORT")
        if value:
            endpoint(value.removeprefix(_HTTP))
        return value

    @field_validator("no_upstream")
    @classmethod
    def _scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                scope = parse_scope(text)
            except MalformedError as error:
                raise ValueError(f"`{text}` is no scope ({error})") from None
            if scope.ports is not None:
                raise ValueError(f"`{text}`: a scope without ports")
        return value

    def upstream_proxy(self) -> tuple[str, int] | None:
        """(address text, port) of the upstream proxy."""
        return endpoint(self.upstream.removeprefix(_HTTP)) if self.upstream else None

    @field_validator("listen_unix")
    @classmethod
    def _paths(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            if not path.is_absolute() or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                raise ValueError(f"`{path}`: an absolute path of at most {_MAX_SOCKET_PATH} bytes")
        return value


class Identity(Section):
    """Clients from `source` are this subject.

    `source` is a CIDR, an address, `uid:N`, `uid:LOW-HIGH`, `cgroup:PATH` below the v2 root, the path
    of a socket in `[proxy] listen_unix`, or `user:NAME` for a name in `[proxy] credentials`. The most
    specific one wins; `user:NAME` counts for clients that no other knows.
    """

    source: str
    project: Project
    agent: Agent = "client"

    @field_validator("source")
    @classmethod
    def _known_form(cls, value: str) -> str:
        if value.startswith("/") or _USER_SOURCE.fullmatch(value) or source_cidr(value) is not None:
            return value
        kind, _, rest = value.partition(":")
        if kind == "uid":
            parse_uids(rest)
        elif kind == "cgroup":
            Cgroup(rest)
        else:
            raise ValueError(
                f"`{value}` is no address, CIDR without host bits, uid:N, cgroup:PATH, user:NAME or path"
            )
        return value

    def place(self) -> Cidr | Uids | CgroupPath | str:
        """The source as `policy.identity` takes it."""
        kind, _, rest = self.source.partition(":")
        if kind == "uid":
            return Uids(*parse_uids(rest))
        if kind == "cgroup":
            return CgroupPath(rest)
        return source_cidr(self.source) or self.source


class Policy(Section):
    """`dir` holds the policies in force, `shadow` (if set) those judged beside them, never enforced."""

    dir: Path = Path("/etc/exeat/policies")
    shadow: Path | None = None


class Sandbox(Section):
    """`roots`: folders below which `--rw` and `--ro` mounts may lie. `limits`: of each job.

    `accelerator_hook`: a program that root runs before each job; one that fails keeps the job from starting.
    """

    roots: tuple[Path, ...] = (Path("/srv"), Path("/home"))
    uid_base: Annotated[int, Field(ge=1000, le=2**31)] = 700_000
    uid_count: Annotated[int, Field(ge=1, le=100_000)] = 1000
    runtime: str = ""  # "": crun where it is installed, else runc
    limits: str = ""
    accelerator_hook: Path | None = None

    @field_validator("accelerator_hook")
    @classmethod
    def _program(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"`{value}`: the path of the hook is absolute")
        return value

    @field_validator("limits")
    @classmethod
    def _limits(cls, value: str) -> str:
        node_limits(value)
        return value

    @field_validator("roots")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            if not path.is_absolute() or path == Path("/"):
                raise ValueError(f"`{path}`: a root is an absolute path other than /")
        return value


class Scheduler(Section):
    """The queue of tasks: how many run at once, in all, of a group, of a project; shares of projects."""

    slots: Annotated[int, Field(ge=1, le=512)] = 8
    groups: dict[Project, Annotated[int, Field(ge=1, le=512)]] = Field(default_factory=dict)
    projects: dict[Project, Annotated[int, Field(ge=1, le=512)]] = Field(default_factory=dict)
    weights: dict[Project, Annotated[int, Field(ge=1, le=1000)]] = Field(default_factory=dict)
    preempt: Literal["no", "end", "pause"] = "no"


class Asks(Section):
    """How long a request stays open, and how many may wait. How long a flow waits is the policy's."""

    request_ttl_s: Annotated[int, Field(ge=60, le=86_400)] = 3600
    max_pending: Annotated[int, Field(ge=1, le=10_000)] = 256


class Lab(Section):
    """Only for test networks; while it is set every status shows a warning."""

    treat_as_public: tuple[str, ...] = ()

    @field_validator("treat_as_public")
    @classmethod
    def _cidrs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if parse_cidr(entry) is None:
                raise ValueError(f"`{entry}` is not a CIDR without host bits")
        return value

    def cidrs(self) -> tuple[Cidr, ...]:
        return tuple(cidr for entry in self.treat_as_public if (cidr := parse_cidr(entry)) is not None)


class Config(Section):
    """The whole configuration, frozen."""

    node: Node = Node()
    paths: Paths = Paths()
    users: Users = Users()
    dns: Dns = Dns()
    proxy: Proxy = Proxy()
    identity: tuple[Identity, ...] = ()
    policy: Policy = Policy()
    sandbox: Sandbox = Sandbox()
    device: tuple[DeviceSection, ...] = ()
    scheduler: Scheduler = Scheduler()
    asks: Asks = Asks()
    lab: Lab = Lab()
    routing: Routing = Routing()
    ledger: Ledger = Ledger()
    prices: tuple[PriceSection, ...] = ()
    witness: Witnessing = Witnessing()
    notify: Annotated[tuple[Notify, ...], AfterValidator(distinct)] = ()
    oidc: OidcSection = OidcSection()
    passkeys: PasskeySection = PasskeySection()
    console: ConsoleSection = ConsoleSection()

    @field_validator("device")
    @classmethod
    def _once(cls, value: tuple[DeviceSection, ...]) -> tuple[DeviceSection, ...]:
        if len({device.name for device in value}) != len(value):
            raise ValueError("two devices have the same name")
        return value

    @field_validator("routing")
    @classmethod
    def _one_guard(cls, value: Routing, info: ValidationInfo) -> Routing:
        listening = endpoints(info.data.get("dns", Dns()).listen)
        redirected = endpoints(info.data.get("proxy", Proxy()).transparent)
        if value.members and any(len({port for _, port in each}) > 1 for each in (listening, redirected)):
            raise ValueError(
                "[dns] listen and [proxy] transparent have one port each: what is redirected goes there"
            )
        if value.members and any(host in ("0.0.0.0", "::") for host, _ in listening):  # noqa: S104
            raise ValueError("an answer must come from the address that was asked: name each in [dns] listen")
        return value

    @field_validator("identity")
    @classmethod
    def _reachable(cls, value: tuple[Identity, ...], info: ValidationInfo) -> tuple[Identity, ...]:
        proxy = info.data.get("proxy", Proxy())
        for identity in value:
            if identity.source.startswith("/") and Path(identity.source) not in proxy.listen_unix:
                raise ValueError(f"`{identity.source}` is not in [proxy] listen_unix")
        return value

    @property
    def exports(self) -> bool:
        """Whether the exporting user has anything to do."""
        return self.ledger.exports or bool(self.witness.listen or self.notify)

    @property
    def state_dir(self) -> Path:
        return self.paths.state_dir

    @property
    def run_dir(self) -> Path:
        return self.paths.run_dir


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    state_dir: Path | None = None,
    run_dir: Path | None = None,
) -> Config:
    """Read `path` (or EXEAT_CONFIG, or the default where it exists) and its `conf.d`.

    Raises ConfigError. A named file must exist; the default one may be absent.
    """
    named = path or (Path(environ["EXEAT_CONFIG"]) if environ.get("EXEAT_CONFIG") else None)
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    for file in _files(named):
        text, data = _read(file)
        _merge(merged, data, origin, file, text, ())
    _merge_environment(merged, origin, environ)
    if state_dir is not None:
        merged.setdefault("paths", {})["state_dir"] = state_dir
    if run_dir is not None:
        merged.setdefault("paths", {})["run_dir"] = run_dir
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_line(error, origin)) from None


def _files(named: Path | None) -> Iterator[Path]:
    main = named or DEFAULT_CONFIG
    if named is not None or main.exists():
        yield main
    yield from sorted((main.parent / "conf.d").glob("*.toml"))


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file}: cannot be read: {reason}") from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"at line (\d+)", str(error))
        line = match.group(1) if match else "1"
        raise ConfigError(f"{file}:{line}: {error}") from None


def _merge(
    into: dict[str, Any],
    data: dict[str, Any],
    origin: dict[tuple[str, ...], str],
    file: Path,
    text: str,
    path: tuple[str, ...],
) -> None:
    for key, value in data.items():
        here = (*path, key)
        origin[here] = f"{file}:{_line_of(text, here)}"
        if isinstance(value, dict):
            inner = into.setdefault(key, {})
            if isinstance(inner, dict):
                _merge(inner, value, origin, file, text, here)
                continue
        into[key] = value


def _line_of(text: str, path: tuple[str, ...]) -> int:
    """The line on which the key `path` stands (the section's line when it cannot be told)."""
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if header := re.match(r"\[\[?\s*([^\]]+?)\s*\]", stripped):
            section = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
            if section[: len(path)] == path:
                return number
        elif (key := re.match(r"([A-Za-z0-9_.\"'-]+)\s*=", stripped)) and (
            *section,
            *(part.strip("\"'") for part in key.group(1).split(".")),
        ) == path:
            return number
    return 1


def _merge_environment(
    into: dict[str, Any], origin: dict[tuple[str, ...], str], environ: Mapping[str, str]
) -> None:
    for name, value in environ.items():
        if not name.startswith(_ENV_PREFIX) or name in _RESERVED_ENV or "__" not in name:
            continue
        section, _, key = name[len(_ENV_PREFIX) :].lower().partition("__")
        into.setdefault(section, {})[key] = value
        origin[(section, key)] = f"environment {name}"


def _first_line(error: ValidationError, origin: dict[tuple[str, ...], str]) -> str:
    first = error.errors(include_url=False)[0]
    path = tuple(str(part) for part in first["loc"])
    where = next((origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origin), "configuration")
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key `{key}`"
    return f"{where}: `{key}`: {first['msg'].removeprefix('Value error, ')}"
