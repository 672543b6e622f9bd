// Where we are is in the fragment: #/flows?project=lab. So it can be linked, and a reload keeps the filters.
import { signal } from "./ui.js";

const read = () => {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [page, ...rest] = path.split("/");
  return { page: page || "inbox", rest: rest.map(decodeURIComponent), params: new URLSearchParams(search) };
};

export const route = signal(read());
addEventListener("hashchange", () => { route.value = read(); });

/** Change filters without a step in the history. @param {Record<string, string>} values */
export function setParams(values) {
  const { page, rest, params } = route.value;
  for (const [key, value] of Object.entries(values)) value ? params.set(key, value) : params.delete(key);
  const path = [page, ...rest.map(encodeURIComponent)].join("/");
  history.replaceState(null, "", `#/${path}${params.size ? `?${params}` : ""}`);
  route.value = { page, rest, params: new URLSearchParams(params) };
}

export const param = (name) => route.value.params.get(name) ?? "";
export const go = (path) => { location.hash = `#/${path}`; };
/** As `go`, but "back" does not lead here again. */
export const replace = (path) => { history.replaceState(null, "", `#/${path}`); route.value = read(); };
