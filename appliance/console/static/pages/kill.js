// Stop a project, or everything, at once. It can always be let again.
import { may } from "../lib/api.js";
import { clean } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Ask, Empty, Head, Table, Time, Trouble } from "../lib/parts.js";
import { decide } from "../lib/passkey.js";
import { html, useSignal } from "../lib/ui.js";

const body = (project) => (project ? { scope: "project", project } : { scope: "all" });

function Switch({ what, close, done }) {
  const { project, on } = what;
  const name = project ?? "everything";
  const act = async ({ reason, network }) => {
    await decide("/kill", { ...body(project), on, reason, ...(on && { jobs: !network }) }, { challenge: "/kill/challenge" });
    done();
  };
  return html`<${Ask} title=${on ? `Stop ${name}?` : `Let ${name} go on?`} verb=${on ? "Stop now" : "Let go on"} danger=${on} act=${act} close=${close}>
    <p>${on ? "Every live flow is cut, every new flow and lookup is refused, and running jobs are ended." : "Policies and leases count again. Jobs that were ended stay ended."}</p>
    ${on && html`<label class="choice"><input type="checkbox" name="network"/><span>Only the network: jobs go on without one</span></label>`}
    <label class="field"><span>Reason, kept in the ledger</span><input name="reason" required maxlength="500"/></label></${Ask}>`;
}

export default function Kill() {
  const { value, error, reload } = useFetched("/kill", ["admin"]);
  const { value: status } = useFetched("/status", ["policy"]);
  const asking = useSignal(/** @type {any} */ (null));
  const may_ = may("kill.write"), lets = may("kill.off");
  const stopped = value?.stopped ?? [];
  const off = new Set(stopped.map((row) => row.project));
  const columns = [
    { name: "Stopped", cell: (r) => html`<strong>${r.project ? clean(r.project) : "Everything"}</strong>` },
    { name: "By", cell: (r) => clean(r.by, 60) }, { name: "Since", cell: (r) => html`<${Time} ms=${r.at_ms}/>` },
    { name: "Reason", grow: true, cell: (r) => clean(r.reason) }, { name: "Jobs", wide: true, cell: (r) => (r.jobs ? "ended" : "go on without a network") },
    { name: "", cell: (r) => lets && html`<button class="small" onClick=${() => { asking.value = { project: r.project, on: false }; }}>Let go on</button>` },
  ];
  return html`<${Head} title="Kill switch" lead="In force first, written down second. It comes before every policy and every lease."/>
    <${Trouble} error=${error} again=${reload}/>
    ${stopped.length ? html`<${Table} label="What is stopped" columns=${columns} rows=${stopped} id=${(r) => r.project ?? "*"}/>` : value && html`<${Empty}>Nothing is stopped.</${Empty}>`}
    ${may_ && html`<section class="panel"><h2>Stop</h2><div class="tools">
      <button class="danger" disabled=${off.has(null)} onClick=${() => { asking.value = { project: null, on: true }; }}>Stop everything</button>
      ${(status?.projects ?? []).map((project) => html`<button key=${project} disabled=${off.has(project)} onClick=${() => { asking.value = { project, on: true }; }}>Stop ${clean(project, 60)}</button>`)}</div></section>`}
    ${asking.value && html`<${Switch} what=${asking.value} close=${() => { asking.value = null; }} done=${reload}/>`}`;
}
