// Requests to /api/v1. Who is signed in is known here, because every request needs it.
import { signal } from "./ui.js";

const ROOT = "/api/v1";

/** @typedef {{name: string, role: string, projects: string[], permissions: string[], csrf: string}} Session */

/** The session: undefined until it was asked for, null when nobody is signed in. */
export const session = signal(/** @type {Session|null|undefined} */ (undefined));

/** What the server said no with (RFC 9457). */
export class Problem extends Error {
  /** @param {number} status @param {Record<string, any>} body */
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.reason = body.reason_code || "";
    this.body = body;
  }
}

/** @param {number} status 0: no answer came at all */
const failed = (status, detail) => new Problem(status, { detail });

/**
 * @param {string} method
 * @param {string} path below /api/v1
 * @param {{body?: any, etag?: string, signal?: AbortSignal, text?: boolean}} [options]
 * @returns {Promise<any>} the JSON of the answer; raises Problem
 */
export async function call(method, path, { body, etag, signal: stop, text } = {}) {
  const headers = { Accept: text ? "*/*" : "application/json" };
  if (method !== "GET") {
    if (session.value) headers["X-CSRF-Token"] = session.value.csrf;
    if (method === "POST") headers["Idempotency-Key"] = crypto.randomUUID();
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (etag) headers["If-Match"] = etag;
  }
  let answer;
  try {
    answer = await fetch(ROOT + path, {
      method, headers, signal: stop, credentials: "same-origin", cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw failed(0, "The console does not answer. Is it running, and is this machine connected to it?");
  }
  if (answer.ok) return read(answer, text);
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== "/session") session.value = null;
  throw new Problem(answer.status, said);
}

/** @param {Response} answer */
async function read(answer, text) {
  if (text) return answer.text();
  if (answer.status === 204) return null;
  const value = await answer.json().catch(() => { throw failed(answer.status, "The answer was no JSON."); });
  const etag = answer.headers.get("ETag");
  return etag && value && typeof value === "object" ? Object.assign(value, { etag }) : value;
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { ...options, body: body ?? {} });

/** @param {Record<string, any>} values those that are empty are left out */
export function query(values) {
  const params = new URLSearchParams();
  for (const [key, value] of Object.entries(values))
    if (value !== "" && value !== null && value !== undefined) params.set(key, String(value));
  const text = params.toString();
  return text && `?${text}`;
}

export async function openSession() {
  try {
    session.value = await get("/session");
  } catch (error) {
    session.value = null;
    if (error instanceof Problem && error.status !== 401) throw error;
  }
}

/** What the buttons show. What is allowed is decided by the server, each time. @param {string} permission */
export const may = (permission) => session.value?.permissions.includes(permission) ?? false;
