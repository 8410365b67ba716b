// Messages on the page.

import { button, make } from "./dom.js";
import { show } from "./markdown.js";
import { siblings } from "./tree.js";

/** The element of a message. actions: choose(id), edit(node, text), again(node), copy(node). */
export function messageElement(talk, node, actions, isBusy) {
  const isMine = node.role === "user";
  const article = make("article", { className: node.role });
  article.dataset.id = node.id;
  const text = make("div", { className: "text" });
  article.append(make("p", { className: "who", textContent: isMine ? "You" : node.model || "Model" }));
  for (const file of node.files ?? []) article.append(make("details", {}, make("summary", { textContent: file.name }), make("pre", { textContent: file.text, tabIndex: 0 })));
  if (node.thought) article.append(thought(node));
  article.append(text);
  if (isMine) text.textContent = node.text;
  else show(text, node.text);
  if (node.error) article.append(make("p", { className: "wrong", textContent: node.error }));
  article.append(toolsOf(talk, node, actions, isBusy, text));
  return article;
}

function thought(node) {
  const inside = make("div");
  show(inside, node.thought);
  return make("details", { className: "thought" }, make("summary", { textContent: "Thoughts" }), inside);
}

function toolsOf(talk, node, actions, isBusy, text) {
  const tools = make("div", { className: "tools" });
  const around = siblings(talk, node);
  const at = around.indexOf(node.id);
  if (around.length > 1) {
    const before = button("‹", "The version before", () => actions.choose(around[at - 1]));
    const after = button("›", "The next version", () => actions.choose(around[at + 1]));
    before.disabled = isBusy || at === 0;
    after.disabled = isBusy || at === around.length - 1;
    tools.append(before, `${at + 1} of ${around.length}`, after);
  }
  const copy = button("Copy", "Copy this message", async () => {
    await navigator.clipboard.writeText(node.text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  tools.append(copy);
  const work =
    node.role === "user"
      ? button("Edit", "Edit this message", () => editIn(text, tools, node, actions))
      : button("Again", "Make this answer again", () => actions.again(node));
  work.disabled = isBusy;
  tools.append(work);
  if (node.stats) tools.append(make("span", { textContent: node.stats }));
  return tools;
}

/** Let a person change a message in its place. */
function editIn(text, tools, node, actions) {
  const field = make("textarea", { value: node.text });
  field.setAttribute("aria-label", "Your message");
  const done = (changed) => (changed === null ? actions.choose(node.id) : actions.edit(node, changed));
  field.onkeydown = (event) => {
    if (event.key === "Escape") done(null);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done(field.value);
    }
  };
  text.replaceChildren(field);
  tools.replaceChildren(button("Send", "Send the changed message", () => done(field.value)), button("Leave", "Leave it as it was", () => done(null)));
  field.focus();
}

/** Show what has been written of an answer so far. */
export function update(article, node) {
  if (node.thought) {
    let details = article.querySelector("details.thought");
    if (!details) {
      details = thought(node);
      details.open = true;
      article.querySelector(".text").before(details);
    }
    show(details.lastChild, node.thought);
    if (node.text) details.open = false;
  }
  show(article.querySelector(".text"), node.text);
}
