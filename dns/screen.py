"""A second look at lookups that policy allows: does data leave in their names?

Stands between the policy core's yes and everything that follows from it, for jails and for the
proxy alike. It can only refuse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from exeat.dns.tunnels import Alert, Tunnels
from exeat.policy.model import Decision, Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

TUNNEL = "dns.tunnel"
SUSPECTED = "dns.tunnel_suspected"
MAX_DOMAINS = 8192  # remembered results of the suffix list


class Warned(NamedTuple):
    """What is told about a subject: `decision` is a denial, or an allowance with SUSPECTED."""

    subject: Subject
    decision: Decision
    alert: Alert


def two_labels(host: str) -> str:
    """The domain of a host by its last two labels: where there is no suffix list, rather one domain
    too few than too many."""
    return ".".join(host.rsplit(".", 2)[-2:])


class Screen:
    """`registrable` says which domain a host is under; `tell` gets what people should know."""

    def __init__(
        self,
        now: Callable[[], float],
        registrable: Callable[[str], str],
        tell: Callable[[Warned], None],
    ) -> None:
        self._now = now
        self._registrable = registrable
        self._tell = tell
        self._tunnels = Tunnels()
        self._domains: dict[str, str] = {}

    def look(self, subject: Subject, host: str, decision: Decision) -> Decision:
        """`decision` (which allows), or a denial."""
        fine, alert = self._tunnels.look(subject, self._domain(host), host, self._now())
        denial = Decision(Verdict.DENY, TUNNEL, decision.rule)
        if alert is not None:
            self._warn(subject, denial if alert.denied else replace(decision, reason=SUSPECTED), alert)
        return decision if fine else denial

    def odd_type(self, subject: Subject, host: str, decision: Decision) -> None:
        """An allowed name was asked for with a type that tunnels use and the guard does not serve."""
        alert = self._tunnels.odd_type(subject, self._domain(host), self._now())
        if alert is not None:
            self._warn(subject, replace(decision, reason=SUSPECTED), alert)

    def _warn(self, subject: Subject, decision: Decision, alert: Alert) -> None:
        self._tell(Warned(subject, decision, alert))

    def _domain(self, host: str) -> str:
        domain = self._domains.get(host)
        if domain is None:
            if len(self._domains) >= MAX_DOMAINS:
                self._domains.clear()
            domain = self._domains[host] = self._registrable(host)
        return domain
