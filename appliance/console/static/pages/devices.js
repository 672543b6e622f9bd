// Accelerators and other devices: who holds them, and lending them out.
import { may, post } from "../lib/api.js";
import { clean, clock } from "../lib/format.js";
import { useList } from "../lib/list.js";
import { Ask, Badge, Head, Listing, attempt } from "../lib/parts.js";
import { html, useSignal } from "../lib/ui.js";

export default function Devices() {
  const list = useList("/devices", ["jobs", "admin"]);
  const asking = useSignal(/** @type {any} */ (null));
  const back = (grant) => attempt(async () => { await post(`/devices/grants/${encodeURIComponent(grant.id)}/revoke`); list.reload(); }, "Taken back.");
  const grants = may("devices.grant");
  const columns = [
    { name: "Device", cell: (r) => html`<strong>${clean(r.name, 60)}</strong> <span class="soft">${clean(r.kind, 60)}</span>` }, { name: "Path", wide: true, cell: (r) => html`<code>${clean(r.path, 200)}</code>` },
    { name: "Held by", cell: (r) => (r.holder ? clean(r.holder, 60) : html`<${Badge} kind="ok">free</${Badge}>`) },
    { name: "Lent to", grow: true, cell: (r) => r.grants.map((grant) => html`<div key=${grant.id}>${clean(grant.job, 60)} until ${clock(grant.until_ms, true)}, by ${clean(grant.by, 60)} ${grants && html`<button class="small" onClick=${() => back(grant)}>Take back</button>`}</div>`) },
    { name: "", cell: (r) => grants && html`<button class="small" onClick=${() => { asking.value = r; }}>Lend</button>` },
  ];
  return html`<${Head} title="Devices" lead="A job sees a device only when it was lent to it, and only for that time."/>
    <${Listing} list=${list} label="Devices" columns=${columns} id=${(r) => r.name} empty="The configuration names no device."/>
    ${asking.value && html`<${Ask} title=${`Lend ${asking.value.name}?`} verb="Lend" close=${() => { asking.value = null; }} act=${async ({ project, ttl }) => { await post(`/devices/${encodeURIComponent(asking.value.name)}/grant`, { project, ttl_s: Number(ttl) }); list.reload(); }}>
      <label class="field"><span>Project</span><input name="project" required/></label><label class="field"><span>For how long</span><select name="ttl"><option value="1800">30 min</option><option value="3600">1 h</option><option value="28800">8 h</option></select></label></${Ask}>`}`;
}
