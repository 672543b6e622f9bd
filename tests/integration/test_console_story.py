"""The whole story in a browser: a job asks, a person narrows and says yes with a passkey, the flow goes on,
the lease is revoked, the flow ends, and its record is proved; what must not decide does not. And: all tabs
live by one stream of events."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from bench import console_world as world
from playwright.sync_api import expect
from tests.support.browser import AUTHENTICATOR, CHROMIUM, axe, chromium

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.root, pytest.mark.slow]

WAIT_MS = 30_000
# WebAuthn wants a name, not an address (level 3, section 5.1.3).
ORIGIN = f"http://localhost:{world.PORT}"
PASSKEYS = f'\n[passkeys]\nrp_id = "localhost"\norigins = ["{ORIGIN}"]\n'
# Far more than is read before the lease is revoked.
DOWNLOAD = "curl -sm50 -o /dev/null 'https://mirror.downloads.example.com/bytes/900000000?rate=200000'"
# In a jail: the console's port straight, and through the gateway: no answer, and a refusal.
KNOCK = (
    f"curl --noproxy '*' -sm5 -o /dev/null -w '%{{http_code}} ' {ORIGIN}/live; "
    "curl -sm5 -o /dev/null -w '%{http_connect}' -px http://127.0.0.1:3128 "
    f"--noproxy '' {ORIGIN}/live; true"
)
CALL = """async ([method, path, body, csrf]) => {
  const session = await (await fetch("/api/v1/session")).json();
  const headers = {"Content-Type": "application/json", ...(csrf && {"X-CSRF-Token": session.csrf})};
  const sent = method === "GET" ? {} : {method, headers, body: JSON.stringify(body)};
  const answer = await fetch("/api/v1" + path, sent);
  const said = await answer.json();
  return {status: answer.status, reason: said.reason_code ?? "", body: said};
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium in the network of the lab's gateway."""
    with world.running(more=PASSKEYS):
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
    page.goto(world.link(name).replace(world.ORIGIN, ORIGIN))
    expect(page.locator(".live.on")).to_be_visible(timeout=WAIT_MS)
    return page


def go(page: Page, path: str) -> Page:
    page.goto(f"{ORIGIN}/#/{path}")
    page.locator("#main h1").first.wait_for()
    return page


def test_from_the_question_to_the_proof(context: BrowserContext, browser: Browser) -> None:
    page = signed_in(context, "anna")
    passkey(page)
    job = world.job("research", DOWNLOAD, "--hold", "55s")
    try:
        # It comes by itself.
        go(page, "inbox")
        row = page.locator(".request", has_text="mirror.downloads.example.com")
        expect(row).to_contain_text("1 waiting", timeout=WAIT_MS)
        row.locator(".pick").click()
        path = f"/requests/{quote(row.locator('.pick').get_attribute('data-id') or '', safe='')}/approve"
        refused_beforehand(page, browser, path)

        # Less than was asked for: a quarter of an hour, 1 GB, three connections.
        page.get_by_label("15 min", exact=True).check()
        page.get_by_label("Bytes at most").select_option("1 GB")
        page.get_by_label("Connections at most").fill("3")
        page.get_by_label("Note, kept in the ledger").fill("the shards of the paper")
        row.locator(".pick").focus()
        with page.expect_request(f"**{path}") as sent:
            page.keyboard.press("a")
        expect(page.get_by_text("Approved mirror.downloads.example.com:443 for 15 min.")).to_be_visible()

        # The same bytes again decide nothing.
        again = call(page, "POST", path, sent.value.post_data_json)
        assert (again["status"], again["reason"]) == (403, "passkey.used")

        # The flow that was held goes on.
        go(page, "flows?q=mirror")
        expect(page.locator("tbody tr", has_text="live")).to_have_count(1, timeout=WAIT_MS)

        go(page, "leases")
        page.get_by_role("button", name="mirror.downloads.example.com").click()
        lease = page.get_by_role("region", name="The lease")
        for fact in ("Bytes at most1.00 GB", "Uses at most3", "Granted byanna"):
            expect(lease).to_contain_text(fact)
        page.get_by_role("button", name="Revoke").click()
        page.get_by_label("Note, kept in the ledger").fill("enough")
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("No lease is in force.")).to_be_visible(timeout=WAIT_MS)
        assert job.wait(WAIT_MS / 1000) != 0  # cut off in the middle
    finally:
        job.kill()
        job.wait()
    prove(page)


