// What may leave, by project: the text in force, and what another would change before it is.
import { call, may, post } from "../lib/api.js";
import { clean, count } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Ask, Badge, Empty, Head, Table, Time, Trouble, attempt, say } from "../lib/parts.js";
import { decide } from "../lib/passkey.js";
import { go, route } from "../lib/router.js";
import { html, useEffect, useRef, useSignal } from "../lib/ui.js";

const at = (project) => `/policies/${encodeURIComponent(project)}`;

/** The text with the numbers of its lines; those in `marks` have something wrong. */
function Text({ text, marks, area }) {
  const numbers = useRef(null);
  const lines = (text.value ?? "").split("\n").length;
  return html`<div class="field"><label class="soft" for="policy">The text</label><div class="text"><div class="numbers" aria-hidden="true" ref=${numbers}>
      ${Array.from({ length: lines }, (_, n) => html`<div class=${marks.has(n + 1) ? "bad" : ""}>${n + 1}</div>`)}</div>
    <textarea id="policy" ref=${area} spellcheck=${false} wrap="off" value=${text.value ?? ""} onScroll=${(event) => { numbers.current.scrollTop = event.target.scrollTop; }}
      onInput=${(event) => { text.value = event.target.value; }}></textarea></div></div>`;
}

/** Select a line, where the cursor then is. */
function show(area, line) {
  const before = area.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  const end = area.value.indexOf("\n", before);
  area.focus();
  area.setSelectionRange(before, end < 0 ? area.value.length : end);
}

function Checked({ found, area }) {
  const line = (each, kind) => html`<li class=${kind}><button class="link" onClick=${() => show(area.current, each.line)}>line ${each.line}, column ${each.column}</button>: ${clean(each.message)} <code>${each.code}</code></li>`;
  return html`<p class="note ${found.ok ? "good" : ""}" role="status">${found.ok ? `It loads: ${count(found.rules)} ${found.rules === 1 ? "rule" : "rules"}, posture ${found.posture}.` : "It does not load."}</p>
    <ul>${found.problems.map((each) => line(each, "minus"))}${found.warnings.map((each) => line(each, ""))}</ul>`;
}

const Difference = ({ found }) => html`
  ${found.widens ? html`<div class="warning" role="status"><strong>It lets out more.</strong> For example, refused so far:<ul>${found.witness.map((text) => html`<li><code>${clean(text, 400)}</code></li>`)}</ul>
    ${found.more > 0 && html`<p>and ${count(found.more)} more.</p>`}It takes a second person.</div>` : html`<p class="note good" role="status">It lets nothing out that the policy in force does not.</p>`}
  ${found.changes.length ? html`<pre tabindex="0" aria-label="Changed lines">${found.changes.map((line) => html`<span class=${line.startsWith("+") ? "plus" : line.startsWith("-") ? "minus" : ""}>${clean(line, 400)}\n</span>`)}</pre>` : html`<p class="soft">The text is the same.</p>`}`;

const Tried = ({ found }) => html`<p class="note" role="status">${count(found.decided)} recorded decisions of the last week, judged again: ${count(found.changed.length + found.more)} would change.</p>
  ${found.changed.length > 0 && html`<${Table} label="What would change" rows=${found.changed} id=${(r) => `${r.agent} ${r.host} ${r.port} ${r.proto} ${r.before} ${r.after}`} columns=${[
    { name: "To", grow: true, cell: (r) => html`<span class="host">${clean(r.host, 260)}${r.port ? `:${r.port}` : ""}</span>` }, { name: "Agent", wide: true, cell: (r) => clean(r.agent, 60) },
    { name: "Was", cell: (r) => r.before }, { name: "Would be", cell: (r) => html`<${Badge} kind=${r.breaking ? "bad" : ""}>${r.after}</${Badge}>` }, { name: "Flows", num: true, cell: (r) => count(r.flows) }]}/>`}`;

function Proposal({ proposal, reload }) {
  if (!proposal) return null;
  const act = (verb, done) => attempt(async () => { await decide(`${at(proposal.project)}/${verb}`, { digest: proposal.digest }); reload(); }, done);
  return html`<section class="panel"><h2>A text waits for a second person</h2><p>By ${clean(proposal.by, 60)}, <${Time} ms=${proposal.at_ms}/>${proposal.note && html`: ${clean(proposal.note)}`}</p>
    ${proposal.widens && html`<p class="warning">It lets out, among others: <code>${clean(proposal.widens, 400)}</code></p>`}<details><summary>The text</summary><pre tabindex="0">${clean(proposal.text, 100_000)}</pre></details>
    ${may("policies.write") && html`<div class="buttons"><button onClick=${() => act("withdraw", "Forgotten.")}>Withdraw</button><button class="main" onClick=${() => act("agree", "In force.")}>Agree</button></div>`}</section>`;
}

function Versions({ project, etag, changed }) {
  const { value, error } = useFetched(`${at(project)}/versions`, ["policy"]);
  const asking = useSignal(/** @type {any} */ (null));
  const columns = [
    { name: "Set", cell: (r) => html`<${Time} ms=${r.at_ms}/>` }, { name: "By", cell: (r) => `${clean(r.by, 60)}${r.agreed_by ? `, ${clean(r.agreed_by, 60)}` : ""}` }, { name: "Note", grow: true, cell: (r) => clean(r.note) },
    { name: "", cell: (r) => (r.current ? html`<${Badge} kind="ok">in force</${Badge}>` : may("policies.write") && html`<button class="small" onClick=${() => { asking.value = r; }}>Go back to it</button>`) },
  ];
  return html`<section class="panel"><h2>Versions</h2><${Trouble} error=${error}/>${value && (value.items.length ? html`<${Table} label="Versions" rows=${value.items} columns=${columns} id=${(r) => String(r.number)}/>` : html`<p class="soft">None was set here.</p>`)}
    ${asking.value && html`<${Ask} title="Go back to this text?" verb="Go back" close=${() => { asking.value = null; }} act=${async ({ note }) => { tell(await post(`${at(project)}/revert`, { digest: asking.value.digest, note }, { etag })); changed(); }}>
      <pre tabindex="0">${clean(asking.value.text, 100_000)}</pre><label class="field"><span>Note</span><input name="note" maxlength="500"/></label></${Ask}>`}</section>`;
}

