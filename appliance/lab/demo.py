"""`exeat lab demo`: the main job of the product, done for real, each promise measured.

Everything goes through the doors a person has: the command line, the job's own clients, the
logs of the far side. The only thing done behind the appliance's back is the violence of one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.lab import demo_audit, demo_job, manage, network, plan
from exeat.appliance.lab.demo_report import Report
from exeat.appliance.lab.running import Failed, Running, command, wait_until
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind
from exeat.policy.reasons import short_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.appliance.lab.plan import Lab
    from exeat.ledger.records import Record

Result = dict[str, Any]
_BIG_URL = "https://downloads.example.com/bytes/2000000000?rate=20000000"
_CUT_SECONDS = 5.0  # what a busy machine may take; the figure is in the report
_OUTAGE_TRIES = 19
_CLIENTS = {"curl": "curl", "git": "git", "/usr/lib/python3/dist-packages/requests": "python3-requests",
            "/usr/lib/python3/dist-packages/pip": "python3-pip"}  # fmt: skip
_FORBIDDEN = (
    "paste.example.net", "exfil.example.net", "evil.example.net", "telemetry.downloads.example.com",
    "mirror.downloads.example.com", "files.downloads.example.com",
)  # fmt: skip


def run(lab: Lab, *, as_json: bool, keep: bool) -> int:
    """Exit code: 0 when every step passed, 1 when one did not."""
    demo = Demo(lab, Report(as_json=as_json))
    try:
        demo.run()
    finally:
        if not keep:
            demo.step("down", "take everything down", demo.take_down)
    return demo.report.finish(hint="" if keep else f"logs and evidence: {demo.kept}" if demo.kept else "")


def _why(attempt: demo_job.Attempt, opened: str) -> str:
    if attempt.want == demo_job.ALLOWED:
        return opened
    if attempt.reason == demo_job.NO_ROUTE:
        return "the jail has no way there"
    text = short_text(attempt.reason)
    return f"{text} [{attempt.reason}]" if text != attempt.reason else f"[{attempt.reason}]"


@dataclass
class Demo:
    lab: Lab
    report: Report
    records: list[Record] = field(default_factory=list)
    jobs: list[Running] = field(default_factory=list)
    approved_at: float = 0.0
    kept: str = ""

    def run(self) -> None:
        if not self.step("up", "make the small Internet and start the appliance", self.bring_up):
            return
        self.step("tour", "run a real job: curl, requests, urllib, git, pip", self.tour)
        self.step("lease", "approve a pending request, revoke it while a download runs", self.lease)
        self.step("kill", "kill -9 proxy and guard while a job runs", self.kill_gateway)
        self.step("verify", "verify the ledger", self.verify)
        self.step("reconcile", "compare every byte: ledger, kernel, far side", self.reconcile)
        self.step("hostile", "ask the hostile host what it saw", self.hostile)
        self.step("names", "ask the name server what it was asked", self.names)

    def step(self, name: str, title: str, do: Callable[[], Result]) -> bool:
        """Run one step; what it returns is its measured result, what it raises is why it failed."""
        self.report.begin(name, title)
        begun = time.monotonic()
        problem, result = "", {}
        try:
            result = do()
        except Failed as failure:
            problem, result = str(failure), failure.result
        except (manage.LabError, OSError, ValueError, subprocess.SubprocessError) as error:
            problem = f"{type(error).__name__}: {error}"
        self.report.end(time.monotonic() - begun, result, problem)
        return not problem

    # -- the steps -----------------------------------------------------------------------------

    def bring_up(self) -> Result:
        missing = [
            package for tool, package in _CLIENTS.items() if not (shutil.which(tool) or Path(tool).exists())
        ]
        if missing:
            raise Failed(f"clients are missing: apt-get install {' '.join(missing)}")
        begun = time.monotonic()
        manage.up(self.lab, appliance=False)
        source = Path(demo_job.__file__)
        shutil.copyfile(source, self.lab.job / source.name)
        ready = time.monotonic()
        manage.start_appliance(self.lab)
        return {
            "namespaces": len(network.namespaces(self.lab)),
            "network_ms": round((ready - begun) * 1000),
            "appliance_ms": round((time.monotonic() - ready) * 1000),
        }

    def tour(self) -> Result:
        job = self._job("tour", hold="300ms")
        said = job.lines(90)
        code = job.wait(30)
        records = self._read()
        rows = [self._row(records, line) for line in said if "n" in line]
        self.report.table(rows)
        wrong = [f"{row['client']} {row['what']}" for row in rows if not row["ok"]]
        greeting = next((line["greeting"] for line in said if "greeting" in line), "")
        result: Result = {
            "attempts": len(rows),
            **{want: sum(row["want"] == want for row in rows) for want in ("allowed", "asked", "refused")},
            "as_expected": sum(row["ok"] for row in rows),
            "installed_package_says": greeting,
        }
        if code or len(rows) != len(demo_job.ATTEMPTS):
            raise Failed(f"the job ended with {code} after {len(rows)} attempts: {job.tail()}", result)
        if wrong:
            raise Failed(f"not as the policy says: {'; '.join(wrong)}", result)
        return result

    def _row(self, records: list[Record], line: dict[str, Any]) -> dict[str, Any]:
        attempt = demo_job.ATTEMPTS[line["n"]]
        opened, codes = demo_audit.verdicts(records, attempt.host, attempt.port)
        if attempt.want == demo_job.ALLOWED:
            fits = bool(line["reached"] and opened)
        elif attempt.reason == demo_job.NO_ROUTE:
            # The kernel's refusal: nothing came to the gateway, so it must have nothing on record.
            fits = not line["reached"] and not opened
        else:
            fits = not line["reached"] and attempt.reason in codes
        return {
            "client": attempt.client, "what": attempt.what, "want": attempt.want, "reached": line["reached"],
            "reason": attempt.reason, "why": _why(attempt, opened), "recorded": sorted(set(codes)),
            "said": line["said"], "ms": line["ms"], "ok": fits,
        }  # fmt: skip

    def lease(self) -> Result:
        job = self._job("download", _BIG_URL, hold="30s")
        begun = time.monotonic()
        pending = wait_until(lambda: self._pending("downloads.example.com"), 30, "a pending request")
        asked = time.monotonic()
        self.approved_at = time.time()
        self._exeat("lease", "approve", pending, "--as", "second-terminal")
        first = job.line(30)
        flowing = time.monotonic()
        if first.get("at") != "first byte":
            raise Failed(f"the approved download did not begin: {first}")
        # Let it be a download under way, not one about to begin.
        wait_until(lambda: time.monotonic() > flowing + 0.7, 5, "time to pass")
        revoking = time.monotonic()
        self._exeat("lease", "revoke", pending, "--why", "the demonstration")
        last = job.line(30)
        ended, commanded = time.time(), time.monotonic() - revoking
        job.wait(30)
        # From the decision's own record, not from the keystroke: how long this machine takes to
        # start the command is not the appliance's doing.
        cut = ended - self._revoked_at(pending)
        result = {
            "request": pending,
            "asked_after_ms": round((asked - begun) * 1000),
            "first_byte_after_approval_ms": round((flowing - asked) * 1000),
            "downloaded_bytes": last.get("bytes", 0),
            "ended_after_revoke_ms": round(cut * 1000),
            "ended_after_command_ms": round(commanded * 1000),
        }
        if last.get("at") != "end" or last.get("code") == 0 or not 0 < last.get("bytes", 0) < 2_000_000_000:
            raise Failed(f"the download was not cut: {last}", result)
        if not 0 <= cut <= _CUT_SECONDS:
            raise Failed(f"the download ran on for {cut:.2f} s after the revoke", result)
        return result

    def _revoked_at(self, lease: str) -> float:
        """Seconds since the epoch, of the record that says so."""
        times = [
            r.t_real_ns for r in self._read() if r.lease_id == lease and r.decision in ("revoking", "revoked")
        ]
        if not times:
            raise Failed("the ledger has no record of the revoke")
        return min(times) / 1e9

    def _pending(self, host: str) -> str:
        rows = json.loads(self._exeat("lease", "ls", "--json"))
        return next((str(r["id"]) for r in rows if r["state"] == "requested" and host in r["to"]), "")

    def kill_gateway(self) -> Result:
        before = self._count(Kind.OPEN, demo_job.LONG_HOST)
        job = self._job("watch")
        self._until_both(job, "the job to reach what it may")
        wait_until(lambda: self._count(Kind.OPEN, demo_job.LONG_HOST) > before, 60, "its download to begin")
        supervisor = self._supervisor()
        # The supervisor would have both back within a tenth of a second; held still, the outage
        # lasts as long as it takes to see what a job can do meanwhile.
        os.kill(supervisor, signal.SIGSTOP)
        try:
            victims = self._gateway()
            for pid in victims.values():
                os.kill(pid, signal.SIGKILL)
            killed_at = time.time()
            job.skip_to_now()
            job.line(30)  # may have been begun before the kill, and its connection be accepted only now
            since = time.time()
            tries = [job.line(30) for _ in range(_OUTAGE_TRIES)]
        finally:
            over_at = time.time()
            os.kill(supervisor, signal.SIGCONT)
        healing = time.monotonic()
        reached = [line for line in tries if any(line.values())]
        self._until_both(job, "the gateway to heal")
        healed = time.monotonic() - healing
        job.say("stop")
        job.wait(30)
        orphans = wait_until(
            lambda: self._count(Kind.ORPHAN), 60, "the flow that the kill cut off to be settled"
        )
        opened = [e for e in self._events("origin") if e["ev"] == "open" and since < e["t"] < over_at]
        result = {
            "killed": sorted(victims), "outage_ms": round((over_at - killed_at) * 1000),
            "tries_during_outage": len(tries), "reached_during_outage": len(reached),
            "connections_at_the_origins": len(opened), "orphaned_flows_settled": orphans,
            "healed_after_ms": round(healed * 1000),
        }  # fmt: skip
        if len(victims) != 2:
            raise Failed("proxy and guard were not both found", result)
        if reached or opened:
            raise Failed("something got through while the gateway was dead", result)
        return result

    def _until_both(self, job: Running, what: str) -> None:
        wait_until(lambda: (line := job.line(30))["reached"] and line["resolved"], 60, what)

    def verify(self) -> Result:
        found = json.loads(self._exeat("ledger", "verify", "--json"))
        if not found["ok"] or len(found["ledgers"]) != 1:
            raise Failed("the ledger does not verify", found)
        ledger = found["ledgers"][0]
        result = {
            key: ledger[key] for key in ("size", "flows_closed", "flows_orphaned", "flows_open", "root")
        }
        if ledger["flows_open"] or not ledger["flows_closed"]:
            raise Failed("there are flows without an end", result)
        return result

    def reconcile(self) -> Result:
        self._settled()
        found = demo_audit.flows(self._read())
        kernel = demo_audit.against_kernel(found)
        far = demo_audit.against_origins(found, self._events("origin"))
        result = {"ledger_and_kernel": kernel, "ledger_and_far_side": far}
        if not kernel["flows"] or kernel["differ"]:
            raise Failed(f"ledger and kernel differ in {len(kernel['differ'])} flows", result)
        if far["unexplained"]:
            raise Failed(f"{len(far['unexplained'])} connections have no flow of the same size", result)
        return result

    def _settled(self) -> None:
        """Every connection that an origin accepted has ended and is counted."""

        def quiet() -> bool:
            events = self._events("origin")
            ends = Counter(event["ev"] for event in events)
            return ends["open"] == ends["close"]

        wait_until(quiet, 60, "the origins to finish")

    def hostile(self) -> Result:
        seen = self._events("hostile")
        result = {"packets": sum(e["ev"] == "packet" for e in seen), "events": len(seen)}
        if seen:
            raise Failed(f"it saw {seen[0]}", result)
        # Nothing seen counts only if it can see: one packet of our own, outside any jail.
        probe = (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
        )
        inside = ["nsenter", f"--net={self.lab.namespace_path('gw')}", sys.executable, "-I", "-c", probe]
        subprocess.run(inside, check=True, timeout=30)
        wait_until(lambda: self._events("hostile"), 30, "the hostile host to see a packet sent to it")
        return result | {"sees_what_is_sent_to_it": True}

    def names(self) -> Result:
        events = self._events("nameserver")
        asked = demo_audit.lookups(events)
        leaked = demo_audit.leaks(asked, _FORBIDDEN)
        early = [
            e
            for e in events
            if e.get("name", "").lower() == "downloads.example.com" and e["t"] < self.approved_at
        ]
        result = {
            "queries": sum(asked.values()),
            "names": len(asked),
            "queries_for_refused_names": sum(leaked.values()),
            "queries_for_the_asked_name_before_approval": len(early),
        }
        if not asked:
            raise Failed("the name server saw nothing at all: its log cannot be trusted", result)
        if leaked or early:
            raise Failed(f"refused names were asked for: {leaked or early}", result)
        return result

    def take_down(self) -> Result:
        for job in self.jobs:
            job.stop()
        if self.report.failures and self.lab.run_dir.is_dir():
            self.kept = str(self._keep())
        manage.down(self.lab, keep_failed=True)
        return {"left_behind": manage.leftovers(self.lab)}

    def _keep(self) -> Path:
        """A failed demonstration's logs and ledger, where they outlive it."""
        kept = self.lab.failed
        shutil.copytree(self.lab.log("x").parent, kept, dirs_exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copytree(self.lab.state_dir / "ledger", kept / "ledger")
        return kept

    # -- doors ---------------------------------------------------------------------------------

    def _exeat(self, *words: str) -> str:
        """A command as a person in a second terminal would give it; its standard output."""
        done = subprocess.run(
            command(self.lab, *words), capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        if done.returncode:
            raise Failed(f"`exeat {' '.join(words)}` said {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def _job(self, *arguments: str, hold: str = "2500ms") -> Running:
        script = self.lab.job / Path(demo_job.__file__).name
        job = Running(
            command(
                self.lab, "run", "--project", plan.PROJECT, "--policy", str(manage.CRAWLER), "--hold", hold,
                "--ro", str(self.lab.job), "--", "/usr/bin/python3", str(script), *arguments,
            )
        )  # fmt: skip
        self.jobs.append(job)
        return job

    def _read(self) -> list[Record]:
        return [record for _, record in read_records(self.lab.state_dir / "ledger")]

    def _count(self, kind: Kind, host: str = "") -> int:
        """Records of this kind; with `host`, those of flows to it."""
        found = (record for record in self._read() if record.kind is kind)
        return sum(not host or (record.dest is not None and record.dest.host == host) for record in found)

    def _events(self, service: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lab.events(service).read_text().splitlines()]

    def _supervisor(self) -> int:
        return int(self.lab.pid_file("appliance").read_text().split()[0])

    def _gateway(self) -> dict[str, int]:
        """The processes of proxy and guard, by what they were started as."""
        found: dict[str, int] = {}
        for pid in network.processes(self.lab.namespace_path("gw")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "serve" in words:
                    found[words[words.index("serve") + 1]] = pid
        return {name: pid for name, pid in found.items() if name in ("proxy", "guard")}
