// Talks to the engine: JSON with the token when one is needed, and the stream of changes.

let token = sessionStorage.getItem("omnify-token");
let onDenied = () => {};

export const whenDenied = (callback) => { onDenied = callback; };

export function setToken(value) {
  token = value;
  sessionStorage.setItem("omnify-token", value);
}

const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

/** JSON of a route; throws with the engine's own words. */
export async function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  const url = query.size ? `${path}?${query}` : path;
  const response = await fetch(url, { headers: headers() });
  if (response.status === 401) onDenied();
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Error(said?.error ? `${said.error.message}. ${said.error.hint}` : `${path}: HTTP ${response.status}`);
  }
  return response.json();
}

/** Reads /v1/stream and calls `onEvent` with each event's data until it ends or `signal` says so. */
export async function stream(onEvent, signal) {
  const response = await fetch("/v1/stream", { headers: headers(), cache: "no-store", signal });
  if (response.status === 401) onDenied();
  if (!response.ok) throw new Error(`stream: HTTP ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length) onEvent(JSON.parse(data.join("\n")));
    }
  }
}
