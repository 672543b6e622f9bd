// Checks a proof of the ledger in the browser, so that nobody has to believe the server: RFC 6962 section 2.1.1
// (the algorithm of RFC 9162 section 2.1.3.2) for the tree, C2SP signed-note and tlog-checkpoint for the signature.

const bytesOf = (hex) => {
  if (!/^([0-9a-f]{2})*$/.test(hex)) throw new Error("not hexadecimal");
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
};
const hexOf = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const unbase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const utf8 = (text) => new TextEncoder().encode(text);

async function sha256(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { all.set(part, at); at += part.length; }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
}

const LEAF = Uint8Array.of(0), NODE = Uint8Array.of(1);

/** The root to which `path` leads from a leaf. Numbers of records stay below 2^53. Raises Error. */
export async function rootOf(index, size, leaf, path) {
  if (!(Number.isSafeInteger(index) && Number.isSafeInteger(size) && index >= 0 && index < size)) throw new Error("no such record in a tree of this size");
  let at = index, last = size - 1, node = leaf;
  const half = (n) => Math.floor(n / 2);
  for (const sibling of path) {
    if (sibling.length !== 32) throw new Error("a hash has 32 bytes");
    if (last === 0) throw new Error("the proof is too long");
    if (at % 2 === 1 || at === last) {
      node = await sha256(NODE, sibling, node);
      while (at % 2 === 0 && at !== 0) { at = half(at); last = half(last); }
    } else node = await sha256(NODE, node, sibling);
    at = half(at);
    last = half(last);
  }
  if (last !== 0) throw new Error("the proof is too short");
  return node;
}

/** A key as `exeat ledger checkpoint --key` prints it: NAME+ID+BASE64. Raises Error. */
export async function readKey(text) {
  const [name, ident, ...rest] = text.trim().split("+");
  const raw = unbase64(rest.join("+"));
  if (!name || raw.length !== 33 || raw[0] !== 1) throw new Error("that is no Ed25519 key as NAME+ID+BASE64");
  const id = (await sha256(utf8(`${name}\n`), raw)).slice(0, 4);
  if (hexOf(id) !== ident) throw new Error("the key's id does not belong to it");
  return { name, id, public: raw.slice(1) };
}

/** Raises Error unless `key` signed it. */
export async function readCheckpoint(text, key) {
  const gap = text.lastIndexOf("\n\n");
  if (gap < 0) throw new Error("that is no signed note");
  const body = text.slice(0, gap + 1);
  let signed = false;
  for (const line of text.slice(gap + 2).split("\n")) {
    const [mark, name, encoded] = line.split(" ");
    if (mark !== "\u2014" || name !== key.name) continue;
    const raw = unbase64(encoded);
    if (hexOf(raw.slice(0, 4)) !== hexOf(key.id)) continue;
    if (!(await ed25519(key.public, raw.slice(4), utf8(body)))) throw new Error("the signature of the checkpoint is wrong");
    signed = true;
  }
  if (!signed) throw new Error("the checkpoint is not signed with the pinned key");
  const [origin, size, root] = body.split("\n");
  if (origin !== key.name || !/^(0|[1-9]\d{0,15})$/.test(size)) throw new Error("the checkpoint is of another ledger");
  return { origin, size: Number(size), root: unbase64(root) };
}

async function ed25519(public_, signature, message) {
  let key;
  try {
    key = await crypto.subtle.importKey("raw", public_, { name: "Ed25519" }, false, ["verify"]);
  } catch {
    throw new Error("this browser cannot check Ed25519 signatures: download the proof and use exeat ledger verify");
  }
  return crypto.subtle.verify({ name: "Ed25519" }, key, signature, message);
}

/**
 * @param {{index: number, size: number, raw: string, path: string[], checkpoint: string}} proof
 * @param {number} seq the record that was asked for @param {string} vkey the pinned key
 * @returns {Promise<{leaf: string, root: string, size: number, origin: string, steps: number}>} raises Error with what does not hold
 */
export async function verify(proof, seq, vkey) {
  if (proof.index !== seq) throw new Error(`the proof is about record ${proof.index}, not ${seq}`);
  const leaf = await sha256(LEAF, bytesOf(proof.raw));
  const root = await rootOf(proof.index, proof.size, leaf, proof.path.map(bytesOf));
  const checkpoint = await readCheckpoint(proof.checkpoint, await readKey(vkey));
  if (checkpoint.size !== proof.size) throw new Error("the checkpoint is of another size than the proof");
  if (hexOf(root) !== hexOf(checkpoint.root)) throw new Error("the proof leads to another root than the one that was signed");
  return { leaf: hexOf(leaf), root: hexOf(root), size: proof.size, origin: checkpoint.origin, steps: proof.path.length };
}

const PINNED = "ledger-key";
export const pinned = () => localStorage.getItem(PINNED) ?? "";
/** Raises Error for what is no key. */
export async function pin(vkey) {
  await readKey(vkey);
  localStorage.setItem(PINNED, vkey.trim());
}
