// What waits, runs and ran; what it wrote; and where what it changed is looked at and merged.
import { may, post } from "../lib/api.js";
import { bytes, clean, count, span } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Facts, Filter, Head, Listing, State, Time, Trouble, attempt } from "../lib/parts.js";
import { go, param, route } from "../lib/router.js";
import { html, useSignal } from "../lib/ui.js";

const STATES = [["", "Live"], ["all", "All"]];
const LIVE = new Set(["queued", "waiting", "running", "starting"]);
const took = (row) => (row.started_ms ? span(((row.ended_ms || Date.now()) - row.started_ms) / 1000) : "–");

function Logs({ id }) {
  const stream = useSignal("out");
  const { value, error, reload } = useFetched(`/jobs/${encodeURIComponent(id)}/logs?stream=${stream.value}`, ["jobs"]);
  return html`<section class="panel"><h2>What it wrote</h2><div class="tools">${["out", "err"].map((name) => html`<button class="small" aria-pressed=${stream.value === name} onClick=${() => { stream.value = name; }}>${name === "out" ? "Output" : "Errors"}</button>`)}
      <button class="small" onClick=${reload}>Again</button>${value && html`<span class="soft">${bytes(value.size)}${value.truncated ? ", the end of it" : ""}</span>`}</div>
    <${Trouble} error=${error}/>${value && html`<pre tabindex="0" aria-label="Log">${value.text || "Nothing."}</pre>`}</section>`;
}

/** Reading and merging what a job changed takes root's rights, which nothing here has. */
const Changes = ({ id }) => html`<section class="panel"><h2>What it changed</h2>
  <p>It worked on a layer over a folder, which stays as it is until somebody merges. Look at the changes and merge them, or drop them, on the node:</p>
  <pre tabindex="0" aria-label="Commands">${`sudo exeat job diff ${id}\nsudo exeat job merge ${id}\nsudo exeat job drop ${id}`}</pre></section>`;

function Job({ id }) {
  const { value: row, error, reload } = useFetched(`/jobs/${encodeURIComponent(id)}`, ["jobs"]);
  const cancel = () => attempt(async () => { await post(`/jobs/${encodeURIComponent(id)}/cancel`); reload(); }, "Cancelled.");
  return html`<${Head} title="Job ${clean(id, 64)}"><a href="#/jobs">All jobs</a>${row && LIVE.has(row.state) && may("jobs.write") && html`<button class="danger" onClick=${cancel}>Cancel</button>`}</${Head}><${Trouble} error=${error}/>
    ${row && html`<section class="panel"><p><${State} value=${row.state}/> ${clean(row.waits)}</p><pre tabindex="0" aria-label="Command">${clean(row.command)}</pre>
      <${Facts} of=${[["Project", clean(row.project)], ["Agent", clean(row.agent)], ["By", clean(row.by)], ["Profile", clean(row.profile)], ["Runs as", clean(row.job)], ["Queued", html`<${Time} ms=${row.queued_ms}/>`],
        ["Started", row.started_ms ? html`<${Time} ms=${row.started_ms}/>` : ""], ["Took", row.started_ms ? took(row) : ""], ["Exit code", row.code === null ? "" : String(row.code)], ["Why it ended", clean(row.reason)], ["Tries", count(row.attempts)], ["Leases it needs", row.needs.map((n) => clean(n, 100)).join(", ")]]}/></section>
      <${Logs} id=${id}/>${row.edits && row.ended_ms > 0 && html`<${Changes} id=${row.id}/>`}`}`;
}

export default function Jobs() {
  const id = route.value.rest[0];
  const list = useList(`/jobs?state=${param("state") || "live"}&limit=100`, ["jobs"]);
  if (id) return html`<${Job} key=${id} id=${id}/>`;
  const columns = [
    { name: "Job", cell: (r) => html`<a href="#/jobs/${encodeURIComponent(r.id)}">${clean(r.id, 64)}</a>` }, { name: "State", cell: (r) => html`<${State} value=${r.state}/>` },
    { name: "Command", grow: true, cell: (r) => html`<code>${clean(r.command, 160)}</code>` }, { name: "Project", wide: true, cell: (r) => clean(r.project, 60) }, { name: "By", wide: true, cell: (r) => clean(r.by, 60) },
    { name: "Queued", wide: true, cell: (r) => html`<${Time} ms=${r.queued_ms}/>` }, { name: "Took", num: true, wide: true, cell: took }, { name: "Waits for", wide: true, cell: (r) => clean(r.waits, 80) },
  ];
  return html`<${Head} title="Jobs" lead=${list.value ? `The queue: ${count(list.value.slots)} run at once.` : "The queue."}><${Filter} name="state" label="Show" choices=${STATES}/></${Head}>
    <${Listing} list=${list} label="Jobs" columns=${columns} id=${(r) => r.id} choose=${(r) => go(`jobs/${encodeURIComponent(r.id)}`)} mark=${(r) => (r.ended_ms ? "off" : "")} empty="Nothing waits and nothing runs."/>`;
}
