// The page that draws: prompt bar, tiles that form, variations, the mask brush.
import { $, call, data, el, events, notice, picture, recipe, said, say, t, thumb, told } from "/static/common.js";
import { complete } from "/static/complete.js";
import { paint } from "/static/brush.js";

const PREVIEWS = 6;
const MOST = 100; // pictures of one job
const AGAIN = 5000; // ms until what failed is asked for once more
const jobs = new Map(); // id -> { card, tiles, state, job }
const prompt = $("prompt");
let source = null; // sha256 of the picture to start from
let sending = null; // of a picture to start from
let chosen = 0; // how often one was chosen, or taken away
let oldest = null;

// The prompt bar

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}
prompt.addEventListener("input", grow);
grow();
const uncompleted = complete(prompt, $("completions"), () => $("model").value); // hears of Enter first
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.defaultPrevented && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
async function styles() {
  const model = $("model").value;
  const words = await call("GET", `/api/v1/words/${model}`, undefined, true).catch(() => ({ styles: [] }));
  if (model !== $("model").value) return; // another was chosen meanwhile
  $("style").replaceChildren(el("option", { value: "" }, t("any")), ...words.styles.map((name) => el("option", {}, name)));
}
const choose = (select, value) => {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
};

// Settings: as they were left. A seed is of one drawing, and an address may name another model.

const KEPT = ["model", "style", "n", "steps", "guidance", "chaos", "no"];
function shown() {
  const set = KEPT.filter((name) => $(name).value.trim() && !(name === "model" && $(name).value === data.default));
  $("set").textContent = set.map((name) => `--${name} ${$(name).value.trim()}`).join(" ");
}
let settled = false;
let changed = false; // by hand, and not kept yet
let saving = Promise.resolve();
async function settle() {
  const named = new URLSearchParams(location.search).get("model");
  if (named) choose($("model"), named);
  const first = $("model").value;
  const kept = await call("GET", "/api/v1/settings", undefined, true).catch(() => null);
  if (kept?.model && !named && $("model").value === first) choose($("model"), kept.model);
  await styles();
  choose($("style"), kept?.style);
  for (const name of KEPT.slice(2)) $(name).value ||= kept?.[name] ?? "";
  settled = kept !== null; // else what is there would be lost
  shown();
  if (changed) save();
}
function save() {
  changed = !settled; // before they came: kept when they have
  if (changed) return;
  const kept = {};
  for (const name of KEPT) {
    const value = $(name).value.trim();
    if (value && $(name).validity.valid) kept[name] = $(name).type === "number" ? Number(value) : value;
  }
  saving = saving.then(() => call("PUT", "/api/v1/settings", kept).catch(() => null)); // two at once may change places
}
document.querySelector(".settings").addEventListener("change", async (event) => {
  if (!KEPT.includes(event.target.id)) return;
  if (event.target.id === "model") {
    const style = $("style").value;
    await styles();
    choose($("style"), style);
  }
  shown();
  save();
});
settle();

/** `{red, blue} heart` to one prompt for each choice. */
function permuted(text) {
  const found = /\{([^{}]*,[^{}]*)\}|｛([^｛｝]*[，、][^｛｝]*)｝/.exec(text);
  if (!found) return [text];
  const choices = (found[1] ?? found[2]).split(/[,，、]/).map((choice) => choice.trim());
  return choices.flatMap((choice) => permuted(text.slice(0, found.index) + choice + text.slice(found.index + found[0].length)));
}

function asked(text) {
  let out = text.trim();
  const has = said(out);
  const add = (name, value) => {
    if (value !== "" && !has.has(name)) out += ` --${name} ${value}`;
  };
  if ($("model").value !== data.default) add("model", $("model").value);
  for (const name of ["n", "steps", "guidance", "chaos", "seed"]) add(name, $(name).value);
  add("style", /\s/.test($("style").value) ? `"${$("style").value}"` : $("style").value);
  add("no", $("no").value.trim());
  return out;
}

$("ask").addEventListener("invalid", (event) => (event.target.closest("details") ?? {}).open = true, true); // else it cannot be shown
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  uncompleted();
  await sending; // a picture that is on its way here
  const texts = permuted(prompt.value);
  if (texts.length > 16) return notice(t("{count} prompts at once; 16 at most", { count: texts.length }), true);
  for (const text of texts) {
    const request = { prompt: asked(text), previews: PREVIEWS };
    if (source) await ask("edit", { ...request, source, strength: Number($("strength").value) });
    else await ask("generate", request);
  }
});

