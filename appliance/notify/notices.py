"""A notice: what one durable record tells people, as a webhook, Slack or a mail says it. Pure.

It is a view and carries no authority: its link leads to the console, where one signs in and sees the
request itself. What an agent wrote is text, cut short, never markup.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.told import told
from exeat.ledger.records import Kind, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.notify_config import Notify
    from exeat.ledger.records import Record

_TEXT: Final = 600  # characters
_PAGES: Final = {
    "requests": "inbox",
    "leases": "leases",
    "jobs": "jobs",
    "policy": "policies",
    "admin": "kill",
    "alerts": "dns",
}


@dataclass(frozen=True)
class Notice:
    """`id` is the same each time it is sent: LEDGER-SEQ-TOPIC. `at_ms` since 1970."""

    id: str
    at_ms: int
    node: str
    topic: str
    text: str
    link: str
    data: dict[str, Any]


def notices(ledger: str, seq: int, record: Record, notify: Notify) -> Iterator[Notice]:
    """What this record tells by this `[[notify]]`."""
    if notify.projects and record.project not in notify.projects:
        return
    for topic, data in (*told(record, answered=record.decision in ("denied", "lapsed")), *_lookups(record)):
        if topic in notify.topics:
            yield Notice(
                id=f"{ledger[:16]}-{seq}-{topic}",
                at_ms=record.t_real_ns // 1_000_000,
                node=record.node,
                topic=topic,
                text=printable(_text(record.node, topic, data), _TEXT),
                link=f"{notify.link}/#/{_PAGES[topic]}" if notify.link else "",
                data=data,
            )


def _lookups(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """The guard's warning about lookups: a `dns` record of the domain with a score."""
    if record.kind is Kind.DNS and record.detail.startswith("score "):
        host = record.dest.host if record.dest is not None else ""
        who = {"project": record.project, "agent": record.agent, "job": record.job}
        said = {"domain": host, "verdict": record.decision, "detail": record.detail}
        yield "alerts", {"kind": record.reason_code, **who, **said}


def _text(node: str, topic: str, data: dict[str, Any]) -> str:
    project, actor = data.get("project") or "everything", data.get("actor", "")
    detail = data.get("detail", "")
    if topic == "requests" and data["state"] == "requested":
        return f"{node}: {data.get('agent') or actor} of {project} asks for {detail} ({data['id']})"
    if topic in ("requests", "leases"):
        return f"{node}: {data['id']} of {project} is {data['state']} ({actor}): {detail}"
    if topic == "jobs":
        how = f" ({data['reason']}, exit {data['code']})" if data["what"] == "exit" else ""
        return f"{node}: job {data['job']} of {project}: {data['what']}{how}"
    if topic == "alerts":
        return f"{node}: {data['kind']} in {project}: {data.get('domain', '')} {detail}"
    return f"{node}: {data['what']} for {project} by {actor}: {detail}"


def webhook(notice: Notice) -> bytes:
    return json.dumps(asdict(notice), separators=(",", ":")).encode()


def slack(notice: Notice) -> bytes:
    """Block Kit with plain text only: no mention, no link and no markup can be written into it."""
    blocks: list[dict[str, Any]] = [
        {"type": "section", "text": {"type": "plain_text", "text": notice.text, "emoji": False}}
    ]
    if notice.link:
        label = {"type": "plain_text", "text": "Open the console"}
        blocks.append(
            {"type": "actions", "elements": [{"type": "button", "text": label, "url": notice.link}]}
        )
    bare = notice.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return json.dumps({"text": bare, "blocks": blocks}, separators=(",", ":")).encode()


def mail(notice: Notice, sender: str, to: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = sender, to
    message["Subject"] = f"exeat {notice.node}: {notice.topic}"
    message["Date"] = datetime.fromtimestamp(notice.at_ms / 1000, tz=UTC)
    message["Message-ID"] = f"<{notice.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834
    link = f"\n\n{notice.link}\n(you are asked to sign in)" if notice.link else ""
    message.set_content(f"{notice.text}{link}\n")
    return message


def test_notice(node: str, notify: Notify, now_ms: int) -> Notice:
    """What `exeat notify test` sends."""
    text = f"{node}: a test of [[notify]] {notify.name}"
    return Notice(f"test-{now_ms}", now_ms, node, "alerts", text, notify.link, {"kind": "test"})
