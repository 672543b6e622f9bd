// What passes and what is refused, as it happens.
import { get, may, post } from "../lib/api.js";
import { on } from "../lib/events.js";
import { bytes, clean, clock, count } from "../lib/format.js";
import { Ask, Empty, Filter, Head, Host, State, Trouble } from "../lib/parts.js";
import { param, setParams } from "../lib/router.js";
import { MOST, Ring, matcher } from "../lib/ring.js";
import { html, useEffect, useRef, useSignal } from "../lib/ui.js";

const SHOWN = 200;
const KEPT = "flows-filters";
const STATES = [["", "All"], ["live", "Live"], ["waiting", "Waiting"], ["denied", "Denied"], ["closed", "Closed"]];

/** Filters that were set last time, unless the address has its own. */
function useKept() {
  const q = param("q"), state = param("state");
  useEffect(() => {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    if (!q && !state && (kept.q || kept.state)) setParams(kept);
  }, []);
  useEffect(() => { localStorage.setItem(KEPT, JSON.stringify({ q, state })); }, [q, state]);
  return { q, state };
}

/** A ring that fills, and a number that changes at most once a frame. */
function useRing() {
  const ring = useRef(/** @type {Ring} */ (null));
  const drawn = useSignal(0);
  const error = useSignal(/** @type {any} */ (null));
  const paused = useSignal(false);
  const frame = useRef(0);
  ring.current ??= new Ring();
  const draw = () => { frame.current ||= requestAnimationFrame(() => { frame.current = 0; if (!paused.peek()) drawn.value += 1; }); };
  useEffect(() => {
    const leaving = new AbortController();
    const load = () => get("/flows?limit=2000", { signal: leaving.signal }).then(
      ({ items }) => { error.value = null; ring.current.reset(items); draw(); },
      (problem) => { if (!leaving.signal.aborted) error.value = problem; },
    );
    load();
    const off = on(["flows"], (topic, data) => {
      if (topic === "reset") load();
      else { ring.current.add(data); draw(); }
    });
    return () => { off(); leaving.abort(); cancelAnimationFrame(frame.current); };
  }, []);
  return { ring: ring.current, drawn: drawn.value, error: error.value, paused, draw };
}

const drawnRows = new WeakMap(); // a row that did not change is not made again

/** HOST:PORT as its two parts, so that a line never breaks within the port. */
const parted = (dest) => { const [, host, port] = /^\[?(.*?)\]?(?::(\d+))?$/.exec(dest); return { host, port }; };

export default function Flows() {
  const { q, state } = useKept();
  const { ring, error, paused, draw } = useRing();
  const cutting = useSignal(/** @type {any} */ (null));
  const words = matcher(q);
  const { found, total } = ring.newest((row) => (!state || row.state === state || (state === "closed" && row.state === "ended")) && words(row), SHOWN);
  const cuts = may("flows.cut");
  const line = ([key, row]) => {
    let made = drawnRows.get(row);
    if (!made) drawnRows.set(row, made = html`<tr key=${key} class=${row.state === "closed" || row.state === "ended" ? "off" : ""}>
      <td class="num">${clock(row.at)}</td><td><${State} value=${row.state}/></td><td class="grow"><${Host} ...${parted(row.dest)}/></td>
      <td>${clean(row.project, 60)}</td><td class="wide">${clean(row.job, 60)}</td><td class="num">${bytes(row.bytes_out)}</td><td class="num wide">${bytes(row.bytes_in)}</td>
      <td class="wide"><code>${clean(row.reason, 80)}</code></td>
      ${cuts && html`<td>${(row.state === "live" || row.state === "waiting") && html`<button class="small" onClick=${() => { cutting.value = row; }}>Cut</button>`}</td>`}</tr>`);
    return made;
  };
  return html`<${Head} title="Live flows" lead="What passes and what is refused, newest first. All of it, for good, is in the ledger.">
      <${Filter} name="q" label="Filter" placeholder="words, -not, project:lab"/><${Filter} name="state" label="State" choices=${STATES}/>
      <button aria-pressed=${paused.value} onClick=${() => { paused.value = !paused.value; draw(); }}>${paused.value ? "Go on" : "Pause"}</button></${Head}>
    <${Trouble} error=${error}/>
    <p class="soft" role="status">${found.length < total ? `${SHOWN} of ` : ""}${count(total)} ${q || state ? "match" : "flows"}; the last ${count(MOST)} are kept here.${ring.lost > 0 ? ` ${count(ring.lost)} came too quickly to be shown.` : ""}${paused.value ? " Paused." : ""}</p>
    ${found.length ? html`<div class="scroll" role="region" aria-label="Flows" tabindex="0"><table><thead><tr>
      <th scope="col" class="num">Time</th><th scope="col">State</th><th scope="col" class="grow">To</th><th scope="col">Project</th><th scope="col" class="wide">Job</th>
      <th scope="col" class="num">Out</th><th scope="col" class="num wide">In</th><th scope="col" class="wide">Why</th>${cuts && html`<th scope="col"><span class="hidden">Actions</span></th>`}</tr></thead>
      <tbody>${found.map(line)}</tbody></table></div>` : html`<${Empty}>${q || state ? "No flow matches." : "Nothing passes."}</${Empty}>`}
    ${cutting.value && html`<${Ask} title="Cut this flow?" verb="Cut" danger close=${() => { cutting.value = null; }}
      act=${({ reason }) => post(`/flows/${encodeURIComponent(cutting.value.flow)}/cut`, { reason })}>
      <p><span class="host">${clean(cutting.value.dest, 300)}</span> of ${clean(cutting.value.project)} ends at once. Its job may connect again.</p>
      <label class="field"><span>Reason, kept in the ledger</span><input name="reason" required maxlength="500"/></label></${Ask}>`}`;
}