def passkey(page: Page) -> None:
    """A new one, in an authenticator of Chromium's own."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    devtools.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
    go(page, "passkeys")
    page.get_by_role("button", name="New passkey").click()
    page.get_by_label("Code, from").fill(world.exeat("passkey", "invite", "anna").strip())
    page.get_by_label("Name", exact=True).fill("blue key")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("region", name="Passkeys")).to_contain_text("blue key")


def refused_beforehand(page: Page, browser: Browser, path: str) -> None:
    """What must not decide, each said why; and the request waits on as if nothing had happened."""
    yes = {"version": call(page, "GET", path.removesuffix("/approve"))["body"]["version"], "ttl_s": 900}
    bare = call(page, "POST", path, yes, csrf=False)
    assert (bare["status"], bare["reason"]) == (403, "auth.csrf")
    unsigned = call(page, "POST", path, yes)
    assert (unsigned["status"], unsigned["reason"]) == (403, "passkey.needed")
    stale = call(page, "POST", f"{path.removesuffix('/approve')}/deny", {"version": "0" * 16})
    assert (stale["status"], stale["reason"]) == (412, "review.stale")
    with browser.new_context() as other:
        operator = signed_in(other, "olga")
        expect(operator.locator(".request", has_text="mirror.downloads.example.com")).to_be_visible()
        expect(operator.get_by_role("button", name="Approve")).to_have_count(0)
        theirs = call(operator, "POST", path, yes)
        assert (theirs["status"], theirs["reason"]) == (403, "auth.role")
    inside = subprocess.run(world.job_command("research", KNOCK), capture_output=True, text=True, check=False)
    assert inside.stdout.split() == ["000", "403"], inside.stderr
    assert call(page, "GET", path.removesuffix("/approve"))["body"]["state"] == "requested"


def call(page: Page, method: str, path: str, body: Any = None, *, csrf: bool = True) -> dict[str, Any]:
    """A request of the API with the session of the tab, as a script in it would make it."""
    found: dict[str, Any] = page.evaluate(CALL, [method, path, body, csrf])
    return found


def prove(page: Page) -> None:
    """The flow's last record, checked in the browser once it is under a signed checkpoint."""
    go(page, "ledger?kind=close&host=mirror.downloads.example.com")
    page.locator("tbody a").first.click()
    panel = page.locator(".panel", has=page.get_by_role("button", name="Verify in this browser"))
    expect(panel).to_contain_text("lease")
    page.get_by_role("button", name="Verify in this browser").click()
    expect(page.get_by_text("The proof holds.")).to_be_visible(timeout=WAIT_MS)


def test_a_flow_is_cut(context: BrowserContext) -> None:
    page = signed_in(context, "adam")
    job = world.job(
        "research", "curl -sfm50 -o /dev/null 'https://api.example.org/bytes/900000000?rate=9000'"
    )
    try:
        go(page, "flows?q=api.example.org+live")
        page.get_by_role("button", name="Cut").click(timeout=WAIT_MS)
        dialog = page.get_by_role("dialog", name="Cut this flow?")
        dialog.get_by_role("button", name="Cut").click()
        expect(dialog).to_be_visible()  # not without a reason
        assert axe(page) == []
        dialog.get_by_label("Reason, kept in the ledger").fill("to test")
        dialog.get_by_role("button", name="Cut").click()
        expect(dialog).to_be_hidden()
        assert job.wait(WAIT_MS / 1000) != 0
        expect(page.get_by_role("button", name="Cut")).to_have_count(0)
    finally:
        job.kill()
        job.wait()


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
