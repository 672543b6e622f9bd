// A decision that is signed with a passkey: what is signed is the hash of exactly what is sent, made by control.
import { Problem, post } from "./api.js";

/** @param {string} text base64url */
const bytesOf = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (character) => character.charCodeAt(0));

/** @param {string} challenge where the challenge for `body` is asked for */
async function signed(challenge, body) {
  const asked = await post(challenge, body);
  const publicKey = {
    challenge: bytesOf(asked.challenge), rpId: asked.rp_id, userVerification: "required",
    allowCredentials: asked.allow.map((id) => ({ type: "public-key", id: bytesOf(id) })),
  };
  const credential = await navigator.credentials.get({ publicKey }).catch(() => { throw new Error("Nothing was signed, so nothing was decided."); });
  return { ...body, assertion: { expires_ms: asked.expires_ms, credential: /** @type {any} */ (credential).toJSON() } };
}

/** POST `body`; with a passkey where the server wants one. `needed`: that is known already. */
export async function decide(path, body, { challenge = path.replace(/[^/]*$/, "challenge"), needed = false, ...options } = {}) {
  if (!needed) {
    try {
      return await post(path, body, options);
    } catch (error) {
      if (!(error instanceof Problem) || error.reason !== "passkey.needed") throw error;
    }
  }
  return post(path, await signed(challenge, body), options);
}

/** Make a passkey of this browser or a key that is plugged in; `code` is what root made for it. */
export async function register(code, name) {
  const { options } = await post("/passkeys/begin", { code });
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  const credential = await navigator.credentials.create({ publicKey }).catch(() => { throw new Error("No passkey was made."); });
  return post("/passkeys", { code, name, credential: /** @type {any} */ (credential).toJSON() });
}
