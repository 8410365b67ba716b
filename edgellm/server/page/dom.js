// Making elements, always from text: nothing that a model or a file says is ever read as HTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; those that are texts stay texts, and what is null is left out. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function button(text, title, onclick) {
  const element = make("button", { type: "button", textContent: text, title, onclick });
  if (title !== text) element.setAttribute("aria-label", title);
  return element;
}

/** Give a person a file to keep. */
export function save(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
