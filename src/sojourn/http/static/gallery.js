// The gallery: pages of pictures as one scrolls, filters, many at once.
import { $, call, el, notice, picture, recipe, t, thumb } from "/static/common.js";

const PAGE = 100;
const BLOCK = 840; // cells laid out together: 1 to 8 columns make whole rows of them
const MOST = 1000; // ids of one request
const AGAIN = 3000; // ms until what failed is asked for once more
let before = null;
let loading = false;
let whole = false;
let missed = false;
let asked = 0;
let anchor = null;
let viewed = null;
const chosen = new Map();

function query() {
  const out = new URLSearchParams({ limit: PAGE });
  for (const name of ["words", "model", "collection"]) if ($(name).value) out.set(name, $(name).value);
  if ($("stars").value !== "0") out.set("stars", $("stars").value);
  for (const name of ["trashed", "hidden"]) if ($(name).checked) out.set(name, "true");
  if (before) out.set("before", before);
  return out;
}
async function more() {
  if (loading || whole) return;
  loading = true;
  const mine = ++asked;
  const rows = await call("GET", `/api/v1/pictures?${query()}`, undefined, missed).catch(() => null);
  if (mine !== asked) return;
  loading = false;
  missed = !rows;
  if (missed) return void setTimeout(more, AGAIN); // it was said once
  for (const row of rows) place(cell(row));
  whole = rows.length < PAGE;
  before = rows.at(-1)?.id ?? before;
  $("nothing").hidden = $("grid").children.length > 0;
  if (whole) return;
  ends.unobserve($("end")); // it tells only what changes, and the end may be in sight still
  ends.observe($("end"));
}
/** What it tells at once is in order: the last is how things are. */
const ends = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && more(), { rootMargin: "800px" });
const cells = () => [...document.querySelectorAll(".cell")];
/** At the end, in a block that the browser skips while it is out of sight: else each step of a scroll costs by all. */
function place(cell) {
  let last = $("grid").lastElementChild;
  if (!last || last.children.length === BLOCK) $("grid").append((last = el("div", { class: "grid" })));
  last.append(cell);
}
/** Fill each block from the next, where cells were taken away. */
function refill() {
  cells().forEach((one, i) => {
    const block = $("grid").children[Math.floor(i / BLOCK)];
    if (one.parentElement !== block) block.append(one);
  });
  for (const block of [...$("grid").children]) if (!block.firstElementChild) block.remove();
}
function afresh() {
  before = null;
  whole = loading = false;
  asked++;
  $("grid").replaceChildren();
  choose([]);
  for (const button of document.querySelectorAll("[data-where]")) {
    const [, not, name] = /(!?)(.*)/.exec(button.dataset.where);
    const there = name === "collection" ? $(name).value !== "" : $(name).checked;
    button.hidden = there === (not === "!");
  }
  more();
}
function cell(row) {
  const box = el("input", { type: "checkbox", "aria-label": `${t("Choose")} ${row.words} ${row.seed}` });
  const image = el("img", { src: thumb(row), alt: row.words, loading: "lazy", decoding: "async", width: "136", height: "136" });
  const out = el("div", { class: "cell", role: "listitem" }, el("button", { type: "button", "aria-label": row.words, onclick: () => view(row) }, image), box);
  out.row = row;
  starred(out);
  box.addEventListener("click", (event) => {
    if (event.shiftKey && anchor?.isConnected) {
      const all = cells();
      const [from, to] = [all.indexOf(anchor), all.indexOf(out)].sort((a, b) => a - b);
      choose([...chosen.keys(), ...all.slice(from, to + 1)]);
    } else choose(box.checked ? [...chosen.keys(), out] : [...chosen.keys()].filter((other) => other !== out));
    anchor = out;
  });
  return out;
}
function starred(cell) {
  cell.querySelector(".star")?.remove();
  if (cell.row.stars) cell.append(el("span", { class: "star", role: "img", "aria-label": `${cell.row.stars} ★` }, "★"));
}
function choose(cells) {
  for (const old of chosen.keys()) {
    old.classList.remove("on");
    old.querySelector("input").checked = false;
  }
  chosen.clear();
  for (const one of cells) {
    chosen.set(one, one.row);
    one.classList.add("on");
    one.querySelector("input").checked = true;
  }
  $("chosen").hidden = !chosen.size;
  $("count").textContent = t("{count} chosen", { count: chosen.size });
}
for (const name of ["stars", "model", "collection", "trashed", "hidden"]) $(name).addEventListener("change", afresh);
let typing;
$("words").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(afresh, 250);
});
$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  afresh();
});
ends.observe($("end"));

