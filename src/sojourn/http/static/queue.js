// All jobs, live.
import { $, call, data, el, events, say, t, told } from "/static/common.js";

const AGAIN_MS = 5000;
const everyone = data.scope === "admin" && data.owner !== "local";
const OVER = ["done", "failed", "cancelled"];
const rows = new Map();

function show(job) {
  if (rows.has(job.id)) {
    if (OVER.includes(rows.get(job.id).name) && !OVER.includes(job.state)) return; // an answer from before
    state(rows.get(job.id), job.state, job.error);
    if (job.state === "running" && job.progress) progress(rows.get(job.id), job.progress);
    return;
  }
  const what = job.request.prompt ?? (job.request.recipe ? `${job.request.recipe} → ${job.request.to}` : job.request.to ?? (job.request.packages ?? []).join(", "));
  const held = { job, state: el("span", { role: "status" }), progress: el("td"), left: el("td"), act: el("td") };
  held.row = el("tr", { "data-job": job.id }, el("td", {}, `${job.id}`), everyone ? el("td", {}, job.owner) : null, el("td", {}, `${t(job.kind)}: ${what}`), el("td", {}, held.state), held.progress, held.left, held.act);
  rows.set(job.id, held);
  state(held, job.state, job.error);
  if (job.state === "running" && job.progress) progress(held, job.progress);
  const body = document.querySelector("tbody");
  body.insertBefore(held.row, [...body.children].find((row) => Number(row.dataset.job) < job.id) ?? null);
  $("nothing").hidden = true;
}
function state(held, name, error) {
  say(held.state, t(name) + (name === "failed" ? `: ${told(error)}` : ""));
  if (held.name === name) return; // the button under somebody's hand stays
  held.name = name;
  held.act.replaceChildren();
  if (["queued", "running"].includes(name)) {
    held.act.append(el("button", { type: "button", onclick: () => call("DELETE", `/api/v1/jobs/${held.job.id}`) }, t("Stop")));
  } else {
    held.progress.replaceChildren();
    held.left.textContent = "";
  }
}
function progress(held, event) {
  held.progress.replaceChildren(el("progress", { max: event.total || 1, value: event.done, "aria-label": t("Progress") }));
  held.left.textContent = event.eta_s ? `${Math.ceil(event.eta_s)} s` : "";
}
async function load() {
  const found = await call("GET", `/api/v1/jobs?limit=200${everyone ? "&everyone=true" : ""}`);
  for (const job of found) show(job);
  $("nothing").hidden = found.length > 0;
}
events(async (kind, event) => {
  if (!rows.has(event.job)) {
    const job = await call("GET", `/api/v1/jobs/${event.job}`, undefined, true).catch(() => null);
    if (job) show(job);
    return;
  }
  const held = rows.get(event.job);
  if (kind === "progress") progress(held, event);
  else if (kind === "preview") progress(held, { done: event.step, total: event.steps });
  else if (kind === "started") state(held, "running");
  else if (kind === "again") state(held, "queued");
  else if (OVER.includes(kind)) state(held, kind, event);
}, load);
load();
if (everyone) setInterval(() => document.hidden || load().catch(() => {}), AGAIN_MS); // events are one's own
