"""The corpus against exeat, from a jail and from outside one, before and after a restart."""

from __future__ import annotations

import fnmatch
import sys
from typing import TYPE_CHECKING

import pytest
from tests.redteam import cases
from tests.redteam.arena import HERE, Arena, running
from tests.redteam.exeat import Exeat
from tests.redteam.score import Endpoints, await_port, score

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.root, pytest.mark.slow]

# Of each class something that a proxy without any policy gets wrong.
OPEN = (
    "names/off-list/*", "names/nul/socks", "ports/smtp/*", "literals/evil/*", "literals/private/*",
    "literals/dotted/*", "resolve/r-private10/*", "resolve/r-loopback/*", "http/host-other",
    "tls/evil", "tls/absent", "tls/http", "socks/literal-evil", "http/cl-te", "http/tunnel-80-evil",
    "udp/evil", "udp/other-port", "udp/mapped", "udp/inside", "udp/frag", "udp/second", "udp/dtls",
    "udp/loopback", "udp/quic-evil", "udp/quic-overlap",
)  # fmt: skip
CONTROLS = ("controls/https", "controls/http", "controls/socks", "udp/plain", "udp/quic")


def chosen(patterns: Sequence[str]) -> list[cases.Case]:
    return [case for case in cases.load() if any(fnmatch.fnmatch(case.id, text) for text in patterns)]


def test_exeat_passes_all_of_it_in_both_forms_with_a_restart_between() -> None:
    """From a jail; after a restart, as a client on loopback; at last the controls from a jail again."""
    corpus = cases.load()
    with Arena("t") as arena, Exeat(arena) as appliance:
        asked = [case for case in corpus if "direct" not in case.doors]
        for form, part in (("jail", corpus), ("alone", asked), ("jail", chosen(["controls/*"]))):
            result = appliance.score(form, part)
            assert result.failures == [], form
            assert len(result.verdicts) == len(part)
            appliance.restart()


def test_the_runner_finds_a_proxy_without_a_policy_out() -> None:
    """Controls pass, and every hostile case of the sample is a failure that names what was seen."""
    corpus = chosen((*OPEN, *CONTROLS))
    with Arena("o") as arena:
        command = [sys.executable, "-I", str(HERE / "open_proxy.py"), "3128"]
        here = "127.0.0.1:3128"
        doors = Endpoints.of(proxy=here, socks=here, udp=here)
        with running(arena, command, arena.folder / "proxy.log"):
            await_port(arena, doors, 10)
            result = score(arena, corpus, doors, arena.enter, HERE / "client.py")
    passed = {case.id for case, verdict in result.verdicts if verdict.passed}
    assert passed == set(CONTROLS)
