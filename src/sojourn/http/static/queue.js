// All jobs, live.
import { $, call, el, events, t, told } from "/static/common.js";

const rows = new Map();

function show(job, fresh) {
  if (rows.has(job.id)) {
    state(rows.get(job.id), job.state, job.error);
    return;
  }
  const what = job.request.prompt ?? (job.request.recipe ? `${job.request.recipe} → ${job.request.to}` : job.request.to ?? (job.request.packages ?? []).join(", "));
  const held = { job, state: el("td"), progress: el("td"), left: el("td"), act: el("td") };
  held.row = el("tr", { "data-job": job.id }, el("td", {}, `${job.id}`), el("td", {}, `${t(job.kind)}: ${what}`), held.state, held.progress, held.left, held.act);
  rows.set(job.id, held);
  if (fresh) document.querySelector("tbody").prepend(held.row);
  else document.querySelector("tbody").append(held.row);
  state(held, job.state, job.error);
  if (job.progress) progress(held, job.progress);
  $("nothing").hidden = true;
}
function state(held, name, error) {
  held.state.textContent = t(name) + (name === "failed" ? `: ${told(error)}` : "");
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
  const found = await call("GET", "/api/v1/jobs?limit=200");
  for (const job of found) show(job, false);
  $("nothing").hidden = found.length > 0;
}
events(async (kind, event) => {
  if (!rows.has(event.job)) {
    const job = await call("GET", `/api/v1/jobs/${event.job}`, undefined, true).catch(() => null);
    if (job) show(job, true);
    return;
  }
  const held = rows.get(event.job);
  if (kind === "progress") progress(held, event);
  else if (kind === "preview") progress(held, { done: event.step, total: event.steps });
  else if (kind === "started") state(held, "running");
  else if (kind === "again") state(held, "queued");
  else if (["done", "failed", "cancelled"].includes(kind)) state(held, kind, event);
}, load);
load();
