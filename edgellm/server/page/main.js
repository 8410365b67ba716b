// The page: a chat with this machine's models. Everything is asked of the server that it came from, and of nobody else.

import { answer, models, Refused } from "./api.js";
import { $, button, make, save } from "./dom.js";
import { Files } from "./files.js";
import { messageElement, update } from "./messages.js";
import * as settings from "./settings.js";
import { browser, open } from "./store.js";
import * as tree from "./tree.js";

const { store, keeps } = await open();
const files = new Files(tell);
let talk = null; // the one that is shown
let known = []; // models
let running = null; // an AbortController while an answer is written

function tell(text) {
  $("notice").textContent = text;
  return null;
}

// --- models -----------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    known = await models();
  } catch (error) {
    if (error.status === 401) return askForKey(loadModels);
    return tell(error.message);
  }
  const wanted = talk?.model || browser.get("model");
  const chosen = known.find((model) => model.name === wanted) ?? known[0];
  $("model").replaceChildren(...known.map(({ name }) => make("option", { value: name, textContent: name, selected: name === chosen?.name })));
  if (!known.length) tell("This machine has no models yet; edgellm pull fetches one.");
  showGauge();
}

function askForKey(then) {
  $("key").value = "";
  $("key-dialog").showModal();
  $("key-dialog").onclose = () => {
    if ($("key-dialog").returnValue !== "use") return;
    browser.set("key", "");
    browser.set("key", $("key").value, $("keep-key").checked);
    then();
  };
}

// --- conversations ----------------------------------------------------------------------------------------

async function keep(changed = talk) {
  changed.updated = Date.now();
  try {
    await store.put(changed);
  } catch (error) {
    tell(`This conversation could not be kept: ${error.message}`);
  }
  showList();
}

async function showList() {
  const talks = await store.all();
  const items = talks.map((one) => {
    const title = tree.titleOf(one);
    const item = make(
      "li",
      {},
      Object.assign(button(title, title, () => openTalk(one)), { className: "title" }),
      button("⇩", `Export ${title}`, () => exportTalk(one)),
      button("×", `Delete ${title}`, () => removeTalk(one)),
    );
    if (one.id === talk?.id) item.setAttribute("aria-current", "true");
    return item;
  });
  $("conversations").replaceChildren(...items);
}

function openTalk(one) {
  running?.abort();
  talk = one;
  if (known.some((model) => model.name === talk.model)) $("model").value = talk.model;
  showList();
  showTalk();
  $("message").focus();
  openList(false);
}

function newTalk() {
  openTalk(tree.conversation($("model").value, { ...talk?.settings }));
}

async function removeTalk(one) {
  if (!confirm(`Delete "${tree.titleOf(one)}"?`)) return;
  await store.remove(one.id);
  if (one.id === talk.id) newTalk();
  else showList();
}

function exportTalk(one) {
  const name = tree.titleOf(one).replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 40) || "conversation";
  save(`${name}.json`, "application/json", JSON.stringify(one, null, 1));
  save(`${name}.md`, "text/markdown", tree.asMarkdown(one));
}

async function importFile(file) {
  try {
    const found = JSON.parse(await file.text());
    for (const one of Array.isArray(found) ? found : [found]) await store.put((talk = tree.checked(one)));
    openTalk(talk);
  } catch (error) {
    tell(`${file.name}: ${error.message}`);
  }
}

function openList(isOpen) {
  $("list").classList.toggle("open", isOpen);
  $("toggle-list").setAttribute("aria-expanded", String(isOpen));
}

// --- messages ---------------------------------------------------------------------------------------------

const actions = {
  choose(id) {
    tree.choose(talk, id);
    keep();
    showTalk();
  },
  edit(node, text) {
    if (!text.trim() && !node.files?.length) return actions.choose(node.id);
    reply(tree.add(talk, node.parent, { role: "user", text, files: node.files }));
  },
  again(node) {
    reply(talk.nodes[node.parent]);
  },
};

function showTalk() {
  const elements = tree.path(talk).map((node) => messageElement(talk, node, actions, running !== null));
  $("messages").replaceChildren(...elements);
  $("messages").scrollTop = $("messages").scrollHeight;
  document.title = talk.roots.length ? `${tree.titleOf(talk)} – edgellm` : "edgellm";
  showGauge();
}