async function collections() {
  const found = await call("GET", "/api/v1/collections", undefined, true).catch(() => null);
  if (!found) return; // the choice stays
  const held = $("collection").value;
  $("collection").replaceChildren(el("option", { value: "" }, t("any")), ...found.map((one) => el("option", { value: one.id }, `${one.name} (${one.count})`)));
  $("collection").value = held;
}
/** Choose these no more; others that were chosen meanwhile stay so. */
function left(cells) {
  choose([...chosen.keys()].filter((one) => !cells.includes(one)));
}
/** Ask for all that are chosen, so many at once as a request may hold. */
async function ask(ids, path, more = {}) {
  for (let i = 0; i < ids.length; i += MOST) await call("POST", path, { ...more, ids: ids.slice(i, i + MOST) });
}
function gone(cells) {
  for (const one of cells) one.remove();
  left(cells);
  refill();
  $("nothing").hidden = $("grid").children.length > 0;
}
/** Whether somebody who is asked says yes. */
function sure(text, yes) {
  $("sure-text").textContent = text;
  $("sure-yes").textContent = yes;
  $("sure").returnValue = "";
  $("sure").showModal();
  return new Promise((done) => $("sure").addEventListener("close", () => done($("sure").returnValue === "yes"), { once: true }));
}
const RATE = "/api/v1/ratings/many";
const ACTS = {
  star: async (ids, cells) => {
    await ask(ids, RATE, { kind: "stars", value: 5 });
    for (const one of cells) {
      one.row.stars = 5;
      starred(one);
    }
    left(cells);
  },
  hide: (ids, cells) => ask(ids, RATE, { kind: "hide", value: 1 }).then(() => gone(cells)),
  show: (ids, cells) => ask(ids, RATE, { kind: "hide", value: 0 }).then(() => gone(cells)),
  trash: (ids, cells) => ask(ids, "/api/v1/pictures/trash").then(() => gone(cells)),
  back: (ids, cells) => ask(ids, "/api/v1/pictures/trash?back=true").then(() => gone(cells)),
  zip: async (ids) => {
    for (let i = 0; i < ids.length; i += MOST) {
      const blob = await call("POST", "/api/v1/pictures/zip", { ids: ids.slice(i, i + MOST) });
      const link = el("a", { href: URL.createObjectURL(blob), download: i ? `sojourn-${i / MOST + 1}.zip` : "sojourn.zip" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }
  },
  collect: async (ids, cells) => {
    const name = globalThis.prompt(t("Name of the collection"));
    if (!name?.trim()) return;
    await ask(ids, "/api/v1/collections", { name });
    notice(t("{count} in {name}", { count: ids.length, name }));
    left(cells);
    collections();
  },
  out: async (ids, cells) => {
    await ask(ids, "/api/v1/collections/out", { collection: Number($("collection").value) });
    gone(cells);
    collections();
  },
  none: async () => choose([]),
};
$("empty").addEventListener("click", async () => {
  if (!(await sure(t("All pictures in the trash will be deleted for good."), t("Empty the trash")))) return;
  await call("DELETE", "/api/v1/trash").catch(() => null);
  afresh();
});
$("scatter").addEventListener("click", async () => {
  const one = $("collection").selectedOptions[0];
  if (!(await sure(t("{name} will be deleted; its pictures stay.", { name: one.textContent }), t("Delete the collection")))) return;
  if (!(await call("DELETE", `/api/v1/collections/${one.value}`).catch(() => null))) return;
  $("collection").value = "";
  await collections();
  afresh();
});
$("chosen").addEventListener("click", (event) => {
  const act = event.target.closest("button")?.dataset.act;
  const these = [...chosen.keys()];
  if (act) ACTS[act](these.map((one) => one.row.id), these).catch(() => {});
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen.size && !document.querySelector("dialog[open]")) choose([]);
});

async function view(row) {
  viewed = row.id;
  $("viewer-picture").src = picture(row.id, 1024);
  $("viewer-picture").alt = row.words;
  $("viewer-words").textContent = row.words;
  $("viewer-row").replaceChildren(
    el("button", { type: "button", onclick: () => recipe(row) }, t("Recipe")),
    el("a", { class: "button", href: picture(row.id), download: `sojourn-${row.id}.png` }, t("Download")),
  );
  $("viewer-alike").replaceChildren();
  if ($("viewer").open) $("viewer-row").firstChild.focus(); // the link that was followed is gone
  else $("viewer").showModal();
  const near = await call("GET", `/api/v1/pictures/${row.id}/alike?limit=12`, undefined, true).catch(() => []);
  if (viewed === row.id) $("viewer-alike").replaceChildren(...near.filter((one) => one.picture.id !== row.id).map((one) => alike(one.picture)));
}
function alike(row) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // into a tab of its own
    event.preventDefault();
    view(row);
  };
  return el("a", { href: picture(row.id, 1024), title: row.words, onclick: follow }, el("img", { src: thumb(row), alt: row.words }));
}
collections();
afresh();
