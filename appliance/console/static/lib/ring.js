// The last flows, bounded: what lives now, and what ended or was refused since the page was opened.

export const MOST = 2000;

/** @typedef {{flow: string, at: number, state: string, project: string, agent?: string, job: string, dest: string, verdict: string, reason: string,
 *   lease?: string, bytes_out: number, bytes_in: number}} Flow */

const STATE = { open: "live", close: "closed", deny: "denied" };

export class Ring {
  constructor() {
    /** @type {Map<string, Flow>} oldest first */
    this.rows = new Map();
    this.lost = 0;
    this.refused = 0;
  }

  /** What the server says lives or waits; of what we had as living and it does not name, the end was missed. */
  reset(items) {
    const now = new Set(items.map((item) => item.flow));
    for (const [key, row] of this.rows) if ((row.state === "live" || row.state === "waiting") && !now.has(key)) this.rows.set(key, { ...row, state: "ended" });
    for (const item of items) this.put(item.flow, { ...this.rows.get(item.flow), ...item, at: item.started_ms });
  }

  /** @param {{events: any[], lost: number}} data */
  add({ events, lost }) {
    this.lost += lost || 0;
    for (const event of events) {
      const key = event.ev === "deny" ? `${event.flow}/${(this.refused += 1)}` : event.flow;
      const old = this.rows.get(key);
      this.put(key, { lease: "", agent: "", ...old, ...event, flow: event.flow, state: STATE[event.ev] ?? event.ev, at: old?.at ?? event.at_ms ?? Date.now() });
    }
  }

  put(key, row) {
    this.rows.set(key, row);
    if (this.rows.size > MOST) this.rows.delete(this.rows.keys().next().value);
  }

  /** The newest `limit` that match, and of how many. */
  newest(matches, limit) {
    const found = [];
    let total = 0;
    const all = [...this.rows.entries()];
    for (let i = all.length - 1; i >= 0; i -= 1) {
      if (!matches(all[i][1])) continue;
      total += 1;
      if (found.length < limit) found.push(all[i]);
    }
    return { found, total };
  }
}

/** Words that all must be in the row; `-word` must not, `key:word` looks in one field. */
export function matcher(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const not = word.startsWith("-") && word.length > 1;
    const [, key, value] = /^(project|agent|job|dest|reason|state|verdict|lease):(.*)$/.exec(not ? word.slice(1) : word) ?? [];
    return { not, key, value: key ? value : not ? word.slice(1) : word };
  });
  return (row) => words.every(({ not, key, value }) => {
    const where = key ? row[key] : `${row.project} ${row.agent} ${row.job} ${row.dest} ${row.reason} ${row.state} ${row.lease}`;
    return String(where ?? "").toLowerCase().includes(value) !== not;
  });
}
