"""No value ends a rule and begins another: what is not refused gives text of one fixed shape."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import Cidr
from exeat.policy.model import Address
from exeat.sandbox.names import SpecError
from exeat.sandbox.rules import Cgroup, Host, Pinhole, Table, Target, Veth, change, replacement

NASTY = st.sampled_from(
    [
        'a"',
        "a; flush ruleset",
        "a\nflush ruleset",
        "a b",
        "",
        "../a",
        "a/../b",
        "a}",
        "$x",
        "@set",
        "é",
        "a\0",
    ]
)
WORD = NASTY | st.text(max_size=12) | st.from_regex(r"[a-z][a-z0-9.]{0,8}", fullmatch=True)
NUMBER = st.integers(-2, 70_000) | st.integers() | st.booleans() | st.floats() | WORD | st.none()
ADDRESS = st.builds(Address, st.sampled_from([4, 6]), st.integers(0, 2**32 - 1)) | st.builds(
    Address, NUMBER, NUMBER
)
TARGET = st.builds(Target, ADDRESS, st.sampled_from(["tcp", "udp"]) | WORD, NUMBER)

# One statement a line: these words, numbers and addresses, names only where names stand.
LINE = re.compile(
    r"(add|delete|flush) (table|chain|set|counter|quota|element|rule) inet exeat"
    r'( [a-z0-9_]+)?( [a-z0-9_{}.:;,@/ -]*("[A-Za-z0-9_.@:/-]+")?[a-z0-9_{}.:;,@/ -]*)*'
)


def made(build: Any, *values: Any) -> Any:
    """The value, or None where its type refuses it, which is the one way to refuse."""
    with contextlib.suppress(SpecError):
        return build(*values)
    return None


@given(
    st.lists(st.tuples(WORD, WORD | st.none(), st.lists(st.tuples(NUMBER, NUMBER), max_size=2)), max_size=3),
    st.lists(
        st.tuples(WORD, WORD, st.lists(st.builds(Cidr, NUMBER, NUMBER, NUMBER), max_size=2)), max_size=2
    ),
    st.lists(st.tuples(NUMBER, WORD, st.lists(TARGET, max_size=2), NUMBER, NUMBER), max_size=3),
    st.tuples(st.lists(TARGET, max_size=2), NUMBER, NUMBER, st.lists(TARGET, max_size=2)),
    st.sampled_from(["", "unified/"]) | WORD,
)
def test_whatever_is_not_refused_keeps_the_shape(
    hosts: Any, veths: Any, pinholes: Any, gateway: Any, prefix: Any
) -> None:
    members = [made(Host, label, made(Cgroup, path), tuple(uids)) for label, path, uids in hosts] + [
        made(Veth, label, name, tuple(sources)) for label, name, sources in veths
    ]
    holes = [
        made(Pinhole, n, member, tuple(targets), quota, end) for n, member, targets, quota, end in pinholes
    ]
    doors, transparent, dns, never = gateway
    table = made(
        Table,
        tuple(filter(None, members)),
        tuple(doors),
        transparent,
        dns,
        tuple(never),
        tuple(filter(None, holes)),
        prefix,
    )
    if table is None:
        return
    for text in (replacement(table, 0.0), change(table, Table(), 0.0), change(Table(), table, 0.0)):
        for line in text.splitlines():
            assert LINE.fullmatch(line), line
            assert line.count('"') % 2 == 0
            assert line.count("{") == line.count("}")


@given(WORD, WORD, WORD)
def test_no_word_reaches_the_text_that_its_type_would_not_have(label: str, path: str, name: str) -> None:
    for word, kind in ((made(Cgroup, path), path), (made(Host, label, None, ((1, 1),)), label)):
        if word is not None:
            assert re.fullmatch(r"[A-Za-z0-9_.@:/-]+", kind)
    if made(Veth, "a/b", name, (Cidr(4, 1, 32),)) is not None:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name)
