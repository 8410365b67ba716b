// The server, by the same addresses that every other client uses.

import { browser } from "./store.js";

/** An answer that is an error. status: that of HTTP, or 0 when the server cannot be reached. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = browser.get("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?", 0);
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // no more is known
  }
  throw new Refused(message, response.status);
}

/** The models that can be asked for: name, and the tokens of their context where they are loaded. */
export async function models() {
  const { data } = await (await ask("v1/models")).json();
  return data.map((model) => ({ name: model.id, context: model.max_model_len ?? null }));
}

/** An answer as it is written.
 *
 * body: of /v1/chat/completions. Yields objects with some of: text, thought, progress (0 to 1), usage, timings, finish.
 */
export async function* answer(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, return_progress: true, stream_options: { include_usage: true } }),
  });
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const part = JSON.parse(event);
    if (part.error) throw new Refused(part.error.message, 500);
    const choice = part.choices[0];
    yield {
      text: choice?.delta.content ?? "",
      thought: choice?.delta.reasoning_content ?? "",
      progress: part.prompt_progress ? part.prompt_progress.processed / Math.max(1, part.prompt_progress.total) : null,
      usage: part.usage ?? null,
      timings: part.timings ?? null,
      finish: choice?.finish_reason ?? null,
    };
  }
  throw new Refused("The answer broke off: the connection ended.", 0);
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
