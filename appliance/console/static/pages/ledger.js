// The ledger: what passed and what was refused, each record with a proof that is checked here.
import { query } from "../lib/api.js";
import { bytes, clean, count } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Facts, Filter, Head, Host, Listing, State, Time } from "../lib/parts.js";
import { go, param, route } from "../lib/router.js";
import { html } from "../lib/ui.js";
import { Record } from "./record.js";

const KINDS = [["", "All"], ["close", "Flows"], ["deny", "Refusals"], ["dns", "Lookups"], ["lease", "Leases"], ["policy", "Policies"], ["job", "Jobs"], ["anomaly", "Anomalies"], ["admin", "Accounts"], ["attest", "Attested"]];
const FILTERS = ["project", "host", "verdict", "kind", "lease", "job"];

function Top() {
  const { value } = useFetched("/ledger/head");
  return value && html`<section class="panel"><${Facts} of=${[
    ["Ledger", html`<code>${clean(value.origin)}</code>`], ["Signed records", count(value.size)], ["Signed", html`<${Time} ms=${value.at_ms}/>`],
    ["Root", html`<code>${value.root.slice(0, 16)}…</code>`], ["Oldest record kept", count(value.oldest)], ["Witnesses", value.cosigned ? "have signed" : "none has signed"],
  ]}/></section>`;
}

export default function Ledger() {
  const seq = route.value.rest[0];
  const filters = Object.fromEntries(FILTERS.map((name) => [name, param(name)]));
  const here = query(filters); // stays in the address when a record is opened
  const list = useList(`/ledger/entries${query({ ...filters, limit: 100 })}`);
  const columns = [
    { name: "No.", num: true, cell: (r) => html`<a href="#/ledger/${r.seq}${here}">${r.seq}</a>` },
    { name: "Time", cell: (r) => html`<${Time} ms=${r.at_ms}/>` },
    { name: "Kind", wide: true, cell: (r) => r.kind },
    { name: "To", grow: true, cell: (r) => (r.host ? html`<${Host} host=${r.host} port=${r.port}/>` : "–") },
    { name: "Verdict", cell: (r) => (r.verdict ? html`<${State} value=${r.verdict}/>` : "–") },
    { name: "Project", wide: true, cell: (r) => clean(r.project, 60) },
    { name: "Why", wide: true, cell: (r) => html`<code>${clean(r.reason || r.rule, 80)}</code>` },
    { name: "Out", num: true, wide: true, cell: (r) => bytes(r.bytes_out) }, { name: "In", num: true, wide: true, cell: (r) => bytes(r.bytes_in) },
  ];
  const href = (format) => `/api/v1/ledger/export${query({ ...filters, format })}`;
  return html`<${Head} title="Ledger" lead="Written before the bytes went, never changed afterwards. Each record has a proof that your browser checks.">
      <${Filter} name="project" label="Project"/><${Filter} name="host" label="Host" placeholder="*.example.org"/><${Filter} name="kind" label="Kind" choices=${KINDS}/>
      <a href=${href("csv")} download>CSV</a><a href=${href("jsonl")} download>JSON lines</a></${Head}>
    ${seq ? html`<${Record} key=${seq} seq=${Number(seq)} back=${here}/>` : html`<${Top}/>`}
    <${Listing} list=${list} label="Records" columns=${columns} id=${(r) => String(r.seq)} chosen=${seq} choose=${(r) => go(`ledger/${r.seq}${here}`)} empty="No record matches."/>`;
}