async function ask(kind, request) {
  const job = await call("POST", "/api/v1/jobs", { kind, request }).catch(() => null);
  if (job) show(job, true);
  return job;
}

for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => {
    prompt.value = button.textContent;
    grow();
    $("ask").requestSubmit();
  });
}

// A picture to start from: chosen, dropped, or one of the results

async function start(file) {
  const mine = ++chosen;
  const form = new FormData();
  form.append("file", file);
  const kept = (sending = call("POST", "/api/v1/uploads", form).catch(() => null));
  const { sha256 } = (await kept) ?? {};
  $("file").value = ""; // the same file may be chosen again
  if (sha256 && mine === chosen) from(sha256, URL.createObjectURL(file));
}
function from(sha256, url) {
  chosen++; // what is on its way comes too late
  source = sha256;
  $("source-picture").src = url;
  $("source").hidden = false;
}
$("file").addEventListener("change", () => $("file").files[0] && start($("file").files[0]));
$("source-off").addEventListener("click", () => {
  chosen++;
  source = null;
  $("source").hidden = true;
  $("file").value = "";
});
const bar = $("ask");
bar.addEventListener("dragover", (event) => {
  event.preventDefault();
  bar.classList.add("over");
});
bar.addEventListener("dragleave", () => bar.classList.remove("over"));
bar.addEventListener("drop", async (event) => {
  event.preventDefault();
  bar.classList.remove("over");
  const id = event.dataTransfer.getData("application/x-sojourn");
  if (id) restore(await call("GET", `/api/v1/pictures/${id}`));
  else if (event.dataTransfer.files[0]) start(event.dataTransfer.files[0]);
});

/** The prompt and settings that drew a picture. */
function restore(row) {
  prompt.value = String(row.recipe.prompt);
  if (row.model !== data.default && !/--model/.test(prompt.value)) prompt.value += ` --model ${row.model}`;
  grow();
  prompt.focus();
}

// Jobs and their tiles

function show(job, fresh) {
  if (jobs.has(job.id)) return jobs.get(job.id);
  const count = Number(/--n (\d+)/.exec(job.request.prompt)?.[1] ?? 4);
  const words = job.request.prompt.replace(/ --(model emoji|n 4|seed \d+)(?= |$)/g, "") || "—";
  const state = el("span", { class: "state", role: "status" });
  const stop = el("button", { type: "button", onclick: () => call("DELETE", `/api/v1/jobs/${job.id}`) }, t("Stop"));
  const again = el("button", { type: "button", title: t("The same words, drawn anew"), onclick: () => reroll(job) }, `↻ ${t("Again")}`);
  const tiles = el("div", { class: "tiles" });
  const held = { job, state, stop, again, tiles, frames: [] };
  for (let i = 0; i < count; i++) {
    const image = el("img", { alt: `${words} ${i + 1}`, draggable: "true" });
    image.hidden = true;
    const frame = el("button", { type: "button", class: "frame forming", "aria-label": `${words} ${i + 1}` }, image);
    const acts = el("div", { class: "acts" });
    held.frames.push({ frame, image, acts });
    tiles.append(el("div", { class: "tile" }, frame, acts));
  }
  held.card = el("article", { class: "job", "data-job": job.id }, el("div", { class: "head" }, el("span", { class: "said" }, words), state, stop, again), tiles);
  jobs.set(job.id, held);
  update(held, job.state); // before it is shown: what changes from then on is read out
  if (fresh) $("jobs").prepend(held.card);
  else $("jobs").append(held.card);
  $("examples").hidden = true;
  for (const [kind, event] of early.get(job.id) ?? []) handle(held, kind, event);
  early.delete(job.id);
  return held;
}

function reroll(job) {
  const words = job.request.prompt.replace(/ --seed \d+(?= |$)/, "");
  ask(job.kind, { ...job.request, prompt: words, previews: PREVIEWS });
}

function update(held, state) {
  held.job.state = state;
  say(held.state, t(state));
  held.state.classList.toggle("quiet", state === "done");
  held.stop.hidden = !["queued", "running"].includes(state);
  for (const { frame } of held.frames) frame.classList.toggle("forming", state === "running" || state === "queued");
}

async function finished(held, ids) {
  update(held, "done");
  const rows = await call("GET", `/api/v1/pictures?job=${held.job.id}&limit=${MOST}`, undefined, true).catch(() => null);
  if (!rows) return void setTimeout(finished, AGAIN, held, ids);
  for (const row of rows) if (held.frames[ids.indexOf(row.id)]) filled(held.frames[ids.indexOf(row.id)], row);
}

