"""The control process: policies, leases and jobs; tells the gateway what holds now.

asyncio, one thread. Everything the flow path needs is in the snapshot it publishes; nothing on
the flow path waits for this process but an `ask`.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from exeat.appliance.control.addresses import doors, host_addresses, listening, not_public
from exeat.appliance.control.aio import Link, Requester, Server, answers
from exeat.appliance.control.attest import Attestation
from exeat.appliance.control.books import BookKeeper
from exeat.appliance.control.desk import AgentDesk
from exeat.appliance.control.devices import Devices
from exeat.appliance.control.direct import Direct
from exeat.appliance.control.edits import Edits
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.feed import Feed
from exeat.appliance.control.files import Files, is_file
from exeat.appliance.control.flows import Flows
from exeat.appliance.control.hub import Hub
from exeat.appliance.control.jobs import KILL_SWITCH, KILLED, Jobs
from exeat.appliance.control.kill import KillSwitch
from exeat.appliance.control.lease_rows import why
from exeat.appliance.control.leases import Leases
from exeat.appliance.control.metrics import Metrics
from exeat.appliance.control.passkeys import Passkeys
from exeat.appliance.control.policies import Change, Policies
from exeat.appliance.control.policy_desk import PolicyDesk, warn
from exeat.appliance.control.queue import Rules
from exeat.appliance.control.rebuild import opened
from exeat.appliance.control.resolvers import ResolverList
from exeat.appliance.control.routing import Routing
from exeat.appliance.control.scheduler import Scheduler
from exeat.appliance.control.spent import Since, longest_window_ms, spent_before
from exeat.appliance.control.sqlite_queue import SqliteQueue
from exeat.appliance.control.store import StoreError
from exeat.appliance.control.task_logs import TaskLogs
from exeat.appliance.control.time import TrustedClock
from exeat.appliance.control.verbs import Verb, actor, from_console, from_root, may
from exeat.appliance.device_config import devices
from exeat.appliance.errors import RefusedError
from exeat.appliance.limits import node_limits
from exeat.appliance.listeners import wanted
from exeat.appliance.prices import tariff
from exeat.ledger.in_force import Place
from exeat.ledger.ipc import peer_uid
from exeat.ledger.supervised import beat
from exeat.ledger.tally import Tally
from exeat.policy.model import Subject
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from exeat.appliance.config import Config
    from exeat.appliance.control.store import Store
    from exeat.ledger.ipc import Channel, Message

TICK_S = 0.25
FRESH_MS = 3_600_000  # the standard preset's freshness; sent again every third of it
ROOT = 0


class Control:
    """Everything of one control process, wired."""

    def __init__(self, config: Config, store: Store, tasks: asyncio.TaskGroup) -> None:
        self._config = config
        self._tasks = tasks
        self._generation = time.time_ns() // 1_000_000  # grows across restarts
        self._published = 0.0
        self._judged_by: tuple[int, Snapshot] | None = None  # by generation, for `why`
        self._host_local = host_addresses()
        self._listening = listening(config)
        self._clock = TrustedClock(store)
        self._evidence = Evidence(config.run_dir / "ledger" / "ledger.sock", config.node.name, store)
        warden = Requester(config.run_dir / "warden" / "warden.sock", "warden")
        self._evidence.generation = self._generation - 1  # what is recorded at the start holds from now on
        self.policies = Policies.of(config)
        self.resolvers = ResolverList(config.dns.resolvers_file)
        self.leases = Leases(
            config,
            self._clock,
            store,
            self.policies,
            self._evidence,
            changed=self._publish,
            ended=lambda name: self.hub.ended(name),
            submitter=lambda job: self.jobs.submitter(job),
        )
        self._tally = Tally()
        self.feed = Feed(self._tally, self.leases.waiting(), self._clock.now_ms)
        self._evidence.written = self.feed.wrote
        self.metrics = Metrics(self, config, lambda: (self._generation, self._published), self._tally)
        self.hub = Hub(
            config.run_dir / "control" / "hub.sock",
            pwd.getpwnam(config.users.gateway).pw_uid,
            snapshot=self._snapshot,
            spent=self._spent,
            resolvers=lambda: self.resolvers.names,
            open_sockets=lambda jail, names: self.jobs.open_sockets(jail, names),
            on_ask=self.leases.ask,
            on_flows=lambda message: self.flows.heard(message),
            on_direct=lambda message: self.direct.heard(message),
            on_desk=AgentDesk(self.leases, self._verdict).answer,
            on_counts=self._counts,
            on_alert=self.feed.alert,
            ended=self.leases.ended,
            spawn=self.spawn,
        )
        self.files = Files(
            config.node.name, config.sandbox.roots, self.leases, self.policies, self._clock.now_ms
        )
        self.jobs = Jobs(
            config.node.name,
            warden,
            self.hub,
            self.policies,
            store,
            self._evidence,
            most_ms=node_limits(config.sandbox.limits)[1],
            hook=str(config.sandbox.accelerator_hook or ""),
            stopped=lambda project: self.kill.stops_jobs(project),
            files=self.files,
            spawn=self.spawn,
        )
        self.jobs.recall()
        self.kill = KillSwitch(
            store,
            self._evidence,
            now_ms=self._clock.now_ms,
            projects=lambda: self.policies.all_projects,
            changed=self._publish,
            end_jobs=lambda project: self.jobs.end_all(project, KILL_SWITCH),
        )
        self.direct = Direct(
            config,
            store,
            self._clock,
            self.leases,
            warden,
            tell=self.hub.tell,
            stops=self.kill.stops,
            announce=lambda event: self.flows.happened([event]),
            spawn=self.spawn,
            applied=self._tally.time("nft_apply_duration_seconds").add,
        )
        self.devices = Devices(
            devices(config.device),
            self.jobs,
            self.leases,
            warden,
            stops=self.kill.stops,
            now_ms=self._clock.now_ms,
            spawn=self.spawn,
        )
        self.books = BookKeeper(config.state_dir, self._evidence)
        self.routing = Routing(config, warden, self._evidence, self.direct.counted)
        self.attestation = Attestation(warden, self.routing, self.policies, self.jobs, self._evidence)
        self.flows = Flows(
            self.hub,
            self._evidence,
            self.direct,
            lambda name: str(self.leases.row(name)["id"]),
            told=lambda events: self.feed.say("flows", events),
        )
        self.policy_desk = PolicyDesk(
            self.policies,
            self.resolvers,
            self._evidence,
            now_ms=self._clock.now_ms,
            publish=self._publish,
            publish_resolvers=self.hub.publish_resolvers,
            refused=self._policy_refused,
        )
        self.scheduler = Scheduler(
            Rules(**config.scheduler.model_dump()),
            config.state_dir / "control" / "tasks",
            SqliteQueue(store),
            self.jobs,
            self.policies,
            self.leases,
            most_file=node_limits(config.sandbox.limits)[0].file,
            now_ms=self._clock.now_ms,
            stopped=self.kill.stops_jobs,
            verdict=self._judged,
            request=self._request,
            spawn=self.spawn,
        )
        self.passkeys = Passkeys(config.passkeys, store, self._evidence, self._clock.now_ms)
        self._callers: dict[int, Callable[[Message], Message]] = {ROOT: from_root}
        if config.console.listen:
            console = pwd.getpwnam(config.users.console).pw_uid
            self._callers[console] = lambda message: self.passkeys.checked(from_console(message))
        self._server = Server(config.run_dir / "control" / "control.sock", self._callers, self._accepted)
        self._verbs: dict[str, Verb] = {
            "status": self._status,
            "run": self._run,
            "job.wait": self._job_wait,
            "job.kill": self._job_kill,
            "tree.users": self._tree_users,
            "lease.ls": self._lease_ls,
            "lease.show": self._lease_show,
            "lease.request": self._lease_request,
            "lease.approve": self._lease_approve,
            "lease.deny": self._lease_deny,
            "lease.renew": self._lease_renew,
            "lease.revoke": self._lease_revoke,
            "why": self._why,
            **self.kill.verbs(),
            **self.devices.verbs(),
            "metrics": self.metrics.rows,
            **self.feed.verbs(),
            **self.flows.verbs(),
            **self.scheduler.verbs(),
            **Edits(self.jobs, self.scheduler, self._evidence).verbs(),
            **TaskLogs(config.state_dir / "control" / "tasks", self.scheduler).verbs(),
            **self.policy_desk.verbs(),
            **self.passkeys.verbs(),
        }

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside everything else; a bug in it is printed and does not end the process."""
        self._tasks.create_task(_guarded(work))

    async def start(self) -> None:
        self.resolvers.start()
        await self._evidence.owe(self._evidence.place(self._place(), starts=True))
        await self._load_policies()
        self._evidence.generation = self._generation
        self.spawn(self._go_on())
        self.spawn(self._tick())
        self.spawn(self.routing.watch())
        self.spawn(self.attestation.watch())
        self.spawn(self.direct.run())
        self.spawn(self.books.watch())

    async def _go_on(self) -> None:
        """With the jobs of before, then with the queue."""
        await self.jobs.adopt()
        self.spawn(self.devices.run())
        await self.scheduler.run()

    async def _load_policies(self) -> None:
        """What stands in the folder when the process starts is in force; changes are reviewed."""
        readings: tuple[Callable[[], list[Change]], ...] = (
            lambda: self.policies.read(self._clock.now_ms()),
            self.policies.read_shadows,
        )
        for read in readings:
            try:
                changes = read()
                self.policies.keep(changes)
            except RefusedError as error:
                print(f"control: {error}", file=sys.stderr, flush=True)
                self._policy_refused("")
                return
            self.policies.apply(changes)
            warn(changes)
            for change in changes:
                await self._evidence.owe(self.policy_desk.record(change, "start", "first"))

    def _policy_refused(self, project: str) -> None:
        self._tally.count("policy_reloads_total", project, "refused")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await _guarded(self._look())  # what fails now, on a full disk perhaps, is tried again

    async def _look(self) -> None:
        self.jobs.end_ungranted()  # first: it waits for nothing
        if self._clock.tick():
            self._publish()
        await self._evidence.pay()
        await self.leases.tick()
        addresses = host_addresses()
        if addresses != self._host_local:
            self._host_local = addresses
            record = self._evidence.place(self._place())
            self._publish()
            await self._evidence.owe(record)
        if time.monotonic() - self._published > FRESH_MS / 3000:
            self._publish()

    def _counts(self, role: str, message: Message) -> None:
        self.metrics.heard(role, message)
        self.feed.lookups(message.get("lookups"))

    # -- the snapshot

    def _snapshot(self) -> Message:
        return Snapshot.message(
            generation=self._generation,
            fresh_ms=FRESH_MS,
            **self.policies.bindings(),
            leases=self.leases.for_gateway(),
            killed=self.kill.scopes,
            **self._place()._asdict(),
        )

    def _place(self) -> Place:
        return Place(
            treat_as_public=tuple(self._config.lab.treat_as_public),
            control=tuple(doors(self._listening, self._host_local)),
            host_local=tuple(not_public(self._host_local, self._config.lab.cidrs())),
        )

    async def _spent(self, role: str) -> Message:
        """What a gateway process that has just started must count as spent, out of the ledger."""
        if role == "proxy":
            await self.direct.settle()  # it will count anew from what the ledger says
        snapshot = Snapshot.load(self._snapshot())
        budgets = self._clock.now_ms() - longest_window_ms(snapshot)
        since = Since(budgets, min(budgets, self.leases.counted_since_ms(budgets)))
        prices = tariff(self._config.prices)
        return await spent_before(self._config.state_dir / "ledger", snapshot, since, prices, role)

    def _publish(self) -> None:
        self._generation += 1
        self._evidence.generation = self._generation
        self._published = time.monotonic()
        self.hub.publish()
        self.direct.changed()
        self.scheduler.changed()
        self.devices.changed()

    # -- the command line's requests

    def _accepted(self, channel: Channel) -> None:
        caller = self._callers[peer_uid(channel.sock)]

        def on_message(message: Message, fds: list[int]) -> None:
            self.spawn(self._answer(link, caller, message, fds))

        link = Link(channel, on_message)

    async def _answer(
        self, link: Link, caller: Callable[[Message], Message], message: Message, fds: list[int]
    ) -> None:
        reply: dict[str, Any]
        try:
            message = caller(message)
            handler = self._verbs.get(str(message.get("verb")))
            if handler is None:
                raise RefusedError("verb.unknown", f"unknown request `{message.get('verb')}`")
            reply = {"ok": True, **await handler(message, fds)}
        except RefusedError as error:
            reply = {"ok": False, "error": error.code, "message": str(error)}
        finally:
            for fd in fds:
                os.close(fd)
        link.send({"id": message.get("id"), **reply})

    async def _status(self, _message: Message, _fds: list[int]) -> dict[str, Any]:
        running = [job for job in self.jobs.all.values() if job.code is None]
        return {
            "node": self._config.node.name,
            "generation": self._generation,
            "gateway": self.hub.roles,
            "relay": self.hub.relay,
            "projects": sorted(self.policies.projects),
            "shadows": self.policies.shadow_names,
            "baseline": self.policies.baseline,
            "policy_error": self.policies.error or self.resolvers.error,
            "jobs": len(running),
            "leases": self.leases.counts(),
            "listeners": [{"door": door, "at": name} for door, name, _ in wanted(self._config)],
            "killed": self.kill.rows(),
            "lab": list(self._config.lab.treat_as_public),
            "clock_trusted": self._clock.trusted,
            "routing": self.routing.state,
            "books": self.books.state,
            "down": [name for name in ("warden", "ledger") if not answers(self._config.run_dir, name)],
            "console": self._console(),
        }

    def _console(self) -> str:
        """up or down; "" where there is to be none."""
        if not self._config.console.listen:
            return ""
        return "up" if answers(self._config.run_dir, "console", "api.sock") else "down"

    async def _run(self, message: Message, fds: list[int]) -> dict[str, Any]:
        if len(fds) != 3:
            raise RefusedError("job.streams", "three descriptors are needed: stdin, stdout, stderr")
        job = await self.jobs.start(message, fds)
        stopped = self.kill.stops(job.project)
        return {"job": job.name, "project": job.project, "work": job.work, "stopped": stopped}

    async def _job_wait(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        job = self.jobs.get(message.get("job"))
        await job.ended.wait()
        return {"code": job.code, "reason": job.reason}

    async def _job_kill(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        await self.jobs.end(self.jobs.get(message.get("job")), KILLED)
        return {}

    async def _tree_users(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Who has this tree, or is to have it."""
        root = message.get("root")
        jobs = [job.name for job in self.jobs.all.values() if job.code is None and job.root == root]
        return {"users": jobs + self.scheduler.users_of(root)}

    async def _lease_ls(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"leases": self.leases.rows(message.get("project"), everything=bool(message.get("all")))}

    async def _lease_show(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        row = self.leases.row(str(message.get("lease")))
        if message.get("brief") is True:  # who is about to decide waits for no other process
            return {"lease": row}
        return {"lease": {**row, **await self.flows.moved(row["id"]), **self.direct.of_lease(row["id"])}}

    async def _lease_request(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"lease": await self._request(message, may(message, "lease.request"))}

    async def _request(self, message: Message, requester: str) -> dict[str, Any]:
        if is_file(message.get("to")):
            return await self.files.request(message, requester)
        return await self.leases.request(message, requester=requester)

    async def _lease_approve(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"lease": await self.leases.approve(message, actor(message))}

    async def _lease_deny(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"lease": await self.leases.deny(message, actor(message))}

    async def _lease_renew(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"lease": await self.leases.renew(message, actor(message))}

    async def _lease_revoke(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"leases": await self.leases.revoke(message, actor(message))}

    async def _why(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        project = self.policies.known(message.get("project")).project
        return self._judged(project, str(message.get("agent") or "run"), str(message.get("to")))

    def _judged(self, project: str, agent: str, to: str) -> dict[str, Any]:
        """Of a place or a folder; agents themselves ask about places only."""
        return self.files.why(project, agent, to) if is_file(to) else self._verdict(project, agent, to)

    def _verdict(self, project: str, agent: str, to: str) -> dict[str, Any]:
        subject = Subject(project, agent, "", "", self._config.node.name)
        known = self._judged_by
        if known is None or known[0] != self._generation:  # it takes time, and the queue asks often
            known = self._judged_by = self._generation, Snapshot.load(self._snapshot())
        return why(known[1], subject, to, self._clock.now_ms())


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except RefusedError as error:
        print(f"control: {error} [{error.code}]", file=sys.stderr, flush=True)
    except Exception as error:
        print(f"control: internal error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


async def _main(config: Config, store: Store, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as tasks:
        control = Control(config, store, tasks)
        await control.start()
        beat(loop)
        ready()
        await stop.wait()
        raise _Stop


class _Stop(Exception):
    """Ends the task group."""


def serve(config: Config, ready: Callable[[], None]) -> int:
    """Run until SIGTERM."""
    try:
        store = opened(config)
    except StoreError as error:
        print(f"exeat: control: {error}", file=sys.stderr)
        return 3
    try:
        asyncio.run(_main(config, store, ready))
    except* _Stop:
        pass
    store.close()
    return 0
