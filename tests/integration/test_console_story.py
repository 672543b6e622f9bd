"""The whole story in a browser: a job asks, a person narrows and says yes, the flow goes on, the lease is
revoked, the flow ends, and its record is proved. And: all tabs live by one stream of events."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from bench import console_world as world
from playwright.sync_api import expect
from tests.support.browser import CHROMIUM, chromium

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.root, pytest.mark.slow]

WAIT_MS = 30_000
# Far more than is read before the lease is revoked.
DOWNLOAD = "curl -sm50 -o /dev/null 'https://mirror.downloads.example.com/bytes/900000000?rate=200000'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium in the network of the lab's gateway."""
    with world.running():
        start = tmp_path_factory.mktemp("chromium") / "chromium"
        start.write_text(f'#!/bin/sh\nexec nsenter --net={world.LAB.namespace_path("gw")} {CHROMIUM} "$@"\n')
        start.chmod(start.stat().st_mode | stat.S_IXUSR)
        with chromium(start) as made:
            yield made


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as made:
        made.set_default_timeout(WAIT_MS)
        yield made


def signed_in(context: BrowserContext, name: str) -> Page:
    page = context.new_page()
    page.goto(world.link(name))
    expect(page.locator(".live.on")).to_be_visible(timeout=WAIT_MS)
    return page


def go(page: Page, path: str) -> Page:
    page.goto(f"{world.ORIGIN}/#/{path}")
    page.locator("#main h1").first.wait_for()
    return page


def test_from_the_question_to_the_proof(context: BrowserContext) -> None:
    page = signed_in(context, "anna")
    job = world.job("research", DOWNLOAD, "--hold", "55s")
    try:
        # It comes by itself.
        row = page.locator(".request", has_text="mirror.downloads.example.com")
        expect(row).to_contain_text("1 waiting", timeout=WAIT_MS)
        row.locator(".pick").click()
        page.get_by_label("15 min", exact=True).check()
        page.get_by_label("Note, kept in the ledger").fill("the shards of the paper")
        row.locator(".pick").focus()
        page.keyboard.press("a")
        expect(page.get_by_text("Approved mirror.downloads.example.com:443 for 15 min.")).to_be_visible()

        # The flow that was held goes on.
        go(page, "flows?q=mirror")
        expect(page.locator("tbody tr", has_text="live")).to_have_count(1, timeout=WAIT_MS)

        go(page, "leases")
        page.get_by_role("button", name="Revoke").click()
        page.get_by_label("Note, kept in the ledger").fill("enough")
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("No lease is in force.")).to_be_visible(timeout=WAIT_MS)
        assert job.wait(WAIT_MS / 1000) != 0  # cut off in the middle
    finally:
        job.kill()
        job.wait()
    prove(page)


def prove(page: Page) -> None:
    """The flow's last record, checked in the browser once it is under a signed checkpoint."""
    go(page, "ledger?kind=close&host=mirror.downloads.example.com")
    page.locator("tbody a").first.click()
    panel = page.locator(".panel", has=page.get_by_role("button", name="Verify in this browser"))
    expect(panel).to_contain_text("lease")
    page.get_by_role("button", name="Verify in this browser").click()
    expect(page.get_by_text("The proof holds.")).to_be_visible(timeout=WAIT_MS)


def ask(to: str, reason: str) -> None:
    world.exeat("lease", "request", "--project", "evals", "--reason", reason, "--as", "olga", to)


def test_tabs_share_one_stream(context: BrowserContext) -> None:
    """More tabs than HTTP/1.1 has connections, all live; and when the one that listens goes, another does."""
    streams = list[str]()
    context.on(
        "request", lambda request: streams.append(request.url) if "/v1/events" in request.url else None
    )
    first = signed_in(context, "anna")
    others = [context.new_page() for _ in range(7)]
    for page in others:
        go(page, "inbox")
        expect(page.locator(".live.on")).to_be_visible(timeout=WAIT_MS)
    assert len(streams) == 1
    ask("files.example.com:443", "to see it everywhere")
    for page in (first, *others):
        expect(page.locator(".requests")).to_contain_text("files.example.com", timeout=WAIT_MS)
    first.close()
    expect(others[-1].locator(".live.on")).to_be_visible(timeout=WAIT_MS)
    ask("more.example.com:443", "to see it afterwards")
    for page in others:
        expect(page.locator(".requests")).to_contain_text("more.example.com", timeout=WAIT_MS)
    assert len(streams) == 2
