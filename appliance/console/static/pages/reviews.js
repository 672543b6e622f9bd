// One day on one page: where it went, what is new, what was refused.
import { bytes, clean, count } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Badge, Head, Listing, Trouble } from "../lib/parts.js";
import { go, route } from "../lib/router.js";
import { html } from "../lib/ui.js";

const COLUMNS = [
  { name: "Day (UTC)", cell: (r) => html`<a href="#/reviews/${r.day}">${r.day}</a>` }, { name: "", grow: true, cell: (r) => r.state === "open" && html`<${Badge}>still open</${Badge}>` },
  { name: "Flows", num: true, cell: (r) => count(r.flows) }, { name: "Out", num: true, cell: (r) => bytes(r.bytes_out) }, { name: "In", num: true, wide: true, cell: (r) => bytes(r.bytes_in) }, { name: "Lookups, refusals, …", num: true, wide: true, cell: (r) => count(r.other) },
];

function Day({ day }) {
  const { value, error } = useFetched(`/reviews/${encodeURIComponent(day)}`);
  return html`<${Head} title="Review of ${clean(day, 10)}"><a href="#/reviews">All days</a></${Head}><${Trouble} error=${error}/>
    ${value ? html`<section class="panel"><pre tabindex="0" aria-label="Review">${value.text}</pre></section>` : !error && html`<p class="empty" aria-busy="true">Adding up…</p>`}`;
}

export default function Reviews() {
  const day = route.value.rest[0];
  const list = useList(day ? null : "/reviews");
  if (day) return html`<${Day} key=${day} day=${day}/>`;
  return html`<${Head} title="Daily review" lead="One day on one page: where it went, what is new, what was refused, who approved."/>
    <${Listing} list=${list} label="Days" columns=${COLUMNS} id=${(r) => r.day} choose=${(r) => go(`reviews/${r.day}`)} empty="There is nothing to review yet."/>`;
}
