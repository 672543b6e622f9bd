// What names were looked up, and where data seemed to leave in them.
import { query } from "../lib/api.js";
import { clean, count } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Filter, Head, Listing, State, Table, Time, Trouble } from "../lib/parts.js";
import { param } from "../lib/router.js";
import { html } from "../lib/ui.js";

const VERDICTS = [["", "All"], ["allow", "Allowed"], ["deny", "Refused"], ["ask", "Asked"]];
const Name = ({ name }) => html`<span class="host">${clean(name, 260)}</span>`;

function Anomalies() {
  const { value, error } = useFetched("/dns/anomalies", ["alerts"]);
  if (!value?.items.length) return html`<${Trouble} error=${error}/>${value && html`<p class="note">Nowhere did data seem to leave in the names of lookups.</p>`}`;
  return html`<h2>Data seemed to leave in names</h2><${Table} label="Anomalies" rows=${value.items} id=${(r) => `${r.project} ${r.agent} ${r.domain} ${r.verdict} ${r.reason}`} columns=${[
    { name: "Below", grow: true, cell: (r) => html`<${Name} name=${r.domain || "all its lookups"}/>` }, { name: "Project", cell: (r) => clean(r.project, 60) }, { name: "Verdict", cell: (r) => html`<${State} value=${r.verdict}/>` },
    { name: "Score", num: true, cell: (r) => (r.score === null ? "–" : r.score.toFixed(2)) }, { name: "Times", num: true, wide: true, cell: (r) => count(r.times) }, { name: "Last", wide: true, cell: (r) => html`<${Time} ms=${r.at_ms}/>` }, { name: "Signs", wide: true, grow: true, cell: (r) => clean(r.detail, 200) }]}/><h2>Lookups</h2>`;
}

export default function Dns() {
  const filters = { project: param("project"), host: param("host"), verdict: param("verdict") };
  const list = useList(`/dns${query({ ...filters, limit: 200 })}`);
  const columns = [
    { name: "Time", cell: (r) => html`<${Time} ms=${r.at_ms}/>` }, { name: "Name", grow: true, cell: (r) => html`<${Name} name=${r.name}/>` }, { name: "Verdict", cell: (r) => html`<${State} value=${r.verdict}/>` },
    { name: "Project", wide: true, cell: (r) => clean(r.project, 60) }, { name: "Agent", wide: true, cell: (r) => clean(r.agent, 60) }, { name: "Why", wide: true, cell: (r) => html`<code>${clean(r.reason || r.rule, 80)}</code>` }, { name: "Times", num: true, cell: (r) => count(r.count) },
  ];
  return html`<${Head} title="DNS log" lead="Every lookup goes through the guard; a name that policy refuses is never asked for outside.">
      <${Filter} name="project" label="Project"/><${Filter} name="host" label="Name" placeholder="*.example.org"/><${Filter} name="verdict" label="Verdict" choices=${VERDICTS}/></${Head}>
    <${Anomalies}/><${Listing} list=${list} label="Lookups" columns=${columns} id=${(r) => String(r.seq)} empty="No lookup matches."/>`;
}
