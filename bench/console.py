"""What the console costs and how quick it is: `python -m bench.console`, as root. A line of JSON per figure.

In the lab, with real Chromium and real jobs: bytes of the first load, time until the list is there with a
cold cache, what a tab and the gateway spend while flows come and go, and how long a held flow waits
after the key was pressed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from bench import console_world as world
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, CDPSession

LOADS: Final = 7
APPROVALS: Final = 40
BUSY_S: Final = 15.0
POLICY: Final = """egress: v1
project: busy
allow:
  - {id: api, to: api.example.org}
ask:
  - {id: any, to: .example.com, ttl: 1h}
"""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def say(name: str, **figures: float | str) -> None:
    shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"figure": name, **shown}), flush=True)


def at(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def signed_in(browser: Browser) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(world.link("adam"))
    page.locator(".live.on").wait_for()
    page.close()
    return context


def first_load(browser: Browser, context: BrowserContext) -> None:
    """Bytes on the wire and milliseconds until the list of requests stands there; nothing cached."""
    state, wire, ready = context.storage_state(), list[float](), list[float]()
    for _ in range(LOADS):
        with browser.new_context(storage_state=state) as fresh:
            page = fresh.new_page()
            seen = [0]
            devtools = fresh.new_cdp_session(page)
            devtools.send("Network.enable")
            devtools.on(
                "Network.loadingFinished", lambda event, seen=seen: seen.append(event["encodedDataLength"])
            )
            began = time.perf_counter()
            page.goto(f"{world.ORIGIN}/#/inbox")
            page.locator(".request").first.wait_for()
            ready.append((time.perf_counter() - began) * 1000)
            page.wait_for_load_state("load")
            wire.append(sum(seen))
    say("first load, bytes", median=statistics.median(wire), goal="<= 60000")
    say("list ready, ms", median=statistics.median(ready), worst=max(ready), goal="< 400")


def cpu_s(names: tuple[str, ...]) -> float:
    """Processor seconds of the appliance's processes so far."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if str(world.LAB.config) in words and any(name in words for name in names):
                total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def tab_s(devtools: CDPSession) -> float:
    """Main-thread seconds of a tab so far."""
    metrics: list[dict[str, Any]] = devtools.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def busy(context: BrowserContext) -> None:
    """What a tab with the live flows and the appliance spend while jobs make as many flows as they can."""
    script = (
        "while :; do curl -s -H 'Connection: close' 'https://api.example.org/bytes/[1-200]' >/dev/null; done"
    )
    jobs = [world.job("busy", script) for _ in range(2)]
    page = context.new_page()
    try:
        page.goto(f"{world.ORIGIN}/#/flows")
        page.locator("tbody tr").nth(100).wait_for()
        devtools = context.new_cdp_session(page)
        devtools.send("Performance.enable")
        before, tab, console, gateway = flows(), tab_s(devtools), cpu_s(("console",)), cpu_s(("proxy",))
        began = time.perf_counter()
        page.wait_for_timeout(BUSY_S * 1000)
        span = time.perf_counter() - began
        share = {
            "tab": tab_s(devtools) - tab,
            "console": cpu_s(("console",)) - console,
            "proxy": cpu_s(("proxy",)) - gateway,
        }
        say(
            "200 rows live",
            flows_per_s=(flows() - before) / span,
            **{f"{name}_percent_of_a_core": 100 * used / span for name, used in share.items()},
            goal="tab < 35 at 200 flows/s",
        )
    finally:
        page.close()
        for each in jobs:
            each.terminate()
            each.wait()


def flows() -> int:
    """Flows that have ended, by the ledger."""
    answer = world.Api("adam").call("GET", "/ledger/sums?by=project&project=busy")
    return sum(int(row["flows"]) for row in answer["items"])


def approvals(context: BrowserContext) -> None:
    """From the key to the job's next line: approval, the held flow's TLS, one byte, and `date` in the job."""
    once = "curl -sm55 -o /dev/null https://mirror.downloads.example.com/bytes/1"
    words = world.job_command("busy", f"while read go; do {once}; date +%s.%N; done", "--hold", "55s")
    job = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert job.stdin is not None
    assert job.stdout is not None
    anna, waits = world.Api("anna"), list[float]()
    page = context.new_page()
    page.goto(f"{world.ORIGIN}/#/inbox?q=mirror")
    for _ in range(APPROVALS):
        print("go", file=job.stdin, flush=True)
        page.locator(".request:not(.gone)", has_text="1 waiting").locator(".pick").click()
        page.locator(".detail button.main:enabled").wait_for()  # no guard of the decision before
        pressed = time.time()
        page.keyboard.press("a")
        waits.append((float(job.stdout.readline()) - pressed) * 1000)
        page.locator("h1").click()  # out of the list: new rows may come in
        for lease in anna.call("GET", "/leases?state=active&project=busy")["items"]:
            anna.call("POST", f"/leases/{quote(lease['id'], safe='')}/revoke", {})
    job.stdin.close()
    job.wait()
    say("approval to the held flow's answer, ms", p50=at(waits, 0.5), p99=at(waits, 0.99), goal="p99 < 150")


def inside() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            for n in range(4):
                world.exeat("lease", "request", "--project", "busy", "--as", "olga", f"n{n}.example.com")
            context = signed_in(browser)
            first_load(browser, context)
            approvals(context)
            busy(context)
        finally:
            browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().inside:
        inside()
        return 0
    with world.running({"busy": POLICY}):
        return world.inside("bench.console", "--inside")


if __name__ == "__main__":
    sys.exit(main())
