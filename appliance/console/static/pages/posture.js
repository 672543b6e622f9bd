// What holds where no rule speaks, and an honest word on whether it does.
import { call, may } from "../lib/api.js";
import { clean } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Ask, Badge, Empty, Head, Trouble, say } from "../lib/parts.js";
import { html, useSignal } from "../lib/ui.js";

const at = (project) => `/projects/${encodeURIComponent(project)}/posture`;

function Project({ project }) {
  const { value, error, reload } = useFetched(at(project), ["policy", "admin"]);
  const asking = useSignal("");
  const act = async ({ note }) => {
    const set = await call("PUT", at(project), { body: { posture: asking.value, note }, etag: value.etag });
    say(set.state === "proposed" ? "It lets out more: it waits for a second person." : "In force.");
    reload();
  };
  return html`<section class="panel" aria-label=${project}><h2>${clean(project, 60)} ${value && html`<${Badge} kind=${value.enforced ? "ok" : "bad"}>${value.enforced ? "enforced" : "not enforced"}</${Badge}>`}</h2>
    <${Trouble} error=${error} again=${reload}/>
    ${value && html`<p class=${value.enforced ? "" : "warning"}>${clean(value.label)}.</p>
      <div class="tools" role="group" aria-label="Posture of ${project}">${value.choices.map((choice) => html`<button key=${choice} aria-pressed=${choice === value.posture} 
        disabled=${!may("policies.write") || !value.editable || choice === value.posture} onClick=${() => { asking.value = choice; }}>${choice}</button>`)}</div>
      ${!value.editable && html`<p class="soft">Its policy stands in a file of the node and is changed there.</p>`}`}
    ${asking.value && html`<${Ask} title=${`Posture ${asking.value} for ${project}?`} verb="Change" danger=${asking.value === "off" || asking.value === "public"} act=${act} close=${() => { asking.value = ""; }}>
      ${asking.value === "off" && html`<p class="warning">Off means that nothing is enforced: everything is let out.</p>`}<label class="field"><span>Note</span><input name="note" maxlength="500"/></label></${Ask}>`}</section>`;
}

export default function Posture() {
  const { value, error, reload } = useFetched("/policies", ["policy"]);
  const projects = (value?.items ?? []).map((row) => row.project).filter((project) => project !== "baseline");
  return html`<${Head} title="Posture" lead="What holds where no rule speaks, per project, and whether it is enforced."/><${Trouble} error=${error} again=${reload}/>
    <div class="columns">${projects.map((project) => html`<${Project} key=${project} project=${project}/>`)}</div>${value && !projects.length && html`<${Empty}>No project has a policy.</${Empty}>`}`;
}
