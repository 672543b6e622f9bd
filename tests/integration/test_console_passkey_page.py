"""A decision with a passkey in the browser: Chromium's own authenticator signs what is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from tests.support.browser import AUTHENTICATOR, Tab, chromium, sign_in
from tests.support.console import ConsoleRig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

# WebAuthn wants a name, not an address (level 3, section 5.1.3).
PASSKEYS = '[passkeys]\nrp_id = "localhost"\norigins = ["http://localhost:{port}"]\n'


class NamedRig(ConsoleRig):
    """One that is called by a name."""

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = NamedRig(PASSKEYS)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def tab(rig: ConsoleRig) -> Iterator[Tab]:
    with chromium() as browser, browser.new_context() as context:
        tab = sign_in(rig, context, "anna")
        yield tab
        assert tab.complaints == []


def test_a_passkey_is_made_and_signs_a_decision(rig: ConsoleRig, tab: Tab) -> None:
    row = rig.ask("api.github.com:443")
    page = tab.go("inbox").page
    page.get_by_role("button", name="Approve with passkey").click()
    expect(page.locator(".detail").get_by_role("alert")).to_contain_text("you have no passkey")
    assert state(rig, row["id"]) == "requested"

    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    devtools.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
    tab.go("passkeys")
    page.get_by_role("button", name="New passkey").click()
    page.get_by_label("Code, from").fill(rig.exeat("passkey", "invite", "anna").strip())
    page.get_by_label("Name", exact=True).fill("blue key")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("region", name="Passkeys")).to_contain_text("blue key")
    assert tab.axe() == []

    tab.go("inbox")
    page.get_by_label("5 min", exact=True).check()
    page.get_by_role("button", name="Approve with passkey").click()
    expect(page.get_by_text("Approved api.github.com:443 for 5 min.")).to_be_visible()
    assert state(rig, row["id"]) == "active"


def state(rig: ConsoleRig, name: str) -> str:
    return str(rig.person("anna").get(f"/requests/{quote(name, safe='')}").json["state"])
