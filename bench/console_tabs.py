"""What bench.console measures in Chromium, inside the lab's gateway node."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from bench import console_world as world
from bench.ledger_parts import Goal, quantile
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from playwright.sync_api import Browser, BrowserContext, CDPSession, Page

LOADS: Final = 5
APPROVALS: Final = 50
RATE: Final = 200  # flows a second
ROWS: Final = 200
RENDERER: Final = "renderer "
SPANS: Final = 5  # with a watcher, and so many without
SPAN_S: Final = 6.0
TABS: Final = ("inbox", "flows", "overview", "leases", "dns", "jobs") * 2
POLICY: Final = """egress: v1
project: busy
allow:
  - {id: plain, to: plain.example.org, ports: [80]}
ask:
  - {id: any, to: .example.com, ttl: 1h}
"""
# When the list stands there, in milliseconds since the navigation began; when a key went down, since 1970.
_READY: Final = """new MutationObserver((_, self) => {
  if (!document.querySelector(".request")) return;
  window.readyAt = performance.now();
  self.disconnect();
}).observe(document, {childList: true, subtree: true})"""
_KEYS: Final = """addEventListener("keydown", (event) => {
  window.pressedAt = Date.now() - (performance.now() - event.timeStamp);
}, true)"""


def signed_in(browser: Browser, name: str) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(world.link(name))
    page.locator(".live.on").wait_for()
    page.close()
    return context


def first_load(browser: Browser, context: BrowserContext) -> Iterator[Goal]:
    """Bytes on the wire, and milliseconds until the list of requests stands there; nothing cached."""
    state, wire, ready = context.storage_state(), list[float](), list[float]()
    for _ in range(LOADS):
        with browser.new_context(storage_state=state) as fresh:
            page = fresh.new_page()
            page.add_init_script(_READY)
            seen = list[float]()
            devtools = fresh.new_cdp_session(page)
            devtools.send("Network.enable")
            devtools.on(
                "Network.loadingFinished", lambda event, seen=seen: seen.append(event["encodedDataLength"])
            )
            page.goto(f"{world.ORIGIN}/#/inbox")
            page.locator(".request").first.wait_for()
            page.wait_for_load_state("load")
            ready.append(page.evaluate("window.readyAt"))
            wire.append(sum(seen))
    yield Goal("first load, all of it, on the wire", statistics.median(wire), "B", 60_000)
    yield Goal("list ready, nothing cached, median", statistics.median(ready), "ms", 400)
    yield Goal("   worst", max(ready), "ms")


def pids(part: str) -> list[int]:
    """The appliance's processes that serve `part`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(world.LAB.config) in words and words[-3:-1] == ["serve", part]:
                    found.append(int(entry.name))
    return found


