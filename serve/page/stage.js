// The stage: the image, the poses over it, and the tip for the keypoint under the pointer.

import { drawPoses, nearestKeypoint, personColour, setKeypoints } from "./skeleton.js";
import { nameOf } from "./words.js";

const REACH = { mouse: 14, pen: 14, touch: 28 }; // pixels of the screen within which the pointer finds a keypoint
const PNG_SIDE = 1200; // lines of a saved image are as thin as on a screen of this many pixels

const [stage, frame, canvas, tip, drop, caption] = ["stage", "frame", "canvas", "tip", "drop", "caption"].map((id) =>
  document.getElementById(id),
);
const [frameOther, canvasOther, captionOther] = ["frame", "canvas", "caption"].map((id) =>
  document.getElementById(`${id}-other`),
);
const view = { image: null, width: 0, height: 0, people: [], set: null, focus: null, pointer: null };
let other = null; // {people, set, caption} of the model beside it

// Shows an image without poses. Sizes are those of the upright image, in pixels.
// `image` is null if the browser cannot show the file; its poses then have a plain background.
export function placeImage(image, width, height) {
  Object.assign(view, { image, width, height, people: [] });
  drop.hidden = true;
  frame.hidden = false;
  for (const each of [frame, frameOther]) {
    each.style.aspectRatio = `${width} / ${height}`;
    each.style.setProperty("--shape", width / height);
    each.style.setProperty("--width", `${width}px`);
    each.querySelector("img")?.remove();
  }
  if (image) {
    frame.prepend(image);
    frameOther.prepend(image.cloneNode());
  }
  draw();
}

// Takes the keypoint set of the model whose people are shown; null before it has started.
export function useKeypoints(set) {
  view.set = set;
  setKeypoints(set);
}

// Draws people over the image; `people` as for `drawPoses`. The text is shown while another model is beside it.
export function showPeople(people, text = "") {
  view.people = people;
  caption.textContent = text;
  if (view.pointer) point();
  else draw(); // the panel may highlight somebody
}

// Shows the same image with the people of another model beside it; null: no longer.
export function showOther(shown) {
  other = shown;
  frameOther.hidden = caption.hidden = !other;
  stage.classList.toggle("double", !!other);
  captionOther.textContent = other?.caption ?? "";
  draw();
}

// Highlights a person and one of their keypoints: {person, keypoint} or null.
export function setFocus(focus) {
  view.focus = focus;
  draw();
}

// Image and poses as a PNG file, in the size of the image.
export function saveImage() {
  const { image, width, height, people, set } = view;
  const whole = Object.assign(document.createElement("canvas"), { width, height });
  const poses = Object.assign(document.createElement("canvas"), { width, height });
  const zoom = Math.max(1, Math.max(width, height) / PNG_SIDE);
  const layer = poses.getContext("2d");
  layer.scale(zoom, zoom);
  setKeypoints(set);
  drawPoses(layer, people, set?.skeleton ?? [], 1 / zoom, [width / zoom, height / zoom]);
  const context = whole.getContext("2d");
  if (image) context.drawImage(image, 0, 0, width, height);
  context.globalAlpha = 0.9;
  context.drawImage(poses, 0, 0);
  return new Promise((resolve) => whole.toBlob(resolve, "image/png"));
}

const scale = () => frame.clientWidth / view.width;

function draw() {
  if (!view.width) return;
  if (other) drawOn(frameOther, canvasOther, other, null);
  drawOn(frame, canvas, view, view.focus); // last, as the panel has the colours of its keypoints
}

function drawOn(frame, canvas, { people, set }, focus) {
  const density = window.devicePixelRatio;
  canvas.width = Math.round(frame.clientWidth * density);
  canvas.height = Math.round(frame.clientHeight * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  setKeypoints(set);
  const size = [frame.clientWidth, frame.clientHeight];
  drawPoses(context, people, set?.skeleton ?? [], frame.clientWidth / view.width, size, focus);
}

// Finds the keypoint under the pointer, shows its name and highlights its person.
function point() {
  const { pointer, people } = view;
  const box = canvas.getBoundingClientRect();
  const found =
    pointer &&
    nearestKeypoint(
      people,
      (pointer.x - box.left) / scale(),
      (pointer.y - box.top) / scale(),
      REACH[pointer.type] / scale(),
    );
  tip.hidden = !found;
  setFocus(found ? { person: found.person.number, keypoint: found.keypoint.name } : null);
  if (found) showTip(found);
}

function showTip({ person, keypoint }) {
  const [name, about] = tip.children;
  name.textContent = keypoint.name.replaceAll("_", " ");
  about.textContent = `${keypoint.score.toFixed(2)} · ${nameOf(person)}`;
  tip.style.borderColor = personColour(person.number);
  const x = frame.offsetLeft + keypoint.x * scale();
  const y = frame.offsetTop + keypoint.y * scale();
  const half = tip.offsetWidth / 2 + 4;
  tip.style.left = `${Math.min(Math.max(x, half), stage.clientWidth - half)}px`;
  tip.style.top = `${y}px`;
  tip.classList.toggle("below", y < tip.offsetHeight + 20);
}

function follow(event) {
  view.pointer = { x: event.clientX, y: event.clientY, type: event.pointerType || "mouse" };
  point();
}

canvas.addEventListener("pointermove", follow);
canvas.addEventListener("pointerdown", follow);
// Lifting a finger also fires this event; the tip stays, so that it can be read.
canvas.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "touch") return;
  view.pointer = null;
  point();
});
const resized = new ResizeObserver(draw);
resized.observe(frame);
resized.observe(frameOther);
window.addEventListener("resize", draw);
