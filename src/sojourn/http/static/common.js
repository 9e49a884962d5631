// What all pages share: texts, calls, events, notices, the theme.
export const data = JSON.parse(document.getElementById("data").textContent);
export const $ = (id) => document.getElementById(id);

/** A text of the page in its language; {name} is filled in. */
export function t(text, fields = {}) {
  return (data.texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => fields[name] ?? "");
}

/** An element with attributes and children; text is never markup. */
export function el(tag, attributes = {}, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) out.addEventListener(name.slice(2), value);
    else if (value === true) out.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) out.setAttribute(name, value);
  }
  out.append(...children.filter((child) => child !== null));
  return out;
}

// What was typed outlives a login and a change of language: both take the page away.

const typed = `typed ${location.pathname}`;
const written = () => [...document.querySelectorAll("main :is(textarea, input:is([type=text], [type=number], :not([type])))[id]")];
function keep() {
  const fields = written().filter((field) => field.value !== field.defaultValue);
  sessionStorage.setItem(typed, JSON.stringify(Object.fromEntries(fields.map((field) => [field.id, field.value]))));
}
document.querySelector("form.language").addEventListener("submit", keep);
const kept = JSON.parse(sessionStorage.getItem(typed) ?? "{}");
for (const field of written()) field.value = kept[field.id] ?? field.value;
sessionStorage.removeItem(typed);

/** Call the API; the answer's JSON. Shows what went wrong, and throws it. */
export async function call(method, path, body, quiet = false) {
  const options = { method, headers: { "accept-language": data.lang } };
  if (body instanceof FormData || body instanceof Blob) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    const error = new Error(t("The server does not answer."));
    if (!quiet) notice(error.message, true);
    throw error;
  }
  if (answer.ok) return (answer.headers.get("content-type") ?? "").includes("json") ? answer.json() : answer.blob();
  if (answer.status === 401) {
    keep(); // the key was taken away, or its month is over
    location.assign("/login");
  }
  const told = await answer.json().catch(() => ({ error: { message: `${answer.status}` } }));
  if (!quiet) notice(told.error.message, true);
  throw new Error(told.error.message);
}

/** Put a text where changes are read out; one that stands there already is not read out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function notice(text, wrong = false) {
  const line = el("p", { class: wrong ? "notice wrong" : "notice" }, text);
  const dialog = document.querySelector("dialog[open]"); // what lies outside of it is behind it, and is not read out
  if (dialog && $("notices").parentElement !== dialog) {
    dialog.append($("notices"));
    dialog.addEventListener("close", () => document.body.append($("notices")), { once: true });
  }
  $("notices").append(line);
  setTimeout(() => line.remove(), wrong ? 9000 : 4000);
}

const KINDS = ["queued", "started", "progress", "preview", "metric", "sheet", "artifact", "log", "text", "done", "failed", "cancelled", "again"];

const OTHERS = { aspect: "ar", c: "chaos", s: "stylize" };
/** Names of the --parameters that are said in a prompt, as the server reads them. */
export function said(text) {
  const found = text.matchAll(/(?:^|\s)(?:[-－—–―⸺]{2,}|[—–―⸺])(\p{L}+)(?=[\s=＝]|$)/gu);
  return new Set([...found].map(([, name]) => name.normalize("NFKC").toLowerCase()).map((name) => OTHERS[name] ?? name));
}

/** Hear of all jobs: listen(kind, {job, ...}); again() when the line was cut, after it listens once more. */
export function events(listen, again = () => {}) {
  let last = 0;
  let missed = false; // something may have been said while nobody listened
  let source;
  const open = () => {
    source?.close();
    source = new EventSource(`/api/v1/events${last ? `?after=${last}` : ""}`);
    source.onopen = () => {
      if (missed) again();
      missed = true;
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const id = Number(event.lastEventId);
        if (id <= last) return; // told already, before the line was cut
        last = id;
        listen(kind, JSON.parse(event.data));
      });
    }
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself, with Last-Event-ID
      const cut = source;
      setTimeout(() => cut === source && look(), 2000);
    };
  };
  // Only a page that is looked at listens: a browser has six connections for all its pages of one server.
  const look = () => {
    missed ||= document.hidden;
    if (document.hidden) source?.close();
    else open();
  };
  look();
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => event.persisted && look()); // back, to a page that was kept
}

export const picture = (id, side) => `/api/v1/pictures/${id}/file${side ? `?side=${side}` : ""}`;

/** A picture for a small place: as it was drawn, or smaller. */
export const thumb = (row, side = 272) => (Math.max(row.width, row.height) > side ? `${picture(row.id, side)}&format=webp` : picture(row.id));

/** Show a picture's recipe. */
export function recipe(row) {
  const list = $("recipe-list");
  list.replaceChildren();
  const shown = { [t("Prompt")]: row.recipe.prompt, [t("Model")]: row.model, [t("Style")]: row.style, [t("Seed")]: row.seed, [t("Size")]: `${row.width} × ${row.height}` };
  for (const [name, value] of Object.entries({ ...shown, ...row.recipe.options, build: row.recipe.build, package: row.recipe.package })) {
    if (value !== null && value !== undefined && value !== "") list.append(el("dt", {}, name), el("dd", {}, String(value)));
  }
  $("recipe").showModal();
}

/** A job's error in words. */
export const told = (error) => error?.message ?? "";

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("theme")?.addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--ground").trim() === "#15161a";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", dark ? "light" : "dark");
});
