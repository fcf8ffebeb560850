// The server's interface: JSON, and streams of binary frames or of lines. Paths are relative to <base>.

/** What the server refused, in its own words. `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(status, message, field = null, allowed = null) {
    super(message);
    this.status = status;
    this.field = field;
    this.allowed = allowed;
  }
}

const KEY = "inferencegym.key";

/** The API key of this tab, for servers that ask for one. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function ask(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) dispatchEvent(new Event("needs-key"));
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Not one of ours: a proxy's page, perhaps.
  }
  throw new ApiError(response.status, told?.message ?? `The server answered ${response.status} ${response.statusText}`, told?.field, told?.allowed);
}

/** GET api/PATH as JSON. `params`: an object or URLSearchParams. */
export async function get(path, params = null, signal = undefined) {
  const query = params ? `?${new URLSearchParams(params)}` : "";
  return (await ask(`api/${path}${query}`, { signal })).json();
}

/** POST a value as JSON. */
export async function post(path, value, signal = undefined) {
  const options = { method: "POST", body: JSON.stringify(value), headers: { "content-type": "application/json" }, signal };
  return (await ask(`api/${path}`, options)).json();
}

/** A file from the server, for the reader to keep. Goes through fetch, so that a key is sent along. */
export async function download(path, name) {
  const blob = await (await ask(`api/${path}`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * A stream of frames: u32 header bytes, u32 payload bytes (little-endian), header JSON, payload. Resolves when the server ends it.
 * @param {(header: any, payload: ArrayBuffer) => void} onFrame
 */
export async function frames(path, onFrame, signal) {
  const reader = (await ask(`api/${path}`, { signal })).body.getReader();
  let held = new Uint8Array(0);
  for (;;) {
    const { done, value } = await read(reader);
    if (done) break;
    const data = held.length ? joined(held, value) : value;
    let at = 0;
    while (data.length - at >= 8) {
      const view = new DataView(data.buffer, data.byteOffset + at, 8);
      const head = view.getUint32(0, true);
      const size = 8 + head + view.getUint32(4, true);
      if (data.length - at < size) break;
      const header = JSON.parse(new TextDecoder().decode(data.subarray(at + 8, at + 8 + head)));
      onFrame(header, data.slice(at + 8 + head, at + size).buffer);
      at += size;
    }
    held = data.subarray(at);
  }
  if (held.length) throw new ApiError(0, "The connection was lost in the middle of a message.");
}

/** A stream of JSON lines. Resolves when the server ends it. */
export async function lines(path, onLine, signal) {
  const reader = (await ask(`api/${path}`, { signal })).body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { done, value } = await read(reader);
    if (done) return;
    const parts = (held + decoder.decode(value, { stream: true })).split("\n");
    held = parts.pop();
    for (const part of parts) if (part) onLine(JSON.parse(part));
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection to the server was lost.");
  }
}

function joined(a, b) {
  const whole = new Uint8Array(a.length + b.length);
  whole.set(a);
  whole.set(b, a.length);
  return whole;
}
