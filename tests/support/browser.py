"""Chromium on the console: signed in by a link, with a record of what it complained of."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page
    from tests.support.console import ConsoleRig

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).resolve().parents[1] / "vendor/axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Of Chromium's own, with a person's yes to each (DevTools protocol, WebAuthn.VirtualAuthenticatorOptions).
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
# As root there is no sandbox to have; nothing but the console may be asked for anything.
OPTIONS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


@contextmanager
def chromium(executable: Path = CHROMIUM) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


class Violation(NamedTuple):
    rule: str
    nodes: tuple[str, ...]


def axe(page: Page) -> list[Violation]:
    """What axe-core finds wrong with the page as it is."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate(
        "(rules) => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", RULES
    )
    return [
        Violation(each["id"], tuple(node["html"][:200] for node in each["nodes"]))
        for each in found["violations"]
    ]


class Tab:
    """A tab of somebody who is signed in. `complaints`: errors of scripts and of the content policy."""

    def __init__(self, rig: ConsoleRig, context: BrowserContext) -> None:
        self.rig = rig
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self._heard(said.text))

    def _heard(self, text: str) -> None:
        if "Content Security Policy" in text or "Trusted" in text or "Uncaught" in text:
            self.complaints.append(text)

    def go(self, path: str) -> Tab:
        """To a page, until it has its content."""
        self.page.goto(f"{self.rig.origin}/#/{path}")
        self.settle()
        return self

    def settle(self) -> None:
        self.page.locator("#main h1").first.wait_for()
        self.page.locator("#main [aria-busy=true]").first.wait_for(state="detached")

    def axe(self) -> list[Violation]:
        return axe(self.page)

    def module(self, path: str, script: str, argument: Any = None) -> Any:
        """The value of `script`, a function of one of the console's modules and an argument."""
        source = f"async ([url, argument]) => ({script})(await import(url), argument)"
        base = self.page.locator("link[rel=stylesheet]").first.get_attribute("href") or ""
        return self.page.evaluate(source, [base.rpartition("/")[0] + "/" + path, argument])


def sign_in(rig: ConsoleRig, context: BrowserContext, name: str) -> Tab:
    tab = Tab(rig, context)
    secret = json.loads(rig.exeat("console", "login", name, "--json"))["link"]
    tab.page.goto(f"{rig.origin}/#login={secret}")
    tab.settle()
    return tab
