// The parts that pages are made of.
import { clean, clock, host, span } from "./format.js";
import { param, setParams } from "./router.js";
import { html, signal, useEffect, useRef, useState } from "./ui.js";

/** @param {{title: string, lead?: any, children?: any}} props children: what stands at the right of the title */
export const Head = ({ title, lead, children }) => html`
  <header class="head"><div><h1 tabindex="-1">${title}</h1>${lead && html`<p>${lead}</p>`}</div><div class="tools">${children}</div></header>`;

export const Badge = ({ kind = "", children }) => html`<span class="badge ${kind}">${children}</span>`;
export const Host = ({ host: name, port }) => html`<span class="host">${host(name)}<span class="soft">${port ? `:${port}` : ""}</span></span>`;

/** Text that somebody else wrote, marked as such. */
export const Quote = ({ from, text }) => html`
  <figure class="quote"><figcaption>${from}</figcaption><blockquote>${text ? clean(text) : html`<span class="soft">nothing</span>`}</blockquote></figure>`;

const KINDS = { allow: "ok", active: "ok", live: "ok", running: "ok", deny: "bad", denied: "bad", ask: "warn", waiting: "warn", pending: "warn" };
export const State = ({ value }) => html`<${Badge} kind=${KINDS[value] ?? ""}>${clean(value, 40)}</${Badge}>`;

/** The time of day; the span since then is its title. */
export const Time = ({ ms, short }) => ms
  ? html`<time dateTime=${new Date(ms).toISOString()} title=${`${span((Date.now() - ms) / 1000)} ago`}>${clock(ms, short)}</time>` : "–";

/** What went wrong, and a way to try again. */
export const Trouble = ({ error, again }) => error && html`
  <div class="trouble" role="alert"><strong>${clean(error.message)}</strong>
    ${error.reason && html`<code>${clean(error.reason, 80)}</code>`}${error.body?.next && html`<span>${clean(error.body.next)}</span>`}
    ${again && html`<button onClick=${again}>Try again</button>`}</div>`;

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

/** Facts side by side, or one on each line; those without a value are left out. @param {{of: [string, any][], lines?: boolean}} props */
export const Facts = ({ of, lines }) => html`<dl class=${lines ? "lines" : "facts"}>${of.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;

/**
 * @param {{label: string, columns: {name: string, cell: (row: any) => any, num?: boolean, wide?: boolean, grow?: boolean}[], rows: any[],
 *   id: (row: any) => string, chosen?: string, choose?: (row: any) => void, mark?: (row: any) => string}} props
 *   `wide`: left out on a narrow screen
 */
export function Table({ label, columns, rows, id, chosen, choose, mark }) {
  const kind = (column) => [column.num && "num", column.wide && "wide", column.grow && "grow"].filter(Boolean).join(" ");
  return html`<div class="scroll" role="region" aria-label=${label} tabindex="0"><table>
    <thead><tr>${columns.map((c) => html`<th scope="col" class=${kind(c)}>${c.name || html`<span class="hidden">Actions</span>`}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${id(row)} class=${mark?.(row) ?? ""} aria-current=${choose && id(row) === chosen ? "true" : undefined}
        onClick=${choose && ((event) => { if (!event.target.closest("button,a,input")) choose(row); })}>
      ${columns.map((c) => html`<td class=${kind(c)}>${c.cell(row)}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** The end of a list that has more. */
export function More({ list }) {
  const [busy, setBusy] = useState(false);
  if (!list.next) return null;
  return html`<p class="more"><button disabled=${busy} onClick=${() => { setBusy(true); list.more().finally(() => setBusy(false)); }}>More</button></p>`;
}

/** A list as a table, or what is to be said instead. */
export const Listing = ({ list, empty, ...table }) => html`
  <${Trouble} error=${list.error} again=${list.reload}/>
  ${list.items.length ? html`<${Table} rows=${list.items} ...${table}/><${More} list=${list}/>`
    : list.busy ? html`<p class="empty" aria-busy="true">Loading…</p>` : !list.error && html`<${Empty}>${empty}</${Empty}>`}`;

/** A filter whose value stays in the address. @param {{name: string, label: string, choices?: [string, string][]}} props */
export function Filter({ name, label, choices, type = "search", placeholder }) {
  const value = param(name);
  const change = (event) => setParams({ [name]: event.target.value.trim() });
  return html`<label class="field"><span>${label}</span>${choices
    ? html`<select value=${value} onChange=${change}>${choices.map(([key, text]) => html`<option value=${key}>${text}</option>`)}</select>`
    : html`<input type=${type} value=${value} onInput=${change} placeholder=${placeholder} spellcheck=${false} autocomplete="off" data-filter=${name}/>`}</label>`;
}

/** A modal question. @param {{title: string, close: () => void, children: any}} props */
export function Dialog({ title, close, children }) {
  const box = useRef(null);
  useEffect(() => { box.current.showModal(); }, []);
  return html`<dialog ref=${box} onClose=${close} aria-label=${title}><h2>${title}</h2>${children}</dialog>`;
}

/** A dialog with a form: `act` gets its fields, closes it when it succeeds, and shows what went wrong. */
export function Ask({ title, verb, danger, close, act, children }) {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await act(Object.fromEntries(new FormData(event.target)));
      close();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} close=${close}><form onSubmit=${submit}>${children}<${Trouble} error=${error}/>
    <div class="buttons"><button type="button" onClick=${close}>Cancel</button>
    <button class=${danger ? "danger" : "main"} disabled=${busy}>${verb}</button></div></form></${Dialog}>`;
}

const notes = signal([]);
let numbers = 0;
/** Say that something was done. @param {string} text @param {{label: string, act: () => void}} [undo] */
export function say(text, undo) {
  const note = { id: (numbers += 1), text, undo };
  notes.value = [...notes.value.slice(-2), note];
  setTimeout(() => { notes.value = notes.value.filter((n) => n !== note); }, undo ? 12_000 : 6_000);
}
export const Notes = () => html`<div class="notes" role="status">${notes.value.map((note) => html`<div key=${note.id}>${note.text}
  ${note.undo && html`<button onClick=${() => { notes.value = notes.value.filter((n) => n !== note); note.undo.act(); }}>${note.undo.label}</button>`}</div>`)}</div>`;

/** Run `act`; say so when it worked, and what was wrong when not. */
export async function attempt(act, done) {
  try {
    await act();
    if (done) say(done);
  } catch (error) {
    say(error.message);
  }
}
