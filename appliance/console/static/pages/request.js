// One request: the facts, what the job says, what a yes would open, and the terms of the yes.
import { approve, flagText, guard, guarded, undo } from "../lib/decide.js";
import { bytes, clean, clock, place, span, usd } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { attempt, Badge, Dialog, Facts, Host, Quote, Time, Trouble } from "../lib/parts.js";
import { html, useSignal } from "../lib/ui.js";

const LIMITS = [["", "as asked"], ["1000000", "1 MB"], ["10000000", "10 MB"], ["100000000", "100 MB"], ["1000000000", "1 GB"]];

const NO_NETWORK = new Set(["device", "file"]);
const isFlow = (row) => !NO_NETWORK.has(row.dest.protocol);
// What a yes means, whatever the reason was.
const Means = ({ row }) => (row.dest.protocol === "device" ? html`This job may use the device <strong>${clean(row.dest.host, 60)}</strong> of this node.`
  : row.dest.protocol === "file" ? html`Jobs of ${clean(row.project_id)} may have the folder <strong class="mono">${clean(row.dest.host, 300)}</strong>, until the lease ends.`
  : html`This job may send anything it can read to <${Host} host=${row.dest.host} port=${row.dest.port}/>.`);

const Name = ({ row }) => html`
  <h2 class="dest"><${Host} host=${row.dest.host} port=${row.dest.port}/></h2>
  ${row.punycode && html`<p class="warning"><strong>Not what it looks like:</strong> shown to people as “${clean(row.unicode ?? row.punycode, 260)}”, it is <code>${clean(row.punycode, 260)}</code>.</p>`}`;

const About = ({ row }) => html`<${Facts} of=${[
  ["Project", clean(row.project_id)], ["Agent", clean(row.agent_id || "any")], ["Job", clean(row.job_id)], ["Episode", clean(row.episode_id)],
  ["Process", row.process && clean(row.process)], ["Node", clean(row.node_id)], ["Asked by", clean(row.requester)], ["Protocol", clean(row.dest.protocol)],
  ["Server name (SNI)", row.dest.sni && clean(row.dest.sni)], ["Tries", `${row.tries}, last ${clock(row.last_ms)}`], ["First asked", html`<${Time} ms=${row.first_ms}/>`],
  ["Held connections", row.waiting ? String(row.waiting) : ""], ["Lapses unanswered", row.expires_ms && clock(row.expires_ms, true)],
]}/>`;

const Payload = ({ payload }) => html`<h3>What it says it will send</h3><p class="soft">Nothing makes it send just this.</p><${Facts} of=${[["Name", clean(payload.name)], ["Size", bytes(payload.bytes)], ["SHA-256", html`<code>${payload.sha256.slice(0, 16)}…</code>`], ["Note", clean(payload.note)]]}/>
  ${payload.head.length > 0 && html`<details><summary>Its beginning, without secrets</summary><pre tabindex="0">${payload.head.map((line) => clean(line, 200)).join("\n")}</pre></details>`}`;

const Preview = ({ preview }) => html`<section class="preview" aria-label="What a yes would let out"><h3>What a yes would let out</h3>
  <p>${clean(preview.widens)}</p>
  <${Facts} of=${[["Bytes at most", preview.bytes === null ? "no limit of its own" : bytes(preview.bytes)], ["Cost at most", preview.cost_usd === null ? "" : usd(preview.cost_usd)]]}/>
  ${preview.classification.length > 0 && html`<p class="warning"><strong>Found in what it wants to send:</strong> ${preview.classification.map((hit) => html`<${Badge} kind="bad">${clean(hit, 80)}</${Badge}> `)}</p>`}${preview.payload && html`<${Payload} payload=${preview.payload}/>`}</section>`;

const Choice = ({ name, value, chosen, label, hint }) => html`<label class="choice"><input type="radio" name=${name} value=${value} checked=${value === chosen.value}
  onChange=${() => { chosen.value = value; }}/><span>${label}${hint && html` <span class="soft">${hint}</span>`}</span></label>`;

