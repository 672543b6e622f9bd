"""The pictures of the console in docs/img: `python -m bench.pictures`, as root.

Nothing is drawn: jobs run in the lab, people decide, and Chromium shows what there is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import console_world as world
from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OUT: Final = Path(__file__).resolve().parents[1] / "docs/img"
DESK, PHONE = {"width": 1280, "height": 820}, {"width": 390, "height": 844}
MOST_BYTES: Final = 150_000

_UP = "head -c {n} /dev/zero | curl -s --data-binary @- https://{host}/upload >/dev/null; "
_DOWN = "curl -s https://{host}/bytes/{n} >/dev/null; "
_REFUSED = "curl -sm2 https://{host}/ >/dev/null; "
SENT: Final = (
    ("research", "api.example.org", 4_200_000, 900_000),
    ("research", "index.example.org", 120_000, 6_400_000),
    ("research", "one.cdn.example.org", 640_000, 2_100_000),
    ("research", "two.cdn.example.org", 380_000, 1_300_000),
    ("evals", "git.example.org", 1_900_000, 3_300_000),
    ("evals", "api.example.org", 2_600_000, 400_000),
    ("crawler", "plain.example.org", 0, 0),
    ("crawler", "six.cdn.example.org", 900_000, 5_000_000),
)
REFUSED: Final = (
    ("research", "paste.example.net"),
    ("research", "b.exfil.example.net"),
    ("evals", "index.example.org"),
    ("crawler", "a.exfil.example.net"),
)
REASONS: Final = {
    (
        "crawler",
        "mirror.downloads.example.com:443",
    ): "Page 3 of the crawl links to a 40 MB archive on this mirror.",
    ("evals", "files.example.com:443"): "The benchmark's answer key is at files.example.com. I only read it.",
    (
        "research",
        ".downloads.example.com:443",
    ): "Several shards are on sibling hosts, so all of downloads, please.",
    (
        "evals",
        "xn--dwnloads-nbh.example.com:443",
    ): "Same host as before, the address in the README is spelled so.",
}


def traffic() -> None:
    """Flows that end, so that there are figures and records."""
    running = list[subprocess.Popen[bytes]]()
    for project in ("research", "evals", "crawler"):
        script = "".join(
            _UP.format(n=up, host=host) + _DOWN.format(n=down, host=host)
            for name, host, up, down in SENT
            if name == project and up
        )
        script += "".join(_REFUSED.format(host=host) for name, host in REFUSED if name == project)
        running.append(world.job(project, script))
    for each in running:
        each.wait(60)


def _trickle(project: str) -> str:
    """Small flows, for as long as the pictures take."""
    hosts = [host for name, host, _, _ in SENT if name == project] + [
        h for name, h in REFUSED if name == project
    ]
    calls = "".join(
        f"curl -sm2 https://{host}/bytes/{7000 + 911 * n} >/dev/null; " for n, host in enumerate(hosts)
    )
    return f"for n in $(seq 300); do {calls} sleep 0.4; done"


def people(stack: ExitStack) -> None:
    """Requests that wait, one that is granted and used, and a flow that is held for one."""
    olga, anna = world.Api("olga"), world.Api("anna")
    granted = olga.ask(
        "research", "downloads.example.com:443", "The training set of the paper, 12 shards.", ttl_s=3600
    )
    anna.approve(granted, 3600)
    slow = _DOWN.format(n="400000000?rate=900000", host="downloads.example.com")
    held = "for n in 1 2; do curl -sm60 https://mirror.downloads.example.com/bytes/1000 & done; wait"
    jobs = [
        ("research", slow, ()),
        ("research", held, ("--hold", "55s")),
        *((name, _trickle(name), ()) for name in world.POLICIES),
    ]
    for project, script, options in jobs:
        each = world.job(project, script, *options)
        stack.callback(each.wait, 60)
        stack.callback(each.terminate)
    for (project, to), reason in REASONS.items():
        olga.ask(project, to, reason)
    while not any(row["waiting"] for row in anna.pending()):
        pass  # the job has to get as far as asking


class Camera:
    """A tab that is signed in, and takes pictures."""

    def __init__(self, browser: Browser, scheme: str, size: dict[str, int], name: str = "anna") -> None:
        self._context = browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
        self.page: Page = self._context.new_page()
        self.page.goto(world.link(name))
        self.page.locator("#main h1").wait_for()

    def go(self, path: str) -> Page:
        self.page.goto(f"{world.ORIGIN}/#/{path}")
        self.page.locator("#main h1").wait_for()
        self.page.locator("#main [aria-busy=true]").first.wait_for(state="detached")
        self.page.locator(".live.on").wait_for()
        return self.page

    def shoot(self, name: str) -> None:
        path = OUT / f"{name}.png"
        self.page.screenshot(path=path)
        # 256 colours are enough for text on panels, and a third of the bytes.
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path.name}: {size / 1000:.0f} kB")
        assert size < MOST_BYTES, f"{path.name} is too large for the repository"


def take(browser: Browser) -> None:
    for scheme in ("light", "dark"):
        camera = Camera(browser, scheme, DESK)
        camera.go("inbox").locator(".badge.warn").first.wait_for()
        camera.page.locator(".request", has_text="2 waiting").locator(".pick").click()
        camera.page.locator(".preview", has_text="newly lets out").wait_for()
        camera.shoot(f"inbox-{scheme}")
        camera.go("flows").locator("tbody tr").nth(14).wait_for()
        camera.shoot(f"flows-{scheme}")
        camera.go("overview?hours=1").locator(".map").wait_for()
        camera.page.locator(".chart canvas").nth(1).wait_for()
        camera.shoot(f"overview-{scheme}")
    page = camera.go("ledger?kind=close")
    page.locator("tbody a").first.click()
    page.get_by_role("button", name="Verify in this browser").click()
    page.get_by_text("The proof holds.").wait_for()
    camera.shoot("ledger-dark")
    phone = Camera(browser, "light", PHONE)
    phone.go("inbox").locator(".badge.warn").first.wait_for()
    phone.shoot("inbox-mobile")


def inside() -> None:
    OUT.mkdir(exist_ok=True)
    traffic()
    with ExitStack() as stack:
        people(stack)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        stack.callback(browser.close)
        take(browser)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().inside:
        inside()
        return 0
    with world.running():
        return world.inside("bench.pictures", "--inside")


if __name__ == "__main__":
    sys.exit(main())
