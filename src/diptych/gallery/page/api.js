// Requests to the server of this page: JSON, binary columns, and changes.

export class Fault extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let words = `The server answered ${response.status}.`;
  try {
    words = (await response.json()).error ?? words;
  } catch {
    // The answer has no words of its own.
  }
  throw new Fault(words);
}

async function send(path, options = {}) {
  try {
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The gallery's server does not answer; is `diptych gallery` still running?");
  }
}

export async function getJson(path, options) {
  return (await checked(await send(path, options))).json();
}

/** A typed array, or {progress} where the server is still computing it. */
export async function getColumn(path, kind) {
  const response = await checked(await send(path));
  if (response.status === 202) return response.json();
  return new kind(await response.arrayBuffer());
}

export async function post(path, body, type = "application/octet-stream") {
  const headers = { "X-Diptych": "gallery", "Content-Type": type };
  return (await checked(await send(path, { method: "POST", headers, body }))).json();
}

export function postJson(path, value) {
  return post(path, JSON.stringify(value), "application/json");
}

/** Calls until the server has computed it; `say` is told how far it is. */
export async function getWhenReady(path, kind, say) {
  for (;;) {
    const found = await getColumn(path, kind);
    if (ArrayBuffer.isView(found)) return found;
    say(found.progress);
    await pause(1000);
  }
}

export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
