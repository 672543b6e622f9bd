"""The shape of the code, read from its syntax trees: who may import whom, and what stays pure.

`violations` judges any tree, so that each rule is also seen to fail on a planted breach.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "policy": {"policy"},
    "ledger": {"ledger", "policy"},
    "dns": {"dns", "ledger", "policy"},
    "proxy": {"proxy", "ledger", "policy"},
    "sandbox": {"sandbox", "ledger", "policy"},
    "appliance": {"appliance", "dns", "proxy", "sandbox", "ledger", "policy"},
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The policy core gets an allow-list: what is not here has to be argued for.
POLICY_STDLIB = _words(
    """__future__ abc base64 binascii bisect collections contextlib dataclasses datetime decimal enum
    fractions functools hashlib heapq itertools json math operator re string struct textwrap types typing
    unicodedata"""
)
# cryptography: signatures are computed and checked from arguments alone, like any other function.
POLICY_THIRD_PARTY = {"yaml", "idna", "cryptography"}

# Parsers and builders: bytes or values in, events or bytes out. They may use each other and policy/.
SANS_IO = _words(
    """proxy/fields.py proxy/connect.py proxy/body.py proxy/answer.py proxy/socks5.py
    proxy/client_hello.py proxy/quic_initial.py proxy/first_bytes.py proxy/tunnel_requests.py
    proxy/refusal.py
    dns/wire.py dns/build.py dns/vet.py dns/rdata.py dns/reverse.py dns/ruling.py
    ledger/cbor.py ledger/patterns.py ledger/quick.py ledger/records.py ledger/merkle.py ledger/note.py
    ledger/proofs.py ledger/segment.py ledger/succession.py ledger/tiles.py
    sandbox/limits.py sandbox/names.py sandbox/spec.py sandbox/oci.py sandbox/seccomp.py sandbox/env.py
    sandbox/device.py sandbox/forwarder.py sandbox/image_layout.py sandbox/landlock.py sandbox/podman.py
    sandbox/redirect.py
    sandbox/rules.py sandbox/routing.py sandbox/steps.py"""
)
DOES_IO = _words(
    """aiohttp asyncio concurrent ctypes fcntl http.client http.server importlib io logging mmap
    multiprocessing os pathlib prometheus_client pyroute2 random redis requests secrets select selectors
    shutil signal socket socketserver sqlite3 ssl subprocess sys tempfile threading time urllib.request"""
)

# Folders whose members are named one by one: of the first two some modules do I/O and some do not.
PACKAGES = {"http", "urllib", "exeat.appliance.jail"}

PROGRAMS = {"appliance/jail/raw.py": "scapy"}  # started by the doctor in a process of its own
NOT_IN_THE_DAEMON = {"scapy", "mitmproxy", "requests", "pickle", "marshal"}
RESOLVING_CALLS = _words(
    """getaddrinfo gethostbyname gethostbyname_ex gethostbyaddr getnameinfo create_connection
    open_connection"""
)
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
CLOCK_CALLS = {"now", "utcnow", "today"}


class Import(NamedTuple):
    module: str  # the full dotted name
    line: int
    typing_only: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def area(self) -> str | None:
        """`dns` for exeat.dns.wire; None for anything outside exeat."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "exeat" and len(parts) > 1 else None


def violations(tree: Path) -> list[str]:
    """Every breach in a checkout at `tree`, one `path:line: message` each."""
    found: list[str] = []
    for area in MAY_IMPORT:
        if (tree / area / "__init__.py").exists():
            found.append(
                f"{area}/__init__.py:1: an area folder has no __init__.py (dns/ would shadow dnspython)"
            )
        for path in sorted((tree / area).rglob("*.py")):
            name = path.relative_to(tree).as_posix()
            module = ast.parse(path.read_text(), filename=str(path))
            found += [f"{name}:{line}: {message}" for line, message in _judge(area, name, module)]
    return found


def _judge(area: str, name: str, module: ast.Module) -> Iterator[tuple[int, str]]:
    imports = list(_imports(module, name))
    yield from _directions(area, imports)
    yield from _annotations(module)
    # The lab plays the outside world: it stands in for clients and servers, it is not the daemon.
    if not name.startswith("appliance/lab/"):
        yield from _resolver_calls(module)
        yield from _daemon_imports(name, imports)
    if area == "policy":
        yield from _purity(imports, module)
    if name in SANS_IO:
        yield from _sans_io(imports, constants_only=_only_constants(module, "socket"))