function showGauge() {
  const context = known.find((model) => model.name === $("model").value)?.context;
  const used = talk && tree.path(talk).at(-1)?.used;
  $("gauge").hidden = !context || !used;
  if ($("gauge").hidden) return;
  $("context").value = used / context;
  $("context-text").textContent = `${used.toLocaleString()} of ${context.toLocaleString()} tokens`;
}

function setRunning(controller) {
  running = controller;
  $("stop").hidden = controller === null;
  $("send").hidden = controller !== null;
  $("model").disabled = controller !== null;
}

/** Let the model answer a message. */
async function reply(question) {
  if (running) return;
  const asked = talk;
  const node = tree.add(asked, question.id, { role: "assistant", text: "", thought: "", model: $("model").value });
  asked.model = $("model").value;
  const controller = new AbortController();
  setRunning(controller);
  showTalk();
  tell("");
  const article = $("messages").lastChild;
  article.classList.add("writing");
  try {
    await write(asked, question, node, article, controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") node.error = error.message;
    if (error instanceof Refused && error.status === 401) askForKey(loadModels);
  }
  setRunning(null);
  $("speed").textContent = "";
  if (node.text.trim() || node.error || node.thought) await keep(asked);
  if (known.some((model) => model.name === node.model && !model.context)) await loadModels();
  if (talk === asked) showTalk();
}

async function write(asked, question, node, article, signal) {
  const body = { model: node.model, messages: tree.asked(asked, question), ...asked.settings };
  let isDrawing = false;
  const draw = () => {
    isDrawing = false;
    const box = $("messages");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    update(article, node);
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  };
  const started = performance.now();
  let n = 0;
  for await (const part of answer(body, signal)) {
    if (part.progress !== null) $("speed").textContent = `reading, ${Math.round(100 * part.progress)} %`;
    if (part.text || part.thought) {
      node.text += part.text;
      node.thought += part.thought;
      n++;
      $("speed").textContent = `${(n / ((performance.now() - started) / 1000)).toFixed(1)} pieces a second`;
      if (!isDrawing) requestAnimationFrame(draw);
      isDrawing = true;
    }
    if (part.timings) node.stats = `${part.timings.predicted_per_second.toFixed(1)} tokens a second`;
    if (part.usage) node.used = part.usage.prompt_tokens + part.usage.completion_tokens;
    if (part.finish === "length") node.error = "The answer was cut: the limit of tokens, or the context, is reached.";
  }
}

async function send() {
  const text = $("message").value;
  if (running || (!text.trim() && !files.kept.length)) return;
  if (!known.length) return tell("There is no model to ask.");
  const last = tree.path(talk).at(-1);
  const question = tree.add(talk, last?.id ?? null, { role: "user", text, files: files.take() });
  $("message").value = "";
  fit();
  keep(); // the question, whatever comes of its answer
  await reply(question);
}

// --- the composer -----------------------------------------------------------------------------------------

function fit() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

$("message").oninput = fit;
$("message").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
  if (event.key === "ArrowUp" && !event.target.value && !running) {
    const mine = [...document.querySelectorAll("article.user")].at(-1);
    if (mine) {
      event.preventDefault();
      mine.querySelector("button[title='Edit this message']").click();
    }
  }
};
$("composer").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("stop").onclick = () => running?.abort();
$("attach").onclick = () => $("attach-file").click();
$("attach-file").onchange = async (event) => {
  await files.add(event.target.files);
  event.target.value = "";
};
document.ondragover = (event) => {
  event.preventDefault();
  $("composer").classList.add("over");
};
document.ondragleave = () => $("composer").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("composer").classList.remove("over");
  files.add(event.dataTransfer.files);
};
document.onkeydown = (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    newTalk();
  }
};

// --- the rest ---------------------------------------------------------------------------------------------

$("new").onclick = newTalk;
$("toggle-list").onclick = () => openList(!$("list").classList.contains("open"));
$("open-settings").onclick = () => settings.edit(talk, () => talk.roots.length && keep());
$("model").onchange = () => {
  browser.set("model", $("model").value);
  showGauge();
};
$("import").onclick = () => $("import-file").click();
$("import-file").onchange = async (event) => {
  for (const file of event.target.files) await importFile(file);
  event.target.value = "";
};
$("export-all").onclick = async () => save("conversations.json", "application/json", JSON.stringify(await store.all(), null, 1));

settings.build();
newTalk();
await loadModels();
if (!keeps) tell("This browser keeps no conversations; export what you want to keep.");
document.body.dataset.ready = "yes";
