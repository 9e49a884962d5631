// The mask brush: what is painted over may change.
import { $, call, notice, picture, t } from "/static/common.js";

const canvas = $("canvas");
const pen = canvas.getContext("2d");
let image = null;
let strokes = [];
let now = null;

function drawn() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (image) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 0.6;
  draw(pen, "#e0218a");
  pen.globalAlpha = 1;
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
  image = new Image();
  image.onload = drawn;
  image.src = picture(row.id, 512);
  $("brush-prompt").value = words;
  $("brush-go").onclick = async () => {
    if (!strokes.length) return notice(t("Paint over what may change"), true);
    const mask = document.createElement("canvas");
    mask.width = mask.height = 512;
    const on = mask.getContext("2d");
    on.fillStyle = "#000";
    on.fillRect(0, 0, 512, 512);
    draw(on, "#fff");
    const form = new FormData();
    form.append("file", await new Promise((done) => mask.toBlob(done, "image/png")), "mask.png");
    const kept = await call("POST", "/api/v1/uploads", form).catch(() => null);
    if (!kept) return;
    $("brush").close();
    send({ prompt: `${$("brush-prompt").value} --n 4 --model ${row.model}`, source: row.sha256, mask: kept.sha256 });
  };
  $("brush").showModal();
}
