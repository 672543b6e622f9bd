// One stream of events for all tabs of a browser: HTTP/1.1 gives six connections to a server, and a stream
// per tab would leave the seventh without an answer. One tab holds the lock and the stream and passes on
// what comes; when it closes, the next one takes over.
import { signal } from "./ui.js";

const URL = "/api/v1/events?topics=requests,leases,flows,dns,jobs,policy,admin,alerts";
const TOPICS = ["requests", "leases", "flows", "dns", "jobs", "policy", "admin", "alerts"];
const SILENT_MS = 45_000; // the server writes something every 15 s

/** Is what is on the screen being kept up to date? */
export const live = signal(false);

const listeners = new Set();
/** @param {string[]} topics @param {(topic: string, data: any) => void} listener `topic` is "reset" when events may have been missed */
export function on(topics, listener) {
  const entry = { topics: new Set([...topics, "reset"]), listener };
  listeners.add(entry);
  return () => listeners.delete(entry);
}

function tell({ topic, data }) {
  if (topic === "live") live.value = data;
  else for (const entry of [...listeners]) if (entry.topics.has(topic)) entry.listener(topic, data);
}

let stop = null;

export function startEvents() {
  if (stop) return;
  const channel = new BroadcastChannel("exeat-events");
  const leaving = new AbortController();
  let leading = false;
  const spread = (message) => { tell(message); channel.postMessage(message); };
  channel.onmessage = ({ data }) => {
    if (data.topic !== "hello") tell(data);
    else if (leading) channel.postMessage({ topic: "live", data: live.value });
  };
  channel.postMessage({ topic: "hello" });
  navigator.locks
    .request("exeat-events", { signal: leaving.signal }, () => {
      leading = true;
      return stream(spread, leaving.signal);
    })
    .catch((error) => { if (error.name !== "AbortError") throw error; });
  stop = () => { leaving.abort(); channel.close(); live.value = false; stop = null; };
}

export const stopEvents = () => stop?.();

/** Holds a stream until `leaving`; EventSource reconnects by itself, and asks for what it missed. */
function stream(spread, leaving) {
  return new Promise((done) => {
    let source, heard, last = "";
    const open = () => {
      source?.close();
      heard = performance.now();
      source = new EventSource(last ? `${URL}&after=${encodeURIComponent(last)}` : URL);
      source.onopen = () => { heard = performance.now(); spread({ topic: "live", data: true }); spread({ topic: "reset" }); };
      source.onerror = () => spread({ topic: "live", data: false });
      source.addEventListener("ping", () => { heard = performance.now(); });
      for (const topic of TOPICS)
        source.addEventListener(topic, (event) => {
          heard = performance.now();
          last = event.lastEventId;
          spread({ topic, data: JSON.parse(event.data) });
        });
    };
    const watch = setInterval(() => {
      if (source.readyState === EventSource.CLOSED || performance.now() - heard > SILENT_MS) open();
    }, 5_000);
    leaving.addEventListener("abort", () => { clearInterval(watch); source.close(); done(undefined); });
    open();
  });
}
