"""What people do in the browser beside one approval: several at once, leases, devices, the kill
switch, policies. Each dialog is looked at by axe while it is open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from tests.support.browser import Tab, chromium, sign_in
from tests.support.console import ConsoleRig
from tests.support.running import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

pytestmark = pytest.mark.root

SIZE = {"width": 1280, "height": 900}
DEVICE = '[[device]]\nname = "zero"\npath = "/dev/zero"\n'
NARROW = "egress: v1\nproject: w\nposture: allowlist\n"
WIDE = NARROW + "allow:\n  - {id: all, to: .example.org}\n"


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig(DEVICE)
    try:
        made.exeat("user", "add", "ada", "--role", "admin")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


def tab_of(rig: ConsoleRig, browser: Browser, name: str) -> Iterator[Tab]:
    with browser.new_context(viewport=SIZE) as context:  # type: ignore[arg-type]
        tab = sign_in(rig, context, name)
        yield tab
        assert tab.complaints == []


@pytest.fixture(scope="module")
def approver(rig: ConsoleRig, browser: Browser) -> Iterator[Tab]:
    yield from tab_of(rig, browser, "anna")


@pytest.fixture(scope="module")
def admin(rig: ConsoleRig, browser: Browser) -> Iterator[Tab]:
    yield from tab_of(rig, browser, "adam")


@pytest.fixture
def second(rig: ConsoleRig, browser: Browser) -> Iterator[Tab]:
    yield from tab_of(rig, browser, "ada")


def requests(rig: ConsoleRig, state: str = "pending") -> dict[str, dict[str, Any]]:
    items = rig.person("anna").get(f"/requests?state={state}&limit=200").json["items"]
    return {item["id"]: item for item in items}


def test_a_lease_is_renewed_and_undone(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("keep.github.com:443")
    path = f"/requests/{quote(row['id'], safe='')}"
    anna = rig.person("anna")
    anna.post(f"{path}/approve", {"version": row["version"], "ttl_s": 300})
    page = approver.go("leases").page
    lease = page.get_by_role("row").filter(has_text="keep.github.com")
    lease.get_by_role("button", name="Renew").click()
    expect(page.get_by_text("Its time counts again from now.")).to_be_visible()
    lease.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Undone: the lease has ended.")).to_be_visible()
    expect(lease).to_have_count(0)
    assert anna.get(path).json["state"] == "revoked"


def test_a_wider_policy_takes_two_and_one_goes_back(rig: ConsoleRig, admin: Tab, second: Tab) -> None:
    made = rig.person("adam").call("PUT", "/policies/w", {"text": NARROW}, If_None_Match="*").json
    assert made["state"] == "in_force"

    page = admin.go("policies/w").page
    expect(page.get_by_role("button", name="Put in force")).to_be_disabled()
    page.get_by_label("The text").fill(WIDE)
    page.get_by_role("button", name="Put in force").click()
    assert admin.axe() == []
    page.get_by_role("dialog").get_by_role("button", name="Put in force").click()
    expect(page.get_by_text("It lets out more: it waits for a second person.")).to_be_visible()

    other = second.go("policies/w").page
    expect(other.get_by_text("A text waits for a second person")).to_be_visible()
    other.get_by_role("button", name="Agree").click()
    expect(other.get_by_text("In force.")).to_be_visible()
    versions = page.get_by_role("region", name="Versions").get_by_role("row")
    expect(versions.nth(1)).to_contain_text("adam, ada")
    expect(page.get_by_label("The text")).to_have_value(WIDE)

    versions.nth(2).get_by_role("button", name="Go back to it").click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    expect(page.get_by_label("The text")).to_have_value(NARROW)


def test_a_text_replaces_only_what_it_was_made_from(rig: ConsoleRig, admin: Tab) -> None:
    adam, text = rig.person("adam"), NARROW.replace("project: w", "project: v")
    made = adam.call("PUT", "/policies/v", {"text": text}, If_None_Match="*")
    page = admin.go("policies/v").page
    mine = text + "# mine\n"
    page.get_by_label("The text").fill(mine)
    less = text + "deny:\n  - {id: none, to: none.example.org}\n"
    assert adam.call("PUT", "/policies/v", {"text": less}, If_Match=f'"{made.json["digest"]}"').status == 200
    expect(page.get_by_text("The policy in force is another by now")).to_be_visible()
    expect(page.get_by_label("The text")).to_have_value(mine)
    page.get_by_role("button", name="Put in force").click()
    page.get_by_role("dialog").get_by_role("button", name="Put in force").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("look again")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Drop it and show what is in force").click()
    expect(page.get_by_label("The text")).to_have_value(less)


def test_several_are_approved_together_without_those_that_have_flags(rig: ConsoleRig, approver: Tab) -> None:
    first, second = rig.ask("batch1.github.com:443"), rig.ask("batch2.github.com:443")
    flagged = rig.ask("xn--btch-53d.github.com:443")
    page = approver.go("inbox?q=github.com").page
    for row in (first, second):
        page.get_by_label(re.compile(f"^Select {re.escape(row['dest']['host'])}")).check()
    expect(page.get_by_label(re.compile("^Select xn--btch"))).to_be_disabled()
    page.locator(".batch").get_by_role("button", name="Approve").click()
    page.get_by_role("dialog").get_by_role("button", name="Approve all").click()
    expect(page.get_by_text("2 approved.")).to_be_visible()
    found = requests(rig, "all")
    states = [found[row["id"]]["state"] for row in (first, second, flagged)]
    assert states == ["active", "active", "requested"]


def test_a_project_is_stopped_and_let_go_on(rig: ConsoleRig, admin: Tab) -> None:
    page = admin.go("kill").page
    for verb, said in (("Stop q", "Stop now"), ("Let go on", "Let go on")):
        page.get_by_role("button", name=verb).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name=said).click()
        expect(dialog).to_be_visible()  # not without a reason
        assert admin.axe() == []
        dialog.get_by_label("Reason, kept in the ledger").fill("to test")
        dialog.get_by_role("button", name=said).click()
        expect(dialog).to_be_hidden()
        stopped = rig.person("adam").get("/kill").json["stopped"]
        assert [row["project"] for row in stopped] == (["q"] if verb == "Stop q" else [])
    expect(page.get_by_text("Nothing is stopped.")).to_be_visible()


def test_a_device_is_lent_to_a_job_and_taken_back(rig: ConsoleRig, approver: Tab, browser: Browser) -> None:
    rig.exeat("job", "submit", "--project", "p", "--", "sleep", "300")
    task = wait_for(lambda: [row for row in rig.person("olga").get("/jobs").json["items"] if row["job"]])
    job = task[0]["job"]
    for wrong, status in (({"job": job, "project": "q"}, 404), ({"job": "nobody", "project": "p"}, 404)):
        answer = rig.person("olga").post("/devices/zero/grant", wrong)
        assert answer.status == status, answer.body
    assert rig.person("olga").post("/devices/one/grant", {"job": job, "project": "p"}).status == 404
    with browser.new_context(viewport=SIZE) as context:  # type: ignore[arg-type]
        page = sign_in(rig, context, "olga").go("devices").page
        page.get_by_role("button", name="Lend zero").click()
        page.get_by_label("Job that runs").fill(job)
        page.get_by_label("Its project").fill("p")
        page.get_by_role("button", name="Ask for it").click()
        expect(page.get_by_role("region", name="Devices")).to_contain_text(f"requested to {job} of p")
    asked = next(row for row in requests(rig).values() if row["dest"]["host"] == "zero")
    page = approver.go("inbox?q=zero").page
    page.locator(f'.pick[data-id="{asked["id"]}"]').click()
    expect(page.locator(".detail")).to_contain_text("This job may use the device zero of this node.")
    page.keyboard.press("a")
    page.get_by_role("dialog").get_by_role("button", name="Approve all the same").wait_for()
    assert approver.axe() == []
    page.get_by_role("dialog").get_by_role("button", name="Approve all the same").click()
    expect(page.get_by_text("Approved zero for 10 min.")).to_be_visible()
    approver.go("devices")
    expect(page.get_by_role("region", name="Devices")).to_contain_text(f"open to {job} of p")
    page.get_by_role("button", name="Take back").click()
    expect(page.get_by_role("region", name="Devices")).to_contain_text("nobody")
    rig.exeat("job", "cancel", task[0]["id"])


def test_a_text_is_checked_and_compared_before_it_is_in_force(admin: Tab) -> None:
    page = admin.go("policies/p").page
    text = page.get_by_label("The text")
    expect(text).to_have_value(re.compile("project: p"))
    text.fill("egress: v1\nproject: p\nallow:\n  - {id: wide, to: .example.org}\n")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("It loads: 1 rule,")).to_be_visible()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("It lets out more.")).to_be_visible()
    text.fill("egress: v1\nproject: p\nallow: [\n")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("It does not load.")).to_be_visible()
    page.get_by_role("button", name=re.compile("^line ")).first.click()
    expect(text).to_be_focused()
    expect(page.locator(".numbers .bad")).to_have_count(1)
