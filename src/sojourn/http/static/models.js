// Sets, trainings with their curves and sheets, measurements.
import { $, call, data, el, events, notice, say, t, told } from "/static/common.js";
import { MOST_BYTES, MOST_FILES, dropped, packed } from "/static/pack.js";

const runs = new Map();

/** A select with these options; what was chosen stays so. */
function fill(id, ...options) {
  const was = $(id).value;
  $(id).replaceChildren(...options);
  if (options.some((option) => option.value === was)) $(id).value = was;
}
/** What there is to choose from; more comes with every job that is done. */
async function choices() {
  const [packages, found] = await Promise.all(["models", "sets"].map((name) => call("GET", `/api/v1/${name}`, undefined, true).catch(() => null)));
  if (!packages || !found) return; // what is there stays, and what was chosen of it
  const chosen = new Set(picked());
  const measured = packages.filter((one) => one.can.some((verb) => ["sample", "embed"].includes(verb)));
  $("evaluate-packages").replaceChildren(...measured.map(({ name }) => el("label", { class: "tick" }, el("input", { type: "checkbox", value: name, ...(chosen.has(name) && { checked: "" }) }), name)));
  const judges = packages.filter((one) => one.can.includes("classify"));
  fill("evaluate-judge", el("option", { value: "" }, t("the usual one, where it fits")), ...judges.map(({ name }) => el("option", {}, name)));
  fill("train-set", el("option", { value: "" }, t("the recipe's")), ...found.map((name) => el("option", {}, name)));
  fill("evaluate-set", ...found.map((name) => el("option", {}, name)));
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
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("prepare").addEventListener(kind, (event) => {
    event.preventDefault();
    $("prepare").classList.toggle("over", kind === "dragover");
  });
}
$("prepare").addEventListener("drop", async (event) => {
  const files = await dropped(event.dataTransfer).catch(() => []);
  const bytes = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (!files.length) return notice(t("Nothing in it can be read."), true);
  if (files.length > MOST_FILES || bytes > MOST_BYTES) {
    return notice(t("{count} files, {size} MB: too much for the page; `sojourn prepare` takes it.", { count: files.length, size: Math.ceil(bytes / 2 ** 20) }), true);
  }
  const [path] = files[0];
  const name = path.includes("/") ? path.split("/")[0] : path.replace(/\.[^.]*$/, "");
  const zip = files.length === 1 && /\.zip$/i.test(path) ? files[0][1] : new File([await packed(files)], `${name}.zip`, { type: "application/zip" });
  const held = new DataTransfer();
  held.items.add(zip);
  $("set-file").files = held.files;
  $("set-name").value ||= name.replace(/[^\w.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64);
});

// A form made by the recipe's own settings
let recipes = {};
const PLAIN = ["seen", "batch_size", "lr", "seed", "ema", "snapshot", "threads", "augment"];
function fields() {
  const recipe = recipes[$("recipe-name").value];
  $("recipe-about").textContent = $("recipe-name").selectedOptions[0]?.dataset.about ?? "";
  const several = recipe?.stage.length > 1;
  const parts = (recipe?.stage ?? []).map((stage) => {
    const given = { ...stage.train, ...stage.model, preset: stage.preset };
    const shown = ["preset", ...PLAIN.filter((key) => key in stage.train), ...Object.keys(stage.model)];
    const kind = (value) => (typeof value === "number" ? { type: "number", step: "any" } : { type: "text" });
    const field = (key) => el("label", {}, key, el("input", { "data-key": several ? `${stage.name}.${key}` : key, value: given[key] ?? "", "data-was": given[key] ?? "", ...kind(given[key]) }));
    return el("fieldset", { class: "fields wide" }, el("legend", {}, several ? `${stage.name} · ${stage.family}` : stage.family), ...shown.map(field));
  });
  $("recipe-fields").replaceChildren(...parts);
}
$("recipe-name").addEventListener("change", fields);
$("train-set").addEventListener("change", async () => {
  const name = $("train-set").value;
  const set = name && (await call("GET", `/api/v1/sets/${name}`, undefined, true).catch(() => null));
  if (name !== $("train-set").value) return;
  const labels = (set?.labels ?? []).map((column) => `${column.name} (${column.values.length.toLocaleString()})`);
  const licences = [...new Set((set?.sources ?? []).map((source) => source.licence))];
  const shape = set?.shape.length ? set.shape.join(" × ") : t("texts");
  $("set-about").textContent = set ? [`${set.count.toLocaleString()}`, shape, ...labels, ...licences].join(" · ") : "";
});
$("train").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("recipe-name").value;
  const overrides = [...$("recipe-fields").querySelectorAll("input")].filter((field) => field.value !== field.dataset.was).map((field) => `${field.dataset.key}=${field.value}`);
  overrides.push(...$("recipe-more").value.split("\n").map((line) => line.trim()).filter(Boolean));
  if ($("train-set").value) overrides.push(`data=${$("train-set").value}`);
  const job = await call("POST", "/api/v1/jobs", { kind: "train", request: { recipe: name, overrides, to: $("train-to").value } }).catch(() => null);
  if (job) show(job);
});

