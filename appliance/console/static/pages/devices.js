// Microphones, cameras and the like: what can be lent, who has it, and asking for it on behalf of a job.
import { may, post } from "../lib/api.js";
import { clean, clock } from "../lib/format.js";
import { useFetched, useList } from "../lib/list.js";
import { Ask, Badge, Head, Listing, State, attempt } from "../lib/parts.js";
import { html, useEffect, useSignal } from "../lib/ui.js";

const OPENING_MS = 2_000;
const WAYS = { read: "jobs read it", write: "jobs write to it" };

/** Whom it can be lent to: jobs that run now. */
function Lend({ device, close, done }) {
  const { value } = useFetched("/jobs?state=live&limit=200", ["jobs"]);
  const running = (value?.items ?? []).filter((row) => row.started_ms && row.job);
  const act = async ({ job, project, ttl, reason }) => {
    await post(`/devices/${encodeURIComponent(device.name)}/grant`, { job, project: running.find((row) => row.job === job)?.project ?? project, ttl_s: Number(ttl), reason });
    done();
  };
  return html`<${Ask} title=${`Lend ${device.name}?`} verb="Ask for it" close=${close} act=${act}>
    <p>It stands under Approvals then: another person says yes.</p>
    <label class="field"><span>Job that runs</span><input name="job" required maxlength="64" list="jobs" autocomplete="off" spellcheck=${false}/></label>
    <datalist id="jobs">${running.map((row) => html`<option value=${row.job}>${clean(`${row.project}: ${row.command}`, 80)}</option>`)}</datalist>
    <label class="field"><span>Its project</span><input name="project" required maxlength="64" autocomplete="off" spellcheck=${false} defaultValue=${running[0]?.project ?? ""}/></label>
    <label class="field"><span>For how long</span><select name="ttl"><option value="600">10 min</option><option value="1800">30 min</option><option value="3600">1 h</option></select></label>
    <label class="field"><span>Reason, shown to who approves</span><input name="reason" maxlength="500" autocomplete="off"/></label></${Ask}>`;
}

function Grant({ grant, back }) {
  return html`<div><${State} value=${grant.state}/> to ${clean(grant.job, 64)} of ${clean(grant.project, 64)}${grant.until_ms ? ` until ${clock(grant.until_ms, true)}` : ""}, asked by ${clean(grant.by, 60)}
    ${grant.state === "requested" ? html` <a href="#/inbox">Decide</a>` : may("requests.decide") && html` <button class="small" onClick=${back}>Take back</button>`}</div>`;
}

export default function Devices() {
  const list = useList("/devices", ["leases", "requests", "jobs"]);
  const asking = useSignal(/** @type {any} */ (null));
  // What is granted opens a moment later, once its sidecar runs; of that nobody tells.
  const opening = list.items.some((row) => row.grants.some((grant) => grant.state === "granted"));
  useEffect(() => {
    const timer = opening && setInterval(list.reload, OPENING_MS);
    return () => clearInterval(timer);
  }, [opening]);
  const back = (grant) => attempt(async () => { await post(`/leases/${encodeURIComponent(grant.id)}/revoke`, { note: "device taken back" }); list.reload(); }, "Taken back.");
  const columns = [
    { name: "Device", cell: (r) => html`<strong>${clean(r.name, 60)}</strong>` }, { name: "Way", wide: true, cell: (r) => WAYS[r.mode] ?? clean(r.mode, 20) },
    { name: "Path", wide: true, cell: (r) => html`<code>${clean(r.path, 200)}</code>` },
    { name: "Lent to", grow: true, cell: (r) => (r.grants.length ? r.grants.map((grant) => html`<${Grant} key=${grant.id} grant=${grant} back=${() => back(grant)}/>`) : html`<${Badge}>nobody</${Badge}>`) },
    { name: "", cell: (r) => may("requests.ask") && html`<button class="small" onClick=${() => { asking.value = r; }}>Lend<span class="hidden"> ${clean(r.name, 60)}</span></button>` },
  ];
  return html`<${Head} title="Devices" lead="A job never holds a device itself: what it is lent ends with the lease."/>
    <${Listing} list=${list} label="Devices" columns=${columns} id=${(r) => r.name} empty=${html`The configuration names no device: <code>[[device]]</code>, in docs/jobs.md.`}/>
    ${asking.value && html`<${Lend} device=${asking.value} close=${() => { asking.value = null; }} done=${list.reload}/>`}`;
}
