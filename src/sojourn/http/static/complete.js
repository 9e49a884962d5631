// Completes the word at the caret: --parameters, styles, and the names that a package knows.
import { call, el } from "/static/common.js";

const known = new Map();

async function wordsOf(model) {
  if (!known.has(model)) known.set(model, call("GET", `/api/v1/words/${model}`, undefined, true).catch(() => known.delete(model) && { names: [], styles: [], parameters: [] }));
  return known.get(model);
}

/** What may stand at the caret of `text`, with how many characters before it are replaced. */
export function candidates(text, words) {
  const parameter = /(^|\s)(--[a-z]*)$/.exec(text);
  if (parameter) return { from: parameter[2].length, found: words.parameters.filter(([name]) => name.startsWith(parameter[2])).slice(0, 12) };
  const style = /--style\s+(\S*)$/.exec(text);
  if (style) return { from: style[1].length, found: words.styles.filter((name) => name.startsWith(style[1])).map((name) => [name, ""]) };
  if (/--\w+\s+\S*$/.test(text)) return { from: 0, found: [] };
  const tail = /([^\s,，{}|]+(?: [^\s,，{}|]+)*)$/.exec(text.toLowerCase())?.[1] ?? "";
  for (let part = tail; part; part = part.includes(" ") ? part.slice(part.indexOf(" ") + 1) : "") {
    if (part.length < (/[^\x00-\x7f]/.test(part) ? 1 : 2)) continue;
    const found = words.names.filter((name) => name.startsWith(part) && name !== part).slice(0, 8);
    if (found.length) return { from: part.length, found: found.map((name) => [name, ""]) };
  }
  return { from: 0, found: [] };
}

/** Completes in `input` by `list`; what it gives back closes the list. */
export function complete(input, list, model) {
  let at = -1;
  let from = 0;
  let caret = 0; // where it stood when these were found
  let turn = 0;
  const close = () => {
    list.hidden = true;
    at = -1;
    turn++; // also what is on its way
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const take = (text) => {
    if (input.selectionStart !== caret) return close();
    const before = input.value.slice(0, caret - from) + text;
    input.value = `${before} ${input.value.slice(caret).trimStart()}`;
    input.setSelectionRange(before.length + 1, before.length + 1);
    close();
    input.dispatchEvent(new Event("input"));
  };
  const mark = (next) => {
    at = (next + list.children.length) % list.children.length;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", i === at));
    list.children[at].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", list.children[at].id);
  };
  const suggest = async (event) => {
    if (event.isComposing) return;
    const mine = ++turn;
    const words = await wordsOf(model());
    if (mine !== turn) return;
    caret = input.selectionStart;
    const some = candidates(input.value.slice(0, caret), words);
    from = some.from;
    list.replaceChildren(
      ...some.found.map(([name, about], i) => el("li", { id: `completion-${i}`, role: "option", "aria-selected": "false", onmousedown: (e) => { e.preventDefault(); take(name); } }, name, el("small", {}, about))),
    );
    at = -1;
    list.hidden = !some.found.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
  };
  input.addEventListener("input", suggest);
  input.addEventListener("compositionend", suggest); // Chromium's last `input` of a Chinese word still says it composes
  input.addEventListener("keydown", (event) => {
    if (list.hidden || event.isComposing) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      mark(at + (event.key === "ArrowDown" ? 1 : at < 0 ? 0 : -1));
    } else if ((event.key === "Enter" && at >= 0) || (event.key === "Tab" && !event.shiftKey)) {
      event.preventDefault();
      take(list.children[Math.max(at, 0)].firstChild.textContent);
    } else if (event.key === "Escape") close();
  });
  input.addEventListener("blur", close);
  return close;
}
