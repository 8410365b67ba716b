// Markdown as models write it, to elements. A subset of CommonMark with tables; HTML in it is shown as text.

import { button, make } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_LINE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE = /^(https?:\/\/|mailto:)/i;
const DEEPEST = 12; // blocks within blocks

/** The text of each block, in order: a text that grows changes its last blocks only. */
export function blocks(text) {
  const found = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length) found.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = line.match(FENCE);
    if (fence) {
      lines.push(line);
      if (mark && mark[1].startsWith(fence) && !mark[2].trim()) {
        fence = null;
        end();
      }
    } else if (mark) {
      if (!lines.some((one) => ITEM.test(one) || QUOTE.test(one))) end();
      fence = mark[1];
      lines.push(line);
    } else if (line.trim()) {
      lines.push(line);
    } else if (lines.some((one) => ITEM.test(one))) {
      lines.push(line); // a list goes on behind an empty line if what follows is indented, or an item
    } else {
      end();
    }
  }
  end();
  return found.flatMap(afterLists);
}

/** A list that was followed by something else at its margin: two blocks. */
function afterLists(block) {
  const lines = block.split("\n");
  if (!ITEM.test(lines[0])) return [block];
  const at = lines.findIndex(
    (line, i) => i && !lines[i - 1].trim() && line.trim() && !/^\s{2}/.test(line) && !ITEM.test(line),
  );
  return at < 0 ? [block] : [lines.slice(0, at).join("\n"), ...blocks(lines.slice(at).join("\n"))];
}

/** Elements for the text of some blocks. */
export function elements(text, depth = 0) {
  return blocks(text).flatMap((block) => elementsOf(block.split("\n"), depth));
}

function elementsOf(lines, depth) {
  const found = [];
  let i = 0;
  const paragraph = [];
  const end = () => {
    if (paragraph.length) found.push(make("p", {}, ...inline(paragraph.join("\n"))));
    paragraph.length = 0;
  };
  while (i < lines.length) {
    const line = lines[i];
    const fence = line.match(FENCE);
    const heading = line.match(HEADING);
    if (fence) {
      end();
      const inside = [];
      for (i++; i < lines.length && !(lines[i].trim().startsWith(fence[1]) && !lines[i].trim().replaceAll(fence[1][0], "")); i++)
        inside.push(lines[i]);
      found.push(code(inside.join("\n"), fence[2].trim()));
      i++;
    } else if (heading) {
      end();
      found.push(make(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2])));
      i++;
    } else if (RULE.test(line) && !paragraph.length) {
      found.push(make("hr"));
      i++;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      end();
      const inside = [];
      while (i < lines.length && lines[i].trim() && !(ITEM.test(lines[i]) && !QUOTE.test(lines[i]))) inside.push(lines[i++].replace(QUOTE, ""));
      found.push(make("blockquote", {}, ...elements(inside.join("\n"), depth + 1)));
    } else if (ITEM.test(line) && depth < DEEPEST && !(paragraph.length && /^ *\d/.test(line) && !/^ *1[.)]/.test(line))) {
      end();
      const [list, next] = listAt(lines, i, depth);
      found.push(list);
      i = next;
    } else if (line.includes("|") && TABLE_LINE.test(lines[i + 1] ?? "") && lines[i + 1].includes("-") && !paragraph.length) {
      const rows = [];
      while (i < lines.length && lines[i].includes("|")) rows.push(lines[i++]);
      found.push(table(rows));
    } else if (line.trim()) {
      paragraph.push(line.trimStart());
      i++;
    } else {
      end();
      i++;
    }
  }
  end();
  return found;
}

function listAt(lines, start, depth) {
  const first = lines[start].match(ITEM);
  const margin = first[1].length;
  const isOrdered = /\d/.test(first[2]);
  const list = make(isOrdered ? "ol" : "ul");
  if (isOrdered) list.start = parseInt(first[2], 10);
  let i = start;
  while (i < lines.length) {
    const mark = lines[i].match(ITEM);
    if (!mark || mark[1].length > margin + 1 || mark[1].length < margin || /\d/.test(mark[2]) !== isOrdered) break;
    const inside = [lines[i].slice(mark[0].length)];
    const indent = Math.min(mark[0].length, mark[1].length + mark[2].length + 1);
    for (i++; i < lines.length; i++) {
      const line = lines[i];
      const next = line.match(ITEM);
      const isDeeper = line.search(/\S/) >= Math.min(indent, margin + 2);
      if (line.trim() && !isDeeper && (next || !lines[i - 1].trim())) break;
      inside.push(isDeeper ? line.slice(Math.min(indent, line.search(/\S/))) : line);
    }
    list.append(item(inside, depth));
  }
  return [list, i];
}

