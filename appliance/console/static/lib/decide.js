// Deciding on a request: what is sent, and what keeps a hand that is too quick from deciding twice.
import { post } from "./api.js";
import { decide } from "./passkey.js";
import { signal } from "./ui.js";

// After a decision the next request moves up under the same finger.
const GUARD_MS = 600;
let timer = 0;

/** True just after a decision: keys and buttons do nothing. */
export const guarded = signal(false);

export function guard() {
  guarded.value = true;
  clearTimeout(timer);
  timer = setTimeout(() => { guarded.value = false; }, GUARD_MS);
}

/** @param {any} row @param {{scope?: string, ttl_s: number, bytes?: number, uses?: number, note?: string}} terms */
export async function approve(row, terms) {
  const decision = { version: row.version, ...terms };
  for (const [key, value] of Object.entries(decision)) if (value === undefined || value === "") delete decision[key];
  return decide(`/requests/${encodeURIComponent(row.id)}/approve`, decision, { needed: row.passkey });
}

export const deny = (row, note) => post(`/requests/${encodeURIComponent(row.id)}/deny`, { version: row.version, ...(note && { note }) });

export const undo = (id) => post(`/leases/${encodeURIComponent(id)}/undo`);
export const batch = (rows, decision, ttl) =>
  post("/requests/batch", { ids: rows.map(({ id, version }) => ({ id, version })), decision, ...(ttl && { ttl_s: ttl }) });

const FLAGS = {
  punycode: "The name has letters of other scripts: compare it with the one you expect.",
  address: "An address instead of a name: nobody can say whose it is tomorrow.",
  wide: "More than one place would be opened.",
  private: "A private address: a machine of your own network.",
  hidden_text: "The reason holds invisible characters; they are left out here.",
  many_tries: "It was tried many times.",
  device: "A device of the node: a job with a microphone hears what is said beside it.",
  file: "A folder of the node: what is read there can go where the job may send.",
  secrets: "What it wants to send has something in it that looks like a secret.",
  raw: "Bytes that nobody can look into: no TLS, no HTTP.",
  ech: "The name in TLS is hidden from the gateway.",
  direct: "Past the gateway: what is sent is counted, and not looked at.",
  records: "Its lookups may carry kinds of records that can carry data.",
  second_person: "A second person has to approve, too.",
};
export const flagText = (flag) => FLAGS[flag] ?? flag.replaceAll("_", " ");
