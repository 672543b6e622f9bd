// The frame around the pages: who is signed in, where to go, what is live, and the kill switch.
import { call, get, may, openSession, session } from "./lib/api.js";
import { live, on, startEvents, stopEvents } from "./lib/events.js";
import { clean } from "./lib/format.js";
import { useFetched } from "./lib/list.js";
import { Badge, Notes, Trouble } from "./lib/parts.js";
import { route } from "./lib/router.js";
import { effect, html, render, signal, useEffect, useState } from "./lib/ui.js";

// [path, title, module, permission to see it]
const GROUPS = [
  ["Decide", [["inbox", "Approvals", "inbox", "requests.read"], ["leases", "Leases", "leases", "leases.read"], ["kill", "Kill switch", "kill", "kill.read"]]],
  ["Watch", [["overview", "Overview", "overview", "charts.read"], ["flows", "Live flows", "flows", "flows.read"], ["dns", "DNS log", "dns", "dns.read"], ["jobs", "Jobs", "jobs", "jobs.read"], ["nodes", "Nodes", "nodes", "nodes.read"], ["devices", "Devices", "devices", "devices.read"]]],
  ["Prove", [["ledger", "Ledger", "ledger", "ledger.read"], ["reviews", "Daily review", "reviews", "reviews.read"], ["audit", "Audit", "audit", "audit.read"]]],
  ["Set up", [["policies", "Policies", "policies", "policies.read"], ["posture", "Posture", "posture", "policies.read"]]],
];
const OWN = ["passkeys", "Passkeys", "passkeys", "passkeys"]; // behind one's name
const PAGES = new Map([...GROUPS.flatMap(([, pages]) => pages), OWN].map((page) => [page[0], page]));

const theme = signal(localStorage.getItem("theme") ?? "");
effect(() => {
  document.documentElement.dataset.theme = theme.value;
  theme.value ? localStorage.setItem("theme", theme.value) : localStorage.removeItem("theme");
});

/** Loads the module of a page when it is first gone to. */
function Page({ path }) {
  const [found, setFound] = useState({ path: "", Body: null, error: null });
  const page = PAGES.get(path);
  useEffect(() => {
    document.title = `${page?.[1] ?? "Not found"} · exeat`;
    if (!page) return;
    import(`./pages/${page[2]}.js`).then(
      (module) => setFound({ path, Body: module.default, error: null }),
      () => setFound({ path, Body: null, error: new Error("This page did not load. The console may have been updated: reload it.") }),
    );
  }, [path]);
  if (!page) return html`<h1>There is no such page</h1><p><a href="#/inbox">To the approvals</a></p>`;
  if (found.path !== path) return html`<p class="empty" aria-busy="true">Loading…</p>`;
  return found.error ? html`<${Trouble} error=${found.error} again=${() => location.reload()}/>` : html`<${found.Body}/>`;
}

const pending = signal(0);
/** How many wait, in the navigation and in the title of the tab. */
function usePending() {
  const { value } = useFetched("/requests?state=pending&limit=200", ["requests"]);
  useEffect(() => { pending.value = value?.items.length ?? 0; }, [value]);
}

function Navigation({ open }) {
  usePending();
  const here = route.value.page;
  return html`<nav aria-label="Pages" class=${open ? "open" : ""} id="nav">
    ${GROUPS.map(([name, pages]) => {
      const seen = pages.filter(([, , , permission]) => may(permission));
      return seen.length > 0 && html`<section><h2>${name}</h2><ul>${seen.map(([path, title]) => html`<li>
        <a href="#/${path}" aria-current=${path === here ? "page" : undefined}>${title}
          ${path === "inbox" && pending.value > 0 && html`<b class="count" aria-label="${pending.value} waiting">${pending.value}</b>`}</a></li>`)}</ul></section>`;
    })}</nav>`;
}

const Killed = ({ status }) => status?.killed.length > 0 && html`<a class="killed" href="#/kill">Stopped: ${status.killed.map((k) => k.project ?? "everything").join(", ")}</a>`;

function Frame() {
  const [open, setOpen] = useState(false);
  const { value: status } = useFetched("/status", ["admin", "alerts"]);
  const { page } = route.value;
  useEffect(() => { setOpen(false); window.scrollTo(0, 0); }, [page]);
  const leave = async () => { await call("DELETE", "/session").catch(() => {}); session.value = null; };
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("main h1")?.focus(); }}>To the content</a>
    <header class="bar">
      <button class="menu" aria-expanded=${open} aria-controls="nav" onClick=${() => setOpen(!open)}><span class="hidden">Pages</span>☰</button>
      <a class="name" href="#/inbox">exeat</a><span class="node">${clean(status?.node ?? "", 60)}</span>
      <${Killed} status=${status}/>
      ${status && !status.whole && html`<a class="killed" href="#/nodes">Not whole</a>`}
      <span class="gap"></span>
      <span class="live ${live.value ? "on" : ""}" role="status">${live.value ? "live" : "not live"}</span>
      <a class="who" href="#/passkeys" title="Your passkeys">${clean(session.value.name, 40)} <${Badge}>${session.value.role}</${Badge}></a>
      <label class="theme"><span class="hidden">Colours</span><select value=${theme.value} onChange=${(e) => { theme.value = e.target.value; }}>
        <option value="">Auto</option><option value="light">Light</option><option value="dark">Dark</option></select></label>
      <button class="quiet" onClick=${leave}>Sign out</button>
    </header>
    <div class="body"><${Navigation} open=${open}/><main id="main"><${Page} key=${page} path=${page}/></main></div><${Notes}/>`;
}

function App() {
  const [SignIn, setSignIn] = useState(null);
  const state = session.value === undefined ? "asking" : session.value ? "in" : "out";
  useEffect(() => {
    if (state === "in") startEvents();
    else stopEvents();
    if (state === "out") import("./pages/signin.js").then((module) => setSignIn(() => module.default));
  }, [state]);
  if (state === "in") return html`<${Frame}/>`;
  return state === "out" && SignIn ? html`<${SignIn}/>` : html`<p class="empty" aria-busy="true">Loading…</p>`;
}

on(["admin"], () => { if (session.value) get("/session").catch(() => {}); });
effect(() => { document.title = document.title.replace(/^(\(\d+\) )?/, pending.value ? `(${pending.value}) ` : ""); });
render(html`<${App}/>`, document.getElementById("app"));
openSession().catch((error) => { render(html`<${Trouble} error=${error} again=${() => location.reload()}/>`, document.getElementById("app")); });
