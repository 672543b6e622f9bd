// Who decided what. It is part of the ledger: nobody can take a line away.
import { clean } from "../lib/format.js";
import { useList } from "../lib/list.js";
import { Head, Listing, Time } from "../lib/parts.js";
import { html } from "../lib/ui.js";

const COLUMNS = [
  { name: "No.", num: true, cell: (r) => html`<a href="#/ledger/${r.seq}">${r.seq}</a>` }, { name: "Time", cell: (r) => html`<${Time} ms=${r.at_ms}/>` }, { name: "Who", cell: (r) => clean(r.who || "exeat", 60) },
  { name: "Did", cell: (r) => `${clean(r.kind, 30)} ${clean(r.action, 60)}` }, { name: "About", grow: true, cell: (r) => html`<span class="mono">${clean(r.target, 200)}</span>` },
  { name: "Project", wide: true, cell: (r) => clean(r.project, 60) }, { name: "Detail", wide: true, grow: true, cell: (r) => clean(r.detail, 200) },
];

export default function Audit() {
  const list = useList("/audit?limit=100", ["admin", "leases", "policy"]);
  return html`<${Head} title="Audit" lead="Who decided what: leases, policies, the kill switch, keys, merges. Each line is a record of the ledger."/>
    <${Listing} list=${list} label="Decisions" columns=${COLUMNS} id=${(r) => String(r.seq)} empty="Nobody has decided anything yet."/>`;
}