function Terms({ row, scope, ttl }) {
  return html`
    <fieldset><legend>Scope</legend>${row.ladder.map((rung) => html`<${Choice} key=${rung.scope} name="scope" value=${rung.scope} chosen=${scope}
      label=${clean(rung.label, 300)} hint=${rung.widest && row.ladder.length > 1 ? "widest" : ""}/>`)}</fieldset>
    <fieldset class="chips"><legend>For how long</legend>${row.ttl_choices_s.map((s) => html`<${Choice} key=${s} name="ttl" value=${s} chosen=${ttl} label=${span(s)}/>`)}
      <p class="soft">The clock starts when you approve: approved now, it ends at ${clock(Date.now() + ttl.value * 1000, true)}.</p></fieldset>
    ${isFlow(row) && html`<div class="pair"><label class="field"><span>Bytes at most</span><select name="bytes">${LIMITS.filter(([n]) => !n || row.preview.bytes === null || Number(n) < row.preview.bytes)
      .map(([n, text]) => html`<option value=${n}>${text}</option>`)}</select></label>
    <label class="field"><span>Connections at most</span><input name="uses" type="number" min="1" max="1000000" inputmode="numeric" placeholder="any"/></label></div>`}
    <label class="field"><span>Note, kept in the ledger</span><input name="note" maxlength="500" autocomplete="off"/></label>`;
}

const Twice = ({ row, close, go }) => html`<${Dialog} title="Look twice" close=${close}>
  <ul class="warnings">${row.flags.map((flag) => html`<li>${flagText(flag)}</li>`)}</ul>
  <p><${Means} row=${row}/></p>
  <div class="buttons"><button onClick=${close}>Go back</button><button class="danger" onClick=${() => { close(); go(); }}>Approve all the same</button></div></${Dialog}>`;

// Enter in a field would be a yes.
const noEnter = (event) => { if (event.key === "Enter" && event.target.matches("input")) event.preventDefault(); };

export function Detail({ row, form, refuse, decided, decides }) {
  const { value: whole } = useFetched(`/requests/${encodeURIComponent(row.id)}`); // a list has no witness of what opens
  const scope = useSignal(row.ladder.find((rung) => rung.widest)?.scope ?? row.ladder[0]?.scope ?? "");
  const ttl = useSignal(row.ttl_choices_s.filter((s) => s <= 1800).at(-1) ?? row.ttl_choices_s[0]);
  const error = useSignal(/** @type {any} */ (null));
  const twice = useSignal(false);
  const busy = useSignal(false);
  const send = async () => {
    const fields = new FormData(form.current);
    const asAsked = row.ladder.find((rung) => rung.widest)?.scope === scope.value;
    busy.value = true;
    guard();
    try {
      const now = await approve(row, {
        scope: asAsked ? undefined : scope.value, ttl_s: Number(ttl.value), bytes: Number(fields.get("bytes")) || undefined,
        uses: Number(fields.get("uses")) || undefined, note: String(fields.get("note")).trim(),
      });
      const where = place(row.dest.host, row.dest.port);
      if (now.state === "requested") decided(`Your yes for ${where} is kept; it opens with a second person's.`);
      else decided(`Approved ${where} for ${span(Number(ttl.value))}.`, { label: "Undo", act: () => attempt(() => undo(row.id), "Undone: the lease has ended.") });
    } catch (problem) {
      error.value = problem;
      busy.value = false;
    }
  };
  const submit = (event) => {
    event.preventDefault();
    if (busy.value || row.gone || guarded.value) return;
    if (row.flags.length) twice.value = true;
    else send();
  };
  return html`<article class="detail" aria-label="The request">
    <${Name} row=${row}/>
    <p class="lead"><${Means} row=${row}/></p>
    ${row.flags.length > 0 && html`<ul class="warnings">${row.flags.map((flag) => html`<li>${flagText(flag)}</li>`)}</ul>`}
    <${Quote} from=${`What ${row.agent_id || row.requester} says (nobody has checked it)`} text=${row.reason}/>
    <${About} row=${row}/><${Preview} preview=${whole?.preview ?? row.preview}/>
    ${row.needs > 1 && html`<p class="note">Needs ${row.needs} persons. ${row.approvals.length ? `Said yes: ${row.approvals.map((a) => clean(a.by, 60)).join(", ")}.` : "Nobody has said yes yet."}</p>`}
    ${decides ? html`<form ref=${form} onSubmit=${submit} onKeyDown=${noEnter}><${Terms} row=${row} scope=${scope} ttl=${ttl}/>
      <${Trouble} error=${error.value}/>
      <div class="buttons"><button type="button" disabled=${row.gone || guarded.value} onClick=${refuse}>Deny <kbd>d</kbd></button>
        <button class="main" disabled=${busy.value || row.gone || guarded.value}>${row.passkey ? "Approve with passkey" : "Approve"} <kbd>a</kbd></button></div></form>`
      : html`<p class="note">Your role can look, and not decide.</p>`}
    ${twice.value && html`<${Twice} row=${row} close=${() => { twice.value = false; }} go=${send}/>`}</article>`;
}