def cpu_s(part: str) -> float:
    """Processor seconds of a part of the appliance so far, to the nanosecond (unlike /proc/PID/stat)."""
    threads = [each for pid in pids(part) for each in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def renderers(devtools: CDPSession) -> dict[str, float]:
    """Processor seconds of the main thread of each of Chromium's renderers so far.

    Not Performance.getMetrics: its durations go on while others have the processor.
    """
    found = {}
    for each in devtools.send("SystemInfo.getProcessInfo")["processInfo"]:
        if each["type"] == "renderer":
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{each['id']}/schedstat").read_text()
                found[f"{RENDERER}{each['id']}"] = int(text.split()[0]) / 1e9
    return found


class Job:
    """bench.console_job in a jail: a line in, a line out."""

    def __init__(self, *words: str, options: Sequence[str] = ()) -> None:
        command = world.job_command("busy", world.script("console_job", *words), *options)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )

    def say(self) -> None:
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)

    def heard(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the job has ended"
        return line.split()

    def asked(self) -> list[str]:
        self.say()
        return self.heard()

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def approvals(context: BrowserContext) -> Iterator[Goal]:
    """From the key going down in the browser to the answer to the CONNECT that was held."""
    job = Job("held", "mirror.downloads.example.com:443", options=["--hold", "55s"])
    anna, waits = world.Api("anna"), list[float]()
    with contextlib.closing(job):
        page = context.new_page()
        page.add_init_script(_KEYS)
        page.goto(f"{world.ORIGIN}/#/inbox?q=mirror")
        held = page.locator(".request", has_text="1 waiting")
        for _ in range(APPROVALS):
            job.say()
            held.locator(".pick").click()
            page.locator(".detail button.main:enabled").wait_for()  # no guard of the decision before
            page.keyboard.press("a")
            status, at = job.heard()
            assert status == "200", f"the held CONNECT was answered with {status}"
            waits.append(float(at) * 1000 - page.evaluate("window.pressedAt"))
            page.locator("h1").click()  # out of the list: new rows may come in
            held.wait_for(state="detached")  # else the next click would be on what is decided
            for lease in anna.call("GET", "/leases?state=active&project=busy")["items"]:
                anna.call("POST", f"/leases/{quote(lease['id'], safe='')}/revoke", {})
        page.close()
    yield Goal("from the key to the held CONNECT's 200, p50", statistics.median(waits), "ms")
    yield Goal(f"   p99 of {APPROVALS}", quantile(waits, 0.99), "ms", 150)


class Span:
    """What a while took, in percent of a core by part; and how many flows a second there were."""

    def __init__(self, job: Job, read: Callable[[], dict[str, float]], page: Page) -> None:
        before, flows, began = read(), int(job.asked()[0]), perf_counter()
        page.wait_for_timeout(SPAN_S * 1000)
        took = perf_counter() - began
        self.flows = (int(job.asked()[0]) - flows) / took
        self.used = {
            name: 100 * (value - before[name]) / took for name, value in read().items() if name in before
        }

    @property
    def tab(self) -> float:
        """Of the renderers the one that had anything to do."""
        return max(used for name, used in self.used.items() if name.startswith(RENDERER))


def live_rows(context: BrowserContext) -> Iterator[Goal]:
    """A tab with the live flows, and none, in turns: what both cost while flows come and go."""
    parts = ("proxy", "control", "console")
    watched, alone = list[Span](), list[Span]()
    page = context.new_page()
    assert context.browser is not None
    devtools = context.browser.new_browser_cdp_session()

    def read() -> dict[str, float]:
        return {**renderers(devtools), **{part: cpu_s(part) for part in parts}}

    with contextlib.closing(Job("flows", str(RATE), "plain.example.org")) as job:
        for _ in range(SPANS):
            page.goto(f"{world.ORIGIN}/#/flows")
            page.locator("tbody tr").nth(ROWS - 1).wait_for()
            watched.append(Span(job, read, page))
            page.goto("about:blank")
            alone.append(Span(job, read, page))
    page.close()

    def middle(spans: list[Span], part: str) -> float:
        return statistics.median(span.used[part] for span in spans)

    rate = statistics.median(span.flows for span in watched)
    yield Goal("flows a second while a tab showed them", rate, "/s", 0.95 * RATE, least=True)
    yield Goal(
        f"the tab's main thread, {ROWS} rows live", statistics.median(span.tab for span in watched), "%", 35
    )
    more = [one.used["proxy"] - other.used["proxy"] for one, other in zip(watched, alone, strict=True)]
    yield Goal("the gateway, watched, more than not watched", statistics.median(more), "%", 5)
    for part in parts:
        yield Goal(f"   {part}, watched", middle(watched, part), "%")
        yield Goal(f"   {part}, not watched", middle(alone, part), "%")


def many_tabs(context: BrowserContext) -> Iterator[Goal]:
    """Twelve tabs at once, of six pages: all hear of a new request."""
    pages = [context.new_page() for _ in TABS]
    for page, name in zip(pages, TABS, strict=True):
        page.goto(f"{world.ORIGIN}/#/{name}")
    for page in pages:
        page.locator(".live.on").wait_for()
    olga = world.Api("olga")
    waiting = len(world.Api("anna").pending())
    began = perf_counter()
    olga.ask("busy", "tabs.example.com", "twelve tabs")
    for page in pages:
        page.locator("nav .count", has_text=str(waiting + 1)).wait_for()
    yield Goal(
        f"{len(pages)} tabs are live, and show a new request after",
        (perf_counter() - began) * 1000,
        "ms",
        1000,
    )
    for page in pages:
        page.close()


def measured() -> Iterator[Goal]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            for n in range(4):
                world.exeat("lease", "request", "--project", "busy", "--as", "olga", f"n{n}.example.com")
            context = signed_in(browser, "adam")
            yield from first_load(browser, context)
            yield from many_tabs(context)
            yield from approvals(context)
            yield from live_rows(context)
        finally:
            browser.close()
