// What waits, runs and ran; what it wrote; and what it changed, before that is merged.
import { may, post } from "../lib/api.js";
import { bytes, clean, count, span } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Ask, Badge, Facts, Filter, Head, Listing, State, Time, Trouble, attempt } from "../lib/parts.js";
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

const File = ({ file }) => html`<details><summary><${Badge} kind=${file.change === "removed" ? "bad" : file.change === "added" ? "ok" : ""}>${file.change}</${Badge}> <code>${clean(file.path, 400)}</code>
    ${file.flags.map((flag) => html` <${Badge} kind="bad">${clean(flag, 80)}</${Badge}>`)}</summary><pre tabindex="0">${clean(file.lines, 200_000)}</pre></details>`;

function Changes({ id }) {
  const { value, error, reload } = useFetched(`/jobs/${encodeURIComponent(id)}/diff`, ["jobs"]);
  const asking = useSignal(false);
  return html`<section class="panel"><h2>What it changed</h2><${Trouble} error=${error}/>
    ${value && html`${value.files.length ? value.files.map((file) => html`<${File} key=${file.path} file=${file}/>`) : html`<p class="soft">Nothing.</p>`}
      ${may("jobs.write") && value.files.length > 0 && html`<div class="buttons"><button class="main" onClick=${() => { asking.value = true; }}>Merge</button></div>`}`}
    ${asking.value && html`<${Ask} title=${`Merge ${count(value.files.length)} changed files?`} verb="Merge" close=${() => { asking.value = false; }} act=${async () => { await post(`/jobs/${encodeURIComponent(id)}/merge`, { version: value.version }); reload(); }}>
      ${value.files.some((file) => file.flags.length) && html`<p class="warning">Some files have something in them that looks like a secret.</p>`}<p>They are written into the folder the job was started on, as they are shown here.</p></${Ask}>`}</section>`;
}

function Job({ id }) {
  const { value: row, error, reload } = useFetched(`/jobs/${encodeURIComponent(id)}`, ["jobs"]);
  const cancel = () => attempt(async () => { await post(`/jobs/${encodeURIComponent(id)}/cancel`); reload(); }, "Cancelled.");
  return html`<${Head} title="Job ${clean(id, 64)}"><a href="#/jobs">All jobs</a>${row && LIVE.has(row.state) && may("jobs.write") && html`<button class="danger" onClick=${cancel}>Cancel</button>`}</${Head}><${Trouble} error=${error}/>
    ${row && html`<section class="panel"><p><${State} value=${row.state}/> ${clean(row.waits)}</p><pre tabindex="0" aria-label="Command">${clean(row.command)}</pre>
      <${Facts} of=${[["Project", clean(row.project)], ["Agent", clean(row.agent)], ["By", clean(row.by)], ["Profile", clean(row.profile)], ["Runs as", clean(row.job)], ["Queued", html`<${Time} ms=${row.queued_ms}/>`],
        ["Started", row.started_ms ? html`<${Time} ms=${row.started_ms}/>` : ""], ["Took", row.started_ms ? took(row) : ""], ["Exit code", row.code === null ? "" : String(row.code)], ["Why it ended", clean(row.reason)], ["Tries", count(row.attempts)], ["Leases it needs", row.needs.map((n) => clean(n, 100)).join(", ")]]}/></section>
      <${Logs} id=${id}/>${row.edits && row.ended_ms > 0 && html`<${Changes} id=${id}/>`}`}`;
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
