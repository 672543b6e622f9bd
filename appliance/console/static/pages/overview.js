// How much left, over time and to where.
import { query } from "../lib/api.js";
import { COLOURS, Lines } from "../lib/chart.js";
import { bytes, clean, count } from "../lib/format.js";
import { useFetched } from "../lib/list.js";
import { Empty, Filter, Head, Table, Trouble } from "../lib/parts.js";
import { param } from "../lib/router.js";
import { html, useMemo } from "../lib/ui.js";

const SPANS = [["", "Last day"], ["1", "Last hour"], ["168", "Last week"], ["720", "Last 30 days"]];
const MOST = 12; // of places in the map

function Egress({ chart, by }) {
  const series = useMemo(() => chart.series.map((line) => ({ key: line.other ? "others" : clean(line.key, 60), values: line.bytes_out })), [chart]);
  const label = by === "project" ? "Sent, by project" : "Sent, by host";
  return html`<section class="panel"><h2>${label}</h2>${series.length ? html`<${Lines} label=${label} times=${chart.times} series=${series}/>` : html`<${Empty}>Nothing was sent.</${Empty}>`}</section>`;
}

/** Places down one side, each as high as what it sent or got; the smallest can still be seen. */
function column(names, sums, height) {
  const gap = 6, least = 14, total = names.reduce((sum, name) => sum + sums.get(name), 0) || 1;
  const room = height - gap * (names.length - 1) - least * names.length;
  let y = 0;
  return new Map(names.map((name) => {
    const h = least + (room * sums.get(name)) / total, place = { y, h, used: 0 };
    y += h + gap;
    return [name, place];
  }));
}

function sumBy(edges, key) {
  const sums = new Map();
  for (const edge of edges) sums.set(edge[key], (sums.get(edge[key]) ?? 0) + edge.bytes_out);
  return sums;
}

/** Who sent how much where: bands from projects to hosts, as broad as the bytes. */
function EgressMap({ edges, projects }) {
  const hosts = sumBy(edges, "host");
  const top = new Set([...hosts].sort((a, b) => b[1] - a[1]).slice(0, MOST).map(([host]) => host));
  const shown = edges.filter((edge) => edge.bytes_out > 0).map((edge) => (top.has(edge.host) ? edge : { ...edge, host: "others" }));
  if (!shown.length) return html`<${Empty}>Nothing was sent.</${Empty}>`;
  const from = sumBy(shown, "project"), to = sumBy(shown, "host");
  const height = Math.max(160, 34 * Math.max(from.size, to.size)), L = 150, R = 440, width = 720;
  // Hosts stand beside the project that sent them most, so that few bands cross.
  const order = [...projects.filter((name) => from.has(name)), ...[...from.keys()].filter((name) => !projects.includes(name))];
  const colour = (project) => COLOURS[Math.max(0, projects.indexOf(project)) % COLOURS.length]; // as in the chart
  const chief = (host) => order.indexOf(shown.find((edge) => edge.host === host).project);
  const left = column(order, from, height), right = column([...to.keys()].sort((a, b) => chief(a) - chief(b)), to, height);
  const bands = shown.map((edge, i) => {
    const a = left.get(edge.project), b = right.get(edge.host);
    const ah = (a.h * edge.bytes_out) / from.get(edge.project), bh = (b.h * edge.bytes_out) / to.get(edge.host);
    const y1 = a.y + a.used, y2 = b.y + b.used, m = (L + R) / 2;
    a.used += ah;
    b.used += bh;
    const path = `M${L} ${y1}C${m} ${y1} ${m} ${y2} ${R} ${y2}V${y2 + bh}C${m} ${y2 + bh} ${m} ${y1 + ah} ${L} ${y1 + ah}Z`;
    return html`<path key=${i} d=${path} fill=${colour(edge.project)} fill-opacity=".38"/>`;
  });
  const label = `Egress map: ${shown.slice(0, 6).map((edge) => `${edge.project} to ${edge.host} ${bytes(edge.bytes_out)}`).join(", ")}`;
  return html`<svg class="map" role="img" aria-label=${label} viewBox="0 0 ${width} ${height}" width="100%">${bands}
    ${[...left].map(([name, { y, h }]) => html`<g key=${`p${name}`}><rect x=${L - 5} y=${y} width="5" height=${h} rx="2" fill=${colour(name)}/><text x=${L - 12} y=${y + h / 2 + 4} text-anchor="end">${clean(name, 18)}</text></g>`)}
    ${[...right].map(([name, { y, h }]) => html`<g key=${`h${name}`}><rect x=${R} y=${y} width="5" height=${h} rx="2" fill="#8a949b"/><text x=${R + 12} y=${y + h / 2 + 4}>${clean(name, 26)} · ${bytes(to.get(name))}</text></g>`)}</svg>`;
}

const Edges = ({ edges }) => html`<details><summary>As a table</summary><${Table} label="Who sent how much where" rows=${edges.slice(0, 100)} id=${(e) => `${e.project} ${e.host}`} columns=${[
  { name: "Project", cell: (e) => clean(e.project, 60) }, { name: "Host", grow: true, cell: (e) => html`<span class="host">${clean(e.host, 260)}</span>` },
  { name: "Out", num: true, cell: (e) => bytes(e.bytes_out) }, { name: "In", num: true, wide: true, cell: (e) => bytes(e.bytes_in) }, { name: "Flows", num: true, cell: (e) => count(e.flows) }]}/></details>`;

const Figure = ({ name, value, href }) => html`<a class="panel figure" href=${href}><b>${value}</b><span class="soft">${name}</span></a>`;

export default function Overview() {
  const hours = Number(param("hours") || 24);
  const since = useMemo(() => Date.now() - hours * 3_600_000, [hours]);
  const { value: status, error } = useFetched("/status", ["leases", "requests", "jobs"]);
  const projects = useFetched(`/charts/egress${query({ by: "project", since })}`);
  const hosts = useFetched(`/charts/egress${query({ by: "host", since })}`);
  const edges = projects.value?.edges ?? [];
  return html`<${Head} title="Overview" lead="How much left, over time and to where. Flows count when they end."><${Filter} name="hours" label="Span" choices=${SPANS}/></${Head}>
    <${Trouble} error=${error ?? projects.error ?? hosts.error} again=${projects.reload}/>
    ${status && html`<div class="figures"><${Figure} name="requests wait" value=${count(status.leases.requested ?? 0)} href="#/inbox"/><${Figure} name="leases active" value=${count(status.leases.active ?? 0)} href="#/leases"/>
      <${Figure} name="jobs run" value=${count(status.jobs)} href="#/jobs"/><${Figure} name="sent" value=${bytes(edges.reduce((sum, e) => sum + e.bytes_out, 0))} href="#/ledger"/>
      <${Figure} name="hosts" value=${count(new Set(edges.map((e) => e.host)).size)} href="#/ledger"/></div>`}
    ${projects.value && html`<div class="columns"><${Egress} chart=${projects.value} by="project"/>${hosts.value && html`<${Egress} chart=${hosts.value} by="host"/>`}</div>
      <section class="panel"><h2>Where it went</h2><${EgressMap} edges=${edges} projects=${projects.value.series.map((line) => line.key)}/><${Edges} edges=${edges}/></section>`}`;
}
