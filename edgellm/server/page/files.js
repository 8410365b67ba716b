// Text files that go with a message.

import { $, button, make } from "./dom.js";

const MOST_BYTES = 1_000_000;

export class Files {
  /** tell: shows a person a line. */
  constructor(tell) {
    this.tell = tell;
    this.kept = [];
  }

  async add(files) {
    for (const file of files) {
      const text = await this.#read(file);
      if (text !== null) this.kept.push({ name: file.name, text });
    }
    this.#show();
  }

  /** What is there, and from now on nothing. */
  take() {
    const found = this.kept;
    this.kept = [];
    this.#show();
    return found;
  }

  async #read(file) {
    if (file.size > MOST_BYTES) return this.tell(`${file.name} has ${file.size.toLocaleString()} bytes; a file may have a million.`);
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (!text.includes("\0")) return text;
    } catch {
      // said below
    }
    return this.tell(`${file.name} is no text in UTF-8; only text files can be read.`);
  }

  #show() {
    const items = this.kept.map((file, i) => {
      const remove = button("×", `Remove ${file.name}`, () => {
        this.kept.splice(i, 1);
        this.#show();
      });
      return make("li", {}, file.name, remove);
    });
    $("files").replaceChildren(...items);
  }
}
