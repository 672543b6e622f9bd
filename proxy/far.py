"""The way of a flow to its destination: decision, hold, addresses, dial.

A method per state. What comes of them is `_connected` or `_refuse`, which are Flow's.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING

from exeat.policy.model import Address, Decision, Request, Verdict
from exeat.proxy import refusal
from exeat.proxy.asks import MAX_PER_JAIL, ask_key
from exeat.proxy.chain import ChainDialer
from exeat.proxy.dial import Dialer
from exeat.proxy.guard_client import Answer, NoAddress, Question
from exeat.proxy.near import NearSide
from exeat.proxy.refusal import Refusal, host_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.policy.snapshot import Snapshot
    from exeat.proxy.chain import Upstream
    from exeat.proxy.ends import End
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.jails import Jail


class FarSide(NearSide):
    """From a request that is understood to a connection that is made, or to a refusal."""

    __slots__ = (
        "_ask_key",
        "_cancel",
        "_decided_at",
        "_decided_by",
        "_hold_until",
        "_question",
        "_request",
        "_since",
    )

    def __init__(self, gateway: Gateway, jail: Jail, client: End, src: str) -> None:
        super().__init__(gateway, jail, client, src)
        self._request: Request | None = None
        self._cancel: Callable[[], None] | None = None  # of the guard or the dial in flight
        self._question: Question | None = None  # what the guard was asked
        self._decided_by: Snapshot | None = None
        self._decided_at = 0.0  # reactor time
        self._ask_key = ""
        self._hold_until: float | None = None
        self._since = 0.0  # reactor time: when the wait for a person, or the dial, began

    @abstractmethod
    def _connected(self, upstream: End, address: Address | None) -> None: ...

    @abstractmethod
    def _refuse(self, why: Refusal, answer: bytes | None = None, *, final: bool = False) -> None:
        """`final`: whatever the client would say next, this connection ends."""

    # -- state: decision, hold, addresses, dial

    def decide(self, request: Request) -> Decision:
        decision = self.gateway.judge(self.evidence, request)
        self._decided_by, self._decided_at = self.gateway.snapshot, self.gateway.reactor.woke
        return decision

    def _still_allowed(self) -> Decision | None:
        """The last decision, if it would be the same now."""
        decision = self.evidence.decision
        if decision is None or not self.gateway.stands(decision, self._decided_by, self._decided_at):
            return None
        return decision

    def _admit(self) -> None:
        request = self._need_request()
        if self._admit_known(request):
            return
        decision = self.decide(request)
        if decision.verdict is Verdict.ASK:
            self._park(decision)
        elif not decision.allowed:
            self._refuse(self._denied(decision))
        elif not self.gateway.ledger.available:
            self._refuse(self._own("ledger.unavailable"))
        else:
            self._resolve(request, decision)

    def _admit_known(self, request: Request) -> bool:
        """The usual flow goes where another has just been: one decision, with the addresses, says all.

        Only a plain allow does: everything else, and what needs a lease, goes the long way.
        """
        if not isinstance(request.host, str):
            return False
        question = (request.subject, request.host, request.port, "")
        known = self.gateway.guard.known(question)
        if known is None or not self.gateway.ledger.available:
            return False
        request = Request(request.subject, request.host, request.port, resolved=known)
        decision, self._decided_at = self.gateway.judge_known(self.evidence, question, request)
        self._decided_by = self.gateway.snapshot
        if not decision.allowed or decision.lease:
            return False
        self._question, self._request = question, request
        self._dial(known)
        return True

    def _resolve(self, request: Request, decision: Decision) -> None:
        self._until(self.gateway.settings.dial_timeout_s, "dns.unavailable")
        if isinstance(request.host, Address):
            self._resolved((request.host,))
            return
        chain = self.gateway.settings.upstream
        if chain is not None and chain.resolves and chain.takes(request.host):
            self._dial_through(chain, (request.host,))
            return
        self._question = (request.subject, request.host, request.port, decision.lease)
        known = self.gateway.guard.known(self._question)
        if known is not None:
            self._resolved(known)
        else:
            self._cancel = self.gateway.guard.resolve(self._question, self._resolved)

    def _resolved(self, answer: Answer) -> None:
        self._cancel = None
        if self.closed:
            return
        if isinstance(answer, NoAddress):
            self._refuse(self._nowhere(answer))
            return
        self._request = dataclasses.replace(self._need_request(), resolved=answer)
        decision = self.decide(self._request)
        if not decision.allowed:
            self._ask_again()
        if decision.verdict is Verdict.ASK:
            self._park(decision)
        elif not decision.allowed:
            self._refuse(self._denied(decision))
        else:
            self._dial(answer)

    def _nowhere(self, answer: NoAddress) -> Refusal:
        """The guard gives no address; where policy said so, that decision replaces the first one."""
        if answer.reason.startswith("dns."):
            return self._own(answer.reason)
        decision = Decision(Verdict.DENY, answer.reason, answer.rule)
        self.evidence.decision, self.evidence.shadow = decision, ""
        return self._denied(decision)

    def _dial(self, addresses: tuple[Address, ...]) -> None:
        chain = self.gateway.settings.upstream
        if chain is not None and chain.takes(self._need_request().host, addresses):
            self._dial_through(chain, addresses)
            return
        self._until(self.gateway.settings.dial_timeout_s, "dial.timeout")
        self._since = self.gateway.reactor.now()
        dialer = Dialer(self.gateway.reactor, addresses, self.evidence.port, self._dialled, self._dial_failed)
        self._cancel = dialer.cancel

    def _dial_through(self, chain: Upstream, targets: tuple[Address, ...] | tuple[str]) -> None:
        self._until(self.gateway.settings.dial_timeout_s, "dial.timeout")
        self._since = self.gateway.reactor.now()
        self._cancel = ChainDialer(
            self.gateway.reactor, chain, targets, self.evidence.port, self._dialled, self._dial_failed
        ).cancel

    def _dialled(self, upstream: End, address: Address | None) -> None:
        self.gateway.connecting.add(self.gateway.reactor.woke - self._since)
        self._connected(upstream, address)

    def _took(self, name: str, result: str) -> None:
        self.gateway.tally.time(name, result).add(self.gateway.reactor.now() - self._since)

    def _dial_failed(self, code: str) -> None:
        self._took("connect_duration_seconds", code)
        self._cancel = None
        self._ask_again()
        if not self.closed:
            self._refuse(self._own(code))

    def _ask_again(self) -> None:
        """These addresses led nowhere: the next flow to this name is not to be given them again."""
        if self._question is not None:
            self.gateway.guard.drop(self._question)

    # -- state: asking a person

    def _park(self, decision: Decision) -> None:
        gateway, request = self.gateway, self._need_request()
        host = host_text(request.host)
        key = ask_key(request, host)
        if self._hold_until is None:
            self._hold_until = gateway.reactor.now() + gateway.hold_s(self.jail)
        if self._ask_key:
            return  # already waiting
        if self.jail.parked >= MAX_PER_JAIL:
            self._refuse(self._own("limit.asks"))
            return
        if not gateway.asks.park(key, self, request, host, decision):
            self._refuse(self._denied(decision))
            return
        self._ask_key = key
        self.jail.parked += 1
        self._since = gateway.reactor.now()
        self.deadline = self._hold_until

    def _unpark(self, result: str = "gone") -> None:
        """`result`: what came of the wait, for the metrics."""
        if self._ask_key:
            self._took("hold_duration_seconds", result)
            self.gateway.asks.leave(self._ask_key, self)
            self._ask_key = ""
            self.jail.parked -= 1

    def reconsider(self) -> None:
        """Something changed while we wait for a person."""
        request = dataclasses.replace(self._need_request(), resolved=())
        decision = self.decide(request)
        if decision.verdict is Verdict.ASK:
            return
        self._request = request
        self._unpark("allow" if decision.allowed else "deny")
        if decision.allowed:
            self._admit()
        else:
            self._refuse(self._denied(decision))

    # -- helpers

    def _own(self, code: str) -> Refusal:
        return refusal.from_code(code, self.evidence.host, self.evidence.port)

    def _denied(self, decision: Decision) -> Refusal:
        request = self._need_request()
        key = ask_key(request, host_text(request.host))
        self.evidence.request_id = (
            self.gateway.asks.request_id(key) if decision.verdict is Verdict.ASK else ""
        )
        return refusal.from_decision(
            decision, request.host, request.port, request.subject.project, self.evidence.request_id
        )

    def _need_request(self) -> Request:
        if self._request is None:
            raise RuntimeError("no request in this state")
        return self._request
