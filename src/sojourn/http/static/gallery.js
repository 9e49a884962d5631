// The gallery: pages of pictures as one scrolls, filters, many at once.
import { $, call, el, notice, picture, recipe, t } from "/static/common.js";

const PAGE = 100;
let before = null;
let loading = false;
let whole = false;
let asked = 0;
let anchor = null;
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
  const rows = await call("GET", `/api/v1/pictures?${query()}`).catch(() => []);
  if (mine !== asked) return;
  $("grid").append(...rows.map(cell));
  whole = rows.length < PAGE;
  before = rows.at(-1)?.id ?? before;
  loading = false;
  $("nothing").hidden = $("grid").children.length > 0;
  if (!whole && $("end").getBoundingClientRect().top < innerHeight + 800) more();
}
function afresh() {
  before = null;
  whole = loading = false;
  asked++;
  $("grid").replaceChildren();
  choose([]);
  more();
}
function cell(row) {
  const box = el("input", { type: "checkbox", "aria-label": `${t("Choose")} ${row.words} ${row.seed}` });
  const image = el("img", { src: picture(row.id), alt: row.words, loading: "lazy", decoding: "async", width: "136", height: "136" });
  const out = el("div", { class: "cell", role: "listitem" }, el("button", { type: "button", "aria-label": row.words, onclick: () => view(row) }, image), box);
  if (row.stars) out.append(el("span", { class: "star", "aria-label": `${row.stars} ★` }, "★"));
  out.row = row;
  box.addEventListener("click", (event) => {
    const cells = [...$("grid").children];
    if (event.shiftKey && anchor) {
      const [from, to] = [cells.indexOf(anchor), cells.indexOf(out)].sort((a, b) => a - b);
      choose([...chosen.keys(), ...cells.slice(from, to + 1)]);
    } else choose(box.checked ? [...chosen.keys(), out] : [...chosen.keys()].filter((other) => other !== out));
    anchor = out;
  });
  return out;
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
new IntersectionObserver((entries) => entries[0].isIntersecting && more(), { rootMargin: "800px" }).observe($("end"));

async function collections() {
  const found = await call("GET", "/api/v1/collections", undefined, true).catch(() => []);
  const held = $("collection").value;
  $("collection").replaceChildren(el("option", { value: "" }, t("any")), ...found.map((one) => el("option", { value: one.id }, `${one.name} (${one.count})`)));
  $("collection").value = held;
}
const ACTS = {
  star: async (ids) => {
    for (const id of ids) await call("POST", "/api/v1/ratings", { kind: "stars", picture: id, value: 5 });
    afresh();
  },
  trash: async (ids) => {
    await call("POST", "/api/v1/pictures/trash", { ids });
    for (const one of chosen.keys()) one.remove();
    choose([]);
  },
  back: async (ids) => {
    await call("POST", "/api/v1/pictures/trash?back=true", { ids });
    for (const one of chosen.keys()) one.remove();
    choose([]);
  },
  zip: async (ids) => {
    const blob = await call("POST", "/api/v1/pictures/zip", { ids });
    const link = el("a", { href: URL.createObjectURL(blob), download: "sojourn.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  },
  collect: async (ids) => {
    const name = globalThis.prompt(t("Name of the collection"));
    if (!name?.trim()) return;
    await call("POST", "/api/v1/collections", { name, ids });
    notice(t("{count} in {name}", { count: ids.length, name }));
    choose([]);
    collections();
  },
  none: async () => choose([]),
};
$("chosen").addEventListener("click", (event) => {
  const act = event.target.closest("button")?.dataset.act;
  if (act) ACTS[act]([...chosen.values()].map((row) => row.id)).catch(() => {});
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen.size && !document.querySelector("dialog[open]")) choose([]);
});

async function view(row) {
  $("viewer-picture").src = picture(row.id, 1024);
  $("viewer-picture").alt = row.words;
  $("viewer-words").textContent = row.words;
  $("viewer-row").replaceChildren(
    el("button", { type: "button", onclick: () => recipe(row) }, t("Recipe")),
    el("a", { class: "button", href: picture(row.id), download: `sojourn-${row.id}.png` }, t("Download")),
  );
  $("viewer-alike").replaceChildren();
  if (!$("viewer").open) $("viewer").showModal();
  const near = await call("GET", `/api/v1/pictures/${row.id}/alike?limit=12`, undefined, true).catch(() => []);
  $("viewer-alike").replaceChildren(...near.filter((one) => one.picture.id !== row.id).map((one) => el("img", { src: picture(one.picture.id), alt: one.picture.words, title: one.picture.words })));
}
collections();
afresh();
