// Draws poses on a canvas in posefleet's colours: left limbs orange, right limbs blue, the middle in the person's colour.
// Keypoints of a schema without left and right have colours by their order instead, from red to violet.
// Positions are pixels of the image; line widths and sizes are units of the canvas.

import { boxOf, headBox, placeLabels } from "./labels.js";

const LEFT = "rgb(255 138 30)";
const RIGHT = "rgb(40 150 255)";
const OUTLINE = "rgb(20 20 20)";
const PEOPLE = ["#4ade80", "#e879f9", "#facc15", "#f87171", "#2dd4bf", "#c0a2ff", "#bef264"];

const FADED = 0.22;

const NOBODY = "#aaaaaa";

// By the number of a person; below 0: nobody is known.
export const personColour = (number) => (number < 0 ? NOBODY : PEOPLE[number % PEOPLE.length]);

let colours = new Map();
let fineness = 1; // factor of widths: many keypoints, as of a face, would cover each other
let heads = new Set(); // names of the keypoints of a head, which labels leave free

// Takes the keypoints of a model, as /v1/models has them; null before it has started.
export function setKeypoints(set) {
  const [names, pairs] = [set?.keypoints ?? [], set?.flip_pairs ?? []];
  heads = new Set(set?.groups?.head ?? set?.groups?.face ?? []);
  const hue = (index) => `hsl(${Math.round((index * 281) / (names.length - 1))} 90% 60%)`;
  colours = new Map(
    pairs.length || names.length < 2
      ? pairs.flatMap(([left, right]) => [[left, LEFT], [right, RIGHT]])
      : names.map((name, index) => [name, hue(index)]),
  );
  fineness = Math.min(1, Math.sqrt(17 / Math.max(names.length, 1)));
}

export const keypointColour = (keypoint, middle) => colours.get(keypoint) ?? middle;

// A limb has the colour of a side if both ends are on that side, or one end is and the other is in the middle of the
// body; where colours go by order, that of its second end.
function limbColour(a, b, middle) {
  const [one, other] = [keypointColour(a, null), keypointColour(b, null)];
  if (!one || !other || one === other) return one ?? other ?? middle;
  return one === LEFT || one === RIGHT ? middle : other;
}

// Draws people, the best on top, on a canvas of `size` [width, height]. `people` are {number, track, score, keypoints}
// with the visible keypoints, `number` as in `numbered` of result.js; `focus` is null or {person, keypoint}: the number of
// the highlighted person, and the name of a keypoint or null.
export function drawPoses(context, people, skeleton, scale, size, focus = null) {
  context.lineCap = context.lineJoin = "round";
  const faded = (person) => focus !== null && focus.person !== person.number;
  const inOrder = [...people].reverse().sort((a, b) => faded(b) - faded(a));
  const width = fineness * Math.min(1, Math.sqrt(6 / Math.max(people.length, 1))); // so do many people
  for (const person of inOrder) {
    context.globalAlpha = faded(person) ? FADED : 1;
    drawFigure(context, person, skeleton, scale, width);
  }
  const labels = labelsOf(context, people, scale, size);
  for (const person of inOrder.filter((person) => labels.has(person))) {
    context.globalAlpha = faded(person) ? FADED : 1;
    drawLabel(context, person, labels.get(person));
  }
  context.globalAlpha = 1;
  const at = people.find((person) => person.number === focus?.person)?.keypoints.find((k) => k.name === focus.keypoint);
  if (at) {
    circle(context, at.x * scale, at.y * scale, 9.5);
    stroke(context, OUTLINE, 4);
    stroke(context, "white", 2);
  }
}

function drawFigure(context, { number, keypoints }, skeleton, scale, fineness) {
  const middle = personColour(number);
  const at = new Map(keypoints.map(({ name, x, y }) => [name, [x * scale, y * scale]]));
  const [xs, ys] = [0, 1].map((axis) => [...at.values()].map((point) => point[axis]));
  const extent = at.size ? Math.hypot(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys)) : 0;
  const thickness = Math.min(Math.max(0.017 * fineness * extent, 1.6 * fineness), 7);
  const limbs = skeleton.filter(([a, b]) => at.has(a) && at.has(b));
  for (const dark of [true, false]) {
    for (const [a, b] of limbs) {
      context.beginPath();
      context.moveTo(...at.get(a));
      context.lineTo(...at.get(b));
      stroke(context, dark ? OUTLINE : limbColour(a, b, middle), thickness + (dark ? 1.6 * fineness : 0));
    }
  }
  const radius = 0.85 * thickness + 0.8 * fineness;
  for (const [name, [x, y]] of at) {
    circle(context, x, y, radius + 0.9 * fineness);
    fill(context, OUTLINE);
    circle(context, x, y, radius);
    fill(context, keypointColour(name, middle));
  }
}

// The box of each person's label, by person.
function labelsOf(context, people, scale, size) {
  context.font = "600 11px system-ui, sans-serif";
  const labelled = people.filter((person) => person.keypoints.length);
  const points = labelled.map(({ keypoints }) => keypoints.map(({ x, y }) => [x * scale, y * scale]));
  const faces = labelled.map(({ keypoints }, index) =>
    headBox(points[index].filter((_, place) => heads.has(keypoints[place].name)), points[index]),
  );
  const boxes = points.map((all, index) => boxOf(faces[index] ? [...all, ...corners(faces[index])] : all));
  const sizes = labelled.map((person) => [context.measureText(labelText(person)).width + 8, 16]);
  const placed = placeLabels(boxes, sizes, faces.filter(Boolean), size);
  return new Map(labelled.map((person, index) => [person, placed[index]]));
}

const corners = ([x1, y1, x2, y2]) => [[x1, y1], [x2, y2]];

// In films the number of the person comes before the score, as in the overlays of `posefleet predict`.
const labelText = ({ track, score }) => (typeof track === "number" ? `#${track} ` : "") + score.toFixed(2);

function drawLabel(context, person, [x, y, right, bottom]) {
  context.beginPath();
  context.roundRect(x, y, right - x, bottom - y, 4);
  fill(context, "rgb(20 20 20 / .78)");
  context.fillStyle = personColour(person.number);
  context.textBaseline = "middle";
  context.fillText(labelText(person), x + 4, y + 8.5);
}

// The keypoint nearest to (x, y), in pixels of the image, and closer than `reach`: {person, keypoint} or null. At equal
// distance the better person wins.
export function nearestKeypoint(people, x, y, reach) {
  let [nearest, least] = [null, reach];
  for (const person of people) {
    for (const keypoint of person.keypoints) {
      const distance = Math.hypot(keypoint.x - x, keypoint.y - y);
      if (distance < least) [nearest, least] = [{ person, keypoint }, distance];
    }
  }
  return nearest;
}

function circle(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
}

function stroke(context, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}

function fill(context, colour) {
  context.fillStyle = colour;
  context.fill();
}
