"""One client connection, from accept to a judged tunnel or a refusal (docs/architecture.md).

A method per state; the state is which method hears the client's bytes. Every wait has a
deadline, which the gateway's sweep checks, so no flow needs a timer of its own. Whatever goes
wrong, there are two ways out: `_refuse`, which answers and records, and `_drop`, which does not
answer because nobody is there.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from exeat.policy.model import Address, Decision, Request, Sni, Speech, permits
from exeat.proxy import associate, desk, refusal, socks5
from exeat.proxy.body import BodyFramer
from exeat.proxy.doors import Arrival, Door, DoorError, HttpDoor, open_door
from exeat.proxy.exchange import Before, Exchange
from exeat.proxy.far import FarSide
from exeat.proxy.fields import HttpError
from exeat.proxy.first_bytes import TLS_PORTS, FirstBytes, FirstBytesJudge, TunnelError
from exeat.proxy.near import DRAIN_BYTES
from exeat.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    from exeat.proxy.account import Account
    from exeat.proxy.associate import Association
    from exeat.proxy.connect import RequestHead
    from exeat.proxy.ends import End
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.jails import Jail
    from exeat.proxy.refusal import Refusal
    from exeat.proxy.tunnel_requests import TunnelRequests

NEVER: Final = float("inf")  # reactor time


class Flow(FarSide):
    """Owns the client's end until a Tunnel takes it, or until it is closed."""

    __slots__ = (
        "_arrival",
        "_association",
        "_door",
        "_in_tunnel",
        "_judge",
        "_question_here",
        "_upstream",
    )

    def __init__(
        self, gateway: Gateway, jail: Jail, client: End, src: str, before: Before | None = None
    ) -> None:
        super().__init__(gateway, jail, client, src)
        self._door: Door | None = None
        self._arrival: Arrival | None = None
        self._judge: FirstBytesJudge | None = None
        self._upstream: End | None = None
        self._association: Association | None = None
        self._question_here: desk.Question | None = None
        self._in_tunnel = False  # the client has been told that its tunnel is there
        self._hear = Flow._hear_request
        if before is not None:
            self._door = self._door_of_next()
            self._follow(before)

    def begin(self) -> None:
        """The flow is in the gateway's table. A client asks first, so there is nothing to do yet."""

    def next(self, before: Before) -> Flow:
        """The flow of what the client will ask next on this connection, if it stays."""
        return Flow(self.gateway, self.came_by, self.client, self.evidence.src, before)

    def _door_of_next(self) -> Door:
        return HttpDoor()

    # -- state: the request

    def _hear_request(self, data: bytes) -> None:
        try:
            if self._door is None:
                self._door = open_door(data[0], self._check_password if self._must_say_who() else None)
            out, arrival = self._door.feed(data)
        except DoorError as error:
            self._refuse(refusal.from_code(error.code), answer=error.answer)
            return
        if out and not self._send(out):
            return
        if arrival is not None:
            self._arrived(arrival)

    def _must_say_who(self) -> bool:
        """Whether nothing tells who the client is, and a name and password could."""
        return self.gateway.must_say_who(self.jail)

    def _check_password(self, name: bytes, password: bytes) -> str:
        return self.gateway.identify(self, (name, password))

    def _arrived(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self.heard += arrival.consumed
        evidence = self.evidence
        evidence.name_source, evidence.host, evidence.port = arrival.source, arrival.host, arrival.port
        code = self.gateway.identify(self, arrival.credentials) if self._must_say_who() else ""
        self._request = Request(self.jail.subject, arrival.host, arrival.port)
        if arrival.udp and not code:
            self._associate(arrival)
            return
        if (arrival.host, arrival.port) == (desk.HOST, desk.PORT) and not code:
            self._come_to_desk(arrival)
            return
        self._listen(wanted=False)
        if code:
            self._refuse(self._own(code))
            return
        if not arrival.tunnel and arrival.port in TLS_PORTS:
            self._refuse(self._own("tls.not_tls"))
            return
        self._hear = Flow._hear_nothing
        self._admit()

    # -- state: a question to exeat itself

    def _come_to_desk(self, arrival: Arrival) -> None:
        asked = arrival.asked
        if asked is None:
            if self._door is not None and self._send(self._door.established()):
                self._door, self._arrival = desk.DeskDoor(), None
                if arrival.rest:
                    self._hear_request(arrival.rest)
            return
        code = desk.unacceptable(asked)
        if code:
            self._refuse(self._own(code), final=True)
            return
        if asked.expects and not self._send(b"HTTP/1.1 100 Continue\r\n\r\n"):
            return
        self._question_here = desk.Question(asked)
        self._hear = Flow._hear_question
        self._hear_question(arrival.rest)

    def _hear_question(self, data: bytes) -> None:
        question = self._question_here
        if question is None or not question.feed(data):
            return
        self._listen(wanted=False)
        self._hear = Flow._hear_nothing
        self._until(desk.WAIT_S, "desk.unavailable")
        forget = self.gateway.desk.ask(self.jail.subject, question, self._told)
        if isinstance(forget, str):
            self._refuse(self._own(forget), final=True)
        else:
            self._cancel = forget

    def _told(self, status: int, kind: str, body: bytes) -> None:
        self._cancel = None
        question = self._question_here
        if question is None or self.closed:
            return
        said = desk.answer(status, kind, body, head=question.method == "HEAD")
        self._hear = Flow._hear_nothing_more
        if self._send(said):
            self._part(answered=True)

    # -- state: an association of datagrams

    def _associate(self, arrival: Arrival) -> None:
        """From here this connection says only that its client is there (RFC 1928 section 7)."""
        if self.gateway.stops(self.jail):
            self._refuse(self._own("kill"))
            return
        association = associate.begin(self, arrival.port) if self.gateway.may_speak_udp(self.jail) else None
        if association is None:
            refused = socks5.reply(socks5.COMMAND_NOT_SUPPORTED)
            self._refuse(self._own("socks.command"), answer=refused)
            return
        self._arrival = None
        self._association = association
        self._hear = Flow._hear_nothing
        self.deadline = float("inf")
        self._send(socks5.reply(socks5.SUCCEEDED, *association.bound))

    def _connected(self, upstream: End, address: Address | None) -> None:
        self._cancel = None
        self._upstream = upstream
        self.evidence.address = address
        arrival = self._need_arrival()
        if arrival.asked is not None:
            self._open_http(arrival.asked, arrival.rest)
            return
        self._in_tunnel = True
        if self._door is None or not self._send(self._door.established()):
            return
        if self._may_speak(Speech.RAW):
            self.evidence.speech = Speech.RAW
            self._open(arrival.rest, None)
            return
        self._judge = FirstBytesJudge(arrival.host, arrival.port)
        if arrival.port in TLS_PORTS:
            self._until(self.gateway.settings.hello_timeout_s, "tls.timeout")
            self._hear = Flow._hear_hello
            self._listen(wanted=True)
        if arrival.rest:
            self._hear_hello(arrival.rest)
        elif arrival.port not in TLS_PORTS:
            self._open(b"", self._judge)

    # -- state: first bytes

    def _hear_hello(self, data: bytes) -> None:
        judge = self._judge
        if judge is None:
            return
        try:
            first = judge.feed(data)
        except TunnelError as error:
            self._refuse(self._own(error.code))
            return
        if first is not None:
            code = self.judge_first_bytes(first)
            if code:
                self._refuse(self._own(code))
            else:
                self._open_judged(first)
        elif self.evidence.port not in TLS_PORTS:
            self._open(b"", judge)

    def _open_judged(self, first: FirstBytes) -> None:
        try:
            passing = first.passing()
        except TunnelError as error:
            self._refuse(self._own(error.code))
            return
        self._open(passing, first.requests, self.evidence.decision if first.hello else None)

    def _may_speak(self, speech: Speech) -> bool:
        decision = self.evidence.decision
        return decision is not None and permits(decision, speech)

    def judge_first_bytes(self, first: FirstBytes, paid: Account | None = None) -> str:
        """A reason code why these may not go out, "" if they may. `paid`: of a tunnel that is live."""
        if first.hello is None:
            return ""
        # Real or greased cannot be told apart. The outer server name is judged like any other.
        if first.hello.ech:
            self.evidence.speech = Speech.ECH
        if not self._may_speak(self.evidence.speech):
            return "tls.ech"
        self.evidence.sni = first.hello.sni or Sni.ABSENT
        self._request = dataclasses.replace(self._need_request(), sni=self.evidence.sni)
        decision = self.decide(self._request)
        if paid is not None and paid.holds(decision):
            self.evidence.decision = paid.decision  # as before: it is what the bytes are charged to
            return ""
        if decision.allowed and not permits(decision, self.evidence.speech):
            return "tls.ech"
        return "" if decision.allowed else decision.reason

    # -- the ways out

    def _open_http(self, asked: RequestHead, rest: bytes) -> None:
        try:
            exchange = Exchange(asked, rest)
        except HttpError as error:
            self._refuse(self._own(error.code), final=True)
            return
        self._open(exchange.first, exchange)

    def _open(
        self,
        first: bytes,
        watch: FirstBytesJudge | TunnelRequests | Exchange | None,
        decided: Decision | None = None,
    ) -> None:
        """Hand both sockets to a Tunnel, if policy still says yes at this very moment.

        Deciding and charging are one step, so that flows in parallel cannot spend a budget twice;
        `decided` is a decision made just now, in the same callback.
        """
        decision = decided or self._still_allowed() or self.decide(self._need_request())
        upstream = self._upstream
        if not decision.allowed or upstream is None:
            self._refuse(self._denied(decision))
            return
        if not permits(decision, self.evidence.speech):
            self._refuse(self._own("policy.changed"))
            return
        self._listen(wanted=False)
        self._hear = Flow._hear_nothing
        self._until(self.gateway.settings.dial_timeout_s, "ledger.unavailable")
        asked = self._need_arrival().asked
        consumed = self.heard - (len(asked.upstream) if asked else 0)
        tunnel = Tunnel(self, upstream, self._need_request(), decision, watch, consumed)
        self._cancel = tunnel.forget
        tunnel.open(first)

    def opened(self) -> None:
        """The tunnel's open record is durable: the sockets are the tunnel's from here."""
        self._cancel = self._upstream = self._door = self._arrival = self._judge = self._question = None
        self.deadline = NEVER
        self.gateway.promote(self)

    def refuse_opening(self, code: str) -> None:
        """The tunnel could not be opened: nothing has passed."""
        self._cancel = None
        if not self.closed:
            self._refuse(self._own(code))

    def refuse_limit(self, code: str) -> None:
        """Too many of these: say so at once, without reading."""
        self._door = HttpDoor()
        self._refuse(self._own(code))

    def expire(self) -> None:
        """The deadline of this state has passed."""
        if self._hear is Flow._hear_nothing_more or self._before is not None:
            self._close()
        elif self._ask_key and self.evidence.decision is not None:
            self._unpark("timeout")
            self._refuse(self._denied(self.evidence.decision))
        else:
            self._refuse(self._own(self._timeout_code))

    def cut(self, reason: str) -> None:
        """Control ends this flow before it became a tunnel."""
        if self._association is not None:
            self._association.close(reason)
            self._association = None
            self._close()
        elif self._before is not None:
            self._close()
        else:
            self._refuse(self._own(reason), final=True)

    def _refuse(self, why: Refusal, answer: bytes | None = None, *, final: bool = False) -> None:
        """`final`: whatever the client would say next, this connection ends."""
        if self.closed or self._hear is Flow._hear_nothing_more:
            return
        self._release()
        self.gateway.refused(self, why)
        stays = not final and self._may_stay()
        if answer is None:
            answer = self._answer(why, stays=stays)
        self._hear = Flow._hear_nothing_more
        if answer and not self._send(answer):
            return
        if stays:
            arrival = self._need_arrival()
            unwanted = BodyFramer(arrival.asked.length if arrival.asked else 0)
            self.closed = True  # for us: the connection is the next request's
            self.gateway.follow(self, Before(self.handshake_out, self.heard, arrival.rest, unwanted))
            self.gateway.forget(self)
        else:
            self._part(answered=bool(answer))

    def _part(self, *, answered: bool) -> None:
        """All is said. `answered`: the client was told something."""
        self._await_goodbye()

    def _may_stay(self) -> bool:
        """The client is told that it may ask again, if what is left of this request is sure to end."""
        asked = self._arrival.asked if self._arrival is not None else None
        if asked is None or not asked.persistent or asked.expects:
            return False
        return asked.length is None or asked.length <= DRAIN_BYTES

    def _answer(self, why: Refusal, *, stays: bool) -> bytes:
        if not self._in_tunnel:
            asked = self._arrival.asked if self._arrival is not None else None
            return (self._door or HttpDoor()).refused(why, asked, stays=stays)
        return refusal.tls_alert(why.reason) if self._judge and self._judge.tls else b""

    def _drop(self) -> None:
        """The client went away."""
        if self._arrival is not None and self._hear is not Flow._hear_nothing_more:
            # It asked, and may have made us dial: that is evidence too.
            self.gateway.refused(self, self._own("client.gone"))
        self._release()
        self._close()

    def _release(self) -> None:
        """Let go of everything but the client."""
        self._unpark()
        if self._association is not None:
            self._association.close()
            self._association = None
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._upstream is not None:
            self._upstream.abort()  # it has seen no byte: nothing to end in good order
            self._upstream = None

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.client.close()
        self.gateway.forget(self)

    # -- helpers

    def _need_arrival(self) -> Arrival:
        if self._arrival is None:
            raise RuntimeError("no arrival in this state")
        return self._arrival
