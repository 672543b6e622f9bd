"""A second look at lookups that policy allows: does data leave in their names, are they like a client's?

Stands between the policy core's yes and everything that follows from it, for jails and for the
proxy alike. It can only refuse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from exeat.dns.habits import Habits, Notice
from exeat.dns.tunnels import Tunnels
from exeat.policy.model import Decision, Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

TUNNEL = "dns.tunnel"
SUSPECTED = "dns.tunnel_suspected"
ANOMALY = "dns.anomaly"
UNUSUAL = "dns.anomaly_suspected"
MAX_DOMAINS = 8192  # remembered results of the suffix list


class Warned(NamedTuple):
    """What is told about a subject: `decision` is a denial, or an allowance with SUSPECTED or UNUSUAL.

    `domain` is "" where all of the subject's lookups are meant; `score` goes from 0 to 1; `octets` left
    in `names` names, as far as that is known.
    """

    subject: Subject
    decision: Decision
    domain: str
    score: float
    signals: tuple[str, ...]
    octets: int
    names: int


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
        self._habits = Habits()
        self._domains: dict[str, str] = {}

    def look(self, subject: Subject, host: str, decision: Decision, *, strict: bool = False) -> Decision:
        """`decision` (which allows), or a denial. With `strict` habits are a reason for one as well."""
        if strict and self._habits.cut(subject, self._now()):
            return Decision(Verdict.DENY, ANOMALY, decision.rule)
        fine, alert = self._tunnels.look(subject, self._domain(host), host, self._now())
        denial = Decision(Verdict.DENY, TUNNEL, decision.rule)
        if alert is not None:
            said = denial if alert.denied else replace(decision, reason=SUSPECTED)
            self._tell(Warned(subject, said, *alert[1:]))
        return decision if fine else denial

    def heard(self, subject: Subject, host: str, decision: Decision, *, exists: bool, strict: bool) -> None:
        """An upstream has answered about `host`; `exists` is False where there is no such name."""
        notice = self._habits.heard(subject, self._domain(host), self._now(), exists=exists)
        self._notice(subject, decision, notice, strict=strict)

    def odd_type(self, subject: Subject, host: str, decision: Decision, *, strict: bool) -> None:
        """An allowed name was asked for with a type that tunnels use and the guard does not serve."""
        alert = self._tunnels.odd_type(subject, self._domain(host), self._now())
        if alert is not None:
            self._tell(Warned(subject, replace(decision, reason=SUSPECTED), *alert[1:]))
        self._notice(subject, decision, self._habits.odd_type(subject, self._now()), strict=strict)

    def _notice(self, subject: Subject, decision: Decision, notice: Notice | None, *, strict: bool) -> None:
        if notice is None:
            return
        unusual = Decision(Verdict.ALLOW, UNUSUAL, decision.rule, lease=decision.lease)
        said = Decision(Verdict.DENY, ANOMALY) if strict and notice.denied else unusual
        self._tell(Warned(subject, said, "", notice.score, notice.signals, 0, notice.questions))

    def _domain(self, host: str) -> str:
        domain = self._domains.get(host)
        if domain is None:
            if len(self._domains) >= MAX_DOMAINS:
                self._domains.clear()
            domain = self._domains[host] = self._registrable(host)
        return domain
