// The settings of a conversation: its system prompt, and how tokens are chosen.

import { $, make } from "./dom.js";
import { browser } from "./store.js";

const FIELDS = [
  ["temperature", "Temperature", { min: 0, step: 0.05 }],
  ["top_p", "Top p", { min: 0, max: 1, step: 0.01 }],
  ["top_k", "Top k", { min: 0, step: 1 }],
  ["min_p", "Min p", { min: 0, max: 1, step: 0.01 }],
  ["repeat_penalty", "Repeat penalty", { min: 0, step: 0.05 }],
  ["presence_penalty", "Presence penalty", { step: 0.1 }],
  ["max_tokens", "Most tokens", { min: 1, step: 1 }],
  ["seed", "Seed", { min: 0, step: 1 }],
];

export function build() {
  for (const [name, label, limits] of FIELDS) {
    const input = make("input", { type: "number", id: `set-${name}`, ...limits });
    $("sampling").append(make("label", {}, `${label} `, input));
  }
  const theme = $("theme");
  theme.value = browser.get("theme");
  const show = () => (document.documentElement.dataset.theme = theme.value);
  theme.onchange = () => {
    browser.set("theme", theme.value);
    show();
  };
  show();
}

/** Let a person change a conversation's settings; `changed` is called when they are done. */
export function edit(talk, changed) {
  $("system").value = talk.system;
  for (const [name] of FIELDS) $(`set-${name}`).value = talk.settings[name] ?? "";
  $("think").value = talk.settings.think === undefined ? "" : talk.settings.think ? "yes" : "no";
  $("settings").showModal();
  $("settings").onclose = () => {
    talk.system = $("system").value;
    talk.settings = {};
    for (const [name] of FIELDS) {
      const input = $(`set-${name}`);
      if (input.value !== "" && input.validity.valid) talk.settings[name] = Number(input.value);
    }
    if ($("think").value) talk.settings.think = $("think").value === "yes";
    changed();
  };
}
