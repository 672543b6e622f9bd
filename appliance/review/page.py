"""A review as one HTML page: no script, nothing fetched, all text escaped, readable in light and dark."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from exeat.appliance.ledger_text import human, usd
from exeat.appliance.review.tables import top

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exeat.ledger.review import Entry, Review, Traffic

_TOP = 12
_WIDTH, _HEIGHT, _LEFT = 960, 270, 64
_MIDDLE, _HIGH = 137, 107  # where the bars begin, and how long the longest is
_STYLE = """
:root{color-scheme:light dark;--fg:#1c2024;--dim:#5f6b76;--bg:#fff;--card:#f4f6f8;--line:#d9dfe4;
--out:#b4540a;--in:#2b6cb0;--bad:#b3261e;--good:#2f6f3e}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ec;--dim:#9aa5b1;--bg:#14171a;--card:#1d2227;--line:#333b43;
--out:#f0a35e;--in:#7fb2ea;--bad:#ff8f85;--good:#7cc78c}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:60rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p.dim,.dim{color:var(--dim)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.6rem;margin:1.2rem 0}
.card{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums}
.card.bad b{color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;font-weight:600;color:var(--dim)}
th,td{padding:.28rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.w{overflow-wrap:anywhere;min-width:3.2rem}td.d{overflow-wrap:anywhere;min-width:9rem}
.scroll{overflow-x:auto}
.new{color:var(--bad);font-size:.75rem;font-weight:700;border:1px solid;border-radius:.3rem;padding:0 .25rem}
svg{display:block;height:auto}
svg.chart{width:100%;min-width:36rem}svg.bar{width:7.5rem}
svg text{font-size:12px;fill:var(--dim)}
.fo{fill:var(--out)}.fi{fill:var(--in)}.fb{fill:var(--bad)}.ax{stroke:var(--line)}
.key{display:inline-block;margin-right:1.2rem}
.key svg{display:inline;width:.8rem;height:.8rem;vertical-align:-.05rem}
"""


def html(found: Review, node: str) -> str:
    """The whole page."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        f"<h1>What left {escape(node)}</h1>",
        f'<p class="dim">{escape(found.day)}, UTC. {found.records} records of the ledger.</p>',
        _cards(found),
        _chart(found),
        _drifts(found),
        _entries(
            "Out of the ordinary", found.events, ("when", "", "project", "agent", "what", "by whom", "")
        ),
        _entries("Leases", found.leases, ("when", "lease", "project", "agent", "what", "by whom", "")),
        *(_project(found, project) for project in found.projects()),
        _left(found),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>exeat: {escape(node)}, {escape(found.day)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _cards(found: Review) -> str:
    total = found.total
    cards = [
        ("flows", str(total.flows), False),
        ("out", human(total.bytes_out), False),
        ("in", human(total.bytes_in), False),
        ("refusals", str(found.refused), False),
        ("new destinations", str(len(found.new)), bool(found.new)),
        ("lease changes", str(len(found.leases)), False),
        ("jobs", str(len(found.jobs)), False),
    ]
    if total.cost_nano_usd:
        cards.append(("USD, estimated", usd(total.cost_nano_usd // 10_000_000 * 10_000_000), False))
    if found.drifts:
        cards.append(("books that differ", str(len(found.drifts)), True))
    shown = "".join(
        f'<div class="card{" bad" * bad}"><b>{escape(value)}</b>{escape(name)}</div>'
        for name, value, bad in cards
    )
    return f'<div class="cards">{shown}</div>'


def _chart(found: Review) -> str:
    """Bytes per hour: out upwards, in downwards, each by its own measure; above, the hours with refusals."""
    most_out, most_in = (max(hour[way] for hour in found.hours) or 1 for way in (0, 1))
    step = (_WIDTH - _LEFT) / 24
    bars = []
    for hour, (out, into, refused) in enumerate(found.hours):
        x = _LEFT + hour * step
        up, down = _tall(out, most_out), _tall(into, most_in)
        place = f'x="{x + 0.15 * step:.1f}" width="{step * 0.7:.1f}"'
        bars.append(f'<rect class="fo" {place} y="{_MIDDLE - up:.1f}" height="{up:.1f}"/>')
        bars.append(f'<rect class="fi" {place} y="{_MIDDLE + 1}" height="{down:.1f}"/>')
        if refused:
            bars.append(f'<circle class="fb" cx="{x + step / 2:.1f}" cy="12" r="{_radius(refused)}"/>')
        title = f"{hour:02d}:00 out {human(out)}, in {human(into)}, {refused} refusals"
        bars.append(
            f'<rect x="{x:.1f}" y="0" width="{step:.1f}" height="{_HEIGHT}" fill="transparent">'
            f"<title>{title}</title></rect>"
        )
        if hour % 3 == 0:
            bars.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}">{hour:02d}:00</text>')
    axis = (
        f'<line class="ax" x1="{_LEFT}" x2="{_WIDTH}" y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
        f'<text x="0" y="16">refused</text><text x="0" y="{_MIDDLE - _HIGH + 10}">{human(most_out)}</text>'
        f'<text x="0" y="{_MIDDLE + _HIGH}">{human(most_in)}</text>'
    )
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 10 10"><rect class="{name}" width="10" height="10"/></svg>'
        f" {words}</span>"
        for name, words in (("fo", "out"), ("fi", "in, by a measure of its own"), ("fb", "refusals"))
    )
    label = "bytes out and in, and refusals, per hour"
    return (
        '<h2>By the hour</h2><div class="scroll">'
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'{axis}{"".join(bars)}</svg></div><p class="dim">{keys}</p>'
    )


def _tall(value: int, most: int) -> float:
    return max(value / most * _HIGH, 1.0) if value else 0.0


def _radius(count: int) -> int:
    return min(9, 2 + count.bit_length())


def _project(found: Review, project: str) -> str:
    places = top(found, project)
    most = max((traffic.bytes_out + traffic.bytes_in for _, traffic in places), default=0) or 1
    priced = any(traffic.cost_nano_usd for _, traffic in places)
    head = ("destination", "", "flows", "out", "in", *(("USD",) if priced else ()))
    rows = []
    for place, traffic in places[:_TOP]:
        new = ' <span class="new">NEW</span>' if (project, place.host) in found.new else ""
        cost = (_number(usd(traffic.cost_nano_usd // 100_000 * 100_000)),) if priced else ()
        rows.append(
            _row(
                f'<td class="d">{escape(place.host)}:{place.port}{new}</td>',
                f"<td>{_bar(traffic, most)}</td>",
                _number(str(traffic.flows)),
                _number(human(traffic.bytes_out)),
                _number(human(traffic.bytes_in)),
                *cost,
            )
        )
    parts = [f"<h2>{escape(project or 'no project')}</h2>"]
    if places:
        parts += [_table(head, rows, right={"flows", "out", "in", "USD"}), _more(len(places))]
    refused = [item for item in found.refusals.most_common() if item[0].project == project]
    if refused:
        rows = [
            _row(
                _number(str(times)),
                f'<td class="d">{escape(each.host if each.lookup else f"{each.host}:{each.port}")}</td>',
                _text("lookup" if each.lookup else "flow"),
                _text(each.reason),
                _text(each.rule),
            )
            for each, times in refused[:_TOP]
        ]
        parts.append("<h3>Refused</h3>")
        parts += [
            _table(("times", "what", "as", "reason", "rule"), rows, right={"times"}),
            _more(len(refused)),
        ]
    return "".join(parts)


def _bar(traffic: Traffic, most: int) -> str:
    out, into = (round(value / most * 120, 1) for value in (traffic.bytes_out, traffic.bytes_in))
    return (
        '<svg class="bar" viewBox="0 0 120 10" role="presentation">'
        f'<rect class="fo" width="{out}" height="10"/>'
        f'<rect class="fi" x="{out}" width="{into}" height="10"/></svg>'
    )


def _entries(title: str, entries: Sequence[Entry], head: Sequence[str]) -> str:
    rows = [
        _row(
            _number(_clock(record.t_real_ns)),
            _text(record.lease_id or record.kind.label),
            _text(record.project),
            _text(record.agent),
            _text(record.decision),
            _text(record.actor),
            _text(record.detail),
        )
        for _, record in entries
    ]
    return f"<h2>{escape(title)}</h2>{_table(head, rows)}" if rows else ""


def _drifts(found: Review) -> str:
    if not found.drifts:
        return ""
    rows = [
        _row(
            _number(str(seq)),
            _text(record.job),
            _text(record.dest.host if record.dest else ""),
            _number(f"{record.bytes_out} / {record.kernel_out}"),
            _number(f"{record.bytes_in} / {record.kernel_in}"),
        )
        for seq, record in found.drifts
    ]
    head = ("record", "job", "host", "out: ledger / kernel", "in: ledger / kernel")
    return f"<h2>Books that differ from the kernel's</h2>{_table(head, rows)}"


def _left(found: Review) -> str:
    left = [
        (found.orphaned, "flows ended with bounds only (orphaned)"),
        (found.open, "flows were still open"),
        (found.more, "more, counted and not shown one by one"),
        (found.dropped, "records were dropped by age or size: this day is not complete"),
        (found.unpriced if found.total.cost_nano_usd else 0, "flows without a price"),
    ]
    lines = "".join(f"<li>{count} {escape(what)}</li>" for count, what in left if count)
    return f"<h2>Besides</h2><ul>{lines}</ul>" if lines else ""


def _more(count: int) -> str:
    return f'<p class="dim">and {count - _TOP} more: the CSV has them all</p>' if count > _TOP else ""


def _table(head: Sequence[str], rows: Iterable[str], right: frozenset[str] | set[str] = frozenset()) -> str:
    cells = "".join(f"<th{' class=n' if name in right else ''}>{escape(name)}</th>" for name in head)
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _text(text: str) -> str:
    return f'<td class="w">{escape(text)}</td>'


def _number(text: str) -> str:
    return f'<td class="n">{escape(text)}</td>'


def _clock(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, tz=UTC).strftime("%H:%M:%S")
