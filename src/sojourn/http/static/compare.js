// Two pictures, and which is better.
import { $, call, picture, t } from "/static/common.js";

const AGAIN = 3000; // ms until what failed is asked for once more
let rows = [];
let pair = null;
let count = 0;

async function load(quiet = false) {
  const found = await call("GET", "/api/v1/pictures?limit=500", undefined, quiet).catch(() => null);
  if (!found) return void setTimeout(load, AGAIN, true); // it was said once
  const byWords = Map.groupBy ? Map.groupBy(found, (row) => row.words) : found.reduce((map, row) => map.set(row.words, [...(map.get(row.words) ?? []), row]), new Map());
  rows = [...byWords.values()].filter((group) => group.length > 1);
  next();
}
function next() {
  $("nothing").hidden = rows.length > 0;
  for (const side of ["left", "right", "draw"]) $(side).disabled = !rows.length;
  if (!rows.length) return;
  const group = rows[Math.floor(Math.random() * rows.length)];
  const first = Math.floor(Math.random() * group.length);
  const second = (first + 1 + Math.floor(Math.random() * (group.length - 1))) % group.length;
  show([group[first], group[second]]);
}
/** Two pictures; none is judged before it is seen. */
async function show(two) {
  const images = ["left", "right"].map((side) => $(side).querySelector("img"));
  images.forEach((image, i) => (image.src = picture(two[i].id, 512)));
  $("words").textContent = two[0].words;
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  pair = two;
  $("tally").textContent = t("{count} compared", { count });
}
async function judge(better, draw = false) {
  if (!pair) return;
  const [one, other] = better === 1 ? [pair[1], pair[0]] : pair;
  const before = pair;
  pair = null;
  try {
    await call("POST", "/api/v1/ratings", { kind: "pair", picture: one.id, other: other.id, value: draw ? 0 : 1 });
    count++;
    next();
  } catch {
    show(before);
  }
}
async function undo() {
  if (!count) return; // what was compared on an earlier visit stays
  count--; // at once: the next Z may come before the answer
  if (!(await call("DELETE", "/api/v1/ratings/last?kind=pair").catch(() => null))) count++;
  $("tally").textContent = t("{count} compared", { count });
}
$("left").addEventListener("click", () => judge(0));
$("right").addEventListener("click", () => judge(1));
$("draw").addEventListener("click", () => judge(0, true));
$("undo").addEventListener("click", undo);
addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const act = { ArrowLeft: () => judge(0), ArrowRight: () => judge(1), ArrowUp: () => judge(0, true), z: undo, Z: undo }[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
load();
