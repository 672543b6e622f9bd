// What waits for a person, first that for which a connection is held. Nothing is decided here by itself: no
// countdown, no default.
import { may } from "../lib/api.js";
import { batch, deny, guard, guarded } from "../lib/decide.js";
import { clean, place, span } from "../lib/format.js";
import { useList } from "../lib/list.js";
import { Ask, Badge, Empty, Filter, Head, Host, Trouble, say } from "../lib/parts.js";
import { param } from "../lib/router.js";
import { html, useEffect, useMemo, useRef, useSignal } from "../lib/ui.js";
import { Detail } from "./request.js";

const matches = (row, words) => {
  const text = `${row.project_id} ${row.agent_id} ${row.dest.host} ${row.job_id} ${row.reason}`.toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => (word.startsWith("-") && word.length > 1 ? !text.includes(word.slice(1)) : text.includes(word)));
};

/** The rows in an order that stands still while somebody works in the table: what is new waits in a bar. */
function useFrozen(rows, busy) {
  const shown = useSignal(/** @type {any[]} */ ([]));
  const inside = useSignal(false);
  const known = new Map(rows.map((row) => [row.id, row]));
  const had = new Set(shown.value.map((row) => row.id));
  const fresh = rows.filter((row) => !had.has(row.id));
  useEffect(() => {
    if (busy && !rows.length) return;
    const kept = shown.value.map((row) => known.get(row.id) ?? { ...row, gone: true });
    shown.value = inside.value ? kept : rows;
  }, [rows]);
  const thaw = () => { shown.value = rows; };
  return {
    shown: shown.value, fresh: inside.value ? fresh : [], thaw,
    focus: { onFocusIn: () => { inside.value = true; }, onFocusOut: (event) => {
      if (event.currentTarget.contains(event.relatedTarget)) return;
      inside.value = false;
      thaw();
    } },
  };
}

const Row = ({ row, chosen, ticked, pick, tick }) => html`
  <li class=${`request ${row.gone ? "gone" : ""}`} aria-current=${chosen ? "true" : undefined}>
    ${tick && html`<input type="checkbox" checked=${ticked} disabled=${row.gone || row.flags.length > 0} onChange=${tick}
      aria-label="Select ${place(row.dest.host, row.dest.port)} for ${row.project_id}" title=${row.flags.length ? "Look at this one by itself" : undefined}/>`}
    <button class="pick" data-id=${row.id} onClick=${pick}>
      <span class="line"><${Host} host=${row.dest.host} port=${row.dest.port}/>
        ${row.gone ? html`<${Badge}>decided or gone</${Badge}>` : row.waiting > 0 && html`<${Badge} kind="warn">${row.waiting} waiting</${Badge}>`}
        ${row.flags.length > 0 && html`<${Badge} kind="bad">look twice</${Badge}>`}</span>
      <span class="line soft"><span>${clean(row.project_id, 60)} / ${clean(row.agent_id || "any agent", 60)}</span>
        <span class="num">${span((Date.now() - row.first_ms) / 1000)} · ${row.tries} ${row.tries === 1 ? "try" : "tries"}</span></span>
    </button></li>`;

function Batch({ rows, decision, close, done }) {
  const shortest = Math.min(...rows.map((row) => row.ttl_s));
  const act = async () => {
    const { items } = await batch(rows, decision, decision === "approve" ? shortest : undefined);
    guard();
    const skipped = items.filter((item) => !item.done);
    say(`${items.length - skipped.length} ${decision === "approve" ? "approved" : "denied"}${skipped.length ? `, ${skipped.length} left: ${skipped[0].detail}` : ""}.`);
    done();
  };
  return html`<${Ask} title=${`${decision === "approve" ? "Approve" : "Deny"} ${rows.length} requests?`} verb=${decision === "approve" ? "Approve all" : "Deny all"}
      danger=${decision !== "approve"} act=${act} close=${close}>
    ${decision === "approve" && html`<p>Each job may send anything it can read to its host, for ${span(shortest)} from now.</p>`}
    <ul class="plain">${rows.map((row) => html`<li><${Host} host=${row.dest.host} port=${row.dest.port}/> <span class="soft">for ${clean(row.project_id)}</span></li>`)}</ul></${Ask}>`;
}

