// A list of the server's, kept up to date by events.
import { get } from "./api.js";
import { on } from "./events.js";
import { useEffect, useSignal } from "./ui.js";

const TOGETHER_MS = 120; // events that come together cause one request

// Two parts of a page that show the same ask once, when they appear; later each asks anew, because an answer
// that was under way may be older than what just happened.
const asked = new Map();

function once(path) {
  if (!asked.has(path)) asked.set(path, get(path).finally(() => asked.delete(path)));
  return asked.get(path);
}

/**
 * @param {string|null} path null: nothing to ask for yet
 * @param {string[]} [topics] an event of these means: ask again
 */
export function useFetched(path, topics = []) {
  const state = useSignal({ value: /** @type {any} */ (null), error: /** @type {Error|null} */ (null), busy: true });
  const again = useSignal(0);
  useEffect(() => {
    if (path === null) return undefined;
    let timer = 0, running = false, wanted = false, gone = false;
    let ask = again.peek() ? get : once;
    const load = async () => {
      timer = 0;
      if (running) { wanted = true; return; }
      running = true;
      const next = await ask(path).then((value) => ({ value, error: null }), (error) => ({ value: state.peek().value, error }));
      if (gone) return;
      ask = get;
      state.value = { ...next, busy: false };
      running = false;
      if (wanted) { wanted = false; soon(); }
    };
    const soon = () => { timer ||= setTimeout(load, TOGETHER_MS); };
    load();
    const off = on(topics, soon);
    return () => { gone = true; off(); clearTimeout(timer); };
  }, [path, again.value]);
  return { ...state.value, reload: () => { again.value += 1; } };
}

/** As useFetched, for `{items, next}`; `more` asks for the next page and adds it. */
export function useList(path, topics = []) {
  const first = useFetched(path, topics);
  const extra = useSignal({ of: "", items: [], next: null });
  const mine = extra.value.of === path ? extra.value : { of: path, items: [], next: null };
  const next = mine.items.length ? mine.next : first.value?.next ?? null;
  const more = async () => {
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(next)}`);
    extra.value = { of: path, items: [...mine.items, ...page.items], next: page.next };
  };
  return { ...first, items: [...(first.value?.items ?? []), ...mine.items], next, more };
}
