// Sets, trainings, their curves and sheets.
import { $, call, data, el, events, notice, t, told } from "/static/common.js";

const runs = new Map();

async function sets() {
  const found = await call("GET", "/api/v1/sets", undefined, true).catch(() => []);
  $("train-set").replaceChildren(el("option", { value: "" }, t("the recipe's")), ...found.map((name) => el("option", {}, name)));
}
$("prepare").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData();
  form.append("file", $("set-file").files[0]);
  const kept = await call("POST", "/api/v1/uploads/archive", form).catch(() => null);
  if (!kept) return;
  const request = { to: $("set-name").value, upload: kept.sha256, size: Number($("set-size").value) };
  const job = await call("POST", "/api/v1/jobs", { kind: "prepare", request }).catch(() => null);
  if (job) show(job);
});

// A form made by the recipe's own settings
let recipes = {};
const PLAIN = ["seen", "batch_size", "lr", "seed", "ema", "snapshot", "threads", "augment"];
function fields() {
  const name = $("recipe-name").value;
  $("recipe-about").textContent = recipes[name]?.about ?? "";
  const stage = recipes[name]?.stage.at(-1);
  if (!stage) return;
  const given = { ...stage.train, ...stage.model, preset: stage.preset };
  const shown = ["preset", ...PLAIN.filter((key) => key in stage.train), ...Object.keys(stage.model)];
  $("recipe-fields").replaceChildren(
    ...shown.map((key) => el("label", {}, key, el("input", { "data-key": key, value: given[key] ?? "", "data-was": given[key] ?? "" }))),
  );
}
$("recipe-name").addEventListener("change", fields);
$("train").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("recipe-name").value;
  const stages = recipes[name].stage;
  const prefix = stages.length > 1 ? `${stages.at(-1).name}.` : "";
  const overrides = [...$("recipe-fields").querySelectorAll("input")].filter((field) => field.value !== field.dataset.was).map((field) => `${prefix}${field.dataset.key}=${field.value}`);
  if ($("train-set").value) overrides.push(`data=${$("train-set").value}`);
  const job = await call("POST", "/api/v1/jobs", { kind: "train", request: { recipe: name, overrides, to: $("train-to").value } }).catch(() => null);
  if (job) show(job);
});

function show(job) {
  if (runs.has(job.id)) return runs.get(job.id);
  const state = el("span", { class: "state" });
  const bar = el("progress", { max: "1", value: "0", "aria-label": t("Progress") });
  const stop = el("button", { type: "button", onclick: () => call("DELETE", `/api/v1/jobs/${job.id}`) }, t("Stop"));
  const resume = el("button", { type: "button", onclick: () => goOn(job) }, t("Go on"));
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  curve.setAttribute("class", "curve");
  curve.setAttribute("viewBox", "0 0 100 100");
  curve.setAttribute("preserveAspectRatio", "none");
  curve.setAttribute("role", "img");
  curve.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  curve.style.display = "none";
  const which = el("small", { class: "hint" });
  const sheets = el("div", { class: "sheets" });
  const what = job.kind === "train" ? `${job.request.recipe} → ${job.request.to}` : `${t(job.kind)} → ${job.request.to}`;
  const held = { job, state, bar, stop, resume, curve, which, sheets, points: [] };
  held.card = el("article", { class: "job", "data-job": job.id }, el("div", { class: "head" }, el("span", { class: "said" }, what), state, bar, stop, resume), curve, which, sheets);
  runs.set(job.id, held);
  $("trainings").prepend(held.card);
  update(held, job.state, job.error);
  return held;
}
function update(held, state, error) {
  held.job.state = state;
  held.state.textContent = t(state) + (error && state === "failed" ? `: ${told(error)}` : "");
  held.stop.hidden = !["queued", "running"].includes(state);
  held.bar.hidden = state !== "running";
  held.resume.hidden = !(held.job.kind === "train" && ["cancelled", "failed"].includes(state));
}
async function goOn(job) {
  const request = { ...job.request, goes_on: job.request.goes_on ?? job.id };
  const more = await call("POST", "/api/v1/jobs", { kind: "train", request }).catch(() => null);
  if (more) show(more);
}
function heard(kind, event) {
  const held = runs.get(event.job);
  if (!held) return;
  if (kind === "started") update(held, "running");
  else if (kind === "progress") {
    held.bar.max = event.total || 1;
    held.bar.value = event.done;
    const left = event.eta_s ? `, ${Math.ceil(event.eta_s / 60)} ${t("min left")}` : "";
    held.state.textContent = `${event.done.toLocaleString()} / ${event.total.toLocaleString()} ${t(event.unit)}${left}`;
  } else if (kind === "metric") draw(held, event);
  else if (kind === "sheet" && event.sha256) {
    held.sheets.replaceChildren(el("img", { src: `/api/v1/jobs/${event.job}/artifacts/${event.sha256}`, alt: `${t("Samples of")} ${held.job.request.to}` }));
  } else if (["done", "failed", "cancelled", "queued", "again"].includes(kind)) {
    update(held, kind === "again" ? "queued" : kind, event);
    if (kind === "done") {
      notice(`${held.job.request.to}: ${t("done")}`);
      sets();
    }
  }
}
function draw(held, event) {
  const name = Object.keys(event.values).find((key) => key.startsWith("held_out")) ?? Object.keys(event.values).find((key) => key.startsWith("loss")) ?? Object.keys(event.values)[0];
  if (!name) return;
  held.name ??= name;
  if (!(held.name in event.values)) return;
  held.points.push([event.seen, event.values[held.name]]);
  if (held.points.length < 2) return;
  const [xs, ys] = [held.points.map((point) => point[0]), held.points.map((point) => point[1])];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const last = xs.at(-1) || 1;
  held.curve.firstChild.setAttribute("d", held.points.map(([x, y], i) => `${i ? "L" : "M"}${((100 * x) / last).toFixed(2)} ${(95 - (90 * (y - low)) / (high - low || 1)).toFixed(2)}`).join(""));
  held.curve.setAttribute("aria-label", `${held.name}: ${ys.at(-1).toPrecision(4)}`);
  held.which.textContent = `${held.name} ${ys.at(-1).toPrecision(4)} (${low.toPrecision(3)} – ${high.toPrecision(3)})`;
  held.curve.style.display = "block";
}
async function begin() {
  recipes = await call("GET", "/api/v1/recipes", undefined, true).catch(() => ({}));
  fields();
  await sets();
  const found = await call("GET", "/api/v1/jobs?limit=100", undefined, true).catch(() => []);
  for (const job of found.filter((one) => ["train", "prepare"].includes(one.kind)).slice(0, 12).reverse()) {
    show(job);
    replay(job);
  }
}
/** What happened in a job before this page was open. */
function replay(job) {
  const source = new EventSource(`/api/v1/jobs/${job.id}/events`);
  const until = Date.now();
  for (const kind of ["metric", "sheet", "progress"]) source.addEventListener(kind, (event) => heard(kind, JSON.parse(event.data)));
  source.onerror = () => source.close();
  setTimeout(() => source.close(), 3000 + until - Date.now());
}
events(heard, async () => {
  for (const held of runs.values()) {
    const job = await call("GET", `/api/v1/jobs/${held.job.id}`, undefined, true).catch(() => null);
    if (job) update(held, job.state, job.error);
  }
});
if (data.scope === "generate") $("train").hidden = $("prepare").hidden = true;
begin();
