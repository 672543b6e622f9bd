// What is open now and what was; revoking, renewing and undoing stand beside it.
import { post } from "../lib/api.js";
import { bytes, clean, clock, count, span } from "../lib/format.js";
import { useList } from "../lib/list.js";
import { Ask, Badge, Facts, Filter, Head, Listing, Quote, State, Time, attempt } from "../lib/parts.js";
import { param } from "../lib/router.js";
import { html, useSignal } from "../lib/ui.js";

const STATES = [["", "Active"], ["ended", "Ended"], ["all", "All"]];
const at = (row, act) => `/leases/${encodeURIComponent(row.id)}/${act}`;

const left = (row) => (row.state === "active" ? span((row.expires_ms - Date.now()) / 1000) : clean(row.ended_why || "ended", 40));

function Acts({ row, ask, reload }) {
  const can = new Set(row.can);
  const now = (act, done) => attempt(async () => { await post(at(row, act)); reload(); }, done);
  return html`<span class="tools">
    ${can.has("undo") && html`<button class="small" onClick=${() => now("undo", "Undone: the lease has ended.")}>Undo</button>`}
    ${can.has("renew") && html`<button class="small" onClick=${() => now("renew", "Its time counts again from now.")}>Renew</button>`}
    ${can.has("revoke") && html`<button class="small" onClick=${() => ask(row)}>Revoke</button>`}</span>`;
}

const Lease = ({ row }) => html`<section class="panel" aria-label="The lease"><h2><span class="host">${clean(row.scope, 300)}</span></h2>
  <${Quote} from=${`What ${row.requester} said when asking`} text=${row.reason}/>
  <${Facts} of=${[
    ["Lease", html`<code>${row.id}</code>`], ["Project", clean(row.project)], ["Agent", clean(row.agent || "any")], ["Job", clean(row.job)], ["Episode", clean(row.episode)],
    ["Protocol", row.proto], ["What else it is", row.speech.join(", ")], ["Granted by", row.granted_by.map((name) => clean(name, 60)).join(", ")],
    ["Granted", html`<${Time} ms=${row.granted_ms}/>`], ["Ends", clock(row.expires_ms)], ["Ended by", clean(row.ended_by)],
    ["Bytes at most", row.bytes_limit === null ? "no limit" : bytes(row.bytes_limit)], ["Uses at most", row.uses_limit === null ? "" : count(row.uses_limit)],
    ["At most, renewed", span(row.max_ttl_s)],
  ]}/><p><a href="#/flows?q=${encodeURIComponent(row.id)}">Its flows</a> · <a href="#/ledger?lease=${encodeURIComponent(row.id)}">In the ledger</a></p></section>`;

export default function Leases() {
  const state = param("state") || "active";
  const list = useList(`/leases?state=${state}&limit=100`, ["leases", "requests"]);
  const chosen = useSignal("");
  const asking = useSignal(/** @type {any} */ (null));
  const row = list.items.find((each) => each.id === chosen.value);
  const columns = [
    { name: "To", grow: true, cell: (r) => html`<button class="link" onClick=${() => { chosen.value = r.id; }}><span class="host">${clean(r.scope, 300)}</span></button> ${r.direct && html`<${Badge} kind="warn">past the gateway</${Badge}>`}` },
    { name: "Project", cell: (r) => clean(r.project, 60) },
    { name: "Agent", wide: true, cell: (r) => clean(r.agent || "any", 60) },
    { name: "Granted by", wide: true, cell: (r) => r.granted_by.map((name) => clean(name, 40)).join(", ") },
    { name: "State", wide: true, cell: (r) => html`<${State} value=${r.state}/>` },
    { name: state === "active" ? "Left" : "Left or why", num: true, cell: left },
    { name: "Flows now", num: true, wide: true, cell: (r) => count(r.live_flows) },
    { name: "Bytes now", num: true, wide: true, cell: (r) => bytes(r.live_bytes) },
    { name: "", cell: (r) => html`<${Acts} row=${r} ask=${(it) => { asking.value = it; }} reload=${list.reload}/>` },
  ];
  return html`<${Head} title="Leases" lead="What jobs may reach because a person said so, and until when."><${Filter} name="state" label="Show" choices=${STATES}/></${Head}>
    <${Listing} list=${list} label="Leases" columns=${columns} id=${(r) => r.id} chosen=${chosen.value} choose=${(r) => { chosen.value = r.id; }}
      mark=${(r) => (r.state === "active" ? "" : "off")} empty=${state === "active" ? "No lease is in force." : "There is none."}/>
    ${row && html`<${Lease} row=${row}/>`}
    ${asking.value && html`<${Ask} title="Revoke this lease?" verb="Revoke" danger close=${() => { asking.value = null; }}
      act=${async ({ note }) => { await post(at(asking.value, "revoke"), { note }); list.reload(); }}>
      <p><span class="host">${clean(asking.value.scope, 300)}</span> for ${clean(asking.value.project)}: ${count(asking.value.live_flows)} live flows are cut at once.</p>
      <label class="field"><span>Note, kept in the ledger</span><input name="note" maxlength="500"/></label></${Ask}>`}`;
}
