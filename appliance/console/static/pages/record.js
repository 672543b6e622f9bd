// One record, and the proof that it stands in the ledger.
import { get } from "../lib/api.js";
import { clean, clock, count } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Facts, Trouble } from "../lib/parts.js";
import { pin, pinned, verify } from "../lib/proof.js";
import { html, useSignal } from "../lib/ui.js";

const shown = (value) => (typeof value === "object" && value !== null ? Object.entries(value).filter(([, v]) => v !== "" && v !== null).map(([k, v]) => `${k} ${v}`).join(", ") : String(value));

const fact = ([name, value]) => (name === "t_real_ns" ? ["time", `${clock(value / 1e6)} (${value} ns)`] : [name.replaceAll("_", " "), html`<span class="mono">${clean(shown(value), 400)}</span>`]);

const LATER_MS = 500, TIMES = 10;

/** The proof; a record that is younger than the last checkpoint is covered by the next, in a second or so. */
async function proofOf(seq) {
  for (let n = 1; ; n += 1) {
    try {
      return await get(`/ledger/entries/${seq}/proof`);
    } catch (error) {
      if (error.reason !== "ledger.not_covered" || n === TIMES) throw error;
      await new Promise((later) => { setTimeout(later, LATER_MS); });
    }
  }
}

/** Give the browser's user a file. */
function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const Holds = ({ found, first }) => html`<div class="note good" role="status"><strong>The proof holds.</strong> Your browser has hashed this record and followed ${found.steps} hashes to the root
  of ${count(found.size)} records, which the pinned key of <code>${clean(found.origin)}</code> has signed.
  ${first && html` The key was pinned just now, from this server: compare it once with <code>exeat ledger checkpoint --key</code> on the node.`}</div>`;

function Key({ offered, changed }) {
  const error = useSignal(/** @type {any} */ (null));
  const mine = pinned();
  const set = async (event) => {
    event.preventDefault();
    try {
      await pin(new FormData(event.target).get("vkey"));
      error.value = null;
      changed();
    } catch (problem) {
      error.value = problem;
    }
  };
  return html`<details><summary>The pinned key</summary>
    ${mine && offered && mine !== offered && html`<p class="warning">This server gives another key than the pinned one. After a change of keys that is right (<code>exeat keys</code>); otherwise it is not.</p>`}
    <form onSubmit=${set}><label class="field"><span>As <code>exeat ledger checkpoint --key</code> prints it</span><input name="vkey" class="mono" defaultValue=${mine} required spellcheck=${false}/></label>
      <${Trouble} error=${error.value}/><div class="buttons"><button>Pin this key</button></div></form></details>`;
}

/** @param {{seq: number, back: string}} props back: the filters of the list, as a query */
export function Record({ seq, back }) {
  const { value, error } = useFetched(`/ledger/entries/${seq}`);
  const state = useSignal({ found: /** @type {any} */ (null), error: /** @type {any} */ (null), first: false, offered: "", busy: false });
  const check = async () => {
    state.value = { ...state.value, found: null, error: null, busy: true };
    try {
      const proof = await proofOf(seq);
      const first = !pinned();
      if (first) await pin(proof.vkey);
      const found = await verify(proof, seq, pinned()).catch((problem) => { state.value = { ...state.value, offered: proof.vkey }; throw problem; });
      if (value && proof.raw !== value.raw) throw new Error("the proof is about other bytes than those shown here");
      state.value = { found, error: null, first, offered: proof.vkey, busy: false };
    } catch (problem) {
      state.value = { ...state.value, error: problem, busy: false };
    }
  };
  const download = async () => save(`exeat-proof-${seq}.json`, JSON.stringify(await proofOf(seq), null, 1));
  return html`<section class="panel" aria-label="Record ${seq}"><h2>Record ${seq}${value && html` <span class="soft">${value.kind}</span>`}</h2>
    <${Trouble} error=${error}/>
    ${value && html`<${Facts} lines of=${Object.entries(value.fields).map(fact)}/>
      <details><summary>The bytes, as the tree has them</summary><pre tabindex="0">${value.raw}</pre></details>
      ${state.value.found && html`<${Holds} found=${state.value.found} first=${state.value.first}/>`}
      <${Trouble} error=${state.value.error}/>
      <${Key} offered=${state.value.offered} changed=${check}/>
      <div class="buttons"><a href="#/ledger${back}">Close</a><button onClick=${download}>Download the proof</button><button class="main" disabled=${state.value.busy} onClick=${check}>Verify in this browser</button></div>`}</section>`;
}