function filled({ frame, image, acts }, row) {
  image.src = thumb(row, 640);
  image.hidden = row.hidden;
  image.style.imageRendering = row.width < 48 ? "pixelated" : "auto";
  image.addEventListener("dragstart", (event) => event.dataTransfer.setData("application/x-sojourn", row.id));
  frame.onclick = () => open(picture(row.id, 1024), "_blank", "noopener");
  const words = String(row.recipe.prompt).replace(/ --(n|seed|model) \S+/g, "").replace(/^--(n|seed|model) \S+/, "");
  const plain = words.replace(/(^| )--style ("(?:[^"\\]|\\.)*"|\S+)/g, "").trim(); // another drawing may be in another style
  const vary = (strength, text = words) => ask("edit", { prompt: `${text} --n 4 --model ${row.model}`, source: row.sha256, strength, previews: PREVIEWS });
  const star = el("button", { type: "button", title: t("Star"), "aria-label": t("Star"), "aria-pressed": String(row.stars > 0) }, row.stars > 0 ? "★" : "☆");
  star.classList.toggle("on", row.stars > 0);
  star.onclick = async () => {
    row.stars = row.stars ? 0 : 5;
    await call("POST", "/api/v1/ratings", { kind: "stars", picture: row.id, value: row.stars });
    star.textContent = row.stars ? "★" : "☆";
    star.setAttribute("aria-pressed", row.stars > 0);
    star.classList.toggle("on", row.stars > 0);
  };
  const hide = async () => {
    await call("POST", "/api/v1/ratings", { kind: "hide", picture: row.id, value: 1 });
    image.hidden = true;
    acts.replaceChildren();
  };
  const act = (label, title, run) => el("button", { type: "button", title, "aria-label": title, onclick: run }, label);
  acts.replaceChildren(
    el("a", { class: "button", href: picture(row.id, 1024), target: "_blank", rel: "noopener", title: t("U: larger"), "aria-label": t("U: larger") }, "U"),
    act("V", t("V: vary a little"), () => vary(0.45)),
    act("V+", t("V+: vary a lot"), () => vary(0.85, plain)),
    act("✎", t("Change a part"), () => paint(row, words, (request) => ask("edit", { ...request, previews: PREVIEWS }))),
    star,
    act("ⓘ", t("Recipe"), () => recipe(row)),
    act("⤒", t("Start from it"), () => from(row.sha256, picture(row.id))),
    el("a", { class: "button", href: picture(row.id), download: `sojourn-${row.id}.png`, title: t("Download"), "aria-label": t("Download") }, "↓"),
    act("✕", t("Hide"), hide),
  );
}

const early = new Map(); // job -> events that came before its card
function heard(kind, event) {
  const held = jobs.get(event.job);
  if (held) return handle(held, kind, event);
  if (early.size > 200) early.clear();
  early.set(event.job, [...(early.get(event.job) ?? []), [kind, event]].slice(-20));
}
function handle(held, kind, event) {
  if (kind === "started") update(held, "running");
  else if (kind === "again") update(held, "queued");
  else if (kind === "preview") {
    event.pictures.forEach((shown, i) => {
      if (!held.frames[i]) return;
      held.frames[i].image.src = `data:image/png;base64,${shown}`;
      held.frames[i].image.hidden = false;
      held.frames[i].frame.style.setProperty("--done", `${(100 * event.step) / event.steps}%`);
    });
  } else if (kind === "done") finished(held, event.pictures ?? []);
  else if (kind === "failed" || kind === "cancelled") {
    update(held, kind);
    if (kind === "failed") held.state.textContent = `${t("failed")}: ${told(event)}`;
  }
}
events(
  heard,
  async () => {
    for (const held of jobs.values()) {
      if (!["queued", "running"].includes(held.job.state)) continue;
      const job = await call("GET", `/api/v1/jobs/${held.job.id}`, undefined, true).catch(() => null);
      if (job?.state === "done") finished(held, job.result?.pictures ?? []);
      else if (job) update(held, job.state);
    }
  },
);

async function history() {
  const found = await call("GET", `/api/v1/jobs?limit=20${oldest ? `&before=${oldest}` : ""}`, undefined, !oldest).catch(() => null);
  if (!found) return;
  for (const job of found) {
    oldest = job.id;
    if (!["generate", "edit"].includes(job.kind) || !["queued", "running", "done"].includes(job.state)) continue;
    const held = show(job, false);
    if (job.state === "done") finished(held, job.result?.pictures ?? []);
  }
  $("older").hidden = found.length < 20;
}
$("older").addEventListener("click", history);
history();
