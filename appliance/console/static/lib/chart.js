// Lines over time, drawn by uPlot on a canvas, which no screen reader sees: the figures stand below as a table.
import { bytes, clock } from "./format.js";
import { Table } from "./parts.js";
import { html, useEffect, useRef } from "./ui.js";
import uPlot from "../vendor/uplot.js";

// Told apart also by those who see no red or green (Okabe and Ito); legible on both backgrounds.
export const COLOURS = ["#0f8b8d", "#c2571a", "#6f5bd0", "#b58900", "#2f7fc4", "#c0478b", "#5b8c2a", "#8a6d5a", "#64748b"];

function sheet() {
  if (document.querySelector("link[data-chart]")) return;
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("../vendor/uplot.css", import.meta.url).href });
  link.dataset.chart = "";
  document.head.append(link);
}

// A canvas knows no variables of the sheet: the text's colour is asked for each time it is drawn.
const ink = () => getComputedStyle(document.querySelector(".soft") ?? document.body).color;
const axis = (more) => ({ stroke: ink, grid: { stroke: "#8883", width: 1 }, ticks: { show: false }, font: "12px system-ui", ...more });

function options(width, series) {
  return {
    width, height: 240, legend: { show: false }, cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.08, 1000)] } },
    axes: [axis({ values: (_, ticks) => ticks.map((s) => clock(s * 1000, true)), space: 90, size: 34 }), axis({ values: (_, ticks) => ticks.map(bytes), size: 68 })],
    series: [{}, ...series.map((line, i) => ({ label: line.key, stroke: COLOURS[i % COLOURS.length], width: 1.75, fill: `${COLOURS[i % COLOURS.length]}1f`, points: { show: false } }))],
  };
}

/** @param {{label: string, times: number[], series: {key: string, values: number[]}[]}} props times in seconds */
export function Lines({ label, times, series }) {
  const place = useRef(null);
  useEffect(() => {
    sheet();
    const box = place.current;
    const plot = new uPlot(options(box.clientWidth, series), [times, ...series.map((line) => line.values)], box);
    const watch = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: 240 }));
    const redraw = () => plot.redraw();
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", redraw);
    watch.observe(box);
    return () => { watch.disconnect(); scheme.removeEventListener("change", redraw); plot.destroy(); };
  }, [times, series]);
  const sums = series.map((line) => ({ key: line.key, sum: line.values.reduce((a, b) => a + b, 0), most: Math.max(0, ...line.values) }));
  return html`<div class="chart" role="img" aria-label=${`${label}: ${sums.map((line) => `${line.key} ${bytes(line.sum)}`).join(", ")}`} ref=${place}></div>
    <p class="legend" aria-hidden="true">${series.map((line, i) => html`<span key=${line.key}><i style=${{ background: COLOURS[i % COLOURS.length] }}></i>${line.key}</span>`)}</p>
    <details><summary>As a table</summary><${Table} label=${label} rows=${sums} id=${(row) => row.key} columns=${[
      { name: "", cell: (row) => row.key, grow: true }, { name: "In all", num: true, cell: (row) => bytes(row.sum) }, { name: "Most in one step", num: true, cell: (row) => bytes(row.most) }]}/></details>`;
}
