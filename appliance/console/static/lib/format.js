// Numbers, times and text of others, made fit to be read.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Bytes in powers of 1000, three digits at most: 1.24 MB. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let value = Number(count), unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export const count = (n) => (n === null || n === undefined ? "–" : Number(n).toLocaleString("en-GB"));
export const usd = (n) => (n === null || n === undefined ? "–" : n > 0 && n < 0.01 ? "< $0.01" : `$${Number(n).toFixed(2)}`);

/** A span in words: 40 s, 15 min, 1 h 30 min, 2 d. */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  const m = Math.round(s / 60);
  if (m < 60) return `${m} min`;
  const h = Math.floor(m / 60);
  if (h < 48) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
  return `${Math.round(h / 24)} d`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const SHORT = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** The time of day, with the day where that is not today. */
export function clock(ms, short = false) {
  if (!ms) return "–";
  const at = new Date(ms), text = (short ? SHORT : CLOCK).format(at);
  return at.toDateString() === new Date().toDateString() ? text : `${DAY.format(at)} ${text}`;
}

// Controls, and what turns the direction of writing or joins invisibly (UAX #9, Trojan Source): shown as a mark.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

/** Text written by others, without what could make it look like other text; `limit` characters at most. */
export function clean(text, limit = 600) {
  const shown = String(text ?? "").replace(UNSEEN, "\ufffd");
  return shown.length > limit ? `${shown.slice(0, limit)}…` : shown;
}

/** An IPv6 address in brackets; names, and folders of a project, as they are. */
export const host = (text) => (/^[0-9a-f.]*:[0-9a-f:.]*$/i.test(text) ? `[${text}]` : clean(text, 260));
export const place = (name, port) => `${host(name)}${port ? `:${port}` : ""}`;
