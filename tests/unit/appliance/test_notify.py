"""Notices: what they say, that none is lost, and that they reach a webhook, Slack or a mailbox."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.support.mail import mail_server
from tests.support.receivers import web_server

from exeat.appliance.lab import pki
from exeat.appliance.notify import notices as made
from exeat.appliance.notify import outbox as boxes
from exeat.appliance.notify.notices import Notice, notices
from exeat.appliance.notify.outbox import BACK_OFF_S, GIVE_UP_MS, Outbox
from exeat.appliance.notify.senders import sender_of
from exeat.appliance.notify_config import Notify
from exeat.appliance.stream.post import SinkError
from exeat.ledger.in_force import lease_data
from exeat.ledger.records import Dest, Kind, Record
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_scope

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "0123456789abcdef-shared"
LEASE = Lease(id="p/a/1", project="p", to=(parse_scope("x.example.com:443"),), requester="a")
HOOK = Notify(name="hook", to="https://hooks.example.org/x", link="https://console.example/")


def lease(state: str, detail: str = "x.example.com:443") -> Record:
    return Record(
        Kind.LEASE, 5_000_000, 1, project="p", agent="a", decision=state, lease_id="p/a/1", actor="ann",
        node="n1", detail=detail, data=lease_data(LEASE),
    )  # fmt: skip


def notice(number: int = 1, text: str = "n1: something", link: str = "") -> Notice:
    return Notice(f"abc-{number}-requests", 5, "n1", "requests", text, link, {"id": "p/a/1"})


def told(record: Record, **more: Any) -> list[Notice]:
    return list(notices("ab" * 32, 7, record, HOOK.model_copy(update=more)))


# --- what is told


def test_a_request_is_told_with_a_link_that_only_leads_to_the_console() -> None:
    [found] = told(lease("requested"))
    assert found.text == "n1: a of p asks for x.example.com:443 (p/a/1)"
    assert (found.id, found.at_ms) == ("abababababababab-7-requests", 5)
    assert found.link == "https://console.example/#/inbox"


@pytest.mark.parametrize(
    ("record", "topics"),
    [
        (lease("denied"), ["requests"]),
        (lease("active"), []),
        (Record(Kind.POLICY, project="p", decision="kill.on", actor="ann"), ["admin"]),
        (Record(Kind.POLICY, project="p", decision="widens"), []),
        (Record(Kind.ANOMALY, decision="repaired"), ["alerts"]),
        (Record(Kind.DNS, project="p", reason_code="dns.tunnel", detail="score 9: x"), ["alerts"]),
        (Record(Kind.DNS, project="p", reason_code="dns.tunnel"), []),
        (Record(Kind.DENY, project="p"), []),
    ],
)
def test_by_itself_requests_kill_switch_and_alerts_are_told(record: Record, topics: list[str]) -> None:
    assert [each.topic for each in told(record)] == topics


def test_topics_and_projects_are_chosen() -> None:
    assert [each.topic for each in told(lease("active"), topics=("leases",))] == ["leases"]
    assert told(lease("requested"), projects=("q",)) == []
    assert len(told(lease("requested"), projects=("q", "p"))) == 1
    every = ("requests", "leases", "jobs", "policy", "admin", "alerts")
    job = Record(Kind.JOB, project="p", job="p-1", decision="exit", reason_code="oom", count=137)
    assert told(job, topics=every)[0].text == ": job p-1 of p: exit (oom, exit 137)"
    domain = Record(
        Kind.DNS, reason_code="dns.tunnel", detail="score 9", dest=Dest("e.example", 53), decision="deny"
    )
    assert told(domain)[0].data["domain"] == "e.example"


HOSTILE = "<!channel> <https://evil.example|ok> *b* `c` \u202e\r\nBcc: all@example.org\x1b[2J"


def test_what_an_agent_wrote_is_text_for_slack_and_for_mail() -> None:
    [found] = told(lease("requested", HOSTILE))
    said = json.loads(made.slack(found))
    assert said["blocks"][0]["text"]["type"] == "plain_text"
    assert "<" not in said["text"]
    assert said["blocks"][1]["elements"][0]["url"] == found.link
    mail = made.mail(found, "exeat@example.com", "ann@example.com")
    parsed = email.message_from_bytes(mail.as_bytes(), policy=email.policy.default)
    assert (parsed["Bcc"], parsed["To"]) == (None, "ann@example.com")
    assert len(parsed.get_content().splitlines()[0]) <= 600
    assert all(part.isprintable() for part in parsed.get_content().splitlines())


# --- the outbox


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.sqlite")


def test_notices_go_out_in_order_and_once_each(box: Outbox, tmp_path: Path) -> None:
    box.put("a", [notice(1), notice(2)], 0)
    box.put("a", [notice(2), notice(3)], 0)  # read again after a restart
    box.put("b", [notice(1)], 0)
    again = Outbox(tmp_path / "outbox.sqlite")  # a restart
    found = []
    while (waiting := again.first("a", 0)) is not None:
        found.append(waiting.notice)
        again.sent("a", waiting)
    assert found == [notice(1), notice(2), notice(3)]
    assert (again.count("a"), again.count("b")) == (0, 1)
    again.close()
    box.close()


def test_what_fails_is_tried_later_and_later_and_blocks_what_is_behind_it(box: Outbox) -> None:
    box.put("a", [notice(1), notice(2)], 0)
    now = 0
    for pause in (*BACK_OFF_S, BACK_OFF_S[-1]):
        waiting = box.first("a", now)
        assert waiting is not None
        assert waiting.notice == notice(1)
        assert box.failed("a", waiting, "no", now)
        assert box.first("a", now + pause * 1000 - 1) is None
        now += pause * 1000
    assert box.state("a") == (2, "no", 0)
    waiting = box.first("a", now)
    assert waiting is not None
    box.sent("a", waiting)
    assert box.state("a") == (1, "", 0)
    box.close()


def test_what_could_not_be_sent_for_days_is_given_up_and_counted(box: Outbox) -> None:
    box.put("a", [notice(1), notice(2)], 0)
    waiting = box.first("a", GIVE_UP_MS + 1)
    assert waiting is not None
    assert not box.failed("a", waiting, "gone", GIVE_UP_MS + 1)
    assert box.state("a") == (1, "gone", 1)
    box.close()


def test_the_outbox_is_bounded_and_says_what_it_dropped(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "MOST", 3)
    box.put("a", [notice(n) for n in range(5)], 0)
    waiting = box.first("a", 0)
    assert waiting is not None
    assert waiting.notice == notice(2)
    assert box.state("a") == (3, "", 2)
    box.close()


# --- sending


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o400)
    return path


def test_a_webhook_is_signed_over_its_time_and_body(secret: Path) -> None:
    with web_server() as web:
        sender_of(Notify(name="h", to=web.url, secret=secret)).send(notice())
        headers, body = web.take()
    assert json.loads(body)["id"] == headers["Exeat-Notice"] == "abc-1-requests"
    match = re.fullmatch(r"t=([0-9]+),v1=([0-9a-f]{64})", headers["Exeat-Signature"])
    assert match
    wanted = hmac.new(SECRET.encode(), match[1].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert match[2] == wanted


@pytest.mark.parametrize("status", [301, 400, 500])
def test_any_answer_but_2xx_is_a_failure(status: int) -> None:
    with web_server() as web:
        web.answers = [(status, {"Location": web.url}, b"")]
        with pytest.raises(SinkError, match=f"answered {status}"):
            sender_of(Notify(name="h", to=web.url)).send(notice())
        assert web.take()
        assert web.posts.empty()


def test_the_url_of_a_slack_hook_is_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    with web_server() as web:
        path.write_text(f"{web.url}/T0/B0/SeCrEt\n")
        path.chmod(0o400)
        sender = sender_of(Notify(name="s", to="slack", secret=path))
        sender.send(notice(link="https://console.example/#/inbox"))
        assert json.loads(web.take()[1])["text"] == "n1: something"
        web.answers = [(403, {}, b"")]
        with pytest.raises(SinkError) as caught:
            sender.send(notice())
    assert "SeCrEt" not in str(caught.value)
    with pytest.raises(SinkError) as caught:
        sender.send(notice())  # nobody is there
    assert "SeCrEt" not in str(caught.value)
    path.chmod(0o600)
    path.write_text("ftp://SeCrEt.example/x")
    path.chmod(0o400)
    with pytest.raises(SinkError) as caught:
        sender_of(Notify(name="s", to="slack", secret=path))
    assert "SeCrEt" not in str(caught.value)


def mail(smtp: str, **more: Any) -> Notify:
    return Notify(name="m", to="mailto:ann@example.com", smtp=smtp, sender="exeat@example.com", **more)


def test_mail_goes_over_starttls_to_a_server_of_the_right_name(tmp_path: Path) -> None:
    pki.create(tmp_path)
    login = tmp_path / "login"
    login.write_text("exeat:correct horse battery")
    login.chmod(0o400)
    with mail_server(tmp_path / "north.pem") as server:
        where = f"127.0.0.1:{server.port}#api.example.org"
        sender_of(mail(where, ca=tmp_path / "ca.pem", credentials=login)).send(notice())
        who, tls, _ = server.mails.get(timeout=30)
        assert (who, tls) == ("\0exeat\0correct horse battery", True)


@pytest.mark.parametrize("served", ["another name", "nobody's certificate", "no STARTTLS"])
def test_mail_goes_to_nobody_else(tmp_path: Path, served: str) -> None:
    """Neither the notice nor the password."""
    pki.create(tmp_path)
    login = tmp_path / "login"
    login.write_text("exeat:correct horse battery")
    login.chmod(0o400)
    name = "other.example.org" if served == "another name" else "api.example.org"
    shown = {"nobody's certificate": tmp_path / "evil.pem", "no STARTTLS": None}
    with mail_server(shown.get(served, tmp_path / "north.pem")) as server:
        notify = mail(f"127.0.0.1:{server.port}#{name}", ca=tmp_path / "ca.pem", credentials=login)
        with pytest.raises(SinkError) as caught:
            sender_of(notify).send(notice())
        assert server.mails.empty()
    assert "battery" not in str(caught.value)


def test_mail_to_a_server_of_this_machine_goes_in_the_clear() -> None:
    with mail_server() as server:
        sender_of(mail(f"127.0.0.1:{server.port}")).send(notice(link="https://console.example/#/inbox"))
        who, tls, text = server.mails.get(timeout=30)
    assert (who, tls) == ("", False)
    parsed = email.message_from_string(text, policy=email.policy.default)
    assert parsed["Message-ID"] == "<abc-1-requests@example.com>"
    assert "https://console.example/#/inbox" in parsed.get_content()


def test_mail_that_is_refused_is_a_failure() -> None:
    with mail_server(refuse="RCPT") as server, pytest.raises(SinkError, match="554"):
        sender_of(mail(f"127.0.0.1:{server.port}")).send(notice())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"to": "http://hooks.example.org/"}, "https://"),
        ({"to": "https://user@hooks.example.org/"}, "is not https"),
        ({"to": "ftp://x"}, "https://"),
        ({"to": "slack"}, "file with the URL"),
        ({"to": "mailto:nobody"}, "mailto:NAME@DOMAIN"),
        ({"to": "mailto:a@b.example"}, "needs `smtp` and `sender`"),
        ({"to": "https://x.example/", "smtp": "127.0.0.1:25"}, "are for mailto:"),
        ({"to": "mailto:a@b.example", "sender": "e@b.example", "smtp": "192.0.2.1:25"}, "STARTTLS"),
        ({"to": "mailto:a@b.example", "sender": "e@b.example", "smtp": "mail.example:25"}, "never a name"),
        ({"to": "mailto:a@b.example", "sender": "e\n@b.example", "smtp": "127.0.0.1:25"}, "pattern"),
        ({"to": "https://x.example/", "topics": ["flows"]}, "topics are some of"),
        ({"to": "https://x.example/", "topics": []}, "topics are some of"),
        ({"to": "https://x.example/", "link": "javascript:alert(1)"}, "https://"),
        ({"to": "https://x.example/", "nonsense": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused_when_the_configuration_is_read(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Notify(name="n", **fields)