function item(lines, depth) {
  const task = lines[0].match(/^\[([ xX])\]\s+/);
  if (task) lines[0] = lines[0].slice(task[0].length);
  const inside = elements(lines.join("\n"), depth + 1);
  if (inside[0]?.tagName === "P") inside.splice(0, 1, ...inside[0].childNodes);
  const box = task && make("input", { type: "checkbox", disabled: true, checked: task[1] !== " " });
  box?.setAttribute("aria-label", box.checked ? "done" : "not done");
  return make("li", {}, box, ...inside);
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const [head, , ...body] = rows;
  const n = cells(head).length;
  const line = (row, kind) => make("tr", {}, ...cells(row).slice(0, n).map((cell) => make(kind, {}, ...inline(cell))));
  return make("table", {}, make("thead", {}, line(head, "th")), make("tbody", {}, ...body.map((row) => line(row, "td"))));
}

function code(text, language) {
  const copy = button("Copy", "Copy this code", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const pre = make("pre", { tabIndex: 0 }, make("code", { textContent: text }));
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code: ${language}` : "Code");
  return make("div", { className: "block" }, pre, copy);
}

const INLINE = [
  [/^(`+)([\s\S]*?[^`])\1(?!`)/, (m) => make("code", { textContent: m[2].replace(/^ (.+) $/, "$1") })],
  [/^\\([\\`*_{}[\]()#+\-.!~|<>])/, (m) => m[1]],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*/, (m, depth) => make("strong", {}, ...inline(m[1], depth))],
  [/^__(?=\S)([\s\S]*?\S)__(?!\w)/, (m, depth) => make("strong", {}, ...inline(m[1], depth))],
  [/^\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)/, (m, depth) => make("em", {}, ...inline(m[1], depth))],
  [/^_(?=[^\s_])([\s\S]*?[^\s_])_(?!\w)/, (m, depth) => make("em", {}, ...inline(m[1], depth))],
  [/^~~(?=\S)([\s\S]*?\S)~~/, (m, depth) => make("del", {}, ...inline(m[1], depth))],
  [/^!?\[([^\]]{0,1000})\]\(\s*<?([^\s)<>]{1,2000}?)>?(?:\s+"[^"]*")?\s*\)/, (m, depth) => link(m[2], inline(m[1] || m[2], depth))],
  [/^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/i, (m) => link(m[1], [m[1]])],
  [/^https?:\/\/[^\s<>()]{1,2000}[^\s<>().,;:!?'"*_`]/i, (m) => link(m[0], [m[0]])],
  [/^ {2,}\n/, () => make("br")],
];
const LONGEST = 20000; // characters of one line of text that are looked at for marks

/** The text of a paragraph, as elements and texts. */
function inline(text, depth = 0) {
  if (depth > DEEPEST || text.length > LONGEST) return [text];
  const found = [];
  let plain = "";
  let before = "";
  while (text) {
    const special = text.search(/[`\\*_~![<]|https?:|  +\n/i);
    if (special < 0) break;
    plain += text.slice(0, special);
    before = special ? text[special - 1] : before;
    text = text.slice(special);
    const isInWord = /\w/.test(before);
    const [match, rule] = firstRule(text, isInWord);
    if (match) {
      if (plain) found.push(plain);
      plain = "";
      found.push(rule(match, depth + 1));
      before = text[match[0].length - 1];
      text = text.slice(match[0].length);
    } else {
      plain += text[0];
      before = text[0];
      text = text.slice(1);
    }
  }
  if (plain + text) found.push(plain + text);
  return found;
}

function firstRule(text, isInWord) {
  for (const [pattern, rule] of INLINE) {
    if (isInWord && text[0] === "_") continue; // snake_case is no emphasis
    const match = text.match(pattern);
    if (match) return [match, rule];
  }
  return [null, null];
}

function link(address, inside) {
  if (!SAFE.test(address)) return make("span", {}, ...inside);
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inside);
}

/** Show a text in an element, changing no more blocks than have changed. */
export function show(element, text) {
  const now = blocks(text);
  const shown = element.shownBlocks ?? [];
  let same = 0;
  while (same < Math.min(now.length, shown.length) && now[same] === shown[same].text) same++;
  for (const { nodes } of shown.splice(same)) nodes.forEach((node) => node.remove());
  for (const block of now.slice(same)) {
    const nodes = elementsOf(block.split("\n"), 0);
    element.append(...nodes);
    shown.push({ text: block, nodes });
  }
  element.shownBlocks = shown;
}