function picked() {
  return [...document.querySelectorAll("#evaluate-packages input:checked")].map((box) => box.value);
}
$("evaluate").addEventListener("submit", async (event) => {
  event.preventDefault();
  const packages = picked();
  if (!packages.length) return notice(t("Choose a package first."));
  const request = { packages, data: $("evaluate-set").value, judge: $("evaluate-judge").value || null, count: Number($("evaluate-count").value) };
  const job = await call("POST", "/api/v1/jobs", { kind: "evaluate", request }).catch(() => null);
  if (job) show(job);
});
/** The scores of a measurement as a table, a column for each package, and its report to keep. */
async function scores(held, event) {
  const address = `/api/v1/jobs/${event.job}/artifacts/${event.sha256}`;
  if (event.name === "report") {
    held.report.replaceChildren(el("a", { class: "button", href: address, download: `${title(held.job)}.html` }, t("Report")));
    return;
  }
  const found = await call("GET", address, undefined, true).catch(() => []);
  const names = [...new Set(found.flatMap((one) => one.metrics.map((metric) => metric.name)))];
  const cell = (metric) => el("td", {}, !metric ? "" : metric.low == null ? metric.value.toPrecision(4) : `${metric.value.toPrecision(4)} (${metric.low.toPrecision(3)} – ${metric.high.toPrecision(3)})`);
  const head = el("tr", {}, el("th", { scope: "col" }, t("Score")), ...found.map((one) => el("th", { scope: "col" }, one.name)));
  const rows = names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), ...found.map((one) => cell(one.metrics.find((metric) => metric.name === name)))));
  held.table.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}
function title({ kind, request }) {
  if (kind === "train") return `${request.recipe} → ${request.to}`;
  return kind === "evaluate" ? `${request.packages.join(", ")} / ${request.data}` : `${t(kind)} → ${request.to}`;
}

function show(job) {
  if (runs.has(job.id)) return runs.get(job.id);
  const [state, far] = [el("span", { class: "state", role: "status" }), el("span", { class: "state" })]; // only the first is read out
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
  const when = el("input", { type: "range", min: "0", value: "0", "aria-label": t("Sheet after so many samples") });
  when.hidden = true;
  when.addEventListener("input", () => sheet(held));
  const [table, report] = [el("div", { class: "scroll" }), el("p", { class: "hint" })];
  const what = title(job);
  const held = { job, state, far, bar, stop, resume, curve, which, sheets, when, drawn: [], table, report, points: [] };
  held.card = el("article", { class: "job", "data-job": job.id }, el("div", { class: "head" }, el("span", { class: "said" }, what), state, far, bar, stop, resume), curve, which, sheets, when, table, report);
  runs.set(job.id, held);
  update(held, job.state, job.error);
  $("trainings").prepend(held.card);
  return held;
}
function update(held, state, error) {
  held.job.state = state;
  say(held.state, t(state) + (error && state === "failed" ? `: ${told(error)}` : ""));
  held.stop.hidden = !["queued", "running"].includes(state);
  held.bar.hidden = state !== "running";
  if (held.bar.hidden) held.far.textContent = "";
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
    held.far.textContent = `${event.done.toLocaleString()} / ${event.total.toLocaleString()} ${t(event.unit)}${left}`;
  } else if (kind === "metric") draw(held, event);
  else if (kind === "artifact" && event.sha256 && held.job.kind === "evaluate") scores(held, event);
  else if (kind === "sheet" && event.sha256) {
    const newest = Number(held.when.value) >= held.drawn.length - 1;
    held.drawn.push(event);
    held.when.max = held.drawn.length - 1;
    held.when.hidden = held.drawn.length < 2;
    if (newest) held.when.value = held.drawn.length - 1;
    sheet(held);
  } else if (["done", "failed", "cancelled", "queued", "again"].includes(kind)) {
    update(held, kind === "again" ? "queued" : kind, event);
    if (kind === "done") {
      notice(`${title(held.job)}: ${t("done")}`);
      choices();
    }
  }
}
/** The sheet that is chosen, the newest unless somebody went back. */
async function sheet(held) {
  const event = held.drawn[Number(held.when.value)];
  const seen = event.seen ? event.seen.toLocaleString() : "";
  const address = `/api/v1/jobs/${held.job.id}/artifacts/${event.sha256}`;
  held.when.setAttribute("aria-valuetext", seen);
  if (event.suffix !== ".txt") {
    return held.sheets.replaceChildren(el("img", { src: address, alt: `${t("Samples of")} ${title(held.job)} ${seen}`, title: seen }));
  }
  const text = await call("GET", address, undefined, true).then((blob) => blob.text(), () => "");
  if (event === held.drawn[Number(held.when.value)]) held.sheets.replaceChildren(el("pre", { title: seen }, text));
}
function draw(held, event) {
  held.points = held.points.filter(([seen]) => seen < event.seen); // another stage begins, or a training goes on from before
  if (!held.points.length) held.name = undefined;
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
  await choices();
  const found = await call("GET", "/api/v1/jobs?limit=100", undefined, true).catch(() => []);
  for (const job of found.filter((one) => ["train", "prepare", "evaluate"].includes(one.kind)).slice(0, 12).reverse()) {
    show(job);
    replay(job);
  }
}
/** What happened in a job before this page was open. */
function replay(job) {
  const source = new EventSource(`/api/v1/jobs/${job.id}/events`);
  const until = Date.now();
  for (const kind of ["metric", "sheet", "progress", "artifact"]) source.addEventListener(kind, (event) => heard(kind, JSON.parse(event.data)));
  source.onerror = () => source.close();
  setTimeout(() => source.close(), 3000 + until - Date.now());
}
events(heard, async () => {
  for (const held of runs.values()) {
    const job = await call("GET", `/api/v1/jobs/${held.job.id}`, undefined, true).catch(() => null);
    if (job) update(held, job.state, job.error);
  }
});
if (data.scope === "generate") for (const id of ["train", "prepare", "evaluate"]) $(id).hidden = true;
begin();