const tell = (set) => say(set.state === "proposed" ? "It lets out more: it waits for a second person." : "In force.");

function Editor({ project }) {
  const policy = useFetched(at(project), ["policy"]);
  const text = useSignal(/** @type {string|null} */ (null));
  const found = useSignal(/** @type {any} */ ({}));
  const asking = useSignal(false);
  const base = useSignal({ text: "", etag: "" }); // what the text was made from: it, and nothing newer, may be replaced
  const area = useRef(null);
  const value = policy.value;
  const edited = text.value !== null && text.value !== base.value.text;
  const take = () => { base.value = { text: value.text, etag: value.etag }; text.value = value.text; };
  useEffect(() => { if (value && !edited) take(); }, [value]);
  const ask = (kind) => async () => {
    try {
      found.value = { [kind]: await post(`/policies/${kind}`, { text: text.value }), of: text.value };
    } catch (error) {
      found.value = { error };
    }
  };
  const changed = () => { text.value = null; found.value = {}; policy.reload(); };
  const edits = may("policies.write") && value?.editable;
  return html`<${Head} title=${`Policy of ${clean(project, 60)}`} lead=${value?.source === "file" ? `It stands in a file of the node (${clean(value.file, 200)}) and is changed there; here it can be tried.` : "Check, compare and try a text before it is in force."}><a href="#/policies">All policies</a></${Head}>
    <${Trouble} error=${policy.error} again=${policy.reload}/>${value?.changed && html`<p class="warning">The file was changed since and that is not in force yet.</p>`}
    ${value && html`<${Proposal} proposal=${value.proposal} reload=${changed}/><div class="columns editor"><section class="panel">
      ${edited && value.etag !== base.value.etag && html`<div class="warning"><p>The policy in force is another by now: this text was made from the one before, and cannot replace it.</p><button onClick=${take}>Drop it and show what is in force</button></div>`}
      <${Text} text=${text} area=${area} marks=${new Set(found.value.of === text.value ? found.value.check?.problems.map((each) => each.line) : [])}/>
      <div class="buttons"><button onClick=${ask("check")}>Check</button><button onClick=${ask("diff")}>Compare</button><button onClick=${ask("trial")}>Try on last week</button>
        ${edits && html`<button class="main" disabled=${!edited} onClick=${() => { asking.value = true; }}>Put in force</button>`}</div></section>
      <section class="panel" aria-label="What was found"><h2>What it would mean</h2><${Trouble} error=${found.value.error}/>${found.value.check && html`<${Checked} found=${found.value.check} area=${area}/>`}
        ${found.value.diff && html`<${Difference} found=${found.value.diff}/>`}${found.value.trial && html`<${Tried} found=${found.value.trial}/>`}
        ${!Object.keys(found.value).length && html`<p class="soft">Check says whether it loads; Compare finds a flow it would newly let out; Try judges what was recorded again.</p>`}</section></div>
      <${Versions} project=${project} etag=${value.etag} changed=${changed}/>`}
    ${asking.value && html`<${Ask} title="Put this text in force?" verb="Put in force" close=${() => { asking.value = false; }} act=${async ({ note }) => { tell(await call("PUT", at(project), { body: { text: text.value, note }, etag: base.value.etag })); changed(); }}>
      <p>It counts at once, for flows that live too. A text that lets out more waits for a second person.</p><label class="field"><span>Note, kept with the version</span><input name="note" maxlength="500"/></label></${Ask}>`}`;
}

export default function Policies() {
  const project = route.value.rest[0];
  const { value, error, reload } = useFetched("/policies", ["policy"]);
  if (project) return html`<${Editor} key=${project} project=${project}/>`;
  const columns = [
    { name: "Project", cell: (r) => html`<a href="#/policies/${encodeURIComponent(r.project)}">${clean(r.project, 60)}</a>` }, { name: "Posture", cell: (r) => html`<${Badge} kind=${r.posture === "off" ? "bad" : r.posture === "public" ? "warn" : ""}>${r.posture}</${Badge}>` },
    { name: "Rules", num: true, cell: (r) => count(r.rules) }, { name: "Stands in", wide: true, grow: true, cell: (r) => (r.source === "file" ? html`<code>${clean(r.file, 200)}</code>` : "the console") },
    { name: "", cell: (r) => r.proposed && html`<${Badge} kind="warn">waits for a second person</${Badge}>` },
  ];
  return html`<${Head} title="Policies" lead="What may leave without asking, what needs a person, and what never does."/><${Trouble} error=${error} again=${reload}/>
    ${value?.error && html`<p class="warning">${clean(value.error)}</p>`}${value?.proposals.map((proposal) => html`<${Proposal} key=${proposal.digest} proposal=${proposal} reload=${reload}/>`)}
    ${value && (value.items.length ? html`<${Table} label="Policies" rows=${value.items} columns=${columns} id=${(r) => r.project} choose=${(r) => go(`policies/${encodeURIComponent(r.project)}`)}/>` : html`<${Empty}>There is no policy: nothing may leave.</${Empty}>`)}`;
}
