// A conversation: a tree of messages. Every message that is edited or made again is a branch beside the first one.

/** An empty conversation. */
export function conversation(model, settings = {}) {
  const now = Date.now();
  return { id: crypto.randomUUID(), title: "", created: now, updated: now, model, system: "", settings, nodes: {}, roots: [], chosen: {} };
}

/** Add a message behind another one, or at the start (null), and choose its branch. */
export function add(talk, parent, message) {
  const node = { id: crypto.randomUUID(), parent, children: [], ...message };
  talk.nodes[node.id] = node;
  siblings(talk, node).push(node.id);
  choose(talk, node.id);
  return node;
}

/** The ids that stand where a message does, itself among them. */
export function siblings(talk, node) {
  return node.parent === null ? talk.roots : talk.nodes[node.parent].children;
}

export function choose(talk, id) {
  talk.chosen[talk.nodes[id].parent ?? ""] = id;
}

/** The messages that are shown, first to last. */
export function path(talk) {
  const found = [];
  let choices = talk.roots;
  let parent = "";
  while (choices.length) {
    const id = choices.includes(talk.chosen[parent]) ? talk.chosen[parent] : choices.at(-1);
    found.push(talk.nodes[id]);
    choices = talk.nodes[id].children;
    parent = id;
  }
  return found;
}

/** What the model is asked: the system prompt, and the messages up to and with one of them. */
export function asked(talk, last) {
  const found = [];
  for (let node = last; node; node = talk.nodes[node.parent]) if (!node.error || node.text) found.unshift({ role: node.role, content: said(node) });
  return talk.system.trim() ? [{ role: "system", content: talk.system.trim() }, ...found] : found;
}

/** A message with the files that go with it, as the model reads it. */
export function said(node) {
  const files = (node.files ?? []).map((file) => `File ${file.name}:\n${fenced(file.text)}\n\n`);
  return files.join("") + node.text;
}

function fenced(text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

export function titleOf(talk) {
  const first = path(talk).find((node) => node.role === "user");
  return talk.title || first?.text.trim().split("\n")[0].slice(0, 60) || first?.files?.[0]?.name || "New conversation";
}

/** For people to read and keep. */
export function asMarkdown(talk) {
  const parts = [`# ${titleOf(talk)}`, talk.system.trim() && `> ${talk.system.trim().replaceAll("\n", "\n> ")}`];
  for (const node of path(talk)) parts.push(`**${node.role === "user" ? "You" : node.model || "Model"}**\n\n${said(node)}`);
  return parts.filter(Boolean).join("\n\n") + "\n";
}

/** A conversation from a file. Raises Error, saying what is wrong, for one that is none. */
export function checked(talk) {
  const wrong = (what) => { throw new Error(`this is no exported conversation: ${what}`); };
  if (typeof talk !== "object" || talk === null || typeof talk.nodes !== "object" || talk.nodes === null) wrong("it has no messages");
  if (!Array.isArray(talk.roots)) wrong("its start is missing");
  const fresh = conversation(String(talk.model ?? ""));
  fresh.title = String(talk.title ?? "").slice(0, 200);
  fresh.system = String(talk.system ?? "");
  for (const [name, value] of Object.entries(talk.settings ?? {})) if (["number", "string", "boolean"].includes(typeof value)) fresh.settings[name] = value;
  const waiting = talk.roots.map((id) => [id, null]).reverse();
  const seen = new Set();
  while (waiting.length) {
    const [id, parent] = waiting.pop();
    const node = Object.hasOwn(talk.nodes, id) ? talk.nodes[id] : wrong("a message is missing");
    if (seen.has(id)) wrong("a message stands twice");
    seen.add(id);
    if (!["user", "assistant"].includes(node.role) || typeof node.text !== "string") wrong("a message has no role or text");
    const files = (Array.isArray(node.files) ? node.files : []).map((file) => ({ name: String(file?.name), text: String(file?.text) }));
    const kept = add(fresh, parent, { role: node.role, text: node.text, files, thought: String(node.thought ?? ""), model: String(node.model ?? "") });
    waiting.push(...(Array.isArray(node.children) ? node.children : []).map((child) => [child, kept.id]).reverse());
  }
  return fresh;
}
