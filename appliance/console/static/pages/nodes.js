// The machines, and whether all that should run on them does.
import { clean, count } from "../lib/format.js";
import { useList } from "../lib/list.js";
import { Badge, Head, Listing, Time } from "../lib/parts.js";
import { html } from "../lib/ui.js";

const COLUMNS = [
  { name: "Node", cell: (r) => html`<strong>${clean(r.name, 60)}</strong>` }, { name: "State", cell: (r) => html`<${Badge} kind=${r.state === "whole" ? "ok" : "bad"}>${r.state}</${Badge}>` },
  { name: "What is wrong", grow: true, cell: (r) => r.wrong.map((text) => html`<div>${clean(text)}</div>`) }, { name: "Version", wide: true, cell: (r) => html`<code>${clean(r.version, 40)}</code>` },
  { name: "Projects", num: true, wide: true, cell: (r) => count(r.projects) }, { name: "Jobs", num: true, cell: (r) => count(r.jobs) }, { name: "Leases", num: true, cell: (r) => count(r.leases) },
  { name: "Wait", num: true, wide: true, cell: (r) => count(r.pending) }, { name: "Seen", wide: true, cell: (r) => html`<${Time} ms=${r.last_seen_ms}/>` },
];

export default function Nodes() {
  const list = useList("/nodes", ["jobs", "leases", "requests", "policy", "admin", "alerts"]);
  return html`<${Head} title="Nodes" lead="While something is not whole, what it guards is refused."/><${Listing} list=${list} label="Nodes" columns=${COLUMNS} id=${(r) => r.name} empty="There is none."/>`;
}
