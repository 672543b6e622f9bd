// One's own passkeys: with one of them decisions are signed that let something out.
import { call } from "../lib/api.js";
import { clean, clock } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Ask, Empty, Head, Table, Time, Trouble, attempt } from "../lib/parts.js";
import { register } from "../lib/passkey.js";
import { html, useSignal } from "../lib/ui.js";

export default function Passkeys() {
  const { value, error, reload } = useFetched("/passkeys");
  const making = useSignal(false);
  const remove = (id) => attempt(async () => { await call("DELETE", `/passkeys/${encodeURIComponent(id)}`); reload(); }, "It decides nothing from now on.");
  const columns = [
    { name: "Name", grow: true, cell: (r) => clean(r.name || r.id, 60) }, { name: "Made", cell: (r) => html`<${Time} ms=${r.made_ms}/>` }, { name: "Used", wide: true, cell: (r) => clock(r.used_ms) },
    { name: "", cell: (r) => html`<button class="small" onClick=${() => remove(r.id)}>Remove</button>` },
  ];
  return html`<${Head} title="Your passkeys" lead=${value?.on === false ? "Decisions need no passkey on this node: [passkeys] is not set." : "What lets something out is decided with a passkey: your signature over exactly that decision, checked by control and not by this page."}>
      <button class="main" disabled=${!value?.on} onClick=${() => { making.value = true; }}>New passkey</button></${Head}>
    <${Trouble} error=${error} again=${reload}/>
    ${value && (value.items.length ? html`<${Table} label="Passkeys" rows=${value.items} columns=${columns} id=${(r) => r.id}/>` : html`<${Empty}>You have none.</${Empty}>`)}
    ${making.value && html`<${Ask} title="New passkey" verb="Make it" close=${() => { making.value = false; }} act=${async ({ code, name }) => { await register(code.trim(), name.trim()); reload(); }}>
      <label class="field"><span>Code, from <code>exeat passkey invite NAME</code> on the node</span><input name="code" required autocomplete="off" spellcheck=${false}/></label>
      <label class="field"><span>Name</span><input name="name" maxlength="100" placeholder="blue key"/></label></${Ask}>`}`;
}
