"""Leases in force and asked for: the pure state machine, made durable and put on the ledger.

Order of a change that opens: the state machine says yes, the ledger holds it, the database holds
it, then the gateway hears of it, and the answer goes out last; a crash between two of these loses
no approval that was answered. A change that ends a lease goes the other way round: the database
and the gateway first, whatever state the ledger is in, and the record as soon as it can be written.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exeat.appliance.control import direct_places, lease_rows
from exeat.appliance.control.jobs import agent_of
from exeat.appliance.control.lease_bounds import crowded, forgettable
from exeat.appliance.control.lease_rows import Asked, host_text, places, words
from exeat.appliance.errors import RefusedError
from exeat.policy import leases as states
from exeat.policy.baseline import BASELINE
from exeat.policy.errors import ScopeError
from exeat.policy.leases import Lease, Narrowing, State
from exeat.policy.names import parse_host
from exeat.policy.reasons import short_text
from exeat.policy.rules import Kind, Rule
from exeat.policy.scopes import parse_scope
from exeat.policy.terms import Terms, stricter, terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.appliance.config import Config
    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.jobs import Job
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.store import Store
    from exeat.appliance.control.time import TrustedClock
    from exeat.ledger.ipc import Message
    from exeat.policy.admin import Actor
    from exeat.policy.document import Document

_ENDS = states.TERMINAL | {State.REVOKING}
DAY_MS = 86_400_000
_LIVE = (State.REQUESTED, State.ACTIVE, State.REVOKING)


class Leases:
    """All leases by id. `changed` is called after every change the gateway must hear of, `ended` with the
    id of each that is over for good."""

    def __init__(
        self,
        config: Config,
        clock: TrustedClock,
        store: Store,
        policies: Policies,
        evidence: Evidence,
        changed: Callable[[], None],
        ended: Callable[[str], None] = lambda _: None,
        submitter: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`submitter`: on whose behalf a job asks, "" for nobody in particular."""
        self._ended, self._submitter = ended, submitter
        self._asks = config.asks
        self._labels = tuple(member.label for member in config.routing.members)
        self._clock = clock
        self._store = store
        self._policies = policies
        self._evidence = evidence
        self._changed = changed
        self._all = {lease: Lease.from_json(json.loads(body)) for lease, body in store.load_leases()}
        self._pending: dict[str, str] = {}  # key of an ask -> id of its request
        self._asked: dict[str, Asked] = {}  # id of a request -> who came with it
        self._changing = asyncio.Lock()  # a change waits for the ledger: no two may overlap

    # -- what others read

    def for_gateway(self) -> list[Lease]:
        """Active leases; none while the clock cannot be trusted to end them."""
        if not self._clock.trusted:
            return []
        return [lease for lease in self._in_force() if not (lease.device or lease.file)]

    def of_devices(self) -> list[Lease]:
        """Active leases of devices; none while the clock cannot be trusted to end them."""
        return [lease for lease in self._in_force() if lease.device] if self._clock.trusted else []

    def of_files(self) -> list[Lease]:
        """Active leases of folders; none while the clock cannot be trusted to end them."""
        return [lease for lease in self._in_force() if lease.file] if self._clock.trusted else []

    def _in_force(self) -> list[Lease]:
        return [lease for lease in self._all.values() if lease.state is State.ACTIVE]

    def ended(self) -> list[str]:
        """Those that are over for good, as far as they are remembered."""
        return [lease.id for lease in self._all.values() if lease.state in states.TERMINAL]

    def counted_since_ms(self, otherwise: int) -> int:
        """From when on the ledger tells all that the active leases with a limit have used.

        A day before the first of them became active: the wall clock, which the ledger goes by, may
        have been set back since. `otherwise` where there is none.
        """
        limited = (
            lease.activated_ms - DAY_MS
            for lease in self._all.values()
            if lease.state is State.ACTIVE and (lease.max_bytes is not None or lease.max_uses is not None)
        )
        return min(limited, default=otherwise)

    def get(self, name: str) -> Lease | None:
        return self._all.get(name)

    def counts(self) -> dict[str, int]:
        return dict(Counter(str(lease.state) for lease in self._all.values()))

    def standing(self) -> list[tuple[str, str, int]]:
        """Project, state and when it was asked for (ms since 1970) of every lease that is remembered."""
        return [(lease.project, str(lease.state), lease.requested_ms) for lease in self._all.values()]

    def waiting(self) -> dict[str, int]:
        """When the requests that wait for an answer were asked for (ms since 1970), by id."""
        waits = (lease for lease in self._all.values() if lease.state is State.REQUESTED)
        return {lease.id: lease.requested_ms for lease in waits}

    def rows(self, project: object, *, everything: bool) -> list[dict[str, Any]]:
        """The live leases, or all; of one project, or of all (None)."""
        return [
            self._row(lease)
            for lease in self._all.values()
            if project in (None, lease.project) and (everything or lease.state in _LIVE)
        ]

    def of_agent(self, project: str, agent: str) -> list[Lease]:
        """Those that are this agent's, too; not settled."""
        mine = (lease for lease in self._all.values() if lease.project == project)
        return [lease for lease in mine if agent in (lease.agents or (agent,))]

    def row(self, name: str) -> dict[str, Any]:
        return self._row(self._get(name))

    # -- asking

    async def ask(self, message: Message) -> str:
        """A flow waits for a person: the id of its request, the same for equal asks."""
        async with self._changing:
            return await self._ask(message)

    async def _ask(self, message: Message) -> str:
        subject = message["subject"]
        key = str(message["key"])
        known = self._all.get(self._pending.get(key, ""))
        if known is not None and states.settle(known, self._now()).state is State.REQUESTED:
            self._ask_again(known.id, message)
            return known.id
        host = parse_host(str(message["host"]))
        document = self._policies.document_of(str(subject["project"]), str(subject["job"]))
        if document is None:
            raise RefusedError("meta.project", f"no policy for project `{subject['project']}`")
        lease = await self._open_request(
            document,
            agent=str(subject["agent"]),
            to=f"{host_text(host)}:{int(message['port'])}",
            proto=str(message["proto"]),
            rule=str(message.get("rule", "")),
            on_behalf_of=self._submitter(str(subject["job"])),
            routed=not subject["job"] and f"{subject['project']}/{subject['agent']}" in self._labels,
        )
        self._pending[key] = lease.id
        self._asked[lease.id] = Asked.first(subject, str(message.get("rule", "")), self._now())
        return lease.id

    def _ask_again(self, name: str, message: Message) -> None:
        """One more flow; or, where the proxy only says again who waits, none."""
        asked = self._asked.get(name)
        if asked is None:
            self._asked[name] = Asked.first(message["subject"], str(message.get("rule", "")), self._now())
        elif message.get("again") is not True:
            asked.again(self._now())

    async def request(self, message: Message, *, requester: str, job: str = "") -> dict[str, Any]:
        """A person asks ahead of time, or the agent of `job` does."""
        document = self._policies.known(message.get("project"))
        ttl, most, proto = message.get("ttl_ms"), message.get("max_bytes"), message.get("proto", "tcp")
        if proto not in ("tcp", "udp"):
            raise RefusedError("rule.proto", f"`{proto}` is not tcp or udp")
        async with self._changing:
            lease = await self._open_request(
                document,
                agent=agent_of(message) if message.get("agent") else "",
                to=str(message.get("to")),
                proto=proto,
                requester=requester,
                on_behalf_of=self._submitter(job),
                reason=str(message.get("reason", "")),
                ttl_ms=ttl if isinstance(ttl, int) else None,
                raw=message.get("raw") is True,
                ech=message.get("ech") is True,
                direct=message.get("direct") is True,
                max_bytes=most if type(most) is int else None,
                records=message.get("records") is True,
            )
        return self._row(lease)

    async def request_device(self, device: str, job: Job, message: Message, requester: str) -> dict[str, Any]:
        """A person asks for a device of the node on behalf of a job."""
        ttl = message.get("ttl_ms")
        async with self._changing:
            lease = await self._open_request(
                self._policies.known(job.project),
                agent=job.agent,
                to=device,
                requester=requester,
                on_behalf_of=self._submitter(job.name),
                reason=str(message.get("reason", "")),
                ttl_ms=ttl if type(ttl) is int else None,
                device_for=job.name,
            )
        return self._row(lease)

    async def request_file(self, scope: str, message: Message, requester: str) -> dict[str, Any]:
        """A person asks for a folder of the node on behalf of an agent's jobs."""
        ttl = message.get("ttl_ms")
        async with self._changing:
            lease = await self._open_request(
                self._policies.known(message.get("project")),
                agent=agent_of(message) if message.get("agent") else "",
                to=scope,
                requester=requester,
                reason=str(message.get("reason", "")),
                ttl_ms=ttl if type(ttl) is int else None,
                file=True,
            )
        return self._row(lease)

    async def _open_request(
        self,
        document: Document,
        *,
        to: str,
        agent: str = "",
        proto: str = "tcp",
        rule: str = "",
        requester: str = "",
        on_behalf_of: str = "",
        reason: str = "",
        ttl_ms: int | None = None,
        raw: bool = False,
        ech: bool = False,
        direct: bool = False,
        max_bytes: int | None = None,
        routed: bool = False,
        records: bool = False,
        device_for: str = "",
        file: bool = False,
    ) -> Lease:
        by_itself = agent if requester in ("", agent) else ""
        most = self._asks.max_pending
        if why := crowded(self._all.values(), document.project, by_itself, most, self._now()):
            raise RefusedError("ask.limit", why)
        asked = _rule(document, rule)
        knobs = document.knobs
        draft = Lease(
            id=f"{document.project}/{agent or requester}/{secrets.token_hex(3)}",
            project=document.project,
            to=() if file else _scopes([to]),
            file=to if file else "",
            protocols=(proto,),
            private=asked.private if asked else False,
            raw=raw or (asked.raw if asked else False),
            ech=ech or (asked.ech if asked else False),
            # A job's own ask never is: it came by the proxy, and there is no other way out of a jail.
            direct=direct or (asked.direct and routed if asked else False),
            records=records or (asked.records if asked else False),
            device=bool(device_for),
            job=device_for,
            agents=frozenset({agent} if agent else ()),
            ttl_ms=ttl_ms or (asked.ttl_ms if asked and asked.ttl_ms else states.DEFAULT_TTL_MS),
            max_ttl_ms=asked.max_ttl_ms if asked and asked.max_ttl_ms else knobs.max_ttl_ms,
            max_bytes=max_bytes,
            request_ttl_ms=self._asks.request_ttl_s * 1000,
            approvals_needed=asked.approvals if asked and asked.approvals else knobs.approvals,
            requester=requester or agent,
            on_behalf_of=on_behalf_of,
            reason=reason,
            policy=document.digest,
        )
        # Where no rule has asked, nobody has judged yet what it falls under.
        asks = Terms(draft.approvals_needed, draft.max_ttl_ms) if asked else terms(document, draft)
        baseline = self._policies.in_force(BASELINE)
        asks = asks if baseline is None else stricter(asks, baseline, draft)
        draft = replace(draft, approvals_needed=asks.approvals, max_ttl_ms=asks.max_ttl_ms)
        outcome = states.request(self._bounded(draft), self._now())
        if not (outcome.ok and _lasts(outcome.lease)):
            code = "lease.invalid" if outcome.ok else outcome.reason
            raise RefusedError(code, f"{to}: this cannot be asked for")
        await self._keep(outcome.lease, requester or agent)
        return outcome.lease

    def _bounded(self, draft: Lease) -> Lease:
        """A direct lease is for exact places, and says how many bytes it may move. Raises RefusedError."""
        if not draft.direct:
            return draft
        direct_places.places(draft, self._labels)
        return draft if draft.max_bytes is not None else replace(draft, max_bytes=direct_places.DEFAULT_BYTES)

    # -- deciding

    async def approve(self, message: Message, actor: Actor) -> dict[str, Any]:
        narrowing = Narrowing(
            to=_scopes(message["to"]) if message.get("to") else None,
            ttl_ms=message.get("ttl_ms") if isinstance(message.get("ttl_ms"), int) else None,
            raw=False if message.get("raw") is False else None,
            ech=False if message.get("ech") is False else None,
            direct=False if message.get("direct") is False else None,
            max_bytes=message.get("max_bytes") if type(message.get("max_bytes")) is int else None,
            max_uses=message.get("max_uses") if type(message.get("max_uses")) is int else None,
            records=False if message.get("records") is False else None,
        )
        return await self._decide(
            message, actor, lambda lease, actor, now: states.approve(lease, actor, now, narrowing)
        )

    async def deny(self, message: Message, actor: Actor) -> dict[str, Any]:
        """Ends a request, so it waits for no clock."""
        return await self._decide(message, actor, states.deny, opens=False)

    async def renew(self, message: Message, actor: Actor) -> dict[str, Any]:
        return await self._decide(message, actor, states.renew)

    async def _decide(
        self,
        message: Message,
        actor: Actor,
        step: Callable[[Lease, Actor, int], states.Outcome],
        *,
        opens: bool = True,
    ) -> dict[str, Any]:
        if opens and not self._clock.trusted:
            raise RefusedError("clock.untrusted", "the clock stands before a time already seen: set it first")
        async with self._changing:
            lease = self._get(message.get("lease"))
            self._fresh(lease, message.get("version"))
            return await self._apply(step(lease, actor, self._now()), message, actor.id)

    def _fresh(self, lease: Lease, version: object) -> None:
        """Raises RefusedError where somebody decides about what they have not seen."""
        now = lease_rows.version(lease, self._now())
        if version is not None and version != now:
            raise RefusedError(
                "review.stale", f"{lease.id} has changed since: look again, its version is {now}"
            )

    async def revoke(self, message: Message, actor: Actor) -> list[dict[str, Any]]:
        """One lease, or with `prefix` all live ones whose id begins so."""
        async with self._changing:
            chosen = self._chosen(str(message.get("lease")), prefix=bool(message.get("prefix")))
            return [
                await self._apply(states.revoke(lease, actor, self._now()), message, actor.id)
                for lease in chosen
            ]

    def _chosen(self, name: str, *, prefix: bool) -> list[Lease]:
        if not prefix:
            return [self._get(name)]
        live = (State.REQUESTED, State.ACTIVE)
        chosen = [lease for lease in self._all.values() if lease.id.startswith(name) and lease.state in live]
        if not chosen:
            raise RefusedError("lease.unknown", f"no live lease begins with `{name}`")
        return chosen

    async def _apply(self, outcome: states.Outcome, message: Message, person: str) -> dict[str, Any]:
        if not outcome.ok:
            if outcome.lease != self._all.get(outcome.lease.id):
                await self._keep(outcome.lease, "time")  # it had lapsed or expired meanwhile
            raise RefusedError(outcome.reason, f"{outcome.lease.id}: {short_text(outcome.reason)}")
        await self._keep(outcome.lease, person, str(message.get("why", "")))
        return self._row(outcome.lease)

    async def _keep(self, lease: Lease, actor: str, why: str = "") -> None:
        """Record, store, publish. What opens waits for the ledger; what ends a lease never does."""
        detail = " ".join([*places(lease), *words(lease), why]).strip()
        record = self._evidence.lease(lease, actor, detail)
        ends = lease.state in _ENDS
        if not ends:
            await self._evidence.write(record)
        self._store.save_lease(lease.id, json.dumps(lease.to_json()))
        self._all[lease.id] = lease
        self._changed()
        if lease.state in states.TERMINAL:
            self._ended(lease.id)
        if ends:
            await self._evidence.owe(record)

    async def tick(self) -> None:
        """Let time end what it has ended."""
        async with self._changing:
            now = self._now()
            for lease in [lease for lease in self._all.values() if lease.state in _LIVE]:
                settled = states.settle(lease, now)
                if settled.state is not lease.state:
                    await self._keep(settled, "time")
            # Only an unanswered request is handed out again; the rest would be kept for ever.
            self._pending = {
                key: name for key, name in self._pending.items() if self._all[name].state is State.REQUESTED
            }
            self._asked = {name: asked for name, asked in self._asked.items() if name in self._all}

            for name in forgettable(self._all.values(), now):
                self._store.delete_lease(name)
                del self._all[name]

    def _get(self, name: object) -> Lease:
        text = str(name)
        if text in self._all:
            return self._all[text]
        found = [lease for lease in self._all.values() if lease.id.endswith(f"/{text}")]
        if len(found) != 1:
            raise RefusedError(
                "lease.unknown",
                f"no lease `{text}`: `exeat lease ls --all` lists them, `exeat ledger tail` those of old",
            )
        return found[0]

    def _now(self) -> int:
        return self._clock.now_ms()

    def _row(self, lease: Lease) -> dict[str, Any]:
        return lease_rows.row(lease, self._now(), self._asked.get(lease.id))


def _lasts(lease: Lease) -> bool:
    """Whether it can be read again: one that cannot must not be what control finds when it starts."""
    try:
        Lease.from_json(json.loads(json.dumps(lease.to_json())))
    except ValueError:
        return False
    return True


def _scopes(texts: Iterable[str]) -> tuple[Any, ...]:
    try:
        return tuple(parse_scope(text) for text in texts)
    except ScopeError as error:
        raise RefusedError(error.code, str(error)) from None


def _rule(document: Document, name: str) -> Rule | None:
    return next((rule for rule in document.of_kind(Kind.ASK) if rule.id == name), None)
