"""The console in a browser: signing in, deciding, and pages that all can use."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from tests.support.browser import Tab, axe, chromium, sign_in
from tests.support.console import PASSWORD, ConsoleRig

from exeat.ledger.merkle import leaf_hash, node_hash
from exeat.ledger.proofs import inclusion, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.root

PAGES = (
    *(
        "inbox",
        "leases",
        "kill",
        "overview",
        "flows",
        "dns",
        "jobs",
        "nodes",
        "devices",
        "ledger",
        "ledger/1",
    ),
    *("reviews", "audit", "policies", "policies/p", "posture", "passkeys"),
)
# Lookups and flows that are refused, so that the pages have something to show.
SCRIPT = "getent hosts evil.example; curl -sm2 http://169.254.169.254/; curl -sm2 https://evil.example/; true"
FIRST_LOAD = 60_000  # bytes on the wire
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig()
    try:
        made.exeat("run", "--project", "p", "--", "sh", "-c", SCRIPT)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def approver(rig: ConsoleRig, browser: Browser) -> Iterator[Tab]:
    with browser.new_context(viewport=DESK) as context:  # type: ignore[arg-type]
        yield sign_in(rig, context, "anna")


@pytest.fixture(autouse=True)
def _complaints(request: pytest.FixtureRequest) -> Iterator[None]:
    """Normal use breaks no rule of the content policy, and no script."""
    yield
    tab = request.node.funcargs.get("approver")
    if tab is not None:
        assert tab.complaints == []


def requests(rig: ConsoleRig, state: str = "pending") -> dict[str, dict[str, Any]]:
    items = rig.person("anna").get(f"/requests?state={state}&limit=200").json["items"]
    return {item["id"]: item for item in items}


def inbox(tab: Tab, row: dict[str, Any]) -> Page:
    """The inbox with this request chosen."""
    tab.page.goto("about:blank")
    tab.go(f"inbox?q={row['dest']['host']}")
    pick(tab.page, row).click()
    if tab.page.get_by_role(
        "button", name="Deny d"
    ).count():  # not while the guard of the decision before holds
        expect(tab.page.get_by_role("button", name="Deny d")).to_be_enabled()
    return tab.page


def pick(page: Page, row: dict[str, Any]) -> Any:
    return page.locator(f'.pick[data-id="{row["id"]}"]')


def test_signing_in_by_password_and_out(rig: ConsoleRig, browser: Browser) -> None:
    rig.exeat("user", "password", "vera", stdin=PASSWORD + "\n")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(rig.origin)
        page.get_by_label("Name").wait_for()
        assert axe(page) == []
        page.get_by_label("Name").fill("vera")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("wrong name, password or link")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Approvals")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        assert [cookie for cookie in context.cookies() if cookie["value"]] == []


def test_the_secret_of_a_link_does_not_stay_in_the_address(approver: Tab) -> None:
    assert approver.page.url == f"{approver.rig.origin}/#/inbox"


def test_the_first_load_is_small_and_nothing_comes_from_elsewhere(rig: ConsoleRig, browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        wire, urls = [0], list[str]()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.loadingFinished", lambda event: wire.append(int(event["encodedDataLength"])))
        page.on("request", lambda request: urls.append(request.url))
        page.goto(rig.exeat("console", "login", "anna").strip())
        page.locator("#main h1").wait_for()
        page.wait_for_load_state("load")
    assert 20_000 < sum(wire) <= FIRST_LOAD
    assert {url for url in urls if not url.startswith(f"{rig.origin}/")} == set()


def test_a_key_approves_for_the_chosen_time(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("one.github.com:443")
    page = inbox(approver, row)
    expect(page.locator(".detail")).to_contain_text(
        "This job may send anything it can read to one.github.com"
    )
    page.get_by_label("5 min", exact=True).check()
    pick(page, row).focus()
    page.keyboard.press("a")
    expect(page.get_by_text("Approved one.github.com:443 for 5 min.")).to_be_visible()
    decided = requests(rig, "all")[row["id"]]
    assert decided["state"] == "active"
    lease = rig.person("anna").get(f"/requests/{quote(row['id'], safe='')}").json
    assert lease["ttl_s"] == 300
    assert [each["by"] for each in lease["approvals"]] == ["anna"]


def test_a_key_pressed_twice_decides_once(rig: ConsoleRig, approver: Tab) -> None:
    first, second = rig.ask("twin1.github.com:443"), rig.ask("twin2.github.com:443")
    approver.page.goto("about:blank")
    page = approver.go("inbox?q=twin").page
    pick(page, first).click()
    page.keyboard.press("a")
    page.keyboard.press("a")
    page.keyboard.press("d")
    expect(page.get_by_text("Approved twin1.github.com:443")).to_be_visible()
    expect(pick(page, first)).to_contain_text("decided or gone")
    found = requests(rig, "all")
    assert (found[first["id"]]["state"], found[second["id"]]["state"]) == ("active", "requested")


def test_a_key_denies(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("no.github.com:443")
    page = inbox(approver, row)
    page.keyboard.press("d")
    expect(page.get_by_text("Denied no.github.com:443.")).to_be_visible()
    assert requests(rig, "all")[row["id"]]["state"] == "denied"


def test_enter_in_a_field_is_no_yes(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("enter.github.com:443")
    page = inbox(approver, row)
    page.get_by_label("Note, kept in the ledger").fill("only a note")
    page.keyboard.press("Enter")
    page.keyboard.press("a")  # into the field
    expect(page.get_by_label("Note, kept in the ledger")).to_have_value("only a notea")
    assert requests(rig)[row["id"]]["state"] == "requested"


def test_what_has_a_flag_is_asked_twice_and_shown_as_it_is(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("xn--pple-43d.github.com:443")
    page = inbox(approver, row)
    expect(page.locator(".detail")).to_contain_text("Not what it looks like")
    expect(page.get_by_label(re.compile("^Select xn--pple"))).to_be_disabled()
    page.keyboard.press("a")
    expect(page.get_by_role("dialog", name="Look twice")).to_be_visible()
    assert row["id"] in requests(rig)
    page.get_by_role("button", name="Go back").click()
    assert row["id"] in requests(rig)


def test_a_decision_is_about_what_was_seen(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("stale.github.com:443")
    page = inbox(approver, row)

    def older(route: Route) -> None:
        route.continue_(
            post_data=json.dumps({**json.loads(route.request.post_data or ""), "version": "0" * 16})
        )

    page.route("**/approve", older)
    page.keyboard.press("a")
    expect(page.locator(".detail").get_by_role("alert")).to_be_visible()
    page.unroute("**/approve")
    assert row["id"] in requests(rig)


def test_the_order_stands_still_under_the_cursor(rig: ConsoleRig, approver: Tab) -> None:
    row = rig.ask("still1.github.com:443")
    page = inbox(approver, row)
    fresh = rig.ask("still1.github.com:80")
    announce(approver)
    page.get_by_role("button", name=re.compile("^1 new")).wait_for()
    assert not pick(page, fresh).is_visible()
    page.get_by_role("button", name=re.compile("^1 new")).click()
    expect(pick(page, fresh)).to_be_visible()


def announce(tab: Tab) -> None:
    """What another tab passes on when it hears of requests."""
    tab.page.evaluate("() => new BroadcastChannel('exeat-events').postMessage({topic: 'requests', data: {}})")


def test_who_may_not_decide_sees_no_buttons(rig: ConsoleRig, browser: Browser) -> None:
    row = rig.ask("look.github.com:443")
    with browser.new_context(viewport=DESK) as context:  # type: ignore[arg-type]
        tab = sign_in(rig, context, "vera")
        page = inbox(tab, row)
        expect(page.locator(".detail")).to_contain_text("Your role can look, and not decide.")
        page.keyboard.press("a")
        expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    assert row["id"] in requests(rig)


@pytest.fixture(scope="module")
def admin(rig: ConsoleRig, browser: Browser) -> Iterator[Tab]:
    with browser.new_context(viewport=DESK) as context:  # type: ignore[arg-type]
        yield sign_in(rig, context, "adam")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_used_by_all(admin: Tab, path: str) -> None:
    page = admin.go(path).page
    found = {}
    for scheme, size in (("light", DESK), ("dark", DESK), ("light", PHONE)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size(size)  # type: ignore[arg-type]
        found[scheme, size["width"]] = admin.axe()
    width = page.evaluate("() => document.documentElement.scrollWidth")
    page.set_viewport_size(DESK)  # type: ignore[arg-type]
    assert {key: value for key, value in found.items() if value} == {}
    assert width <= PHONE["width"]


def test_a_proof_is_checked_in_the_browser(rig: ConsoleRig, approver: Tab) -> None:
    page = approver.go("ledger/1").page
    page.get_by_role("button", name="Verify in this browser").click()
    expect(page.get_by_text("The proof holds.")).to_be_visible()
    assert rig.exeat("ledger", "checkpoint", "--key").strip() == page.evaluate(
        "() => localStorage['ledger-key']"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda proof: proof | {"raw": proof["raw"][:-2] + "00"}, "another root"),
        (lambda proof: proof | {"index": proof["index"] + 1}, "is about record"),
        (lambda proof: proof | {"checkpoint": proof["checkpoint"].replace("\n", "0\n", 2)}, ""),
        (lambda proof: proof | {"path": proof["path"][:-1]}, "too short"),
    ],
    ids=["record", "number", "checkpoint", "path"],
)
def test_a_false_proof_is_seen(approver: Tab, change: Any, said: str) -> None:
    page = approver.go("ledger/1").page

    def forged(route: Route) -> None:
        route.fulfill(json=change(route.fetch().json()))

    page.route("**/proof", forged)
    page.get_by_role("button", name="Verify in this browser").click()
    expect(page.locator(".panel").get_by_role("alert")).to_contain_text(said)
    expect(page.get_by_text("The proof holds.")).to_have_count(0)
    page.unroute("**/proof")


def root_of(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    half = split(len(leaves))
    return node_hash(root_of(leaves[:half]), root_of(leaves[half:]))


def test_the_tree_is_that_of_the_ledger(approver: Tab) -> None:
    """Every place of trees of all shapes up to 17 records, by our own writer of proofs."""
    leaves = [leaf_hash(bytes([number])) for number in range(17)]
    cases = [
        {
            "index": index,
            "size": size,
            "leaf": list(leaves[index]),
            "path": [list(node) for node in inclusion(index, size, lambda a, b: root_of(leaves[a:b]))],
            "root": list(root_of(leaves[:size])),
        }
        for size in range(1, 18)
        for index in range(size)
    ]
    script = """async (m, cases) => {
      const wrong = [];
      for (const c of cases) {
        const path = c.path.map((node) => Uint8Array.from(node));
        const root = await m.rootOf(c.index, c.size, Uint8Array.from(c.leaf), path);
        if (root.join() !== c.root.join()) wrong.push([c.index, c.size]);
        const other = path.toReversed();
        const swapped = await m.rootOf(c.index, c.size, Uint8Array.from(c.leaf), other).catch(() => []);
        if (path.length > 1 && swapped.join() === c.root.join()) wrong.push(["reversed", c.index, c.size]);
      }
      return wrong;
    }"""
    assert approver.module("lib/proof.js", script, cases) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ümlaut", "plain, with ümlaut"),
        ("abc\u202etxt.exe", "abc\ufffdtxt.exe"),  # turns the direction of writing
        ("a\u200bb\u2066c\x00d\x1b[31m", "a\ufffdb\ufffdc\ufffdd\ufffd[31m"),
        ("\U000e0041tag", "\ufffdtag"),  # characters that only machines read
        ("x" * 700, "x" * 600 + "…"),
    ],
)
def test_text_of_others_is_made_plain(approver: Tab, text: str, shown: str) -> None:
    assert approver.module("lib/format.js", "(m, text) => m.clean(text)", text) == shown


def test_live_flows_take_a_bounded_place(approver: Tab) -> None:
    script = """(m) => {
      const ring = new m.Ring();
      for (let n = 0; n < 5000; n += 1)
        ring.add({events: [{ev: n % 3 ? "open" : "deny", flow: `f${n}`, project: "p", job: "j", dest: "h:443",
                            verdict: "", reason: "", bytes_in: 0, bytes_out: 0}], lost: 1});
      ring.add({events: [{ev: "close", flow: "f4999", bytes_in: 5, bytes_out: 7, reason: "eof"}], lost: 0});
      ring.reset([]);
      const states = {};
      for (const row of ring.rows.values()) states[row.state] = (states[row.state] ?? 0) + 1;
      return [ring.rows.size, ring.lost, states.live ?? 0, states.closed];
    }"""
    assert approver.module("lib/ring.js", script) == [2000, 5000, 0, 1]


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ("", True),
        ("GITHUB", True),
        ("github -deny", True),
        ("-github", False),
        ("project:lab dest:443", True),
        ("project:api", False),
        ("-project:lab", False),
        ("-", False),
    ],
)
def test_words_choose_flows(approver: Tab, words: str, fits: bool) -> None:
    row = {"project": "lab", "agent": "a", "job": "j", "dest": "api.github.com:443", "reason": "rule.allow"}
    script = "(m, [words, row]) => m.matcher(words)({state: 'live', lease: '', ...row})"
    assert approver.module("lib/ring.js", script, [words, row]) is fits