def _imports(module: ast.Module, name: str) -> Iterator[Import]:
    package = ["exeat", *name.split("/")[:-1]]
    typing_only = {
        id(inner)
        for node in ast.walk(module)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from exeat.ledger import cbor` names a module; `from exeat.ledger.cbor import X` is one.
            is_folder = prefix in PACKAGES or (prefix.startswith("exeat") and prefix.count(".") <= 1)
            names = [f"{prefix}.{alias.name}" if is_folder else prefix for alias in node.names]
        else:
            continue
        yield from (Import(each, node.lineno, id(node) in typing_only) for each in names)


def _directions(area: str, imports: list[Import]) -> Iterator[tuple[int, str]]:
    for each in imports:
        if each.top in MAY_IMPORT:
            yield (
                each.line,
                f"bare `{each.top}`: import exeat.{each.top} (a second copy of each class, or dnspython)",
            )
        if each.area in MAY_IMPORT and each.area not in MAY_IMPORT[area]:
            yield each.line, f"{area}/ must not import exeat.{each.area}"
        if each.top == "importlib" and area != "appliance":
            yield each.line, "imports by name hide the direction: only appliance/ may"


def _purity(imports: list[Import], module: ast.Module) -> Iterator[tuple[int, str]]:
    for each in imports:
        if each.top not in POLICY_STDLIB | POLICY_THIRD_PARTY | {"exeat"}:
            yield each.line, f"policy/ is pure: no `{each.top}`"
    for call, name in _calls(module):
        if (isinstance(call.func, ast.Name) and name in IMPURE_CALLS) or name in CLOCK_CALLS:
            yield call.lineno, f"policy/ is pure: no `{name}()`"


def _sans_io(imports: list[Import], *, constants_only: bool) -> Iterator[tuple[int, str]]:
    for each in imports:
        if each.typing_only:
            continue
        io = {each.top, each.module, each.module.rpartition(".")[0]} & DOES_IO
        if io and not (each.module == "socket" and constants_only):
            yield each.line, f"a parser does no I/O: no `{each.module}`"
        if each.area not in {None, "policy"} and "/".join(each.module.split(".")[1:3]) + ".py" not in SANS_IO:
            yield each.line, f"a parser uses only parsers and policy/, not {each.module}"


def _daemon_imports(name: str, imports: list[Import]) -> Iterator[tuple[int, str]]:
    programs = {"exeat." + path.removesuffix(".py").replace("/", ".") for path in PROGRAMS}
    for each in imports:
        if each.top in NOT_IN_THE_DAEMON and PROGRAMS.get(name) != each.top:
            yield each.line, f"`{each.top}` has no place in the daemon"
        if any(each.module == program or each.module.startswith(f"{program}.") for program in programs):
            yield each.line, f"{each.module} is a program, not for import"


def _only_constants(module: ast.Module, name: str) -> bool:
    """Is `name` used for nothing but its constants (`socket.AF_INET`)?"""
    used = [node for node in ast.walk(module) if isinstance(node, ast.Name) and node.id == name]
    constants = [
        node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and node.value in used and node.attr.isupper()
    ]
    plain = any(isinstance(node, ast.ImportFrom) and node.module == name for node in ast.walk(module))
    return not plain and len(constants) == len(used)


def _resolver_calls(module: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in _calls(module):
        if name in RESOLVING_CALLS:
            yield call.lineno, f"`{name}()` may ask the system resolver: dial a vetted address"


def _calls(module: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node, node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node, node.func.attr


def _annotations(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spec = node.args
            named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
            bare = [
                a.arg
                for a in named
                if a is not None and a.annotation is None and a.arg not in {"self", "cls"}
            ]
            if bare or node.returns is None:
                yield node.lineno, f"`{node.name}` is not fully annotated"


def test_the_tree_keeps_its_shape() -> None:
    assert violations(REPO) == []


def test_every_listed_parser_exists() -> None:
    assert sorted(name for name in SANS_IO if not (REPO / name).is_file()) == []


def test_the_package_is_six_links_and_nothing_else() -> None:
    package = REPO / "src/exeat"
    for area in MAY_IMPORT:
        link = package / area
        assert link.is_symlink()
        assert link.readlink() == Path("../..") / area
    rest = {path.name for path in package.iterdir()} - set(MAY_IMPORT) - {"__pycache__"}
    assert rest == {"__init__.py", "__main__.py", "py.typed"}


BREACHES = {
    "policy imports ledger": ("policy/x.py", "from exeat.ledger import ipc", "must not import exeat.ledger"),
    "policy imports it from exeat": (
        "policy/x.py",
        "from exeat import ledger",
        "must not import exeat.ledger",
    ),
    "ledger imports proxy": ("ledger/x.py", "import exeat.proxy.connect", "must not import exeat.proxy"),
    "proxy imports dns": ("proxy/x.py", "from exeat.dns.wire import parse", "must not import exeat.dns"),
    "dns imports sandbox, nested": (
        "dns/sub/x.py",
        "def f() -> None:\n    import exeat.sandbox.oci",
        "must not import exeat.sandbox",
    ),
    "sandbox imports proxy by dots": (
        "sandbox/x.py",
        "from ..proxy import relay",
        "must not import exeat.proxy",
    ),
    "ledger imports the appliance for types": (
        "ledger/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from exeat.appliance.config import Config",
        "must not import exeat.appliance",
    ),
    "import by name": ("proxy/x.py", "import importlib", "hide the direction"),
    "bare area": ("appliance/x.py", "import policy.decide", "bare `policy`"),
    "bare dns": ("dns/x.py", "from dns import resolver", "bare `dns`"),
    "scapy": ("dns/x.py", "import scapy.all", "no place in the daemon"),
    "mitmproxy in the doctor's program": ("appliance/jail/raw.py", "import mitmproxy", "no place"),
    "the doctor's program in a daemon": (
        "appliance/x.py",
        "from exeat.appliance.jail.raw import send",
        "a program, not for import",
    ),
    "the doctor's program by its package": (
        "appliance/x.py",
        "from exeat.appliance.jail import raw",
        "a program, not for import",
    ),
    "mitmproxy": ("proxy/x.py", "from mitmproxy import http", "no place in the daemon"),
    "policy reads the clock": ("policy/x.py", "import time", "no `time`"),
    "policy reads the calendar": (
        "policy/x.py",
        "import datetime\nd = datetime.datetime.now()",
        "no `now()`",
    ),
    "policy opens a file": ("policy/x.py", "text = open('x').read()", "no `open()`"),
    "policy logs": ("policy/x.py", "import logging", "no `logging`"),
    "policy dices": ("policy/x.py", "from random import random", "no `random`"),
    "a parser with a socket": (
        "proxy/socks5.py",
        "import socket\nsocket.socket(socket.AF_INET)",
        "no `socket`",
    ),
    "a parser with a socket, renamed": ("dns/wire.py", "from socket import socket", "no `socket`"),
    "a parser that keeps the module": ("dns/wire.py", "import socket\nio = socket", "no `socket`"),
    "a parser that fetches": ("proxy/refusal.py", "from urllib import request", "no `urllib.request`"),
    "a parser that serves": ("proxy/refusal.py", "import http.server", "no `http.server`"),
    "a parser on the event loop": (
        "dns/wire.py",
        "from exeat.ledger.reactor import Reactor",
        "only parsers and policy/, not exeat.ledger.reactor",
    ),
    "system resolver": ("proxy/x.py", "import socket\nsocket.getaddrinfo('h', 1)", "system resolver"),
    "dial by name": (
        "dns/x.py",
        "from socket import create_connection\ncreate_connection(('h', 1))",
        "system resolver",
    ),
    "no return type": ("ledger/x.py", "def f(a: int):\n    return a", "`f` is not fully annotated"),
    "no argument type": ("ledger/x.py", "async def f(a, *b: int) -> None: ...", "`f` is not fully annotated"),
    "a package file in an area": ("dns/__init__.py", "", "an area folder has no __init__.py"),
}


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[str, str], list[str]]:
    def put(name: str, text: str) -> list[str]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return violations(tmp_path)

    return put


@pytest.mark.parametrize(("name", "text", "message"), BREACHES.values(), ids=BREACHES.keys())
def test_each_breach_is_seen(
    plant: Callable[[str, str], list[str]], name: str, text: str, message: str
) -> None:
    found = plant(name, text)
    assert len(found) == 1
    assert found[0].startswith(f"{name}:")
    assert message in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy/x.py", "import json\nfrom exeat.policy.model import Address\nimport yaml"),
        ("sandbox/spec.py", "import socket\nFAMILY = socket.AF_INET"),
        ("proxy/refusal.py", "from http import HTTPStatus\nfrom urllib.parse import quote"),
        ("ledger/records.py", "from exeat.ledger import cbor"),
        (
            "proxy/connect.py",
            "import re\nfrom exeat.proxy.body import Body\nfrom exeat.policy.names import parse_host",
        ),
        (
            "dns/wire.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from exeat.ledger.hub import HubClient",
        ),
        ("appliance/lab/x.py", "import requests, socket\nsocket.create_connection(('203.0.113.1', 1))"),
        ("appliance/lab/x.py", "from . import plan\nfrom .plan import Host"),
        ("appliance/x.py", "import exeat.dns.wire\nimport exeat.proxy.connect\nimport asyncio, socket, time"),
    ],
)
def test_what_is_right_passes(plant: Callable[[str, str], list[str]], name: str, text: str) -> None:
    assert plant(name, text) == []
