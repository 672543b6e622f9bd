"""A pytest plug-in to test a policy offline: `pytest --exeat-policy crawler.yaml`, fixture `egress`.

def test_the_crawler_stays_out_of_gist(egress):
    assert egress.allows("api.openai.com")
    assert egress.decide("gist.github.com").reason == "rule.deny"
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exeat.appliance.errors import UsageError
from exeat.appliance.policy_files import load_file
from exeat.policy.cases import case_request
from exeat.policy.decide import compile_policy, decide
from exeat.policy.errors import MalformedError, UnitError
from exeat.policy.leases import Lease
from exeat.policy.model import Decision, Subject, Verdict
from exeat.policy.reach import Reach, reach
from exeat.policy.scopes import parse_scope
from exeat.policy.units import parse_time
from exeat.policy.usage import Overlay

if TYPE_CHECKING:
    from exeat.policy.document import Document


class Egress:
    """One policy, asked as the gateway asks it: no leases, unspent budgets."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._policy = compile_policy(document)

    def decide(
        self,
        host: str,
        port: int = 443,
        *,
        proto: str = "tcp",
        agent: str = "agent",
        node: str = "node",
        resolved: tuple[str, ...] = (),
        now: str | None = None,
    ) -> Decision:
        """The decision for `host` as a client writes it; `now` like 2026-01-05T12:00:00Z."""
        fields = {"host": host, "port": port, "proto": proto, "resolved": resolved}
        subject = Subject(self.document.project, agent, node=node)
        try:
            return decide(self._policy, case_request(fields, subject), _now_ms(now), Overlay())
        except MalformedError as error:
            return Decision(Verdict.DENY, error.code)

    def allows(self, host: str, port: int = 443, **more: object) -> bool:
        return self.decide(host, port, **more).verdict is Verdict.ALLOW  # type: ignore[arg-type]

    def asks(self, host: str, port: int = 443, **more: object) -> bool:
        return self.decide(host, port, **more).verdict is Verdict.ASK  # type: ignore[arg-type]

    def denies(self, host: str, port: int = 443, **more: object) -> bool:
        return self.decide(host, port, **more).verdict is Verdict.DENY  # type: ignore[arg-type]

    def reach(self, scope: str, *, now: str | None = None) -> Reach:
        """What it takes to get anywhere in a scope: see `exeat policy reach`."""
        wanted = Lease(id="wanted", project=self.document.project, to=(parse_scope(scope),))
        return reach(self.document, wanted, now_ms=_now_ms(now))


def _now_ms(now: str | None) -> int:
    try:
        return time.time_ns() // 1_000_000 if now is None else parse_time(now)
    except UnitError as error:
        raise ValueError(str(error)) from None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("exeat")
    group.addoption(
        "--exeat-policy", type=Path, metavar="FILE", help="the policy that the fixture `egress` asks"
    )
    group.addoption("--exeat-baseline", type=Path, metavar="FILE", help="the baseline that holds over it")


@pytest.fixture(scope="session")
def egress(pytestconfig: pytest.Config) -> Egress:
    """The policy named by --exeat-policy, ready to be asked."""
    path = pytestconfig.getoption("--exeat-policy")
    if path is None:
        pytest.fail("the fixture `egress` needs --exeat-policy FILE", pytrace=False)
    try:
        return Egress(load_file(path, pytestconfig.getoption("--exeat-baseline")))
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
