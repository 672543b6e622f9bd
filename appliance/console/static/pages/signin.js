// By name and password, or by the link that `exeat console login NAME` prints: its secret is in the fragment,
// which no server is sent and no log holds.
import { get, post, session } from "../lib/api.js";
import { Trouble } from "../lib/parts.js";
import { replace } from "../lib/router.js";
import { html, useEffect, useState } from "../lib/ui.js";

const LINK = /^#\/?(?:login|link)[/=](.+)$/;

export default function SignIn() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [provider, setProvider] = useState("");
  const enter = async (body) => {
    setBusy(true);
    setError(null);
    try {
      session.value = await post("/session", body);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  useEffect(() => {
    document.title = "Sign in · exeat";
    get("/session/ways").then((ways) => setProvider(ways.oidc), () => {});
    const link = LINK.exec(location.hash)?.[1];
    if (!link) return;
    replace("inbox"); // it works once: no need for it in the history
    enter({ link: decodeURIComponent(link) });
  }, []);
  const submit = (event) => {
    event.preventDefault();
    enter(Object.fromEntries(new FormData(event.target)));
  };
  return html`<main class="signin"><form onSubmit=${submit}>
    <h1>exeat</h1><p>Nothing leaves without a lease.</p>
    <label class="field"><span>Name</span><input name="name" autocomplete="username" autocapitalize="none" spellcheck=${false} required autofocus/></label>
    <label class="field"><span>Password</span><input name="password" type="password" autocomplete="current-password" required/></label>
    <${Trouble} error=${error}/>
    <button class="main" disabled=${busy}>Sign in</button>
    ${provider && html`<a class="button" href="/api/v1/session/oidc">Sign in with ${provider}</a>`}
    <p class="soft">First time here? On the node, <code>exeat console login NAME</code> prints a link that works once.</p>
  </form></main>`;
}
