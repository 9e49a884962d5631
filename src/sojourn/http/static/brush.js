// The mask brush: what is painted over may change.
import { $, call, notice, picture, said, t } from "/static/common.js";

const SIDE = 512; // of the longer side
const canvas = $("canvas");
const pen = canvas.getContext("2d");
let image = null;
let strokes = [];
let now = null;
let cursor = null; // where the brush of the keys is

function drawn() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (image) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 0.6;
  draw(pen, "#e0218a");
  pen.globalAlpha = 1;
  if (!cursor) return;
  for (const [colour, width] of [["#fff", 4], ["#000", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(...cursor, Number($("brush-size").value) / 2, 0, 7);
    pen.stroke();
  }
}
function draw(on, colour) {
  const layer = document.createElement("canvas");
  layer.width = canvas.width;
  layer.height = canvas.height;
  const brush = layer.getContext("2d");
  brush.strokeStyle = brush.fillStyle = colour;
  brush.lineCap = brush.lineJoin = "round";
  for (const { size, points } of strokes) {
    brush.lineWidth = size;
    brush.beginPath();
    points.forEach(([x, y], i) => (i ? brush.lineTo(x, y) : brush.moveTo(x, y)));
    if (points.length === 1) brush.lineTo(points[0][0] + 0.1, points[0][1]);
    brush.stroke();
  }
  on.drawImage(layer, 0, 0);
}
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
};
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  now = { size: Number($("brush-size").value), points: [place(event)] };
  strokes.push(now);
  drawn();
});
canvas.addEventListener("pointermove", (event) => {
  if (!now) return;
  now.points.push(place(event));
  drawn();
});
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  const size = Number($("brush-size").value);
  cursor ??= [canvas.width / 2, canvas.height / 2];
  if (event.key in MOVES) {
    const [x, y] = MOVES[event.key].map((move, i) => cursor[i] + (move * size) / 3);
    cursor = [Math.min(Math.max(x, 0), canvas.width), Math.min(Math.max(y, 0), canvas.height)];
  } else if (event.key === " ") strokes.push({ size, points: [cursor] });
  else return;
  event.preventDefault();
  drawn();
});
canvas.addEventListener("blur", () => {
  cursor = null;
  drawn();
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (now = null));
$("brush-undo").addEventListener("click", () => {
  strokes.pop();
  drawn();
});
$("brush-clear").addEventListener("click", () => {
  strokes = [];
  drawn();
});
$("brush-close").addEventListener("click", () => $("brush").close());

/** Open the brush on a picture; send({prompt, source, mask}) when it is to be changed. */
export function paint(row, words, send) {
  strokes = [];
  cursor = null;
  const scale = SIDE / Math.max(row.width, row.height);
  canvas.width = Math.round(row.width * scale);
  canvas.height = Math.round(row.height * scale);
  image = new Image();
  image.onload = drawn;
  image.src = picture(row.id, SIDE);
  $("brush-prompt").value = words;
  $("brush-go").onclick = async () => {
    if (!strokes.length) return notice(t("Paint over what may change"), true);
    const mask = document.createElement("canvas");
    mask.width = canvas.width;
    mask.height = canvas.height;
    const on = mask.getContext("2d");
    on.fillStyle = "#000";
    on.fillRect(0, 0, mask.width, mask.height);
    draw(on, "#fff");
    const form = new FormData();
    form.append("file", await new Promise((done) => mask.toBlob(done, "image/png")), "mask.png");
    const kept = await call("POST", "/api/v1/uploads", form).catch(() => null);
    if (!kept) return;
    let text = $("brush-prompt").value;
    if (!said(text).has("n")) text += " --n 4";
    if (!said(text).has("model")) text += ` --model ${row.model}`;
    if (await send({ prompt: text, source: row.sha256, mask: kept.sha256 })) $("brush").close(); // else the strokes stay
  };
  $("brush").showModal();
}
