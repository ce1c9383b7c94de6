// What the playground sends to this server, and how the same is sent with curl and from Python.

// The key is nowhere but here: not in storage, not in the address, not in what is copied.
let key = "";

export function useKey(value) {
  key = value.trim();
}

/** A JSON value from this server; throws an Error whose message is for people. */
export async function fetchJson(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached, or the key has characters that no header can have.");
  }
  const content = await answer.json().catch(() => null);
  if (answer.ok && content !== null) return content;
  if (answer.status === 401) throw new Error("This server needs a valid API key.");
  throw new Error(`${answer.status}: ${content?.detail ?? answer.statusText}`);
}

/** Does a thing a little later, and only the last of those that are wanted meanwhile; what is under way is given up. */
export class Latest {
  #delay;
  #timer = 0;
  #controller = new AbortController();

  constructor(delay) {
    this.#delay = delay;
  }

  cancel() {
    clearTimeout(this.#timer);
    this.#controller.abort();
  }

  run(work) {
    this.cancel();
    const { signal } = (this.#controller = new AbortController());
    this.#timer = setTimeout(() => work(signal), this.#delay);
  }
}

export function asCurl(body) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const header = key ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  return `curl -s ${location.origin}/predict${header} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted}`;
}

export function asPython(body) {
  const header = key ? `    headers={"Authorization": f"Bearer {os.environ['KEY']}"},\n` : "";
  return `${key ? "import os\n\n" : ""}import requests

answer = requests.post(
    ${JSON.stringify(`${location.origin}/predict`)},
    json=${asLiteral(body)},
${header}    timeout=30,
)
answer.raise_for_status()
print(answer.json()["predictions"][0])`;
}

/** A JSON value as Python writes it. */
function asLiteral(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(asLiteral).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, child]) => `${JSON.stringify(name)}: ${asLiteral(child)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