const Keys = () => html`<p class="keys"><kbd>j</kbd><kbd>k</kbd> move <kbd>a</kbd> approve <kbd>d</kbd> deny <kbd>x</kbd> select <kbd>/</kbd> search</p>`;

export default function Inbox() {
  const list = useList("/requests?state=pending&limit=200", ["requests"]);
  const sorted = useMemo(() => [...list.items].sort((a, b) => Number(b.waiting > 0) - Number(a.waiting > 0) || a.first_ms - b.first_ms), [list.value]);
  const { shown, fresh, thaw, focus } = useFrozen(sorted, list.busy);
  const chosen = useSignal("");
  const ticked = useSignal(new Set());
  const asking = useSignal(/** @type {any} */ (null));
  const form = useRef(null);
  const decides = may("requests.decide");
  const rows = shown.filter((row) => matches(row, param("q")) && (!param("project") || row.project_id === param("project")));
  const row = rows.find((each) => each.id === chosen.value) ?? rows.find((each) => !each.gone) ?? rows[0];
  const at = rows.indexOf(row);
  const marked = rows.filter((each) => ticked.value.has(each.id) && !each.gone && !each.flags.length);

  const move = (step) => {
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + step))];
    if (!next) return;
    chosen.value = next.id;
    /** @type {any} */ (document.querySelector(`[data-id="${CSS.escape(next.id)}"]`))?.focus();
  };
  const tick = (id) => {
    const next = new Set(ticked.value);
    next.delete(id) || next.add(id);
    ticked.value = next;
  };
  const decided = (text, undo) => {
    guard();
    chosen.value = (rows[at + 1] ?? rows[at - 1])?.id ?? "";
    say(text, undo);
    list.reload();
  };
  const refuse = async () => {
    if (guarded.value) return;
    guard();
    try {
      await deny(row);
      decided(`Denied ${place(row.dest.host, row.dest.port)}.`);
    } catch (error) {
      say(error.message);
      list.reload();
    }
  };
  const key = (event) => {
    const typing = event.target.closest?.("input:not([type=checkbox]):not([type=radio]),textarea,select,dialog");
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing || document.querySelector("dialog[open]")) return;
    const acts = {
      j: () => move(1), k: () => move(-1), n: thaw, x: () => row && !row.flags.length && decides && tick(row.id),
      "/": () => /** @type {any} */ (document.querySelector("[data-filter=q]"))?.focus(),
      a: () => decides && row && !row.gone && !guarded.value && form.current?.requestSubmit(),
      d: () => decides && row && !row.gone && refuse(),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  };
  useEffect(() => { addEventListener("keydown", key); return () => removeEventListener("keydown", key); });

  return html`<${Head} title="Approvals" lead="Who asks, for what, and what a yes would let out. The clock of a lease starts when you approve.">
      <${Filter} name="q" label="Search" placeholder="words, -not"/></${Head}>
    <${Trouble} error=${list.error} again=${list.reload}/>
    ${!shown.length && !list.busy && !list.error ? html`<${Empty}>Nothing waits. Requests appear here as jobs make them.</${Empty}>` : html`
    <div class="inbox">
      <section aria-label="Requests" ...${focus}>
        ${fresh.length > 0 && html`<button class="fresh" onClick=${thaw}>${fresh.length} new: show <kbd aria-hidden="true">n</kbd></button>`}
        ${marked.length > 0 && html`<div class="batch"><span>${marked.length} selected</span>
          <button class="main" onClick=${() => { asking.value = "approve"; }}>Approve</button><button onClick=${() => { asking.value = "deny"; }}>Deny</button></div>`}
        <ul class="requests">${rows.map((each) => html`<${Row} key=${each.id} row=${each} chosen=${each === row} ticked=${ticked.value.has(each.id)}
          pick=${() => { chosen.value = each.id; }} tick=${decides && (() => tick(each.id))}/>`)}</ul>
        ${decides && html`<${Keys}/>`}
      </section>
      ${row && html`<${Detail} key=${row.id} row=${row} form=${form} refuse=${refuse} decided=${decided} decides=${decides}/>`}
    </div>`}
    ${asking.value && html`<${Batch} rows=${marked} decision=${asking.value} close=${() => { asking.value = null; }} done=${() => { ticked.value = new Set(); list.reload(); }}/>`}`;
}
